-- Read a condition and its completions at one moment.
--
-- KEYS[1]  the condition    KEYS[2]  its items
--
-- Returns head, terms, and the items as child, value, child, value ...; nil if there is no condition.

local row = redis.call('HMGET', KEYS[1], 'head', 'terms')
if not row[1] then return false end
return {row[1], row[2], redis.call('HGETALL', KEYS[2])}

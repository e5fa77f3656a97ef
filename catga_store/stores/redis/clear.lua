-- Remove keys, as a part of clearing the store.
--
-- KEYS[1]   where the end of the clearing is noted    KEYS[2..] what is to be removed
-- ARGV[1]   how long the note is kept, in ms of the server's own clock
-- ARGV[2]   '1' if this is the last part
--
-- Returns '[]'; or, fenced by a resolve: 0. Once the last part was removed, the others are no more.

local stored = redis.call('GET', KEYS[1])
if stored == '' then return 0 end
if stored then return stored end

for place = 2, #KEYS do redis.call('UNLINK', KEYS[place]) end
if ARGV[2] == '1' then redis.call('SET', KEYS[1], '[]', 'PX', ARGV[1]) end
return '[]'

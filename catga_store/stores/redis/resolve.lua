-- Settle a commit: return its outcome, or make sure that it is never applied.
--
-- KEYS[1]   key of the commit's reply
-- KEYS[2..] the hashes of the records that it names
-- ARGV[1]   id of the commit    ARGV[2]  how long the fence is kept, in ms of the server's clock
-- ARGV[3..] the field of each record's head in its hash
--
-- Returns the reply; or 1 if only a record remembers the commit; or 0, and it is never applied.

local stored = redis.call('GET', KEYS[1])
if stored then
  redis.call('PEXPIRE', KEYS[1], ARGV[2]) -- a write, for WAIT: see lost_replies.py
  if stored == '' then return 0 end
  return stored
end

for place = 2, #KEYS do
  local head = redis.call('HGET', KEYS[place], ARGV[place + 1])
  local commits = head and string.match(head, '^%["([^"]*)"')
  if commits and string.find(' ' .. commits .. ' ', ' ' .. ARGV[1] .. ' ', 1, true) then
    redis.call('SET', KEYS[1], '[]', 'PX', ARGV[2])
    return 1
  end
end

redis.call('SET', KEYS[1], '', 'PX', ARGV[2])
return 0

-- Move the due time of a flow that is still under a claim.
--
-- KEYS[1]  key of the reply    KEYS[2]  the index of the partition    KEYS[3]  the flow
-- ARGV[1]  how long the reply is kept, in ms of the server's clock
-- ARGV[2]  the flow's id    ARGV[3]  the claim    ARGV[4]  due_ms    ARGV[5]  now, in ms
--
-- Returns the new head; nil if there is no such flow or its claim is another one; 0 if a resolve has
-- fenced the extension. Error: 'CORRUPT 0': the stored head cannot be read.

local stored = redis.call('GET', KEYS[1])
if stored then
  redis.call('PEXPIRE', KEYS[1], ARGV[1]) -- a write, for WAIT: see lost_replies.py
  if stored == '' then return 0 end
  return redis.call('HGET', KEYS[3], 'head')
end

index, now = KEYS[2], tonumber(ARGV[5])
redis.call('ZCARD', index)
local head = read_flow(KEYS[3])
if head == false then return redis.error_reply('CORRUPT 0') end
if not head or has_expired(head) or cjson.decode('[' .. head.rest)[8] ~= ARGV[3] then return false end

local before = flow_entries(ARGV[2], head)
head.due = tonumber(ARGV[4])
reindex(before, flow_entries(ARGV[2], head))
local text = write(head)
redis.call('HSET', KEYS[3], 'head', text)
redis.call('SET', KEYS[1], '[[]]', 'PX', ARGV[1])
hint(head.due, head.rest)
publish_hints()
return text

-- Move the due time of a flow that is still under a claim.
--
-- KEYS[1]  the flow    KEYS[2]  the index of its partition
-- ARGV[1]  its id    ARGV[2]  the claim    ARGV[3]  due_ms    ARGV[4]  now, in ms
--
-- Returns the head as it is then; nil if there is no such flow or the claim is another.
-- An error 'CORRUPT 0': the stored head is not ours.

index, now = KEYS[2], tonumber(ARGV[4])
redis.call('ZCARD', index)
local head = read_flow(KEYS[1])
if head == false then return redis.error_reply('CORRUPT 0') end
if not head or has_expired(head) or cjson.decode('[' .. head.rest)[7] ~= ARGV[2] then return false end

local before = flow_entries(ARGV[1], head)
head.due = tonumber(ARGV[3])
reindex(before, flow_entries(ARGV[1], head))
local text = write(head)
redis.call('HSET', KEYS[1], 'head', text)
return text

-- Remove parts of a flow, by the bytes of their names.
--
-- KEYS[1]  key of the reply    KEYS[2]  the index of the partition
-- KEYS[3]  the flow    KEYS[4]  its parts    KEYS[5]  their names
-- ARGV[1]  how long the reply is kept, in ms of the server's clock
-- ARGV[2]  now, in ms    ARGV[3]  the flow's id
-- ARGV[4]  first    ARGV[5]  last: members of the names, as ZRANGEBYLEX takes them
-- ARGV[6]  how many at most
-- ARGV[7]  only names that have the digits of a sequence from this place on, and nothing else; '' for all
--
-- Returns [[n]], the number of removed parts as JSON, and a newline if large bodies are left to be removed;
-- or 0 if a resolve has fenced the removal. Error: 'CORRUPT 0': the head of the flow cannot be read.

local stored = redis.call('GET', KEYS[1])
if stored then
  redis.call('PEXPIRE', KEYS[1], ARGV[1]) -- a write, for WAIT: see lost_replies.py
  if stored == '' then return 0 end
  return stored
end

index, now = KEYS[2], tonumber(ARGV[2])
redis.call('ZCARD', index)
redis.call('HLEN', KEYS[4])
local keys, flow, found = {parts = KEYS[4], names = KEYS[5]}, read_flow(KEYS[3]), {}
if flow == false then return redis.error_reply('CORRUPT 0') end
if not (flow and has_expired(flow)) then
  found = names_between(KEYS[5], ARGV[4], ARGV[5], false, tonumber(ARGV[6]), tonumber(ARGV[7]))
end
for _, name in ipairs(found) do
  local text = redis.call('HGET', keys.parts, 'h' .. name)
  remove_part(keys, ARGV[3], name, text and parse(text))
end
local reply = '[[' .. int(#found) .. ']]' .. (left_large and '\n' or '')
redis.call('SET', KEYS[1], reply, 'PX', ARGV[1])
return reply

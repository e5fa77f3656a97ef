-- List the progress records of a flow at one moment.
--
-- KEYS[1]  the flow    KEYS[2]  its steps
-- ARGV[1]  '1' to return the bodies too
--
-- Returns the flow's head (or nil), and step, head, body (or nil), step, head, body ...

local found = {redis.call('HGET', KEYS[1], 'head')}
for _, field in ipairs(redis.call('HKEYS', KEYS[2])) do
  if string.sub(field, 1, 1) == 'h' then
    local step = string.sub(field, 2)
    found[#found + 1] = step
    found[#found + 1] = redis.call('HGET', KEYS[2], field)
    found[#found + 1] = ARGV[1] == '1' and redis.call('HGET', KEYS[2], 'b' .. step)
  end
end
return found

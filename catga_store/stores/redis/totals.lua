-- Count the flows of one partition by status and type, from the index.
--
-- KEYS[1]  the index
-- ARGV[1]  where to begin, as ZRANGEBYLEX takes it: '[fb', or what the last call has returned
-- ARGV[2]  the most pairs of status and type to count
--
-- Returns where to go on ('' at the end), and then status, type, number, status, type, number ...
-- Each pair costs two look-ups, however many flows there are.

local found, first = {''}, ARGV[1]
for _ = 1, tonumber(ARGV[2]) do
  local member = redis.call('ZRANGEBYLEX', KEYS[1], first, '(fc', 'LIMIT', '0', '1')[1]
  if not member then return found end
  local status, length = string.match(member, '^fb(%d)(%d+):')
  if status then
    local stop = 4 + #length + tonumber(length) -- of fb, the status, the length, a colon and the type
    local begin = string.sub(member, 1, stop)
    found[#found + 1] = status
    found[#found + 1] = string.sub(member, 5 + #length, stop)
    found[#found + 1] = redis.call('ZLEXCOUNT', KEYS[1], '[' .. begin, '(' .. begin .. ':')
    first = '[' .. begin .. ':' -- follows every digit, with which a time begins
  else
    first = '(' .. member
  end
end
found[1] = first
return found

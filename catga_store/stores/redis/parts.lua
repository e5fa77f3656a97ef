-- List parts of a flow at one moment, by the bytes of their names.
--
-- KEYS[1]  the flow    KEYS[2]  its parts    KEYS[3]  their names
-- ARGV[1]  first    ARGV[2]  last: members of the names, as ZRANGEBYLEX takes them
-- ARGV[3]  '1' for the last ones, last first    ARGV[4]  how many at most
-- ARGV[5]  only names that have the digits of a sequence from this place on, and nothing else; '' for all
-- ARGV[6]  how many bytes of bodies, after which the list is cut; '' for a list without bodies
-- ARGV[7]  the list ends with the first name that ends with this; '' for none
--
-- Returns the flow's head (or nil), 1 if the list was cut by ARGV[6], else 0; and for each part its name, head,
-- body (nil if it is large or not asked for), and the number and name of the chunks of a large one.

local head, parts = redis.call('HGET', KEYS[1], 'head'), KEYS[2]
local names = names_between(KEYS[3], ARGV[1], ARGV[2], ARGV[3] == '1', tonumber(ARGV[4]), tonumber(ARGV[5]))
local most, size, ending = tonumber(ARGV[6]), 0, ARGV[7]
local found, at = {head, 0}, 2

if ending ~= '' then
  for place, name in ipairs(names) do
    if name:sub(-#ending) == ending then
      for after = #names, place + 1, -1 do names[after] = nil end
      break
    end
  end
end

local function add(name, stored, body, large)
  found[at + 1], found[at + 2], found[at + 3], found[at + 4] = name, stored, body, large
  at = at + 4
end

if not most and #names > 0 then
  local fields = {}
  for place, name in ipairs(names) do fields[place] = 'h' .. name end
  for place, stored in ipairs(redis.call('HMGET', parts, unpack(fields))) do
    add(names[place], stored, false, false)
  end
  return found
end

for place, name in ipairs(names) do
  local row = redis.call('HMGET', parts, 'h' .. name, 'b' .. name, 'l' .. name)
  add(name, row[1], row[2], row[3])
  size = size + #(row[2] or '')
  if size >= most and place < #names then
    found[2] = 1
    break
  end
end
return found

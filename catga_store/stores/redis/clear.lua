-- Remove a page of records and other keys, as a part of clearing the store. Records that others write
-- meanwhile stay, with their entries in the index.
--
-- KEYS[1]   key of the reply; written with the last page    KEYS[2]  the index of the partition
-- KEYS[3..] for each record: the flow, its steps, its chunks, its parts and their names, or the condition
--           and its items; then the other keys to remove
-- ARGV[1]   how long the reply is kept, in ms of the server's clock
-- ARGV[2]   '1' if this is the last page of all    ARGV[3]  '1' if it is the last of the partition
-- ARGV[4..] for each record: its kind (F, W) and its id
--
-- Returns '[]', or 0 if a resolve has fenced the clearing. If the last page was removed before, a page
-- that arrives again removes nothing.

local stored = redis.call('GET', KEYS[1])
if stored then
  redis.call('PEXPIRE', KEYS[1], ARGV[1]) -- a write, for WAIT: see lost_replies.py
  if stored == '' then return 0 end
  return stored
end

index = KEYS[2]
redis.call('ZCARD', index)

-- A record that cannot be read is removed too: it has no entries but those by its id.
local function unlist(entries_of, ...)
  local is_ours, entries = pcall(entries_of, ...)
  if is_ours then reindex(entries, {}) end
end

local function head_of(row)
  return type(row[1]) == 'string' and parse(row[1]) or nil
end

local at = 3
for place = 4, #ARGV, 2 do
  local key, id = KEYS[at], ARGV[place + 1]
  local row = redis.pcall('HMGET', key, 'head', 'parent')
  if ARGV[place] == 'F' then
    unlist(flow_entries, id, head_of(row))
    redis.call('ZREM', index, 'fi' .. id, 'pi' .. id, 'ni' .. id)
    local parts = KEYS[at + 3]
    local orphaned = redis.pcall('HGET', parts, 'x')
    if type(orphaned) == 'string' then redis.call('ZREM', index, 'x' .. orphaned .. 'n' .. id) end
    now = 0 -- what is left of it can be removed since then
    leave_large(id)
    redis.call('UNLINK', key, KEYS[at + 1], KEYS[at + 2], parts, KEYS[at + 4])
    at = at + 5
  else
    unlist(wait_entries, id, head_of(row), row[2] or nil)
    redis.call('ZREM', index, 'wi' .. id)
    redis.call('UNLINK', key, KEYS[at + 1])
    at = at + 2
  end
end

for place = at, #KEYS do redis.call('UNLINK', KEYS[place]) end

if ARGV[3] == '1' then
  local listed = 0
  for _, kind in ipairs({'f', 'n', 'p', 'w'}) do
    listed = listed + #redis.call('ZRANGEBYLEX', index, '[' .. kind .. 'i', '(' .. kind .. 'j', 'LIMIT', '0', '1')
  end
  if listed == 0 then redis.call('UNLINK', index) end
end

if ARGV[2] == '1' then redis.call('SET', KEYS[1], '[]', 'PX', ARGV[1]) end
return '[]'

-- Remove expired records, with all their entries in the index; parts whose flow did not come; and large
-- bodies of parts that are gone.
--
-- KEYS[1]   key of the reply    KEYS[2]  the index of the partition
-- KEYS[3..] for each entry:
--             f  the flow, its steps, its chunks, its parts, their names    w  the condition, its items
--             n  the flow, its parts, their names                           u  the upload
-- ARGV[1]   how long the reply is kept, in ms of the server's clock    ARGV[2]  now, in ms
-- ARGV[3..] the entries of the index that say what has expired, and how it was listed:
--           x <expires> f|w <status> <created> <length>:<type or parent> <id>, without the spaces
--           x <expires> n <id>: parts whose flow does not exist    x <since> u <upload>
--
-- Returns [[n]], the number of removed records as JSON; or 0 if a resolve has fenced the sweep. Each
-- record is checked again: one that was written since stays. The parts of one flow count as one record.

local stored = redis.call('GET', KEYS[1])
if stored then
  redis.call('PEXPIRE', KEYS[1], ARGV[1]) -- a write, for WAIT: see lost_replies.py
  if stored == '' then return 0 end
  return stored
end

index, now = KEYS[2], tonumber(ARGV[2])
redis.call('ZCARD', index)

local function entries_of(entry)
  local kind, status, created = string.sub(entry, 17, 17), string.sub(entry, 18, 18), string.sub(entry, 19, 33)
  local length, rest = string.match(entry, '^(%d+):(.*)$', 34)
  local text, id = string.sub(rest, 1, tonumber(length)), string.sub(rest, tonumber(length) + 1)
  local of, place = named(text), created .. id
  if kind == 'f' then
    local entries = {entry, 'fi' .. id, 'fa' .. place, 'fs' .. status .. place, 'ft' .. of .. place,
      'fb' .. status .. of .. place, 'pi' .. id}
    local begin = 'fj' .. named(id)
    for _, tags in ipairs(redis.call('ZRANGEBYLEX', index, '[' .. begin, '(' .. begin .. '\255')) do
      entries[#entries + 1] = tags
      local at = #begin + 1
      while at <= #tags do
        local first = at
        for _ = 1, 2 do -- a key and a value, each with its length
          local size, colon = string.match(tags, '^(%d+)():', at)
          at = colon + 1 + tonumber(size)
        end
        entries[#entries + 1] = 'fg' .. string.sub(tags, first, at - 1) .. status .. place
      end
    end
    return entries, id
  end
  if status == '-' then return {entry, 'wi' .. id}, id end
  return {entry, 'wi' .. id, 'wa' .. place, 'ws' .. status .. place, 'wp' .. of .. place,
    'wb' .. status .. of .. place}, id
end

local removed, at = 0, 3

-- Remove parts that were written before their flow, unless it has come or they were written again.
local function sweep_orphan(entry, flow, parts, names)
  local id, is_last = string.sub(entry, 18), redis.call('HGET', parts, 'x') == string.sub(entry, 2, 16)
  redis.call('ZREM', index, entry)
  if not is_last then return end
  if redis.call('EXISTS', flow) == 1 then
    redis.call('HDEL', parts, 'x')
    if redis.call('EXISTS', parts) == 0 then redis.call('ZREM', index, 'ni' .. id) end
    return
  end
  leave_large(id)
  redis.call('ZREM', index, 'ni' .. id)
  redis.call('UNLINK', parts, names)
  removed = removed + 1
end

local COUNT = {f = 5, w = 2, n = 3, u = 1} -- of the keys of an entry

for place = 3, #ARGV do
  local entry, key, other = ARGV[place], KEYS[at], KEYS[at + 1]
  local kind = string.sub(entry, 17, 17)
  local is_flow = kind == 'f'
  local keys = is_flow and {flow = key, steps = other, chunks = KEYS[at + 2], parts = KEYS[at + 3], names = KEYS[at + 4]}
  local third = KEYS[at + 2]
  at = at + COUNT[kind]
  if kind == 'u' then
    redis.call('UNLINK', key)
    redis.call('ZREM', index, entry)
  elseif redis.call('ZSCORE', index, entry) and kind == 'n' then
    sweep_orphan(entry, key, other, third)
  elseif kind ~= 'n' and redis.call('ZSCORE', index, entry) then
    local entries, id = entries_of(entry)
    local own, head, row
    if is_flow then
      head = read_flow(key)
      own = head and flow_entries(id, head)
    else
      row = read_wait(key)
      head = row and row.head
      own = row and wait_entries(id, row.head, row.parent)
    end
    local is_current, current = false, {}
    for _, one in ipairs(own or {}) do
      current[one] = true
      if one == entry then is_current = true end
    end

    if head == false or row == false then
      redis.call('ZREM', index, entry) -- the record cannot be read: it stays
    elseif is_current and is_flow then
      remove_flow(keys, id, head)
      removed = removed + 1
    elseif is_current then
      remove_wait(key, other, id, row)
      removed = removed + 1
    elseif head then
      for _, one in ipairs(entries) do
        if not current[one] and one ~= 'pi' .. id then redis.call('ZREM', index, one) end
      end
    else
      redis.call('ZREM', index, unpack(entries)) -- the server has removed it already
      redis.call('UNLINK', key, other)
      if is_flow then
        redis.call('UNLINK', keys.chunks)
        if redis.call('EXISTS', keys.parts) == 0 then -- else they were written since
          redis.call('ZREM', index, 'ni' .. id)
          leave_large(id)
        end
      end
      removed = removed + 1
    end
  end
end
local reply = '[[' .. int(removed) .. ']]'
redis.call('SET', KEYS[1], reply, 'PX', ARGV[1])
return reply

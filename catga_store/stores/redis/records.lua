-- The common part of the scripts that write: heads, and their entries in the index. It is put in front
-- of each of them, which then sets `index` (a key) and `now` (in ms).
--
-- A head is a JSON array without spaces between its elements:
--   ["commits, newest first", version, status, created_ms, updated_ms, due_ms, expires_ms,
--    type, type_version, position, error, attempts, reports_to, owner, claim, tags]
-- Tags are [key, value, key, value, ...], by key; only flows have them, and only if there are some: else a head
-- ends with its claim.

local index, now
local unpack = table.unpack or unpack -- the name differs between Lua 5.1 and later

local PENDING, SATISFIED, CANCELLED, PENDING_COMPLETIONS, TOMBSTONE = 0, 1, 3, -1, -2

-- heads ---------------------------------------------------------------------------------------------

local HEAD = '^%["([^"]*)",(%-?%d+),(%-?%d+),(%-?%d+),(%-?%d+),([^,]+),([^,]+),(.*)$'

local function int(number)
  if not number then return 'null' end
  return string.format('%.0f', number)
end

local function parse(text)
  local commits, version, status, created, updated, due, expires, rest = string.match(text, HEAD)
  if not commits then return nil end
  return {
    commits = commits, version = tonumber(version), status = tonumber(status),
    created = tonumber(created), updated = tonumber(updated),
    due = tonumber(due), expires = tonumber(expires), rest = rest,
  }
end

local function write(head)
  return table.concat({
    '["' .. head.commits .. '"', int(head.version), int(head.status), int(head.created),
    int(head.updated), int(head.due), int(head.expires), head.rest,
  }, ',')
end

local function revision_of(head)
  return string.match(head.commits, '^[^ ]*')
end

local function text_of(json)
  return string.match(json, '^"([^"\\]*)"') or cjson.decode('[' .. json)[1]
end

-- Tags end with two brackets, a claim with a quote or null and one.
local function has_tags(head)
  return string.sub(head.rest, -2) == ']]'
end

local function tags_of(head)
  return has_tags(head) and cjson.decode('[' .. head.rest)[9] or {}
end

local function is_claimed(head)
  if has_tags(head) then return cjson.decode('[' .. head.rest)[8] ~= cjson.null end
  return string.sub(head.rest, -6) ~= ',null]'
end

local function has_expired(head)
  return head.expires and head.expires <= now
end

-- hints ---------------------------------------------------------------------------------------------

-- What a script reports to calls that wait: one message on the channel of the partition, an array of
--   [due_ms, type, id, version, log]
-- cut where the rest is null: a flow was written or deleted (id), a log has a new entry (id, log), or something
-- will be due. It is published after the last write, and a user without the right to do that loses nothing else.
local hints = {}

local function hint(due, kind, id, version, log)
  local name = kind and (string.match(kind, '^"[^"\\]*"') or cjson.encode(text_of(kind))) or 'null'
  local text = '[' .. int(due) .. ',' .. name
  if id then text = text .. ',' .. cjson.encode(id) .. ',' .. int(version or 0) end
  if log then text = text .. ',' .. cjson.encode(log) end
  hints[#hints + 1] = text .. ']'
end

local function publish_hints()
  if #hints > 0 then
    redis.pcall('PUBLISH', string.sub(index, 1, -6) .. 'hints', '[' .. table.concat(hints, ',') .. ']')
  end
end

-- the index -----------------------------------------------------------------------------------------

local function stamp(ms) return string.format('%015.0f', ms + 62135596800000) end
local function newest(ms) return string.format('%015.0f', 253402300799999 - ms) end
local function named(text) return string.format('%.0f:', #text) .. text end

-- Return each tag as a part of a member.
local function tag_names(head)
  local tags, names = tags_of(head), {}
  for place = 1, #tags, 2 do names[#names + 1] = named(tags[place]) .. named(tags[place + 1]) end
  return names
end

local function flow_entries(id, head)
  local status, kind = int(head.status), named(text_of(head.rest))
  local place = newest(head.created) .. id
  local entries = {
    'fi' .. id, 'fa' .. place, 'fs' .. status .. place, 'ft' .. kind .. place,
    'fb' .. status .. kind .. place,
  }
  if head.due then
    local due = stamp(head.due) .. id
    entries[6] = 'fd' .. due
    entries[7] = 'fe' .. kind .. due
    if is_claimed(head) then entries[8] = 'fc' .. due end
  end
  if has_tags(head) then
    local names = tag_names(head)
    for _, tag in ipairs(names) do
      entries[#entries + 1] = 'fg' .. tag .. status .. place
      if head.due then entries[#entries + 1] = 'fh' .. tag .. stamp(head.due) .. id end
    end
    entries[#entries + 1] = 'fj' .. named(id) .. table.concat(names) -- for a sweep that finds no head
  end
  if head.expires then
    entries[#entries + 1] = 'x' .. stamp(head.expires) .. 'f' .. status .. newest(head.created) .. kind .. id
  end
  return entries
end

local function wait_entries(id, head, parent)
  local entries, status, of = {'wi' .. id}, '-', named(parent or '')
  if head.status >= 0 then
    status = int(head.status)
    local place = newest(head.created) .. id
    entries[2] = 'wa' .. place
    entries[3] = 'ws' .. status .. place
    if parent then
      entries[4] = 'wp' .. of .. place
      entries[5] = 'wb' .. status .. of .. place
    end
  end
  if head.due and head.status == PENDING then entries[#entries + 1] = 'wd' .. stamp(head.due) .. id end
  if head.due and parent then entries[#entries + 1] = 'wt' .. stamp(head.due) .. of .. id end
  if head.expires then
    entries[#entries + 1] = 'x' .. stamp(head.expires) .. 'w' .. status .. newest(head.created) .. of .. id
  end
  return entries
end

local function reindex(old, new)
  local kept, gone, come = {}, {}, {}
  for _, entry in ipairs(new) do kept[entry] = true end
  for _, entry in ipairs(old) do
    if kept[entry] then kept[entry] = nil else gone[#gone + 1] = entry end
  end
  for entry in pairs(kept) do
    come[#come + 1] = '0'
    come[#come + 1] = entry
  end
  if #gone > 0 then redis.call('ZREM', index, unpack(gone)) end
  if #come > 0 then redis.call('ZADD', index, unpack(come)) end
end

-- parts ---------------------------------------------------------------------------------------------

-- A large body of a part is a key of its own, which few scripts can name. When the part is gone, an
-- entry x..u says that the key can be removed, and the reply ends with a newline: see sweeping.py.
local left_large = false

local function leave(id, upload)
  redis.call('ZREM', index, 'nl' .. named(id) .. upload)
  redis.call('ZADD', index, '0', 'x' .. stamp(now) .. 'u' .. upload)
  left_large = true
end

-- Leave all large bodies of a flow. The length in front of its id sets it apart from other flows.
local function leave_large(id)
  local begin = 'nl' .. named(id)
  for _, entry in ipairs(redis.call('ZRANGEBYLEX', index, '[' .. begin, '(' .. begin .. '\255')) do
    leave(id, string.sub(entry, #begin + 1))
  end
end

-- The member of a part among the names. Counters of logs are apart, so that no listing meets them.
local function member_of(name)
  return (string.sub(name, -1) == '/' and 'c' or 'n') .. name
end

-- The field that has the sequence of the entry with this key.
local function keyed(log, key)
  return 'k' .. named(log) .. key
end

local function tag_of(head)
  return cjson.decode('[' .. head.rest)[3] -- of type, type_version, position ...
end

-- Forget the key of a part that was an entry of a log and had one.
local function forget_key(parts, name, head)
  local log, sequence = string.match(name, '^(.+)/(%d%d%d%d%d%d%d%d%d%d%d%d)$')
  local key = log and head and tag_of(head) or ''
  if key ~= '' and tonumber(redis.call('HGET', parts, keyed(log, key)) or nil) == tonumber(sequence) then
    redis.call('HDEL', parts, keyed(log, key))
  end
end

local function remove_part(keys, id, name, head)
  local large = redis.call('HGET', keys.parts, 'l' .. name)
  if large then leave(id, string.match(large, ' (.*)$')) end
  forget_key(keys.parts, name, head)
  redis.call('HDEL', keys.parts, 'h' .. name, 'b' .. name, 'l' .. name)
  redis.call('ZREM', keys.names, member_of(name))
  if redis.call('EXISTS', keys.parts) == 0 then redis.call('ZREM', index, 'ni' .. id) end
end

-- Return up to `limit` names of parts between two bounds, as ZRANGEBYLEX takes them. With `cut`, only
-- names that have the digits of a sequence from there on, and nothing else.
local function names_between(key, first, last, reverse, limit, cut)
  local found = {}
  repeat
    local page
    if reverse then
      page = redis.call('ZREVRANGEBYLEX', key, last, first, 'LIMIT', '0', int(limit))
    else
      page = redis.call('ZRANGEBYLEX', key, first, last, 'LIMIT', '0', int(limit))
    end
    for _, member in ipairs(page) do
      local name = string.sub(member, 2)
      if #found < limit and (not cut or string.find(string.sub(name, cut), '^%d%d%d%d%d%d%d%d%d%d%d%d$')) then
        found[#found + 1] = name
      end
    end
    if reverse then last = '(' .. (page[#page] or '') else first = '(' .. (page[#page] or '') end
  until #found == limit or #page < limit
  return found
end

-- flows and conditions --------------------------------------------------------------------------------

local function read_flow(key)
  local text = redis.call('HGET', key, 'head')
  if not text then return nil end
  return parse(text) or false, text
end

-- Remove a flow with everything that belongs to it, however much that is.
local function remove_flow(keys, id, head)
  reindex(flow_entries(id, head), {})
  redis.call('ZREM', index, 'pi' .. id, 'ni' .. id)
  leave_large(id)
  redis.call('UNLINK', keys.flow, keys.steps, keys.chunks, keys.parts, keys.names)
end

-- fields of a condition: head, terms, any, parent (if any), expected, done
local function read_wait(key)
  local row = redis.call('HMGET', key, 'head', 'any', 'parent', 'expected', 'done')
  if not row[1] then return nil end
  local head = parse(row[1])
  if not head then return false, row[1] end
  return {
    head = head, any = row[2] == '1', parent = row[3] or nil,
    expected = tonumber(row[4]), done = tonumber(row[5]),
  }, row[1]
end

local function remove_wait(key, items, id, row)
  reindex(wait_entries(id, row.head, row.parent), {})
  redis.call('UNLINK', key, items)
end

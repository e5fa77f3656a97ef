-- The common part of the scripts that write: heads, and their entries in the index. It is put in front
-- of each of them, which then sets `index` (a key) and `now` (in ms).
--
-- A head is a JSON array without spaces between its elements:
--   ["commits, newest first", version, status, created_ms, updated_ms, due_ms, expires_ms,
--    type, type_version, position, error, attempts, owner, claim]

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

local function has_expired(head)
  return head.expires and head.expires <= now
end

-- the index -----------------------------------------------------------------------------------------

local function stamp(ms) return string.format('%015.0f', ms + 62135596800000) end
local function newest(ms) return string.format('%015.0f', 253402300799999 - ms) end
local function named(text) return string.format('%.0f:', #text) .. text end

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

local function read_flow(key)
  local text = redis.call('HGET', key, 'head')
  if not text then return nil end
  return parse(text) or false, text
end

local function remove_flow(key, steps, parts, id, head)
  reindex(flow_entries(id, head), {})
  redis.call('ZREM', index, 'pi' .. id)
  redis.call('UNLINK', key, steps, parts)
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

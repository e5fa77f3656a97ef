-- Apply one commit, or refuse it, or return its reply again.
--
-- KEYS[1]   key of the reply
-- KEYS[2]   the index of the partition
-- KEYS[3..] for each change, in the order of the changes:
--             flow F, progress G, part N   the flow, its steps, its chunks, its parts, their names
--             flow or part with flag p     these, and the upload of its body
--             condition W                  the condition, its items
--           a commit of one flow that is updated, and did not expire before and does not now, is without
--           the last two
--
-- ARGV[1]   id of the commit
-- ARGV[2]   now, in ms
-- ARGV[3]   how long ended conditions, tombstones, pending completions, and parts without a flow are
--           kept, in ms; '' forever
-- ARGV[4]   how long the reply is kept, in ms of the server's clock
-- ARGV[5..] for each change: its letter, its kind (F, G, N, W), its id, and then
--   put       P  F/G/N  step (N: name)  expected  flags  head  body
--   put       P  W    expected  flags  head  terms  number of items  (child  success  payload)...
--   set       S  W    terms  created_ms  renotify ('1' or '')
--   delete    D  any  step (N: name)  expected  flags
--   check     K  any  step (N: name)  expected  flags  due_ms ('' for no change)
--   append    A  N    log  key ('' for none)  flags  head  body
--   complete  C  W    child  success ('1' or '0')  payload
-- expected is '' (no record), '*' (any or none), '-' (written only if there is none) or a revision. The
-- flags are
--   f  fresh: a new incarnation            c  claiming: refused while another claim has not ended
--   k  the stored body is kept             g  the condition's parent was notified
--   l  leaving: the flow is removed in this commit    p  the body was uploaded in chunks
--   i  indexed: what put.lua does not look at has changed by which the flow is indexed
--   o  owned: `expected` is the claim that the flow must be under, at any revision
--   hN with digits: N versions of the flow are kept, the current one included
-- The head is the JSON to store, with '' for its commits. The body of a flow with flag p is '*', the
-- number of chunks, a space and the name that they have in field g; that of a part is without the '*'. A
-- condition that was cleared, or is not set yet, counts as no record.
--
-- Returns the reply, which is also stored: a JSON array with one entry for each change,
--   [version, revision, status, created_ms, satisfied, accepted, duplicate, terms, replaced]
--   cut where the rest is default; the revision is null where it is the id of the commit; and a newline
--   if large bodies of parts are left to be removed;
-- or, if it is refused, an array: place, reason, stored head ('' if none) of each refused change;
-- or 0 if a resolve has fenced the commit.
-- Errors: 'CORRUPT <place>': a stored head cannot be read; 'CHUNKS <place>': the upload is not there.
-- Every key is read before the first write, so a key of another type refuses the whole commit.
--
-- Over 400 lines because a commit is decided and written as a whole: the parts share local functions.

local log = KEYS[1]
local commit_id, retain = ARGV[1], tonumber(ARGV[3])
index, now = KEYS[2], tonumber(ARGV[2])

local HOUR = 3600000
local COMPLETED = 4 -- the least status of a flow that has ended
local LONGEST = 3000000000000 -- in ms: later expiries are left to sweeps
local PLAIN = '"",1,"",null,0,null,null,null]'

local stored = redis.call('GET', log)
if stored then
  redis.call('PEXPIRE', log, ARGV[4]) -- a write, for WAIT: see lost_replies.py
  if stored == '' then return 0 end
  return stored
end

local function remembered(old)
  if not old or old.commits == '' then return commit_id end
  local seven = string.match(old.commits, '^(%S+ %S+ %S+ %S+ %S+ %S+ %S+) ')
  return commit_id .. ' ' .. (seven or old.commits)
end

local function after_retention()
  return retain and now + retain
end

-- The server removes an expired record by itself, an hour later. A live flow it does not: a sweep finds by
-- the entry of its expiry what else is in the index of a flow that has ended, and of no other.
local function set_ttl(expires, before, ...)
  local left = expires and math.max(expires - now, 0) + HOUR
  for _, key in ipairs({...}) do
    if left and left < LONGEST then
      redis.call('PEXPIRE', key, int(left))
    elseif before then
      redis.call('PERSIST', key)
    end
  end
end

-- flows and progress --------------------------------------------------------------------------------

local function write_flow(change, old, new, text, body)
  local keys, key, chunks, id = change.keys, change.key, change.keys.chunks, change.id
  if not old or old.status ~= new.status or old.created ~= new.created or old.due ~= new.due
    or old.expires ~= new.expires or is_claimed(old) ~= is_claimed(new)
    or table.concat(tag_names(old)) ~= table.concat(tag_names(new)) or text_of(old.rest) ~= text_of(new.rest) then
    reindex(old and flow_entries(id, old) or {}, flow_entries(id, new))
  end
  if body then
    redis.call('HSET', key, 'head', text, 'body', body)
    if old then redis.call('UNLINK', chunks) end
    if change.upload then
      redis.call('RENAME', change.upload, chunks)
      redis.call('PERSIST', chunks)
    end
  else
    redis.call('HSET', key, 'head', text)
  end
  hint(new.due, new.rest, id, new.version)
  if new.expires or (old and old.expires) then
    local expires = new.status >= COMPLETED and new.expires
    set_ttl(expires, old and old.expires, key, keys.steps, chunks, keys.parts, keys.names)
  end
end

local function read_step(steps, step)
  local text = redis.call('HGET', steps, 'h' .. step)
  if not text then return nil end
  return parse(text) or false, text
end

local function write_step(key, steps, id, step, text, body)
  if redis.call('EXISTS', steps) == 0 then redis.call('ZADD', index, '0', 'pi' .. id) end
  if body then
    redis.call('HSET', steps, 'h' .. step, text, 'b' .. step, body)
  else
    redis.call('HSET', steps, 'h' .. step, text)
  end
  local left = redis.call('PTTL', key)
  if left > 0 then redis.call('PEXPIRE', steps, int(left)) end
end

local function remove_step(steps, id, step)
  redis.call('HDEL', steps, 'h' .. step, 'b' .. step)
  if redis.call('EXISTS', steps) == 0 then redis.call('ZREM', index, 'pi' .. id) end
end

-- parts ---------------------------------------------------------------------------------------------

local function read_part(parts, name)
  local text = redis.call('HGET', parts, 'h' .. name)
  if not text then return nil end
  return parse(text) or false, text
end

-- Set when the parts of a flow that does not exist may be removed: `retain` after their last write.
local function note_orphan(parts, id)
  local before, after = redis.call('HGET', parts, 'x'), after_retention()
  after = after and stamp(after)
  if before == after then return end
  if before then redis.call('ZREM', index, 'x' .. before .. 'n' .. id) end
  if after then
    redis.call('ZADD', index, '0', 'x' .. after .. 'n' .. id)
    redis.call('HSET', parts, 'x', after)
  elseif before then
    redis.call('HDEL', parts, 'x')
  end
end

local function write_part(change, name, old, text, body)
  local keys, parts, names, id = change.keys, change.keys.parts, change.keys.names, change.id
  redis.call('ZADD', index, '0', 'ni' .. id) -- also if it is there, to repair what others have removed
  redis.call('ZADD', names, '0', member_of(name))
  if old then forget_key(parts, name, old) end
  if not body then
    redis.call('HSET', parts, 'h' .. name, text)
  else
    local large = old and redis.call('HGET', parts, 'l' .. name)
    if large then
      leave(id, string.match(large, ' (.*)$'))
      redis.call('HDEL', parts, 'l' .. name)
    end
    if change.upload then
      redis.call('PERSIST', change.upload)
      redis.call('HSET', parts, 'h' .. name, text, 'l' .. name, body)
      redis.call('ZADD', index, '0', 'nl' .. named(id) .. string.match(body, ' (.*)$'))
      if old then redis.call('HDEL', parts, 'b' .. name) end
    else
      redis.call('HSET', parts, 'h' .. name, text, 'b' .. name, body)
    end
  end
  local left = redis.call('PTTL', keys.flow)
  if left > 0 then
    redis.call('PEXPIRE', parts, int(left))
    redis.call('PEXPIRE', names, int(left))
  elseif left == -2 then
    note_orphan(parts, id)
  end
end

-- Note the key of an entry, unless an earlier one has it.
local function note_key(parts, log, key, sequence)
  local first = redis.call('HGET', parts, keyed(log, key))
  if not first or tonumber(first) > sequence then
    redis.call('HSET', parts, keyed(log, key), int(sequence))
  end
end

-- conditions ----------------------------------------------------------------------------------------

local function write_wait(key, items, id, row, old, terms)
  local before = old and wait_entries(id, old.head, old.parent) or {}
  reindex(before, wait_entries(id, row.head, row.parent))
  redis.call('HSET', key, 'head', write(row.head), 'any', row.any and '1' or '0',
    'expected', int(row.expected), 'done', int(row.done))
  if row.parent then
    redis.call('HSET', key, 'parent', row.parent)
  elseif old and old.parent then
    redis.call('HDEL', key, 'parent')
  end
  if terms then redis.call('HSET', key, 'terms', terms) end
  if row.parent and row.head.due then hint(row.head.due) end
  if row.head.expires or (old and old.head.expires) then
    set_ttl(row.head.expires, old and old.head.expires, key, items)
  end
end

-- An item of a child is three digits (member, done, success), then the payload.
local function set_members(items, children)
  local before, wanted = {}, {}
  local all = redis.call('HGETALL', items)
  for place = 1, #all, 2 do before[all[place]] = all[place + 1] end
  local done, well, changed = 0, 0, {}
  for _, child in ipairs(children) do
    wanted[child] = true
    local item = before[child]
    if not item then
      changed[#changed + 1] = child
      changed[#changed + 1] = '100'
    else
      if string.sub(item, 1, 1) ~= '1' then
        changed[#changed + 1] = child
        changed[#changed + 1] = '1' .. string.sub(item, 2)
      end
      if string.sub(item, 2, 2) == '1' then
        done = done + 1
        if string.sub(item, 3, 3) == '1' then well = well + 1 end
      end
    end
  end
  for child, item in pairs(before) do
    if not wanted[child] then
      if string.sub(item, 2, 2) ~= '1' then
        redis.call('HDEL', items, child)
      elseif string.sub(item, 1, 1) ~= '0' then
        changed[#changed + 1] = child
        changed[#changed + 1] = '0' .. string.sub(item, 2)
      end
    end
  end
  for start = 1, #changed, 1000 do
    redis.call('HSET', items, unpack(changed, start, math.min(start + 999, #changed)))
  end
  return done, well
end

local function is_satisfied(done, expected, well, any)
  return done == expected or (any and well > 0)
end

-- Set when a condition is due next, and when it expires.
local function schedule(head, timeout, parent)
  if head.status == PENDING then
    head.due = timeout and head.created + timeout
    head.expires = nil
  elseif parent then
    head.due = head.due or now
    head.expires = nil
  else
    head.due = nil
    head.expires = after_retention()
  end
end

local function terms_of(json)
  local terms = cjson.decode(json)
  local timeout, parent = terms[3], terms[4]
  if timeout == cjson.null then timeout = nil end
  if parent == cjson.null then parent = nil end
  return terms[1], terms[2], timeout, parent
end

local function copy(head)
  local same = {}
  for name, value in pairs(head) do same[name] = value end
  return same
end

local function quoted(revision) return '"' .. revision .. '"' end

local function outcome(head, fields)
  local function flag(name) return fields[name] and 'true' or 'false' end
  local status = fields.status
  return '[' .. table.concat({
    head and int(head.version) or '0', quoted(head and revision_of(head) or ''),
    status and int(status) or 'null', head and int(head.created) or '0',
    flag('satisfied'), flag('accepted'), flag('duplicate'), fields.terms or 'null',
    quoted(fields.replaced or ''),
  }, ',') .. ']'
end

-- read and decide: nothing is written yet -------------------------------------------------------------

redis.call('ZCARD', index)
local changes, refused, expired, lost, without_upload = {}, {}, {}, {}, nil
local arg, key_at, place = 5, 3, 0
local is_short = #KEYS == 5 -- one flow, without the keys of its parts

local function next_args(count)
  local first = arg
  arg = arg + count
  return first
end

while arg <= #ARGV do
  local first = next_args(3)
  local key, other = KEYS[key_at], KEYS[key_at + 1]
  local change = {what = ARGV[first], kind = ARGV[first + 1], id = ARGV[first + 2], key = key, other = other}
  local expected, flags = nil, ''
  changes[#changes + 1] = change
  if change.kind == 'W' then
    key_at = key_at + 2
  else
    change.keys = {flow = key, steps = other, chunks = KEYS[key_at + 2]}
    if not is_short then change.keys.parts, change.keys.names = KEYS[key_at + 3], KEYS[key_at + 4] end
    key_at = key_at + 5
  end

  if change.what == 'C' or change.what == 'S' then
    change.at = next_args(3)
    if change.what == 'C' then redis.call('HGET', other, ARGV[change.at]) else redis.call('HLEN', other) end
  elseif change.what == 'P' and change.kind == 'W' then
    change.at = next_args(5)
    expected, flags = ARGV[change.at], ARGV[change.at + 1]
    next_args(3 * tonumber(ARGV[change.at + 4]))
    redis.call('HLEN', other)
  elseif change.what == 'A' then
    change.at = next_args(5)
    flags = ARGV[change.at + 2]
  else
    change.at = next_args(change.what == 'P' and 5 or change.what == 'K' and 4 or 3)
    change.step = ARGV[change.at]
    expected, flags = ARGV[change.at + 1], ARGV[change.at + 2]
  end

  change.expected = expected
  change.flags = flags
  local head, text

  if change.kind == 'W' then
    local row
    row, text = read_wait(key)
    head = row and row.head
    if row == false then lost[#lost + 1] = place end
    if head and has_expired(head) then
      expired[#expired + 1] = change
      head = nil
    end
    if head and head.status < 0 then head = nil end
  else
    local flow, flow_text = read_flow(key)
    if flow == false then lost[#lost + 1] = place end
    local gone = flow and has_expired(flow)
    if gone then expired[#expired + 1] = change end
    if change.kind == 'F' then
      head, text = flow, flow_text
    else
      if change.kind == 'G' then
        head, text = read_step(other, change.step)
      else
        redis.call('ZCARD', change.keys.names)
        local name = change.what == 'A' and ARGV[change.at] .. '/' or change.step
        head, text = read_part(change.keys.parts, name)
      end
      if head == false then lost[#lost + 1] = place end
      if string.find(flags, 'l', 1, true) then head = nil end
    end
    if gone then head = nil end
    change.old = head
    if string.find(flags, 'p', 1, true) then
      change.upload = KEYS[key_at]
      key_at = key_at + 1
      local count = string.match(ARGV[change.at + 4], '^%*?(%d+) ')
      if redis.call('HLEN', change.upload) ~= tonumber(count) + 1 then without_upload = place end
    end
    if change.kind == 'F' then redis.call('HLEN', change.keys.chunks) end
    if change.kind == 'F' and string.find(flags, 'f', 1, true) then redis.call('HLEN', other) end
  end

  if expected then
    local reason
    if expected == '' then
      if head and change.what == 'P' then
        reason = 'exists'
      elseif head and change.kind == 'F' and head.status < COMPLETED
        and cjson.decode('[' .. head.rest)[6] ~= cjson.null then
        reason = 'reports'
      end
    elseif expected ~= '*' and expected ~= '-' then
      if not head then
        reason = 'missing'
      elseif string.find(flags, 'o', 1, true) then
        if cjson.decode('[' .. head.rest)[8] ~= expected then reason = 'stale' end
      elseif revision_of(head) ~= expected then
        reason = 'stale'
      elseif string.find(flags, 'c', 1, true) and head.due and head.due > now
        and cjson.decode('[' .. head.rest)[7] ~= cjson.null then
        reason = 'claimed'
      end
    end
    if reason then
      refused[#refused + 1] = place
      refused[#refused + 1] = reason
      refused[#refused + 1] = head and text or ''
    end
  end
  place = place + 1
end

if #lost > 0 then return redis.error_reply('CORRUPT ' .. table.concat(lost, ' ')) end
if #refused > 0 then return refused end
if without_upload then return redis.error_reply('CHUNKS ' .. without_upload) end

-- write -------------------------------------------------------------------------------------------------

for _, change in ipairs(expired) do
  if change.kind == 'W' then
    local row = read_wait(change.key)
    if row then remove_wait(change.key, change.other, change.id, row) end
  else
    local flow = read_flow(change.key)
    if flow then remove_flow(change.keys, change.id, flow) end
  end
end

local function read_stored(change)
  if change.kind == 'F' then return (read_flow(change.key)) end
  if change.kind == 'G' then return (read_step(change.other, change.step)) end
  return (read_part(change.keys.parts, change.step))
end

local function remove_stored(change, old)
  if change.kind == 'F' then
    remove_flow(change.keys, change.id, old)
  elseif change.kind == 'G' then
    remove_step(change.other, change.id, change.step)
  else
    remove_part(change.keys, change.id, change.step, old)
  end
end

-- Keep what a flow is as a hidden part, and remove the versions that are too old. A large body is put
-- together, so it keeps others waiting for some milliseconds.
local function keep_version(change, old, version, history)
  local keys, id = change.keys, change.id
  local row = redis.call('HMGET', change.key, 'head', 'body')
  local body = row[2]
  local count = string.match(body, '^%*(%d+) ')
  if count then
    local chunks = {}
    for place = 1, tonumber(count) do chunks[place] = redis.call('HGET', keys.chunks, int(place - 1)) end
    body = table.concat(chunks)
  end
  local function name_of(number) return string.format('//%012.0f//', number) end
  local name = name_of(old.version)
  write_part({keys = keys, id = id}, name, read_part(keys.parts, name), row[1], body)
  local last = '(' .. member_of(name_of(math.max(version - history + 1, 0)))
  for _, one in ipairs(names_between(keys.names, '[c//', last, false, 10)) do
    if string.sub(one, -2) == '//' then remove_part(keys, id, one, read_part(keys.parts, one)) end
  end
end

local function put_record(change)
  local key, other, id, at = change.key, change.other, change.id, change.at
  local old = change.old
  if place > 1 then old = read_stored(change) end
  if old and string.find(change.flags, 'f', 1, true) then
    remove_stored(change, old)
    old = nil
  end
  if old and change.expected == '-' then return outcome(old, {status = old.status}) end
  local text, body = ARGV[at + 3], ARGV[at + 4]
  if old and string.find(change.flags, 'k', 1, true) then body = nil end
  local new = parse(text)
  local history = string.match(change.flags, 'h(%d+)')
  if history and old then keep_version(change, old, new.version, tonumber(history)) end
  if change.expected == '*' then
    new.version = old and old.version + 1 or 1
    new.created = old and old.created or now
    new.commits = remembered(old)
    text = write(new)
  else
    text = '["' .. remembered(old) .. string.sub(text, 3)
  end
  if change.kind == 'F' then
    write_flow(change, old, new, text, body)
  elseif change.kind == 'G' then
    write_step(key, other, id, change.step, text, body)
  else
    write_part(change, change.step, old, text, body)
    local log, sequence = string.match(change.step, '^(.+)/(%d%d%d%d%d%d%d%d%d%d%d%d)$')
    local entry_key = log and tag_of(new) or ''
    if entry_key ~= '' then note_key(change.keys.parts, log, entry_key, tonumber(sequence)) end
  end
  return '[' .. int(new.version) .. ',null,' .. int(new.status) .. ',' .. int(new.created)
    .. (change.expected == '-' and ',false,true]' or ']')
end

local function append(change)
  local parts, at = change.keys.parts, change.at
  local log, key = ARGV[at], ARGV[at + 1]
  if key ~= '' then
    local first = redis.call('HGET', parts, keyed(log, key))
    if first then return '[' .. first .. ',"",null,0,false,false,true]' end
  end
  local counter = read_part(parts, log .. '/')
  local sequence = counter and counter.version + 1 or 1
  write_part({keys = change.keys, id = change.id}, log .. '/', counter, write({
    commits = remembered(counter), version = sequence, status = 0,
    created = counter and counter.created or now, updated = now, rest = PLAIN,
  }), '')
  local text = '["' .. commit_id .. string.sub(ARGV[at + 3], 3)
  write_part(change, log .. string.format('/%012.0f', sequence), nil, text, ARGV[at + 4])
  if key ~= '' then note_key(parts, log, key, sequence) end
  hint(nil, nil, change.id, sequence, log)
  return '[' .. int(sequence) .. ',null,0,' .. int(now) .. ',false,true]'
end

local function put_wait(change)
  local key, items, id, at = change.key, change.other, change.id, change.at
  local old = read_wait(key)
  if old and string.find(change.flags, 'f', 1, true) then
    remove_wait(key, items, id, old)
    old = nil
  end
  local item = at + 5
  for _ = 1, tonumber(ARGV[at + 4]) do
    redis.call('HSET', items, ARGV[item], '01' .. ARGV[item + 1] .. ARGV[item + 2])
    item = item + 3
  end
  local children, any, timeout, parent = terms_of(ARGV[at + 3])
  local done, well = set_members(items, children)
  local head = parse(ARGV[at + 2])
  local satisfied = head.status == PENDING and is_satisfied(done, #children, well, any)
  head.commits = remembered(old and old.head)
  if satisfied then head.status = SATISFIED end

  -- A condition without a parent has notified no flow; a parent that it gets now is still to be notified.
  local was_given = old and old.head.status > PENDING and not old.head.due
    and (old.parent or not parent)
  if head.status > PENDING and was_given then
    head.due = nil
    head.expires = old.head.expires
  elseif head.status > PENDING and string.find(change.flags, 'g', 1, true) then
    head.due = nil
    head.expires = after_retention()
  else
    schedule(head, timeout, parent)
  end
  local row = {head = head, any = any, parent = parent, expected = #children, done = done}
  write_wait(key, items, id, row, old, ARGV[at + 3])
  return outcome(head, {status = head.status, satisfied = satisfied})
end

local function set_wait(change)
  local key, items, id, at = change.key, change.other, change.id, change.at
  local old = read_wait(key)
  local status = old and old.head.status or TOMBSTONE

  if status > PENDING then
    local terms, head = redis.call('HGET', key, 'terms'), copy(old.head)
    local found = {status = status, terms = terms}
    if ARGV[at + 2] == '1' then
      local _, _, _, parent = terms_of(ARGV[at])
      head.due, head.expires = now, nil
      if parent ~= old.parent then
        -- Only the parent changes; it comes last in the terms.
        local children, any, timeout = terms_of(terms)
        terms = '[' .. (#children > 0 and cjson.encode(children) or '[]') .. ','
          .. (any and 'true' or 'false') .. ',' .. int(timeout) .. ','
          .. (parent and cjson.encode(parent) or 'null') .. ']'
        found.terms = terms
        head.version, head.updated = head.version + 1, now
        head.commits = remembered(old.head)
      end
      local row = {head = head, any = old.any, parent = parent, expected = old.expected, done = old.done}
      write_wait(key, items, id, row, old, terms)
    end
    return outcome(head, found)
  end

  local children, any, timeout, parent = terms_of(ARGV[at])
  local done, well = set_members(items, children)
  local satisfied = is_satisfied(done, #children, well, any)
  local head = {
    version = 1, status = satisfied and SATISFIED or PENDING, created = tonumber(ARGV[at + 1]),
    updated = now, commits = commit_id, rest = PLAIN,
  }
  if status == PENDING then
    head.version, head.created = old.head.version + 1, old.head.created
    head.commits = remembered(old.head)
  end
  schedule(head, timeout, parent)
  local row = {head = head, any = any, parent = parent, expected = #children, done = done}
  write_wait(key, items, id, row, old, ARGV[at])
  return outcome(head, {status = head.status, satisfied = satisfied, accepted = true})
end

local function complete(change)
  local key, items, id, at = change.key, change.other, change.id, change.at
  local child, success, payload = ARGV[at], ARGV[at + 1], ARGV[at + 2]
  local row = read_wait(key)
  local status = row and row.head.status or PENDING_COMPLETIONS
  if status <= TOMBSTONE then return outcome(nil, {status = TOMBSTONE - status}) end

  local item = redis.call('HGET', items, child)
  local shown = status
  if status == PENDING_COMPLETIONS then shown = nil end
  if item and string.sub(item, 2, 2) == '1' then
    return outcome(nil, {status = shown, duplicate = true})
  end

  if status == PENDING_COMPLETIONS then
    redis.call('HSET', items, child, '01' .. success .. payload)
    local head = {
      commits = '', version = 0, status = PENDING_COMPLETIONS, created = now, updated = now,
      expires = after_retention(), rest = PLAIN,
    }
    write_wait(key, items, id, {head = head, any = false, expected = 0, done = 0}, row, '[[],false,null,null]')
    return outcome(nil, {accepted = true})
  end

  if status ~= PENDING or not item or string.sub(item, 1, 1) ~= '1' then
    return outcome(nil, {status = status})
  end

  redis.call('HSET', items, child, '11' .. success .. payload)
  local done = redis.call('HINCRBY', key, 'done', 1)
  local satisfied = is_satisfied(done, row.expected, tonumber(success), row.any)
  local head, replaced = row.head, ''
  if satisfied then
    replaced = revision_of(row.head)
    head = copy(row.head)
    head.version, head.status, head.updated, head.due = head.version + 1, SATISFIED, now, nil
    head.commits = remembered(row.head)
    schedule(head, nil, row.parent)
    local new = {head = head, any = row.any, parent = row.parent, expected = row.expected, done = done}
    write_wait(key, items, id, new, row)
  end
  return outcome(head, {
    status = head.status, satisfied = satisfied, accepted = true, replaced = replaced,
  })
end

local function delete(change)
  local key, other, id = change.key, change.other, change.id
  if change.kind ~= 'W' then
    local old = read_stored(change)
    if not old then return outcome(nil, {}) end
    remove_stored(change, old)
    if change.kind == 'F' then hint(nil, nil, id) end
    return outcome(nil, {accepted = true})
  end

  local row = read_wait(key)
  if not row or row.head.status < 0 then return outcome(nil, {}) end
  local ended = row.head.status
  if ended == PENDING then ended = CANCELLED end
  local head = {
    commits = commit_id, version = row.head.version, status = TOMBSTONE - ended,
    created = row.head.created, updated = now, expires = after_retention(), rest = PLAIN,
  }
  redis.call('UNLINK', other)
  write_wait(key, other, id, {head = head, any = false, expected = 0, done = 0}, row, '[[],false,null,null]')
  return outcome(nil, {accepted = true, status = ended})
end

local function check(change)
  local due = tonumber(ARGV[change.at + 3])
  if not due then return '[]' end
  if change.kind == 'W' then
    local row = read_wait(change.key)
    local head = copy(row.head)
    head.due = due
    local new = {head = head, any = row.any, parent = row.parent, expected = row.expected, done = row.done}
    write_wait(change.key, change.other, change.id, new, row)
  elseif change.kind == 'F' then
    local old = read_flow(change.key)
    local head = copy(old)
    head.due = due
    write_flow(change, old, head, write(head))
  end
  return '[]'
end

local outcomes = {}
for _, change in ipairs(changes) do
  local entry
  if change.what == 'P' and change.kind ~= 'W' then entry = put_record(change)
  elseif change.what == 'P' then entry = put_wait(change)
  elseif change.what == 'S' then entry = set_wait(change)
  elseif change.what == 'C' then entry = complete(change)
  elseif change.what == 'A' then entry = append(change)
  elseif change.what == 'D' then entry = delete(change)
  else entry = check(change) end
  outcomes[#outcomes + 1] = entry
end

local reply = '[' .. table.concat(outcomes, ',') .. ']' .. (left_large and '\n' or '')
redis.call('SET', log, reply, 'PX', ARGV[4])
publish_hints()
return reply

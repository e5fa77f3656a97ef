-- Apply one commit, or refuse it, or return its reply again.
--
-- KEYS[1]   key of the reply
-- KEYS[2]   the index of the partition
-- KEYS[3..] for each change, in the order of the changes:
--             flow F, progress G   the flow, the flow's steps, the flow's parts
--             flow with flag p     these, and the upload of its body
--             condition W          the condition, its items
--
-- ARGV[1]   id of the commit
-- ARGV[2]   now, in ms
-- ARGV[3]   how long ended conditions, tombstones and pending completions are kept, in ms; '' forever
-- ARGV[4]   how long the reply is kept, in ms of the server's clock
-- ARGV[5..] for each change: its letter, its kind (F, G, W), its id, and then
--   put       P  F/G  step  expected  flags  head  body
--   put       P  W    expected  flags  head  terms  number of items  (child  success  payload)...
--   set       S  W    terms  created_ms  renotify ('1' or '')
--   delete    D  any  step  expected  flags
--   check     K  any  step  expected  flags  due_ms ('' for no change)
--   complete  C  W    child  success ('1' or '0')  payload
-- expected is '' (no record), '*' (any or none) or a revision. The flags are
--   f  fresh: a new incarnation            c  claiming: refused while another claim has not ended
--   k  the stored body is kept             g  the condition's parent was notified
--   l  leaving: the flow is removed in this commit    p  the body was uploaded in parts
--   o  owned: `expected` is the claim that the flow must be under, at any revision
-- The head is the JSON to store, with '' for its commits. The body of a flow with parts is '*', the
-- number of parts, a space and the name that they have in field g. A condition that was cleared, or is
-- not set yet, counts as no record.
--
-- Returns the reply, which is also stored: a JSON array with one entry for each change,
--   [version, revision, status, created_ms, satisfied, accepted, duplicate, terms, replaced]
--   cut where the rest is default; the revision is null where it is the id of the commit;
-- or, if it is refused, an array: place, reason, stored head ('' if none) of each refused change;
-- or 0 if a resolve has fenced the commit.
-- Errors: 'CORRUPT <place>': a stored head cannot be read; 'PARTS <place>': the upload is not there.
-- Every key is read before the first write, so a key of another type refuses the whole commit.
--
-- Over 400 lines because a commit is decided and written as a whole: the parts share local functions.

local log = KEYS[1]
local commit_id, retain = ARGV[1], tonumber(ARGV[3])
index, now = KEYS[2], tonumber(ARGV[2])

local HOUR = 3600000
local COMPLETED = 4 -- the least status of a flow that has ended
local LONGEST = 3000000000000 -- in ms: later expiries are left to sweeps
local PLAIN = '"",1,"",null,0,null,null]'

local stored = redis.call('GET', log)
if stored then
  redis.call('PEXPIRE', log, ARGV[4]) -- a write, for WAIT: see exchange.py
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
  local key, steps, parts, id = change.key, change.other, change.parts, change.id
  if not old or old.status ~= new.status or old.created ~= new.created or old.due ~= new.due
    or old.expires ~= new.expires or text_of(old.rest) ~= text_of(new.rest) then
    reindex(old and flow_entries(id, old) or {}, flow_entries(id, new))
  end
  if body then
    redis.call('HSET', key, 'head', text, 'body', body)
    if old then redis.call('UNLINK', parts) end
    if change.upload then
      redis.call('RENAME', change.upload, parts)
      redis.call('PERSIST', parts)
    end
  else
    redis.call('HSET', key, 'head', text)
  end
  if new.expires or (old and old.expires) then
    set_ttl(new.status >= COMPLETED and new.expires, old and old.expires, key, steps, parts)
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
local changes, refused, expired, lost, partless = {}, {}, {}, {}, nil
local arg, key_at, place = 5, 3, 0

local function next_args(count)
  local first = arg
  arg = arg + count
  return first
end

while arg <= #ARGV do
  local first = next_args(3)
  local key, other = KEYS[key_at], KEYS[key_at + 1]
  key_at = key_at + 2
  local change = {what = ARGV[first], kind = ARGV[first + 1], id = ARGV[first + 2], key = key, other = other}
  local expected, flags = nil, ''
  changes[#changes + 1] = change
  if change.kind ~= 'W' then
    change.parts = KEYS[key_at]
    key_at = key_at + 1
  end

  if change.what == 'C' or change.what == 'S' then
    change.at = next_args(3)
    if change.what == 'C' then redis.call('HGET', other, ARGV[change.at]) else redis.call('HLEN', other) end
  elseif change.what == 'P' and change.kind == 'W' then
    change.at = next_args(5)
    expected, flags = ARGV[change.at], ARGV[change.at + 1]
    next_args(3 * tonumber(ARGV[change.at + 4]))
    redis.call('HLEN', other)
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
      head, text = read_step(other, change.step)
      if head == false then lost[#lost + 1] = place end
      if string.find(flags, 'l', 1, true) then head = nil end
    end
    if gone then head = nil end
    change.old = head
    if string.find(flags, 'p', 1, true) then
      change.upload = KEYS[key_at]
      key_at = key_at + 1
      local count = string.match(ARGV[change.at + 4], '^%*(%d+) ')
      if redis.call('HLEN', change.upload) ~= tonumber(count) + 1 then partless = place end
    end
    if change.kind == 'F' then redis.call('HLEN', change.parts) end
    if change.kind == 'F' and string.find(flags, 'f', 1, true) then redis.call('HLEN', other) end
  end

  if expected then
    local reason
    if expected == '' then
      reason = change.what == 'P' and head and 'exists'
    elseif expected ~= '*' then
      if not head then
        reason = 'missing'
      elseif string.find(flags, 'o', 1, true) then
        if cjson.decode('[' .. head.rest)[7] ~= expected then reason = 'stale' end
      elseif revision_of(head) ~= expected then
        reason = 'stale'
      elseif string.find(flags, 'c', 1, true) and head.due and head.due > now
        and cjson.decode('[' .. head.rest)[6] ~= cjson.null then
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
if partless then return redis.error_reply('PARTS ' .. partless) end

-- write -------------------------------------------------------------------------------------------------

for _, change in ipairs(expired) do
  if change.kind == 'W' then
    local row = read_wait(change.key)
    if row then remove_wait(change.key, change.other, change.id, row) end
  else
    local flow = read_flow(change.key)
    if flow then remove_flow(change.key, change.other, change.parts, change.id, flow) end
  end
end

local function put_record(change)
  local key, other, id, at = change.key, change.other, change.id, change.at
  local is_flow = change.kind == 'F'
  local old = change.old
  if place > 1 then
    if is_flow then old = read_flow(key) else old = read_step(other, change.step) end
  end
  if old and string.find(change.flags, 'f', 1, true) then
    if is_flow then remove_flow(key, other, change.parts, id, old) else remove_step(other, id, change.step) end
    old = nil
  end
  local text, body = ARGV[at + 3], ARGV[at + 4]
  if old and string.find(change.flags, 'k', 1, true) then body = nil end
  local new = parse(text)
  if change.expected == '*' then
    new.version = old and old.version + 1 or 1
    new.created = old and old.created or now
    new.commits = remembered(old)
    text = write(new)
  else
    text = '["' .. remembered(old) .. string.sub(text, 3)
  end
  if is_flow then
    write_flow(change, old, new, text, body)
  else
    write_step(key, other, id, change.step, text, body)
  end
  return '[' .. int(new.version) .. ',null,' .. int(new.status) .. ',' .. int(new.created) .. ']'
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
  if change.kind == 'F' then
    local flow = read_flow(key)
    if not flow then return outcome(nil, {}) end
    remove_flow(key, other, change.parts, id, flow)
    return outcome(nil, {accepted = true})
  end
  if change.kind == 'G' then
    if not read_step(other, change.step) then return outcome(nil, {}) end
    remove_step(other, id, change.step)
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
  elseif change.what == 'D' then entry = delete(change)
  else entry = check(change) end
  outcomes[#outcomes + 1] = entry
end

local reply = '[' .. table.concat(outcomes, ',') .. ']'
redis.call('SET', log, reply, 'PX', ARGV[4])
return reply

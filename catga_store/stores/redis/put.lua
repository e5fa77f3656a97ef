-- A fast path for the most frequent commit, in front of commit.lua and with its signature: one flow is
-- updated, and nothing changes by which it is listed or due. That its tags stay, and that it stays claimed or
-- unclaimed, is said by the missing flag i, because the head that was read has the expected revision. Everything else continues below. Patterns
-- are Lua's slowest way through a text, so they are not applied to the ids of the commits. Only a commit of
-- one flow has five keys. What it publishes is described in records.lua.

if #KEYS == 5 and ARGV[10] == '' then
  local stored = redis.call('GET', KEYS[1])
  if stored then
    redis.call('PEXPIRE', KEYS[1], ARGV[4]) -- a write, for WAIT: see lost_replies.py
    if stored == '' then return 0 end
    return stored
  end

  local find, sub, match = string.find, string.sub, string.match
  local text = redis.call('HGET', KEYS[3], 'head')
  local after = 3 + #ARGV[9] -- the revision, which comes first among the commits
  local stop = text and sub(text, 1, after - 1) == '["' .. ARGV[9] and find(text, '"', after, true)
  if stop and (stop == after or sub(text, after, after) == ' ') then
    -- version; status and created; due, expires and type
    local REST = '^",(%-?%d+),(%-?%d+,%-?%d+),%-?%d+,([^,]+,null,"[^"\\]*"),'
    local _, placed, listed = match(text, REST, stop)
    local version, new_placed, new_listed = match(ARGV[11], REST, 3)
    if listed and placed == new_placed and listed == new_listed then
      local place, count = 2, 0 -- of the space after seven commits, if there are more
      repeat
        place, count = find(text, ' ', place + 1, true), count + 1
      until count == 7 or not place or place > stop
      local commits = sub(text, 3, (place and place < stop and place or stop) - 1)
      local head = '["' .. ARGV[1] .. ' ' .. commits .. sub(ARGV[11], 3)
      local reply = '[[' .. version .. ',null,' .. placed .. ']]'
      redis.call('HSET', KEYS[3], 'head', head, 'body', ARGV[12])
      redis.call('UNLINK', KEYS[5])
      redis.call('SET', KEYS[1], reply, 'PX', ARGV[4])
      local due, kind = match(listed, '^([^,]+),null,(.*)$')
      redis.pcall('PUBLISH', sub(KEYS[2], 1, -6) .. 'hints',
        '[[' .. due .. ',' .. kind .. ',' .. cjson.encode(ARGV[7]) .. ',' .. version .. ']]')
      return reply
    end
  end
end


-- What most commits are, put before commit.lua, whose signature it has: one flow is written again, and
-- nothing changes by which it is listed or found to be due. Anything else goes on below.

if #KEYS == 5 and ARGV[5] == 'P' and ARGV[6] == 'F' and ARGV[10] == '' then
  local stored = redis.call('GET', KEYS[1])
  if stored then
    if stored == '' then return 0 end
    return stored
  end

  -- commits, revision; status and created; due, expires and type
  local HEAD = '^%["(([^ "]*)[^"]*)",(%-?%d+),(%-?%d+),(%-?%d+),%-?%d+,([^,]+,null,"[^"\\]*"),'
  local text = redis.call('HGET', KEYS[3], 'head')
  if text then
    local commits, revision, _, status, created, listed = string.match(text, HEAD)
    local _, _, version, new_status, new_created, new_listed = string.match(ARGV[11], HEAD)
    if revision == ARGV[9] and status == new_status and created == new_created and listed == new_listed
      and listed then
      local seven = string.match(commits, '^(%S+ %S+ %S+ %S+ %S+ %S+ %S+) ')
      local head = '["' .. ARGV[1] .. ' ' .. (seven or commits) .. string.sub(ARGV[11], 3)
      local reply = '[[' .. version .. ',null,' .. status .. ',' .. created .. ']]'
      redis.call('HSET', KEYS[3], 'head', head, 'body', ARGV[12])
      redis.call('UNLINK', KEYS[5])
      redis.call('SET', KEYS[1], reply, 'PX', ARGV[4])
      return reply
    end
  end
end


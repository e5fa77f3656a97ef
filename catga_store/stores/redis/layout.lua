-- Lay out the store unless it is, and try every command that the scripts need.
--
-- KEYS[1]  the layout: a hash of version and partitions
-- KEYS[2]  a key to try commands on; it exists neither before nor afterwards
-- ARGV[1]  version    ARGV[2]  partitions
--
-- Returns the stored version and partitions. Error: that of a command that is not allowed.
-- A script that is refused a command halfway has written one half; so the rights are tested here.

local key = KEYS[2]
local tries = {
  {'EXISTS', key}, {'PTTL', key}, {'UNLINK', key}, {'GET', key}, {'SET', key, '', 'PX', '1000'},
  {'PEXPIRE', key, '1000'}, {'PERSIST', key}, {'RENAME', key, key}, {'UNLINK', key},
  {'HSET', key, 'a', '1'}, {'HINCRBY', key, 'a', '1'}, {'HGET', key, 'a'}, {'HMGET', key, 'a'},
  {'HGETALL', key}, {'HKEYS', key}, {'HLEN', key}, {'HDEL', key, 'a'}, {'UNLINK', key},
  {'ZADD', key, '0', 'a'}, {'ZSCORE', key, 'a'}, {'ZCARD', key},
  {'ZRANGEBYLEX', key, '-', '+', 'LIMIT', '0', '1'}, {'ZREVRANGEBYLEX', key, '+', '-', 'LIMIT', '0', '1'},
  {'ZREM', key, 'a'}, {'UNLINK', key},
}
-- The texts of Redis 7, 8 and 6.2, and those for a command that was renamed.
local refusals = {
  ['NOPERM'] = 'NOPERM', ['ACL failure'] = 'NOPERM', ['executing the script'] = 'NOPERM',
  ['Unknown Redis command'] = 'ERR unknown command,',
}
for _, command in ipairs(tries) do
  local answer = redis.pcall((table.unpack or unpack)(command))
  local said = type(answer) == 'table' and answer.err or ''
  for text, begin in pairs(refusals) do
    if string.find(said, text, 1, true) then
      redis.pcall('UNLINK', key)
      return redis.error_reply(begin .. ' the scripts of this library need ' .. command[1] .. ': ' .. said)
    end
  end
end

if redis.call('EXISTS', KEYS[1]) == 0 then
  redis.call('HSET', KEYS[1], 'version', ARGV[1], 'partitions', ARGV[2])
end
return redis.call('HMGET', KEYS[1], 'version', 'partitions')

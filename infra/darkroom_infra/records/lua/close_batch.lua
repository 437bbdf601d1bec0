-- A batch's latents and spec are gone: from now on its jobs may be forgotten, and so may it.
-- id, milliseconds to keep the records
local id, keep = unpack(ARGV)
redis.call('ZREM', key('closing'), id)
local batch = key('batch:') .. id
if redis.call('EXISTS', batch) == 0 then return 0 end
redis.call('HSET', batch, 'closed', 1)
for _, member in ipairs(redis.call('ZRANGE', key('members:') .. id, 0, -1)) do
  if get(member, 'settled') then redis.call('ZADD', key('endings'), now() + keep, member) end
end
for _, name in ipairs({ 'batch:', 'members:', 'sent:', 'tries:' }) do
  redis.call('PEXPIRE', key(name) .. id, keep)
end
return 1

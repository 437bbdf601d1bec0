-- A settled job -> nothing.
-- id
local id = ARGV[1]
if not get(id, 'settled') then return 0 end
redis.call('ZREM', key('endings'), id)
redis.call('ZREM', key('jobs:') .. get(id, 'owner'), id)
local batch = get(id, 'batch')
if batch then redis.call('ZREM', key('members:') .. batch, id) end
for _, event in ipairs(redis.call('HKEYS', key('sent:') .. id)) do
  redis.call('ZREM', key('outbox'), id .. ' ' .. event)
end
redis.call('DEL', job_key(id), key('log:') .. id, key('sent:') .. id, key('tries:') .. id)
return 1

-- A worker says that it lives, and which VAEs it holds.
-- worker, lease, VAEs by name as JSON
local worker, lease, vaes = unpack(ARGV)
redis.call('ZREMRANGEBYSCORE', key('workers'), '-inf', now())
redis.call('ZADD', key('workers'), now() + lease, worker)
redis.call('SET', key('worker:') .. worker, vaes, 'PX', lease)
for name, facts in pairs(cjson.decode(vaes)) do
  redis.call('HSET', key('facts'), name, cjson.encode(facts))
end
return 1

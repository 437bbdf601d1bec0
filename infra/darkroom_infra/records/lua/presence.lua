-- A worker says that it lives, and which VAEs it holds. The answer names those of which the details
-- on record are other ones, or none.
-- worker, lease, and by name, each as JSON: facts of the VAEs, SHA-1 of their details, the memory
-- that they need; the bytes that the worker has for a decode, or nothing
local worker, lease, vaes, digests, needs, budget = unpack(ARGV)
redis.call('ZREMRANGEBYSCORE', key('workers'), '-inf', now())
redis.call('ZADD', key('workers'), now() + lease, worker)
redis.call('SET', key('worker:') .. worker, vaes, 'PX', lease)
if budget ~= '' then redis.call('SET', key('budget:') .. worker, budget, 'PX', lease) end
for name, facts in pairs(cjson.decode(vaes)) do
  redis.call('HSET', key('facts'), name, cjson.encode(facts))
end
for name, need in pairs(cjson.decode(needs)) do
  redis.call('HSET', key('needs'), name, cjson.encode(need))
end
local unknown = {}
for name, digest in pairs(cjson.decode(digests)) do
  if redis.sha1hex(redis.call('HGET', key('details'), name) or '') ~= digest then
    unknown[#unknown + 1] = name
  end
end
return unknown

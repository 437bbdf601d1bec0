-- A batch -> deleted: nobody sees it any more, and nothing is added to it. What lies in the ledger is
-- about to go; if it does not, it is gone for again.
-- id, milliseconds until then
local id, pause = unpack(ARGV)
local batch = key('batch:') .. id
local owner = redis.call('HGET', batch, 'owner')
if not owner then return 0 end
redis.call('HSET', batch, 'erased', 1)
redis.call('ZREM', key('batches:') .. owner, id)
redis.call('ZADD', key('closing'), now() + pause, id)
return 1

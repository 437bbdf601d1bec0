-- nothing -> a batch without jobs; they are accepted one by one, and name it. While rebuilding the
-- reservation of its idempotency key is made anew.
-- id, spec, owner, how many jobs, webhook events or '', '1' while rebuilding, idempotency key or '',
-- fingerprint, milliseconds to keep the key
local id, spec, owner, total, events, rebuilding, idempotency, fingerprint, keep = unpack(ARGV)
local batch = key('batch:') .. id
if redis.call('HEXISTS', batch, 'erased') == 1 then return 0 end
redis.call('HSET', batch, 'spec', spec, 'owner', owner, 'total', total)
if events ~= '' then redis.call('HSET', batch, 'events', events) end
redis.call('ZADD', key('batches:') .. owner, 0, id)
if rebuilding == '1' and idempotency ~= '' then
  reserve(owner, idempotency, fingerprint, id, keep)
end
return redis.call('ZCARD', key('members:') .. id)

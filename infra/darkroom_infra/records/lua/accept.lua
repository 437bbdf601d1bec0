-- nothing -> queued. Known jobs stay as they are, so that a repeat changes nothing. While rebuilding
-- the reservation of the job's idempotency key is made anew.
-- id, spec, owner, vae, rank, created at, queue, message, ring after, '1' while rebuilding,
-- idempotency key or '', fingerprint, milliseconds to keep the key, batch or '', webhook events or ''
local id, spec, owner, vae, rank, created_at, queue, message, ring_after, rebuilding,
  idempotency, fingerprint, keep, batch, events = unpack(ARGV)
if redis.call('EXISTS', job_key(id)) == 1 then return 'known' end
if batch ~= '' and redis.call('HEXISTS', key('batch:') .. batch, 'erased') == 1 then return 'gone' end
if rebuilding ~= '1' and redis.call('EXISTS', key('epoch')) == 0 then return 'recovering' end
redis.call('HSET', job_key(id), 'spec', spec, 'owner', owner, 'vae', vae, 'rank', rank,
  'created_at', created_at, 'attempts', 0)
redis.call('ZADD', key('jobs:') .. owner, 0, id)
if events ~= '' then redis.call('HSET', job_key(id), 'events', events) end
if batch ~= '' then
  redis.call('HSET', job_key(id), 'batch', batch)
  redis.call('ZADD', key('members:') .. batch, 0, id)
end
if rebuilding == '1' then
  -- Listeners may have seen changes that are lost: the new ones have higher numbers than any of them.
  redis.call('HSET', job_key(id), 'log_base', math.max(1, now() - created_at))
  if idempotency ~= '' then reserve(owner, idempotency, fingerprint, id, keep) end
else
  count('accepted ' .. vae)
end
enter_queue(id, queue, message, ring_after)
return 'accepted'

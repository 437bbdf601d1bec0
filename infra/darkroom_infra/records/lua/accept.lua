-- nothing -> queued. Known jobs stay as they are, so that a repeat changes nothing.
-- id, spec, owner, vae, rank, created at, queue, message, ring after, '1' while rebuilding
local id, spec, owner, vae, rank, created_at, queue, message, ring_after, rebuilding = unpack(ARGV)
if redis.call('EXISTS', job_key(id)) == 1 then return 'known' end
if rebuilding ~= '1' and redis.call('EXISTS', key('epoch')) == 0 then return 'recovering' end
redis.call('HSET', job_key(id), 'spec', spec, 'owner', owner, 'vae', vae, 'rank', rank,
  'created_at', created_at, 'attempts', 0)
redis.call('ZADD', key('jobs:') .. owner, 0, id)
enter_queue(id, queue, message, ring_after)
return 'accepted'

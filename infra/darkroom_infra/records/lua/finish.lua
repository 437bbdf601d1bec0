-- any unfinished state -> the state that the manifest says. The manifest in the ledger has decided,
-- so no nonce is asked for.
-- id, manifest, state, finished at, expires at
local id, manifest, state, finished_at, expires_at = unpack(ARGV)
local before = get(id, 'state')
if not before then return 'unknown' end
if before ~= 'queued' and before ~= 'running' and before ~= 'committing' then return 'known' end
leave_queue(id)
redis.call('ZREM', key('running'), id)
redis.call('ZREM', key('committing'), id)
redis.call('HDEL', job_key(id), 'candidate')
redis.call('HSET', job_key(id), 'state', state, 'nonce', '', 'manifest', manifest,
  'finished_at', finished_at, 'expires_at', expires_at)
redis.call('ZADD', key('endings'), expires_at, id)
if state == 'succeeded' then
  local bucket = key('finished:') .. math.floor(now() / 10000)
  redis.call('INCR', bucket)
  redis.call('EXPIRE', bucket, 120)
end
announce(id, state)
return 'finished'

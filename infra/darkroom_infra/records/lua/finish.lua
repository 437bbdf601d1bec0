-- any unfinished state -> the state that the manifest says. The manifest in the ledger has decided,
-- so no nonce is asked for.
-- id, manifest, state, finished at, expires at, '1' to leave it where an attempt has begun, and by
-- turns what is counted and how much, each without the VAE
local id, manifest, state, finished_at, expires_at, unclaimed = unpack(ARGV)
local before = get(id, 'state')
if not before then return 'unknown' end
if before ~= 'queued' and before ~= 'running' and before ~= 'committing' then return 'known' end
if unclaimed == '1' and before ~= 'queued' then return 'claimed' end
leave_queue(id)
redis.call('ZREM', key('running'), id)
redis.call('ZREM', key('committing'), id)
redis.call('HDEL', job_key(id), 'candidate')
redis.call('HSET', job_key(id), 'nonce', '', 'manifest', manifest, 'finished_at', finished_at,
  'expires_at', expires_at)
redis.call('ZADD', key('endings'), expires_at, id)
if state == 'succeeded' then
  local bucket = key('finished:') .. math.floor(now() / 10000)
  redis.call('INCR', bucket)
  redis.call('EXPIRE', bucket, 120)
end
-- A rebuild puts on record what ended, and was counted, before.
if redis.call('EXISTS', key('epoch')) == 1 then
  local vae = get(id, 'vae')
  for index = 7, #ARGV, 2 do count(ARGV[index] .. ' ' .. vae, ARGV[index + 1]) end
end
enter_state(id, state)
local job = redis.call('HMGET', job_key(id), 'events', 'batch')
post(id, job[1], 'job.' .. state)
local batch = job[2] and key('batch:') .. job[2]
if batch and redis.call('EXISTS', batch) == 1 then
  local whole = redis.call('HMGET', batch, 'total', 'events', 'latest')
  -- A rebuild ends jobs in any order: the last to end is not the one that is told of last.
  local latest = math.max(finished_at, whole[3] or 0)
  redis.call('HSET', batch, 'latest', latest)
  -- While a batch is being put on record, the first of its jobs may end before the last is there.
  if unfinished(job[2]) == 0
    and redis.call('ZCARD', key('members:') .. job[2]) == tonumber(whole[1]) then
    redis.call('HSET', batch, 'finished_at', latest)
    post(job[2], whole[2], 'batch.completed')
    announce(job[2], 'completed')
  end
end
return 'finished'

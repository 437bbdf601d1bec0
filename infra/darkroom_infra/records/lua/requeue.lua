-- running -> queued, once the lease has ended. An attempt that the device had not begun does not
-- count: its worker died of another job. It is not given back for ever, though.
-- id, most attempts, queue, message, ring after
local id, limit, queue, message, ring_after = unpack(ARGV)
local ends = redis.call('ZSCORE', key('running'), id)
if not ends or tonumber(ends) > now() then return 'alive' end
local job = redis.call('HMGET', job_key(id), 'attempts', 'begun')
if job[2] == '1' then
  if tonumber(job[1]) >= tonumber(limit) then return 'exhausted' end
else
  if redis.call('HINCRBY', job_key(id), 'losses', 1) > limit * LOSSES_PER_ATTEMPT then
    return 'exhausted'
  end
  redis.call('HINCRBY', job_key(id), 'attempts', -1)
end
redis.call('ZREM', key('running'), id)
count('requeued ' .. get(id, 'vae'))
enter_queue(id, queue, message, ring_after)
return 'queued'

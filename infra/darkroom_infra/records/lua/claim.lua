-- queued -> running, for whoever comes first. The nonce is the fencing token of this attempt.
-- id, nonce, lease
local id, nonce, lease = unpack(ARGV)
if get(id, 'state') ~= 'queued' then return false end
leave_queue(id)
local time = now()
redis.call('HSET', job_key(id), 'nonce', nonce, 'started_at', time, 'begun', 0)
redis.call('ZADD', key('running'), time + lease, id)
local attempts = redis.call('HINCRBY', job_key(id), 'attempts', 1)
enter_state(id, 'running')
local lost = (attempts > 1 or get(id, 'losses')) and 1 or 0
return { get(id, 'spec'), attempts, time - get(id, 'created_at'), lost }

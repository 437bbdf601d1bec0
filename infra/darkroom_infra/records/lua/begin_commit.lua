-- running -> committing. The candidate stays on record, so that anybody can finish the commit. A
-- repeat by the same attempt is answered alike: it may not have heard the first answer.
-- id, nonce, lease, candidate
local id, nonce, lease, candidate = unpack(ARGV)
local job = redis.call('HMGET', job_key(id), 'state', 'nonce')
if job[1] == 'committing' and job[2] == nonce then return 1 end
if not holds(id, nonce) then return 0 end
redis.call('HSET', job_key(id), 'candidate', candidate)
enter_state(id, 'committing')
redis.call('ZREM', key('running'), id)
redis.call('ZADD', key('committing'), now() + lease, id)
return 1

-- running -> committing. The candidate stays on record, so that anybody can finish the commit.
-- id, nonce, lease, candidate
local id, nonce, lease, candidate = unpack(ARGV)
if not holds(id, nonce) then return 0 end
redis.call('HSET', job_key(id), 'state', 'committing', 'candidate', candidate)
redis.call('ZREM', key('running'), id)
redis.call('ZADD', key('committing'), now() + lease, id)
return 1

-- running -> running: the attempt has come further, so its lease is renewed.
-- id, nonce, lease, progress
local id, nonce, lease, progress = unpack(ARGV)
if not holds(id, nonce) then return 0 end
redis.call('ZADD', key('running'), now() + lease, id)
redis.call('HSET', job_key(id), 'progress', progress)
announce(id, 'running')
return 1

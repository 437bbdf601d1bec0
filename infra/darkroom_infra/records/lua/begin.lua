-- running -> running: the device has begun with the job, so the attempt counts even if it dies.
-- id, nonce
local id, nonce = unpack(ARGV)
if not holds(id, nonce) then return 0 end
redis.call('HSET', job_key(id), 'begun', 1)
return 1

-- running -> queued, handed back by the attempt itself; it does not count.
-- id, nonce, queue, message, ring after
local id, nonce, queue, message, ring_after = unpack(ARGV)
if not holds(id, nonce) then return 0 end
redis.call('ZREM', key('running'), id)
redis.call('HINCRBY', job_key(id), 'attempts', -1)
enter_queue(id, queue, message, ring_after)
return 1

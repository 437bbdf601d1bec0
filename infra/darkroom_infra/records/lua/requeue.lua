-- running -> queued, once the lease has ended.
-- id, most attempts, queue, message, ring after
local id, limit, queue, message, ring_after = unpack(ARGV)
local ends = redis.call('ZSCORE', key('running'), id)
if not ends or tonumber(ends) > now() then return 'alive' end
if tonumber(get(id, 'attempts')) >= tonumber(limit) then return 'exhausted' end
redis.call('ZREM', key('running'), id)
enter_queue(id, queue, message, ring_after)
return 'queued'

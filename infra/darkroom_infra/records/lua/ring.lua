-- queued -> queued: nobody has come, so the doorbell is rung again, unless there are as many
-- messages as jobs: then all workers are busy, and no message was lost.
-- id, queue, message, ring after
local id, queue, message, ring_after = unpack(ARGV)
local due = redis.call('ZSCORE', key('rings'), id)
if not due or tonumber(due) > now() then return 0 end
local first = get(id, 'rank') * RANK
local waiting = redis.call('ZCOUNT', key('line'), first, '(' .. string.format('%.0f', first + RANK))
if redis.call('LLEN', queue) >= waiting then
  redis.call('ZADD', key('rings'), now() + ring_after, id)
  return 0
end
ring(id, queue, message, ring_after)
return 1

-- What became of one attempt at sending an event: it is tried again later, or not.
-- id, event, the attempt as JSON, state, milliseconds until the next attempt or ''
local id, event, attempt, state, pause = unpack(ARGV)
redis.call('RPUSH', key('tries:') .. id, attempt)
redis.call('LTRIM', key('tries:') .. id, -TRIES_KEPT, -1)
count('sent ' .. state)
redis.call('HINCRBY', key('sent:') .. id, event .. ':tries', 1)
redis.call('HSET', key('sent:') .. id, event, state)
if pause ~= '' then
  redis.call('ZADD', key('outbox'), now() + pause, id .. ' ' .. event)
else
  redis.call('ZREM', key('outbox'), id .. ' ' .. event)
end
return 1

-- What waits and who works.
-- the number of ranks
local time = now()
local depths, oldest = {}, time
for rank = 0, ARGV[1] - 1 do
  local first, last = rank * RANK, '(' .. string.format('%.0f', (rank + 1) * RANK)
  local head = redis.call('ZRANGE', key('line'), string.format('%.0f', first), last, 'BYSCORE',
    'LIMIT', 0, 1, 'WITHSCORES')
  depths[rank + 1] = redis.call('ZCOUNT', key('line'), string.format('%.0f', first), last)
  if head[2] then oldest = math.min(oldest, head[2] - first) end
end
local finished = 0
for bucket = math.floor(time / 10000) - 6, math.floor(time / 10000) - 1 do
  finished = finished + (redis.call('GET', key('finished:') .. bucket) or 0)
end
return {
  depths,
  redis.call('HGETALL', key('backlog')),
  redis.call('ZCARD', key('running')) + redis.call('ZCARD', key('committing')),
  redis.call('ZCOUNT', key('workers'), time, '+inf'),
  finished,
  time - oldest,
}

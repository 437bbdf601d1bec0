-- The events of a job or batch that have happened are sent again, from the start of the schedule.
-- id
local id, count = ARGV[1], 0
for _, event in ipairs(redis.call('HKEYS', key('sent:') .. id)) do
  if not string.find(event, ':tries', 1, true) then
    redis.call('HSET', key('sent:') .. id, event, 'pending', event .. ':tries', 0)
    redis.call('ZADD', key('outbox'), now(), id .. ' ' .. event)
    count = count + 1
  end
end
local bell = redis.call('HMGET', key('courier'), 'queue', 'message')
if count > 0 and bell[1] then redis.call('LPUSH', bell[1], bell[2]) end
return count

-- The attempts at sending the events of a job or batch, what became of each event, and when it is
-- tried again.
-- id
local id = ARGV[1]
local events = {}
for _, event in ipairs(redis.call('HKEYS', key('sent:') .. id)) do
  if not string.find(event, ':tries', 1, true) then
    events[#events + 1] = { event, redis.call('HGET', key('sent:') .. id, event),
      redis.call('ZSCORE', key('outbox'), id .. ' ' .. event) or '' }
  end
end
return { redis.call('LRANGE', key('tries:') .. id, 0, -1), events }

-- The events that are to be sent now, each held for a while so that no other courier takes it.
-- limit, lease
local limit, lease = unpack(ARGV)
local time, taken = now(), {}
local due = redis.call('ZRANGE', key('outbox'), '-inf', time, 'BYSCORE', 'LIMIT', 0, tonumber(limit))
for _, event in ipairs(due) do
  redis.call('ZADD', key('outbox'), time + lease, event)
  local id, name = string.match(event, '(%S+) (%S+)')
  taken[#taken + 1] = { id, name, redis.call('HGET', key('sent:') .. id, name .. ':tries') or '0' }
end
return taken

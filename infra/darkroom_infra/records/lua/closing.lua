-- The batches whose latents are needed no more and are still there: id, and '1' if it was deleted.
-- limit
local due = {}
for _, id in ipairs(redis.call('ZRANGE', key('closing'), '-inf', now(), 'BYSCORE',
  'LIMIT', 0, tonumber(ARGV[1]))) do
  due[#due + 1] = { id, redis.call('HGET', key('batch:') .. id, 'erased') or '' }
end
return due

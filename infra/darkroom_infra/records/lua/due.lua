-- The ids in one index whose time has come, with what is needed to act on them.
-- index, limit
local index, limit = unpack(ARGV)
local result = {}
for _, id in ipairs(redis.call('ZRANGE', key(index), '-inf', now(), 'BYSCORE', 'LIMIT', 0, limit)) do
  local job = redis.call('HMGET', job_key(id), 'rank', 'state', 'settled', 'candidate')
  result[#result + 1] = { id, job[1] or '', job[2] or '', job[3] or '', job[4] or '' }
end
return result

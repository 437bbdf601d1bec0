-- The objects of a retired job are gone; its record is kept a while longer. Records and manifests of
-- a batch's jobs are kept as long as its latents: else a rebuild would take a job that is forgotten
-- for one that never ran. The answer names a batch whose latents are needed no more.
-- id, milliseconds to keep the record
local id, keep = unpack(ARGV)
local state = get(id, 'state')
if state ~= 'expired' and state ~= 'deleted' then return '' end
if get(id, 'settled') then return '' end
redis.call('HSET', job_key(id), 'settled', 1)
redis.call('ZADD', key('endings'), now() + keep, id)
local batch = get(id, 'batch')
if not batch then return '' end
local whole = redis.call('HMGET', key('batch:') .. batch, 'total', 'closed')
if not whole[1] or whole[2] then return '' end
redis.call('ZREM', key('endings'), id)
-- A job that expired may be deleted later, and settles twice.
if redis.call('HSETNX', job_key(id), 'counted', 1) == 1
  and redis.call('HINCRBY', key('batch:') .. batch, 'settled', 1) == tonumber(whole[1]) then
  redis.call('ZADD', key('closing'), now(), batch)
end
return redis.call('ZSCORE', key('closing'), batch) and batch or ''

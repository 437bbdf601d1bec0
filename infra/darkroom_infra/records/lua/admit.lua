-- May this submission go on, and under which id? One idempotency key stands for one id.
-- owner, idempotency key or '', fingerprint, new id, most queued jobs, milliseconds to keep the key,
-- how many jobs
local owner, idempotency, fingerprint, id, limit, keep, count = unpack(ARGV)
if redis.call('EXISTS', key('epoch')) == 0 then return { 'recovering', id } end
if idempotency ~= '' then
  local reservation = reservation_key(owner, idempotency)
  local known = redis.call('HMGET', reservation, 'fingerprint', 'id')
  if known[1] then
    if known[1] ~= fingerprint then return { 'mismatch', known[2] } end
    if redis.call('EXISTS', job_key(known[2]), key('batch:') .. known[2]) > 0 then
      return { 'known', known[2] }
    end
    id = known[2]
  end
end
if redis.call('ZCARD', key('line')) + count > tonumber(limit) then return { 'full', id } end
if idempotency ~= '' then reserve(owner, idempotency, fingerprint, id, keep) end
return { 'admitted', id }

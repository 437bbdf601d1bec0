-- May this submission go on, and under which id? One idempotency key stands for one id.
-- owner, idempotency key or '', fingerprint, new id, most queued jobs, milliseconds to keep the key
local owner, idempotency, fingerprint, id, limit, keep = unpack(ARGV)
if redis.call('EXISTS', key('epoch')) == 0 then return { 'recovering', id } end
if idempotency ~= '' then
  local reservation = key('idempotency:') .. owner .. ':' .. idempotency
  local known = redis.call('HMGET', reservation, 'fingerprint', 'id')
  if known[1] then
    if known[1] ~= fingerprint then return { 'mismatch', known[2] } end
    if redis.call('EXISTS', job_key(known[2])) == 1 then return { 'known', known[2] } end
    id = known[2]
  end
end
if redis.call('ZCARD', key('line')) >= tonumber(limit) then return { 'full', id } end
if idempotency ~= '' then
  local reservation = key('idempotency:') .. owner .. ':' .. idempotency
  redis.call('HSET', reservation, 'fingerprint', fingerprint, 'id', id)
  redis.call('PEXPIRE', reservation, keep)
end
return { 'admitted', id }

-- The objects of a retired job are gone; its record is kept a while longer.
-- id, milliseconds to keep the record
local id, keep = unpack(ARGV)
local state = get(id, 'state')
if state ~= 'expired' and state ~= 'deleted' then return 0 end
redis.call('HSET', job_key(id), 'settled', 1)
redis.call('ZADD', key('endings'), now() + keep, id)
return 1

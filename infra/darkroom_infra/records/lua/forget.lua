-- A settled job -> nothing.
-- id
local id = ARGV[1]
if not get(id, 'settled') then return 0 end
redis.call('ZREM', key('endings'), id)
redis.call('ZREM', key('jobs:') .. get(id, 'owner'), id)
redis.call('DEL', job_key(id))
return 1

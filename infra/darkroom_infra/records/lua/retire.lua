-- finished -> expired or deleted: no result is shown any more. Its objects are due for removal.
-- id, state
local id, state = unpack(ARGV)
local before = get(id, 'state')
if not before then return 'unknown' end
if before == 'queued' or before == 'running' or before == 'committing' then return 'unfinished' end
if before == 'deleted' or before == state then return 'known' end
redis.call('HDEL', job_key(id), 'settled')
redis.call('ZADD', key('endings'), now(), id)
if state == 'deleted' then redis.call('ZREM', key('jobs:') .. get(id, 'owner'), id) end
enter_state(id, state)
return 'retired'

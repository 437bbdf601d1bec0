-- Stands before every script. KEYS[1] is the prefix of all keys. Time is Redis's own, in
-- milliseconds, so that no two machines have to agree on it.
--
--   job:ID     hash   the record: state, spec, owner, vae, rank, attempts, nonce, times, manifest
--   line       zset   queued jobs, first to run first: rank, then time of submission
--   rings      zset   queued jobs by the time at which their doorbell is due again
--   running    zset   running jobs by the end of their lease
--   committing zset   committing jobs by the time at which anybody may roll them forward
--   endings    zset   finished jobs by the time of their next clean-up
--   jobs:OWNER zset   an owner's jobs; ids sort by time
--   backlog    hash   queued jobs by VAE
--   epoch      string present once records and ledger agree
local function key(name) return KEYS[1] .. name end
local function job_key(id) return KEYS[1] .. 'job:' .. id end
local function get(id, field) return redis.call('HGET', job_key(id), field) end

local function now()
  local time = redis.call('TIME')
  return time[1] * 1000 + math.floor(time[2] / 1000)
end

local function announce(id, state) redis.call('PUBLISH', key('changes'), id .. ' ' .. state) end

-- One score orders by rank first and by time of submission second.
local RANK = 2 ^ 45

local function ring(id, queue, message, ring_after)
  redis.call('ZADD', key('rings'), now() + ring_after, id)
  redis.call('LPUSH', queue, message)
end

local function enter_queue(id, queue, message, ring_after)
  local job = redis.call('HMGET', job_key(id), 'rank', 'created_at', 'vae')
  redis.call('HSET', job_key(id), 'state', 'queued', 'nonce', '', 'progress', 0)
  redis.call('ZADD', key('line'), job[1] * RANK + job[2], id)
  redis.call('HINCRBY', key('backlog'), job[3], 1)
  ring(id, queue, message, ring_after)
  announce(id, 'queued')
end

local function leave_queue(id)
  if redis.call('ZREM', key('line'), id) == 1 then
    local vae = get(id, 'vae')
    if redis.call('HINCRBY', key('backlog'), vae, -1) < 1 then
      redis.call('HDEL', key('backlog'), vae)
    end
  end
  redis.call('ZREM', key('rings'), id)
end

local function holds(id, nonce)
  local job = redis.call('HMGET', job_key(id), 'state', 'nonce')
  return job[1] == 'running' and job[2] == nonce
end

-- A record as a flat list: the hash, and `position`, the number of jobs before it.
local function describe(id)
  local record = redis.call('HGETALL', job_key(id))
  if #record == 0 then return record end
  local position = redis.call('ZRANK', key('line'), id)
  if position then
    record[#record + 1] = 'position'
    record[#record + 1] = position
  end
  return record
end

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
--   log:ID     list   a job's changes after its submission, "time state", oldest first
--   batch:ID   hash   a batch: spec, owner, events, and how many of its jobs are in which state
--   members:ID zset   a batch's jobs
--   batches:OWNER zset  an owner's batches
--   closing    zset   batches whose latents are needed no more, by the time to remove them
--   outbox     zset   webhook events, "ID event", by the time at which they are to be sent
--   sent:ID    hash   what became of a job's or batch's events: pending, delivered, …
--   tries:ID   list   the attempts at sending them
--   backlog    hash   queued jobs by VAE
--   facts      hash   what latents are checked against, by VAE, as workers that loaded it said
--   details    hash   its configuration and statistics, likewise
--   needs      hash   the memory that it needs, likewise
--   pace:OWNER string when an owner will have all his submissions again
--   tallies    hash   what was counted, as tallies.py describes it
--   epoch      string present once records and ledger agree
local function key(name) return KEYS[1] .. name end
local function job_key(id) return KEYS[1] .. 'job:' .. id end
local function reservation_key(owner, idempotency)
  return KEYS[1] .. 'idempotency:' .. owner .. ':' .. idempotency
end
local function get(id, field) return redis.call('HGET', job_key(id), field) end

local function now()
  local time = redis.call('TIME')
  return time[1] * 1000 + math.floor(time[2] / 1000)
end

local function count(name, by) redis.call('HINCRBY', key('tallies'), name, by or 1) end

local function announce(id, state) redis.call('PUBLISH', key('changes'), id .. ' ' .. state) end

-- Puts an event into the outbox, if it was asked for, and rings for the courier once.
local function post(id, events, event)
  if not events or not string.find(',' .. events .. ',', ',' .. event .. ',', 1, true) then return end
  redis.call('ZADD', key('outbox'), now(), id .. ' ' .. event)
  redis.call('HSET', key('sent:') .. id, event, 'pending')
  local bell = redis.call('HMGET', key('courier'), 'queue', 'message')
  if bell[1] and redis.call('LLEN', bell[1]) == 0 then redis.call('LPUSH', bell[1], bell[2]) end
end

-- How many jobs of a batch have not ended.
local function unfinished(batch)
  local left = 0
  for _, count in ipairs(redis.call('HMGET', key('batch:') .. batch, 'queued', 'running', 'committing')) do
    left = left + (count or 0)
  end
  return left
end

-- Every change of a job's state passes here. `committing` is nothing that callers know.
local function enter_state(id, state)
  local job = redis.call('HMGET', job_key(id), 'state', 'batch')
  redis.call('HSET', job_key(id), 'state', state)
  if state ~= 'committing' then
    if job[1] then redis.call('RPUSH', key('log:') .. id, now() .. ' ' .. state) end
    announce(id, state)
  end
  local batch = job[2] and key('batch:') .. job[2]
  if batch and redis.call('EXISTS', batch) == 1 then
    if job[1] then redis.call('HINCRBY', batch, job[1], -1) end
    redis.call('HINCRBY', batch, state, 1)
    announce(job[2], state)
  end
end

-- One score orders by rank first and by time of submission second.
local RANK = 2 ^ 45

-- How often for each attempt that counts a job may be lost before the device has begun with it.
local LOSSES_PER_ATTEMPT = 5

-- So many attempts at sending the events of a job are kept.
local TRIES_KEPT = 100

local function ring(id, queue, message, ring_after)
  redis.call('ZADD', key('rings'), now() + ring_after, id)
  redis.call('LPUSH', queue, message)
end

local function enter_queue(id, queue, message, ring_after)
  local job = redis.call('HMGET', job_key(id), 'rank', 'created_at', 'vae')
  redis.call('HSET', job_key(id), 'nonce', '', 'progress', 0)
  enter_state(id, 'queued')
  redis.call('ZADD', key('line'), job[1] * RANK + job[2], id)
  redis.call('HINCRBY', key('backlog'), job[3], 1)
  ring(id, queue, message, ring_after)
end

local function reserve(owner, idempotency, fingerprint, id, keep)
  local reservation = reservation_key(owner, idempotency)
  redis.call('HSET', reservation, 'fingerprint', fingerprint, 'id', id)
  redis.call('PEXPIRE', reservation, keep)
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
  if redis.call('HEXISTS', job_key(id), 'events') == 1 then
    record[#record + 1] = 'sent'
    record[#record + 1] = cjson.encode(redis.call('HGETALL', key('sent:') .. id))
  end
  record[#record + 1] = 'whole'
  record[#record + 1] = redis.call('EXISTS', key('epoch'))
  local position = redis.call('ZRANK', key('line'), id)
  if position then
    record[#record + 1] = 'position'
    record[#record + 1] = position
  end
  return record
end

-- A batch's record as a flat list: the hash, what became of its events, how many jobs are on record.
local function describe_batch(id)
  local record = redis.call('HGETALL', key('batch:') .. id)
  if #record == 0 then return record end
  record[#record + 1] = 'sent'
  record[#record + 1] = cjson.encode(redis.call('HGETALL', key('sent:') .. id))
  record[#record + 1] = 'members'
  record[#record + 1] = redis.call('ZCARD', key('members:') .. id)
  return record
end

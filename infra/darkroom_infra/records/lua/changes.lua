-- A job's changes after its submission, and its record. A log that was begun anew after Redis was
-- lost counts on from a base beyond what was counted before.
-- id, how many changes are known already
local id, known = ARGV[1], tonumber(ARGV[2])
local base = tonumber(get(id, 'log_base') or 0)
local first = math.max(0, known - base)
return { base + first, redis.call('LRANGE', key('log:') .. id, first, -1), describe(id) }

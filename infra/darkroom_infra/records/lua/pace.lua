-- Takes one of the submissions that an owner may make, unless none is left. They come back one by one,
-- so what is kept is the time at which all will be there again (the generic cell rate algorithm).
-- The answer: whether one was taken, how many are left, milliseconds until all are there again, and
-- until the next one is.
-- owner, how many at most, milliseconds in which so many come back
local owner, most, window = ARGV[1], tonumber(ARGV[2]), tonumber(ARGV[3])
local time, each = now(), window / most
local whole_at = tonumber(redis.call('GET', key('pace:') .. owner) or time)
-- Another limit may have been set, or the clock, since that was kept.
whole_at = math.min(math.max(whole_at, time), time + window)
local left = math.floor((window - (whole_at - time)) / each + 1e-6)
local taken = 0
if left >= 1 then
  taken, left, whole_at = 1, left - 1, whole_at + each
  redis.call('SET', key('pace:') .. owner, string.format('%.3f', whole_at), 'PX',
    math.max(1, math.ceil(whole_at - time)))
end
local next_in = left >= 1 and 0 or math.ceil(whole_at - time + each - window)
return { taken, left, math.ceil(whole_at - time), next_in }

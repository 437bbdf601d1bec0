-- Keep what a worker knows of a VAE beyond its facts.
-- name, details as JSON
local name, details = unpack(ARGV)
redis.call('HSET', key('details'), name, details)
return 1

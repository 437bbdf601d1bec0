-- What workers noted of a VAE, or nothing.
return redis.call('HGET', key('details'), ARGV[1]) or ''

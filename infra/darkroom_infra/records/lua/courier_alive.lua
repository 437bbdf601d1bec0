-- Whether a courier lives.
return redis.call('EXISTS', key('courier:alive'))

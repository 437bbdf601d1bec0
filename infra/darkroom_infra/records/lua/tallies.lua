-- What was counted, and how many webhook events wait to be sent.
return { redis.call('HGETALL', key('tallies')), redis.call('ZCARD', key('outbox')) }

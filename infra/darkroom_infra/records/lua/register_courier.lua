-- The courier says that it lives, and how it is rung for.
-- queue, message, lease
redis.call('HSET', key('courier'), 'queue', ARGV[1], 'message', ARGV[2])
redis.call('SET', key('courier:alive'), 1, 'PX', ARGV[3])
return 1

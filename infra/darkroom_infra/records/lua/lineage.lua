-- Names what Redis holds: the name is gone when Redis is emptied.
-- a new name, taken where there is none
if redis.call('SETNX', key('lineage'), ARGV[1]) == 1 then return ARGV[1] end
return redis.call('GET', key('lineage'))

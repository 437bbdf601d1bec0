-- Records and ledger agree, unless Redis was emptied since they were compared.
-- the name that what Redis held had then
if redis.call('GET', key('lineage')) ~= ARGV[1] then return 0 end
redis.call('SET', key('epoch'), ARGV[1])
return 1

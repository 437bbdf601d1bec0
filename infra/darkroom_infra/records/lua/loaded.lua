-- What each living worker holds, and the facts of every VAE that was ever loaded.
local held = {}
for _, worker in ipairs(redis.call('ZRANGE', key('workers'), now(), '+inf', 'BYSCORE')) do
  held[#held + 1] = redis.call('GET', key('worker:') .. worker) or '{}'
end
return { held, redis.call('HGETALL', key('facts')) }

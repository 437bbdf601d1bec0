-- What each living worker holds and has, and what is known of every VAE that was ever loaded.
local held, budgets = {}, {}
for _, worker in ipairs(redis.call('ZRANGE', key('workers'), now(), '+inf', 'BYSCORE')) do
  held[#held + 1] = redis.call('GET', key('worker:') .. worker) or '{}'
  budgets[#budgets + 1] = redis.call('GET', key('budget:') .. worker) or nil
end
return { held, budgets, redis.call('HGETALL', key('facts')), redis.call('HGETALL', key('needs')) }

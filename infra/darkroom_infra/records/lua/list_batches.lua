-- A page of an owner's batches, newest first, and the id at which the next page goes on. Those whose
-- record has ended are dropped.
-- owner, the last id of the page before or '', length
local owner, cursor, length = unpack(ARGV)
local highest = cursor == '' and '+' or '(' .. cursor
local index, page = key('batches:') .. owner, {}
local ids = redis.call('ZRANGE', index, highest, '-', 'BYLEX', 'REV', 'LIMIT', 0, tonumber(length))
for _, id in ipairs(ids) do
  local record = describe_batch(id)
  if #record == 0 then redis.call('ZREM', index, id) else page[#page + 1] = record end
end
return { #ids == tonumber(length) and ids[#ids] or '', page }

-- A page of a batch's records, in the order of its file.
-- batch, the last id of the page before or '', length
local batch, cursor, length = unpack(ARGV)
local lowest = cursor == '' and '-' or '(' .. cursor
local page = {}
for _, id in ipairs(redis.call('ZRANGE', key('members:') .. batch, lowest, '+', 'BYLEX',
  'LIMIT', 0, tonumber(length))) do
  page[#page + 1] = describe(id)
end
return page

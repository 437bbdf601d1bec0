-- A page of an owner's records, newest first, and the id at which the next page goes on.
-- owner, states separated by commas or '', the last id of the page before or '', length, most looked at
local owner, states, cursor, length, most = unpack(ARGV)
local wanted = {}
for state in string.gmatch(states, '[^,]+') do wanted[state] = true end
local highest = cursor == '' and '+' or '(' .. cursor
local ids = redis.call('ZRANGE', key('jobs:') .. owner, highest, '-', 'BYLEX', 'REV',
  'LIMIT', 0, tonumber(most))
local page = {}
for index, id in ipairs(ids) do
  if states == '' or wanted[get(id, 'state')] then
    page[#page + 1] = { id, describe(id) }
    if #page == tonumber(length) then
      return { (index < #ids or #ids == tonumber(most)) and id or '', page }
    end
  end
end
return { #ids == tonumber(most) and ids[#ids] or '', page }

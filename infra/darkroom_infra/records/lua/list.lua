-- A page of an owner's records, newest first, and the id at which the next page goes on.
-- owner, states separated by commas or '', the last id of the page before or '', length, most looked
-- at, batch or ''
local owner, states, cursor, length, most, batch = unpack(ARGV)
local index = key('jobs:') .. owner
if batch ~= '' then
  if redis.call('HGET', key('batch:') .. batch, 'owner') ~= owner then return { '', {} } end
  index = key('members:') .. batch
end
local wanted = {}
for state in string.gmatch(states, '[^,]+') do wanted[state] = true end
local highest = cursor == '' and '+' or '(' .. cursor
local ids = redis.call('ZRANGE', index, highest, '-', 'BYLEX', 'REV',
  'LIMIT', 0, tonumber(most))
local page = {}
for place, id in ipairs(ids) do
  local state = get(id, 'state')
  if state ~= 'deleted' and (states == '' or wanted[state]) then
    page[#page + 1] = { id, describe(id) }
    if #page == tonumber(length) then
      return { (place < #ids or #ids == tonumber(most)) and id or '', page }
    end
  end
end
return { #ids == tonumber(most) and ids[#ids] or '', page }

-- The states of jobs, '' for those that are not on record.
-- ids
local states = {}
for index, id in ipairs(ARGV) do states[index] = get(id, 'state') or '' end
return states

-- One record.
-- id
return describe(ARGV[1])

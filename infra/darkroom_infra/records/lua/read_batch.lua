-- A batch's record; nothing where there is none.
-- id
return describe_batch(ARGV[1])

#!lua flags=no-writes
-- Read a job. Arguments: id, tenant. Answer: view, or false.
local id, tenant = argument(1), argument(2)
if redis.call('HGET', job_key(id), 'tenant') ~= tenant then return false end
return view(id)

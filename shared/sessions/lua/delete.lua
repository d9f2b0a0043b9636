#!lua flags=allow-oom
-- Forget a session; the jobs of its turns go on. Arguments: id, tenant. Answer: 1, or 0 when the tenant has none such.
local id, tenant = argument(1), argument(2)
if not owns(tenant, id) then return 0 end
redis.call('DEL', session_key(id), turns_key(id))
redis.call('ZREM', sessions_key(tenant), id)
redis.call('ZREM', ends_key(tenant), id)
return 1

#!lua flags=no-writes
-- Read a session. Arguments: id, tenant.
-- Answer: {session hash, {n, record, job, created, state or false} of each turn}, or false.
local id, tenant = argument(1), argument(2)
if not owns(tenant, id) then return false end
local turns = {}
for n = 1, tonumber(redis.call('HGET', session_key(id), 'count')) do
  local facts = redis.call('HMGET', turns_key(id), n, n .. ':job', n .. ':created', n .. ':end')
  turns[n] = {n, facts[1], facts[2], facts[3], state_of(facts[2]) or facts[4]}
end
return {redis.call('HGETALL', session_key(id)), turns}

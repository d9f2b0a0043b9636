#!lua
-- Make a session. Arguments: id, tenant, name, body hash, idempotency key or '', most sessions of a tenant, seconds for
-- which sessions are kept.
-- Answer: {'created' | 'known', id, session hash}, {'conflict'}, {'gone'} or {'full'}.
local id, tenant, name, body_hash, key = argument(1), argument(2), argument(3), argument(4), argument(5)
local max_sessions, kept_s = tonumber(argument(6)), tonumber(argument(7))

local function shown(outcome, session)
  return {outcome, session, redis.call('HGETALL', session_key(session))}
end

-- The same id is the same call again, after its answer was lost.
if owns(tenant, id) then return shown('created', id) end
local known_hash, known_id = recall_key(tenant, key)
if known_hash and known_hash ~= body_hash then return {'conflict'} end
if known_hash then return owns(tenant, known_id) and shown('known', known_id) or {'gone'} end

if has_enough_sessions(tenant, max_sessions) then return {'full'} end

local place = next_place()
redis.call('HSET', session_key(id),
  'tenant', tenant, 'name', name, 'created', now_ms, 'place', place, 'count', 0, 'bytes', 0)
redis.call('ZADD', sessions_key(tenant), place, id)
if key ~= '' then redis.call('SET', idempotency_key_of(tenant, key), body_hash .. ' ' .. id, 'EX', idempotency_s) end
keep_session(tenant, id, kept_s)
return shown('created', id)

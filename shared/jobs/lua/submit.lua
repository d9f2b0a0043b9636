#!lua
-- Accept a job: write its record, queue it, remember its idempotency key.
-- Arguments: id, tenant, stage, lane, batch key, body hash, idempotency key or '', deadline in ms from now or '',
-- later stage or '', request, prompt or ''.
local id, tenant, stage, lane, batch_key = argument(1), argument(2), argument(3), argument(4), argument(5)
local body_hash, key, deadline_ms, later = argument(6), argument(7), argument(8), argument(9)
local idempotency_key = base .. 'idempotency:' .. tenant .. ':' .. key

-- The same id is the same call again, after its answer was lost.
local present = redis.call('HMGET', job_key(id), 'tenant', 'body_hash')
if present[1] then
  if present[1] ~= tenant or present[2] ~= body_hash then return {'conflict'} end
  return {'created', view(id)}
end

local known = false
if key ~= '' then known = redis.call('GET', idempotency_key) end  -- safeguard: idempotency
if known then
  local known_hash, known_id = string.match(known, '^(%S+) (%S+)$')
  if known_hash ~= body_hash then return {'conflict'} end
  if redis.call('EXISTS', job_key(known_id)) == 0 then return {'gone'} end
  return {'known', view(known_id)}
end

-- A job counts against every queue that it will stand in, so that no later queue grows without a bound.
if full(stage) then return {'full', drain_rate(stage)} end
if later ~= '' and full(later) then return {'full', drain_rate(later)} end

local place = next_place()
redis.call('HSET', job_key(id),
  'id', id, 'tenant', tenant, 'lane', lane, 'batch_key', batch_key, 'body_hash', body_hash, 'place', place,
  'attempts', 0, 'created', now_ms, 'request', argument(10))
if argument(11) ~= '' then redis.call('HSET', job_key(id), 'prompt', argument(11)) end
local deadline = false
if deadline_ms ~= '' then
  deadline = now_ms + tonumber(deadline_ms)
  redis.call('HSET', job_key(id), 'deadline', deadline)
end
if key ~= '' then redis.call('SET', idempotency_key, body_hash .. ' ' .. id, 'EX', idempotency_s) end
enqueue({
  id = id, stage = stage, lane = lane, tenant = tenant, batch_key = batch_key, place = place, deadline = deadline,
})
return {'created', view(id)}

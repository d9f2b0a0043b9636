#!lua
-- Accept a job: write its record, queue it, remember its idempotency key, charge its tenant.
-- Arguments: id, tenant, stage, lane, batch key, body hash, idempotency key or '', deadline in ms from now or '',
-- later stage or '', request, prompt or '', the tenant's requests per minute, burst, jobs and charge per day (0: no
-- bound), charge of the prompt stage, of the render stage, task, URL of a webhook or '', the events that it wants with
-- blanks around each; session or '', and of a session the turn's record, the most turns, the most bytes, the seconds for
-- which sessions are kept.
-- Answer: {'created', view, standing}, {'known', view}, {'conflict'}, {'gone'}, {'full', drain rate},
-- {'limited', limit, ms to wait, drain rate, standing}, {'no session'}, or {'session full', 'turns' or 'bytes'}.
local id, tenant, stage, lane, batch_key = argument(1), argument(2), argument(3), argument(4), argument(5)
local body_hash, key, deadline_ms, later = argument(6), argument(7), argument(8), argument(9)
local charge = {prompt = tonumber(argument(16)), render = tonumber(argument(17))}
local session, record = argument(21), argument(22)

-- The same id is the same call again, after its answer was lost.
local present = redis.call('HMGET', job_key(id), 'tenant', 'body_hash')
if present[1] then
  if present[1] ~= tenant or present[2] ~= body_hash then return {'conflict'} end
  return {'created', view(id), {}}
end

local known = recall(tenant, body_hash, key)
if known then return known end

if session ~= '' then
  local refusal = refuse_turn(tenant, session, #record, tonumber(argument(23)), tonumber(argument(24)))
  if refusal then return refusal end
end

local bucket = look_into_bucket(tenant, tonumber(argument(12)), tonumber(argument(13)))
local jobs = look_at_jobs(tenant, tonumber(argument(14)))
local units = look_at_units(tenant, tonumber(argument(15)), charge.prompt + charge.render)
local function limited(limit, wait_ms)
  local last = later ~= '' and later or stage
  return {'limited', limit, wait_ms, drain_rate(last), standing(bucket, jobs, units)}
end
if bucket.wait_ms > 0 then return limited('requests', bucket.wait_ms) end
if jobs.is_over then return limited('jobs', -1) end
if units.is_over then return limited('units', units.full_ms) end

-- A job counts against every queue that it will stand in, so that no later queue grows without a bound.
if full(stage) then return {'full', drain_rate(stage)} end
if later ~= '' and full(later) then return {'full', drain_rate(later)} end

local place = next_place()
redis.call('HSET', job_key(id),
  'id', id, 'tenant', tenant, 'lane', lane, 'batch_key', batch_key, 'body_hash', body_hash, 'place', place,
  'attempts', 0, 'created', now_ms, 'request', argument(10),
  'task', argument(18), 'charge:prompt', charge.prompt, 'charge:render', charge.render)
if argument(19) ~= '' then redis.call('HSET', job_key(id), 'webhook', argument(19), 'webhook_events', argument(20)) end
if argument(11) ~= '' then redis.call('HSET', job_key(id), 'prompt', argument(11)) end
local deadline = false
if deadline_ms ~= '' then
  deadline = now_ms + tonumber(deadline_ms)
  redis.call('HSET', job_key(id), 'deadline', deadline)
end
if key ~= '' then redis.call('SET', idempotency_key_of(tenant, key), body_hash .. ' ' .. id, 'EX', idempotency_s) end
enqueue({
  id = id, stage = stage, lane = lane, tenant = tenant, batch_key = batch_key, place = place, deadline = deadline,
})
redis.call('SADD', active_key(tenant), id)
list({id = id, tenant = tenant, place = place})
if session ~= '' then add_turn(tenant, session, id, record, tonumber(argument(25))) end
take_token(bucket)
if jobs.left > 0 then jobs.left = jobs.left - 1 end
if units.left >= 0 then
  local spent = spent_key(tenant, today)
  redis.call('INCRBY', spent, charge.prompt + charge.render)
  redis.call('EXPIRE', spent, 2 * DAY_MS / 1000 + retention_s)  -- for as long as something may be given back
  redis.call('HSET', job_key(id), 'charged', today)
  units.left = units.left - charge.prompt - charge.render
end
return {'created', view(id), standing(bucket, jobs, units)}

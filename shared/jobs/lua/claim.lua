#!lua flags=allow-oom
-- Hand the next job of a stage to a worker, under a lease and an attempt token.
-- Arguments: stage, worker, token, problem of an expired deadline, batch keys that the worker can join (none: any).
-- Answer: false, or {id, record, ms that the job has waited, ids that were dropped instead, jobs left in the stage}.
local stage, worker, token, expired = argument(1), argument(2), argument(3), argument(4)
local wanted = {}
for n = 5, #ARGV - LIMITS do wanted[#wanted + 1] = argument(n) end

local MAX_PASSES = 3  -- interactive claims while batch work is overdue, before batch gets one: every fourth
local MAX_DROPPED = 100  -- expired jobs met in one claim; the next call goes on

-- Return how many jobs of the stage are still queued, whether this worker can join them or not.
local function left()
  return redis.call('ZCARD', queue_key(stage, 'interactive')) + redis.call('ZCARD', queue_key(stage, 'batch'))
end

-- The same token is the same call again, after its answer was lost.
local held = redis.call('GET', base .. 'claim:' .. token)
if held and redis.call('HGET', job_key(held), 'token') == token then
  return {held, redis.call('HGETALL', job_key(held)), -1, {}, left()}
end

-- Return those wanted batch keys that have jobs in a queue.
local function present_keys(queue)
  local counts = redis.call('HMGET', queue .. ':keys', unpack(wanted))
  local keys = {}
  for i, key in ipairs(wanted) do
    if counts[i] then keys[#keys + 1] = key end
  end
  return keys
end

-- Return the first job of the tenant whose turn it is, or nil.
local function first(queue)
  if #wanted == 0 then
    local tenant = redis.call('ZRANGE', queue .. ':ring', 0, 0)[1]
    return tenant and redis.call('ZRANGE', queue .. ':tenant:' .. tenant, 0, 0)[1]
  end
  local keys = present_keys(queue)
  if #keys == 0 then return nil end
  for _, tenant in ipairs(redis.call('ZRANGE', queue .. ':ring', 0, -1)) do
    local id, place
    for _, key in ipairs(keys) do
      local head = redis.call('ZRANGE', queue .. ':key:' .. tenant .. ':' .. key, 0, 0, 'WITHSCORES')
      if head[1] and (not place or tonumber(head[2]) < place) then id, place = head[1], tonumber(head[2]) end
    end
    if id then return id end
  end
  return nil
end

local oldest_batch = redis.call('ZRANGE', queue_key(stage, 'batch'), 0, 0, 'WITHSCORES')
local overdue = oldest_batch[2] and now_us - tonumber(oldest_batch[2]) >= ageing_ms * 1000
local passed = 'passed:' .. stage
local lanes = {'interactive', 'batch'}
if overdue and tonumber(redis.call('HGET', counters, passed) or 0) >= MAX_PASSES then
  lanes = {'batch', 'interactive'}  -- safeguard: ageing
end

local dropped = {}
local function next_job()
  for _, lane in ipairs(lanes) do
    local id = first(queue_key(stage, lane))
    while id do
      local job = load(id)
      local late = false
      if job.deadline and tonumber(job.deadline) <= now_ms then late = true end  -- safeguard: deadline
      if not late then return job end
      dequeue(job)
      fail_job(job, expired)
      dropped[#dropped + 1] = id
      if #dropped >= MAX_DROPPED then return nil end
      id = first(queue_key(stage, lane))
    end
  end
  return nil
end

local job = next_job()
if not job then
  if #dropped == 0 then return false end
  return {false, {}, -1, dropped, left()}
end

dequeue(job)
local ring = queue_key(stage, job.lane) .. ':ring'
local turn = redis.call('HINCRBY', counters, 'turn', 1)
redis.call('ZADD', ring, 'XX', turn, job.tenant)  -- safeguard: tenant round robin
if job.lane == 'batch' then
  redis.call('HDEL', counters, passed)
elseif overdue then
  redis.call('HINCRBY', counters, passed, 1)
end

local waited_ms = math.max(0, now_ms - tonumber(job.queued))
local attempt = job.attempts + 1
redis.call('HSET', job_key(job.id),
  'status', 'running', 'token', token, 'worker', worker, 'attempts', attempt, 'started', now_ms, 'updated', now_ms)
redis.call('HINCRBY', job_key(job.id), 'ms:' .. stage .. '_queued', waited_ms)
-- What an earlier attempt left, also one that was given back: its progress, and the number of its last emit.
local leftovers = {'emitted', 'total_steps'}
for index = 0, MAX_IMAGES - 1 do leftovers[#leftovers + 1] = 'step:' .. index end
redis.call('HDEL', job_key(job.id), unpack(leftovers))
redis.call('ZADD', leases, now_ms + lease_ms, job.id)
redis.call('ZADD', running_key(stage), now_ms, job.id)
redis.call('SET', base .. 'claim:' .. token, job.id, 'PX', lease_ms)
append(job.id, 'job.started',
  '{"stage":"' .. stage .. '","attempt":' .. attempt .. ',"worker":' .. cjson.encode(worker) .. '}')
return {job.id, redis.call('HGETALL', job_key(job.id)), waited_ms, dropped, left()}

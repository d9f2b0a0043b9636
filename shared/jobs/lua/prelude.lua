-- Put before every transition by scripts.py.
--
-- KEYS[1] is `{namespace}:`. Every key is built from it, so that all share one hash slot:
--   job:<id>        hash: the record          events:<id>   stream: its events
--   queue:<stage>:<lane>                      zset: job -> place; all that wait there
--   queue:<stage>:<lane>:ring                 zset: tenant -> turn; the lowest turn is served next
--   queue:<stage>:<lane>:keys                 hash: batch key -> jobs that wait with it
--   queue:<stage>:<lane>:tenant:<tenant>      zset: job -> place
--   queue:<stage>:<lane>:key:<tenant>:<key>   zset: job -> place
--   leases          zset: running job -> end of its lease in ms
--   running:<stage> zset: running job -> time in ms at which its attempt began
--   deadlines       zset: job that is not running -> time in ms at which it is dropped
--   dead            zset: dead letter -> time in ms of its death
--   finishes:<stage> list: times in ms of the latest ends of that stage, newest first
--   counters        hash: turn, place, passed:<stage>
--   idempotency:<tenant>:<key>                string: body hash, job or session
--   active:<tenant> set: its jobs that have not ended
--   jobs:<tenant>   zset: all its jobs -> place of their submission
--   ended:<tenant>  zset: those that have ended -> time in ms at which their records expire
--   pace:<stage>, pace:<stage>:<batch key>    hash: ms and thousandths of cost units of a job there, of late
--   bucket:<tenant> string: time in us at which its token bucket is full again
--   spent:<tenant>:<day> string: thousandths of cost units charged on that day (days since 1970, UTC)
--   session:<id>, turns:<id>  hashes: a session, and its turns (sessions.lua)
--   delivery:<id>   hash: an event on its way to a webhook: url, tenant, job, type, data, time, attempts, token, reason
--   deliveries      zset: delivery -> time in ms at which it is due, or at which the lease of its attempt ends
--   deliveries:dead zset: delivery that used up its attempts -> time in ms
--   claim:<token>   string: job               worker:<name> string: announcement     workers zset: name -> expiry
-- A job's place is the server's time of its submission in microseconds, made unique and increasing: it orders the
-- queue, a job that is queued again keeps it, and it says how long the job has waited.
--
-- ARGV starts with the queue's limits; a transition reads its own arguments with argument(n).
local base = KEYS[1]
local LIMITS = 7
local lease_ms, max_attempts, max_queued = tonumber(ARGV[1]), tonumber(ARGV[2]), tonumber(ARGV[3])
local max_events, retention_s, idempotency_s = tonumber(ARGV[4]), tonumber(ARGV[5]), tonumber(ARGV[6])
local ageing_ms = tonumber(ARGV[7])

local MAX_FINISHES = 100  -- enough for a steady rate, little enough to follow a change
local MAX_DEAD = 1000  -- more dead letters than anybody reads
local MAX_IMAGES = 8  -- of one job, as in the contract
local MAX_UNLISTED = 100  -- at each end of a job, which adds one: what has piled up goes away by and by
local PACE_WEIGHT = 0.2  -- of the latest job: the last three count for half, so that a change is seen at once

local clock = redis.call('TIME')
local now_us = clock[1] * 1000000 + clock[2]
local now_ms = math.floor(now_us / 1000)

local function argument(n) return ARGV[LIMITS + n] end
local function job_key(id) return base .. 'job:' .. id end
local function events_key(id) return base .. 'events:' .. id end
local function queue_key(stage, lane) return base .. 'queue:' .. stage .. ':' .. lane end
local leases = base .. 'leases'
local deadlines = base .. 'deadlines'
local dead = base .. 'dead'
local counters = base .. 'counters'
local function running_key(stage) return base .. 'running:' .. stage end
local function active_key(tenant) return base .. 'active:' .. tenant end
local function jobs_key(tenant) return base .. 'jobs:' .. tenant end
local function ended_key(tenant) return base .. 'ended:' .. tenant end
local function spent_key(tenant, day) return base .. 'spent:' .. tenant .. ':' .. day end
local function delivery_key(id) return base .. 'delivery:' .. id end
local deliveries, dead_deliveries = base .. 'deliveries', base .. 'deliveries:dead'
local function session_key(id) return base .. 'session:' .. id end
local function turns_key(id) return base .. 'turns:' .. id end

local FIELDS = {
  'status', 'stage', 'lane', 'tenant', 'batch_key', 'place', 'deadline', 'attempts', 'token', 'worker', 'started', 'queued',
}

-- Return what the transitions need of a job, or nil when there is no such job.
local function load(id)
  local values = redis.call('HMGET', job_key(id), unpack(FIELDS))
  if not values[1] then return nil end
  local job = {id = id}
  for i, field in ipairs(FIELDS) do job[field] = values[i] end
  job.attempts = tonumber(job.attempts)
  return job
end

-- Let a delivery be tried now.
local function keep_delivery(id)
  redis.call('EXPIRE', delivery_key(id), retention_s)
  redis.call('ZADD', deliveries, now_ms, id)
  redis.call('EXPIRE', deliveries, retention_s)
  redis.call('PUBLISH', deliveries, id)
end

-- Send an event to the job's webhook, if it has one that wants it. `entry` is the event's id.
local function deliver(id, event, data, entry)
  local hook = redis.call('HMGET', job_key(id), 'webhook', 'webhook_events', 'tenant')
  if not hook[1] or not string.find(hook[2], ' ' .. event .. ' ', 1, true) then return end  -- safeguard: wanted events
  local delivery = 'msg_' .. id .. '_' .. entry
  redis.call('HSET', delivery_key(delivery),
    'url', hook[1], 'tenant', hook[3], 'job', id, 'type', event, 'data', data, 'time', now_ms, 'attempts', 0)
  keep_delivery(delivery)
end

-- Append one event, tell the followers, and send it to the job's webhook.
local function append(id, event, data)
  deliver(id, event, data, redis.call('XADD', events_key(id), '*', 'type', event, 'data', data))
  redis.call('XTRIM', events_key(id), 'MAXLEN', max_events)  -- safeguard: event bound
  redis.call('PUBLISH', base .. 'notify:' .. id, event)
end

-- Say whether the caller still owns the job: 'ok', 'again' (this very call was carried out before), 'canceled', 'lost'.
local function ownership(job, token, operation)
  if not job then return 'lost' end
  if operation and redis.call('HGET', job_key(job.id), 'did:' .. operation) == token then return 'again' end
  if job.status == 'canceled' then return 'canceled' end  -- safeguard: cancel
  if job.token ~= token then return 'lost' end  -- safeguard: token
  if tonumber(redis.call('ZSCORE', leases, job.id) or 0) <= now_ms then return 'lost' end  -- safeguard: lease end
  return 'ok'
end

local function next_place()
  local place = math.max(now_us, tonumber(redis.call('HGET', counters, 'place') or 0) + 1)
  redis.call('HSET', counters, 'place', place)
  return place
end

-- Put a job into the queue of its stage, at its place, and wake the workers.
local function enqueue(job)
  local queue = queue_key(job.stage, job.lane)
  redis.call('HSET', job_key(job.id), 'status', 'queued', 'stage', job.stage, 'queued', now_ms, 'updated', now_ms)
  redis.call('ZADD', queue, job.place, job.id)
  redis.call('ZADD', queue .. ':tenant:' .. job.tenant, job.place, job.id)
  redis.call('ZADD', queue .. ':key:' .. job.tenant .. ':' .. job.batch_key, job.place, job.id)
  redis.call('HINCRBY', queue .. ':keys', job.batch_key, 1)
  -- A tenant that comes back joins at the end of the ring.
  redis.call('ZADD', queue .. ':ring', 'NX', redis.call('HINCRBY', counters, 'turn', 1), job.tenant)
  if job.deadline then redis.call('ZADD', deadlines, job.deadline, job.id) end
  append(job.id, 'job.queued', '{"stage":"' .. job.stage .. '"}')
  redis.call('PUBLISH', base .. 'wake:' .. job.stage, job.batch_key)
end

-- Take a job out of the queue of its stage.
local function dequeue(job)
  local queue = queue_key(job.stage, job.lane)
  redis.call('ZREM', queue, job.id)
  redis.call('ZREM', queue .. ':tenant:' .. job.tenant, job.id)
  redis.call('ZREM', queue .. ':key:' .. job.tenant .. ':' .. job.batch_key, job.id)
  if redis.call('HINCRBY', queue .. ':keys', job.batch_key, -1) <= 0 then
    redis.call('HDEL', queue .. ':keys', job.batch_key)
  end
  if redis.call('EXISTS', queue .. ':tenant:' .. job.tenant) == 0 then
    redis.call('ZREM', queue .. ':ring', job.tenant)
  end
  redis.call('ZREM', deadlines, job.id)
end

-- End an attempt: its token dies, its time is counted. Return its length in ms.
local function leave(job)
  local spent_ms = math.max(0, now_ms - tonumber(job.started))
  redis.call('HINCRBY', job_key(job.id), 'ms:' .. job.stage, spent_ms)
  redis.call('HDEL', job_key(job.id), 'token', 'worker', 'started')
  redis.call('DEL', base .. 'claim:' .. job.token)
  redis.call('ZREM', leases, job.id)
  redis.call('ZREM', running_key(job.stage), job.id)
  return spent_ms
end

-- Count one end of a stage for the drain rate.
local function count_finish(stage)
  local key = base .. 'finishes:' .. stage
  redis.call('LPUSH', key, now_ms)
  redis.call('LTRIM', key, 0, MAX_FINISHES - 1)
  redis.call('EXPIRE', key, retention_s)
end

-- Return the jobs per second that a stage has ended of late, as a string; '0' when nothing was measured.
local function drain_rate(stage)
  local key = base .. 'finishes:' .. stage
  local count = redis.call('LLEN', key)
  if count < 2 then return '0' end
  local window_ms = math.max(1, now_ms - tonumber(redis.call('LINDEX', key, -1)))
  return string.format('%.6f', (count - 1) * 1000 / window_ms)
end

-- Return the keys of a stage's pace: of all jobs, and of those like this one.
local function pace_keys(job, stage)
  local all = base .. 'pace:' .. stage
  -- The language model does not know for which diffusion model it writes.
  return all, stage == 'render' and all .. ':' .. job.batch_key or all
end

-- Remember how long a job that came through its stage took, for estimates. What was interrupted says nothing: a later
-- attempt may have gone on where an earlier one was lost.
local function learn(job, spent_ms)
  local facts = redis.call('HMGET', job_key(job.id), 'ms:' .. job.stage, 'charge:' .. job.stage)
  local units = tonumber(facts[2])
  if units == 0 or tonumber(facts[1]) ~= spent_ms then return end
  local all, alike = pace_keys(job, job.stage)
  for _, key in ipairs(all == alike and {all} or {all, alike}) do
    local known = redis.call('HMGET', key, 'ms', 'units')
    local ms, mean_units = tonumber(known[1] or spent_ms), tonumber(known[2] or units)
    redis.call('HSET', key,
      'ms', ms + PACE_WEIGHT * (spent_ms - ms), 'units', mean_units + PACE_WEIGHT * (units - mean_units))
    redis.call('EXPIRE', key, retention_s)
  end
end

-- Put a job into its tenant's list, or keep it there although it had ended.
local function list(job)
  redis.call('ZADD', jobs_key(job.tenant), 'NX', job.place, job.id)
  redis.call('ZREM', ended_key(job.tenant), job.id)
  for _, key in ipairs({jobs_key(job.tenant), ended_key(job.tenant)}) do
    redis.call('PERSIST', key)  -- safeguard: list of jobs under way
  end
end

-- Let a job that has ended leave its tenant's list when its record expires, and those whose time has come leave now.
local function unlist(job)
  local jobs, ended = jobs_key(job.tenant), ended_key(job.tenant)
  redis.call('ZADD', ended, now_ms + retention_s * 1000, job.id)
  for _, id in ipairs(redis.call('ZRANGEBYSCORE', ended, '-inf', now_ms, 'LIMIT', 0, MAX_UNLISTED)) do
    redis.call('ZREM', jobs, id)  -- safeguard: list end
    redis.call('ZREM', ended, id)
  end
  if redis.call('EXISTS', active_key(job.tenant)) == 0 then
    redis.call('EXPIRE', jobs, retention_s)  -- safeguard: list retention
    redis.call('EXPIRE', ended, retention_s)
  end
end

-- Tell those who wait for a job that nothing more happens to it, or nothing before it is approved.
local function tell_rest(id) redis.call('PUBLISH', base .. 'rested', id) end

-- Give back what was charged for work that was never begun, and of a failed job all of it.
local function refund(job, status)
  local charge = redis.call('HMGET', job_key(job.id),
    'charged', 'charge:prompt', 'charge:render', 'ms:prompt_queued', 'ms:render_queued')
  if not charge[1] then return end
  local back = 0
  if status == 'failed' or not charge[4] then back = back + tonumber(charge[2]) end
  if status == 'failed' or not charge[5] then back = back + tonumber(charge[3]) end
  redis.call('HDEL', job_key(job.id), 'charged')
  local key = spent_key(job.tenant, charge[1])
  if back > 0 and redis.call('EXISTS', key) == 1 then redis.call('DECRBY', key, back) end  -- safeguard: refund
end

-- Return what a job has come to so far, as the state of a turn in JSON; nil when the job is no longer kept.
local function state_of(id)
  local facts = redis.call('HMGET', job_key(id), 'status', 'prompt', 'images', 'error')
  if not facts[1] then return nil end
  local state = '{"status":"' .. facts[1] .. '"'
  for i, name in ipairs({'prompt', 'images', 'error'}) do
    if facts[i + 1] then state = state .. ',"' .. name .. '":' .. facts[i + 1] end
  end
  return state .. '}'
end

-- Leave the state of a job that has ended with its turn, which may be kept for longer than the job.
local function keep_turn(id)
  local turn = redis.call('HMGET', job_key(id), 'session', 'turn')
  if not turn[1] or redis.call('EXISTS', session_key(turn[1])) == 0 then return end
  local field, state = turn[2] .. ':end', state_of(id)
  local more = #state - redis.call('HSTRLEN', turns_key(turn[1]), field)
  redis.call('HINCRBY', session_key(turn[1]), 'bytes', more)
  redis.call('HSET', turns_key(turn[1]), field, state)  -- safeguard: end of a turn
end

-- End a job for good; what is kept of it expires.
local function conclude(job, status, event, data)
  redis.call('SREM', active_key(job.tenant), job.id)  -- safeguard: ended jobs do not count
  refund(job, status)
  redis.call('HSET', job_key(job.id), 'status', status, 'updated', now_ms, 'finished', now_ms)
  keep_turn(job.id)
  unlist(job)
  append(job.id, event, data)
  redis.call('EXPIRE', job_key(job.id), retention_s)  -- safeguard: retention
  redis.call('EXPIRE', events_key(job.id), retention_s)
  tell_rest(job.id)
end

local function fail_job(job, problem)
  redis.call('HSET', job_key(job.id), 'error', problem)
  conclude(job, 'failed', 'job.failed', '{"error":' .. problem .. '}')
end

-- Queue a job whose attempt failed again, or fail it and keep it as a dead letter. Return 'requeued' or 'buried'.
local function retry_or_bury(job, exhausted)
  local again = true
  if job.attempts >= max_attempts then again = false end  -- safeguard: attempt limit
  if again then
    enqueue(job)
    return 'requeued'
  end
  count_finish(job.stage)
  fail_job(job, exhausted)
  redis.call('ZADD', dead, now_ms, job.id)
  redis.call('ZREMRANGEBYSCORE', dead, '-inf', now_ms - retention_s * 1000)
  redis.call('ZREMRANGEBYRANK', dead, 0, -MAX_DEAD - 1)
  redis.call('EXPIRE', dead, retention_s)
  return 'buried'
end

-- Whether a stage's queue is at its bound.
local function full(stage)
  local waiting = redis.call('ZCARD', queue_key(stage, 'interactive')) + redis.call('ZCARD', queue_key(stage, 'batch'))
  if waiting >= max_queued then return true end  -- safeguard: queue bound
  return false
end

-- Return what an estimate rests on, for the stage that a job is in and those after it: {jobs queued earlier, jobs that
-- run, their mean ms, mean ms and units of jobs like this one} each.
local function outlook(job)
  local loads = {}
  for _, stage in ipairs(job.stage == 'prompt' and {'prompt', 'render'} or {'render'}) do
    local earlier = 0
    for _, lane in ipairs({'interactive', 'batch'}) do
      earlier = earlier + redis.call('ZCOUNT', queue_key(stage, lane), '-inf', '(' .. job.place)
    end
    local all, alike = pace_keys(job, stage)
    local mean_ms, pace = redis.call('HGET', all, 'ms'), redis.call('HMGET', alike, 'ms', 'units')
    loads[#loads + 1] = {earlier, redis.call('ZCARD', running_key(stage)), mean_ms or '0', pace[1] or '0', pace[2] or '0'}
  end
  return loads
end

-- Return the whole record; for a job that waits for a worker or has one also its outlook, and the ms that it has run
-- (-1: it waits).
local function view(id)
  local record = redis.call('HGETALL', job_key(id))
  local job = load(id)
  if job.status == 'queued' then return {record, outlook(job), -1} end
  if job.status == 'running' then return {record, outlook(job), math.max(0, now_ms - tonumber(job.started))} end
  return {record, {}, -1}
end

local function idempotency_key_of(tenant, key) return base .. 'idempotency:' .. tenant .. ':' .. key end

-- Return the body hash and the id of what an idempotency key made before, or nil.
local function recall_key(tenant, key)
  local known = false
  if key ~= '' then known = redis.call('GET', idempotency_key_of(tenant, key)) end  -- safeguard: idempotency
  if not known then return nil end
  return string.match(known, '^(%S+) (%S+)$')
end

-- Return the answer of a submission whose idempotency key came before, or nil.
local function recall(tenant, body_hash, key)
  local known_hash, known_id = recall_key(tenant, key)
  if not known_hash then return nil end
  if known_hash ~= body_hash then return {'conflict'} end
  if redis.call('EXISTS', job_key(known_id)) == 0 then return {'gone'} end
  return {'known', view(known_id)}
end

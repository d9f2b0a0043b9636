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
--   deadlines       zset: job that is not running -> time in ms at which it is dropped
--   dead            zset: dead letter -> time in ms of its death
--   finishes:<stage> list: times in ms of the latest ends of that stage, newest first
--   counters        hash: turn, place, passed:<stage>
--   idempotency:<tenant>:<key>                string: body hash, job
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

-- Append one event and tell the followers.
local function append(id, event, data)
  redis.call('XADD', events_key(id), '*', 'type', event, 'data', data)
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

-- Tell those who wait for a job that nothing more happens to it, or nothing before it is approved.
local function tell_rest(id) redis.call('PUBLISH', base .. 'rested', id) end

-- End a job for good; what is kept of it expires.
local function conclude(job, status, event, data)
  redis.call('HSET', job_key(job.id), 'status', status, 'updated', now_ms, 'finished', now_ms)
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

-- Return the whole record, the number of jobs of its stage that were queued earlier (-1: not queued), the drain rate.
local function view(id)
  local record = redis.call('HGETALL', job_key(id))
  local job = load(id)
  if job.status ~= 'queued' then return {record, -1, '0'} end
  local other = job.lane == 'batch' and 'interactive' or 'batch'
  local rank = redis.call('ZRANK', queue_key(job.stage, job.lane), id)
  local before = redis.call('ZCOUNT', queue_key(job.stage, other), '-inf', '(' .. job.place)
  return {record, rank + before, drain_rate(job.stage)}
end

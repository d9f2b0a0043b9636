-- Put between the prelude and the transitions that are about sessions (SESSIONS in scripts.py).
--
--   session:<id>    hash: tenant, name, created, used and ends in ms, place, count and bytes of its turns
--   turns:<id>      hash: <n> -> record of the n-th turn, <n>:job -> its job, <n>:created -> ms,
--                   <n>:end -> state that its job came to (keep_turn in prelude.lua)
--   sessions:<tenant>  zset: session -> place of its making
--   ends:<tenant>      zset: session -> time in ms at which it expires
-- Turns are numbered from 1 and never taken away, so the count is the number of the latest one.
local MAX_FORGOTTEN = 100  -- at each session that is made and each turn that is added, each of which adds one at most

local function sessions_key(tenant) return base .. 'sessions:' .. tenant end
local function ends_key(tenant) return base .. 'ends:' .. tenant end

-- Whether a session is there and is the tenant's.
local function owns(tenant, session)
  local owner = redis.call('HGET', session_key(session), 'tenant')
  if not owner then return false end
  if owner ~= tenant then return false end  -- safeguard: owner of a session
  return true
end

-- Let a tenant's lists forget sessions that have expired.
local function forget_sessions(tenant)
  for _, id in ipairs(redis.call('ZRANGEBYSCORE', ends_key(tenant), '-inf', now_ms, 'LIMIT', 0, MAX_FORGOTTEN)) do
    redis.call('ZREM', sessions_key(tenant), id)  -- safeguard: list of sessions
    redis.call('ZREM', ends_key(tenant), id)
  end
end

-- Whether a tenant has as many sessions as it may have.
local function has_enough_sessions(tenant, max_sessions)
  forget_sessions(tenant)
  if redis.call('ZCARD', sessions_key(tenant)) >= max_sessions then return true end  -- safeguard: sessions of a tenant
  return false
end

-- Let a session be kept from now on for as long as sessions are.
local function keep_session(tenant, session, kept_s)
  redis.call('HSET', session_key(session), 'used', now_ms, 'ends', now_ms + kept_s * 1000)
  for _, key in ipairs({session_key(session), turns_key(session)}) do
    redis.call('EXPIRE', key, kept_s)  -- safeguard: retention of sessions
  end
  redis.call('ZADD', ends_key(tenant), now_ms + kept_s * 1000, session)
  forget_sessions(tenant)
  for _, key in ipairs({sessions_key(tenant), ends_key(tenant)}) do redis.call('EXPIRE', key, kept_s) end
end

-- Say why a session takes no turn of this size, or nil.
local function refuse_turn(tenant, session, bytes, max_turns, max_bytes)
  if not owns(tenant, session) then return {'no session'} end
  local facts = redis.call('HMGET', session_key(session), 'count', 'bytes')
  if tonumber(facts[1]) >= max_turns then return {'session full', 'turns'} end  -- safeguard: turns of a session
  if tonumber(facts[2]) + bytes > max_bytes then return {'session full', 'bytes'} end  -- safeguard: bytes of a session
  return nil
end

local function add_turn(tenant, session, id, record, kept_s)
  local turn = redis.call('HINCRBY', session_key(session), 'count', 1)
  redis.call('HINCRBY', session_key(session), 'bytes', #record)
  redis.call('HSET', turns_key(session), turn, record, turn .. ':job', id, turn .. ':created', now_ms)
  redis.call('HSET', job_key(id), 'session', session, 'turn', turn)
  keep_session(tenant, session, kept_s)
end

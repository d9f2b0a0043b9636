-- Put between the prelude and the transitions that are limited by tenant (LIMITED in scripts.py).
--
-- A tenant's limits are the caller's to know and come with each call, 0 for no bound. Looking changes nothing, so
-- that what is refused for one reason costs nothing for another.
local DAY_MS = 86400000
local today = math.floor(now_ms / DAY_MS)

-- The token bucket is kept as one number: the time at which it will be full again. Taking a token moves that time on
-- by the interval in which a token comes back; the bucket is empty when it is `burst` intervals away.
local function look_into_bucket(tenant, per_minute, burst)
  if per_minute == 0 then return {left = -1, full_ms = -1, wait_ms = 0} end
  local bucket = {key = base .. 'bucket:' .. tenant, wait_ms = 0}
  local interval_us = 60000000 / per_minute
  local full_us = math.max(now_us, tonumber(redis.call('GET', bucket.key) or 0))
  bucket.taken_us = full_us + interval_us
  local room_us = now_us + burst * interval_us - full_us + 1  -- 1: for what rounding took
  bucket.left, bucket.full_ms = math.max(0, math.floor(room_us / interval_us)), math.ceil((full_us - now_us) / 1000)
  bucket.wait_ms = math.max(0, math.ceil((interval_us - room_us) / 1000))  -- safeguard: rate limit
  return bucket
end

local function take_token(bucket)
  if not bucket.key then return end
  bucket.left, bucket.full_ms = bucket.left - 1, math.ceil((bucket.taken_us - now_us) / 1000)
  redis.call('SET', bucket.key, string.format('%.0f', bucket.taken_us), 'PX', bucket.full_ms)
end

local function look_at_jobs(tenant, max_jobs)
  if max_jobs == 0 then return {left = -1, is_over = false} end
  local jobs = {left = math.max(0, max_jobs - redis.call('SCARD', active_key(tenant)))}
  jobs.is_over = jobs.left < 1  -- safeguard: job limit
  return jobs
end

local function look_at_units(tenant, per_day, charge)
  if per_day == 0 then return {left = -1, full_ms = -1, is_over = false} end
  local units = {full_ms = (today + 1) * DAY_MS - now_ms}
  units.left = math.max(0, per_day - tonumber(redis.call('GET', spent_key(tenant, today)) or 0))
  units.is_over = charge > units.left  -- safeguard: quota
  return units
end

local function standing(bucket, jobs, units)
  return {bucket.left, bucket.full_ms, jobs.left, units.left, units.full_ms}
end

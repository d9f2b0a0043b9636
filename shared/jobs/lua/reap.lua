#!lua flags=allow-oom
-- Take jobs from workers that fell silent, and drop jobs whose time is over.
-- Arguments: problem of exhausted attempts, of an expired deadline, of an approval that never came.
-- Answer: {id, stage, outcome} flat for each; depths of prompt/interactive, prompt/batch, render/interactive,
-- render/batch; number of dead letters.
local exhausted, expired, unapproved = argument(1), argument(2), argument(3)
local BATCH = 100  -- per call, so that no call holds the server for long; the next one goes on
local outcomes = {}
local function report(job, outcome)
  outcomes[#outcomes + 1] = job.id
  outcomes[#outcomes + 1] = job.stage
  outcomes[#outcomes + 1] = outcome
end

for _, id in ipairs(redis.call('ZRANGEBYSCORE', leases, '-inf', now_ms, 'LIMIT', 0, BATCH)) do
  local job = load(id)
  if job then
    leave(job)
    report(job, retry_or_bury(job, exhausted))
  else
    -- A record that was deleted by hand must not stop the reaper.
    redis.call('ZREM', leases, id)
    redis.call('ZREM', running_key('prompt'), id)
    redis.call('ZREM', running_key('render'), id)
  end
end

for _, id in ipairs(redis.call('ZRANGEBYSCORE', deadlines, '-inf', now_ms, 'LIMIT', 0, BATCH)) do
  local job = load(id)
  redis.call('ZREM', deadlines, id)
  if job and job.status == 'queued' then
    dequeue(job)
    fail_job(job, expired)
    report(job, 'expired')
  elseif job then
    fail_job(job, unapproved)
    report(job, 'expired')
  end
end

return {
  outcomes,
  redis.call('ZCARD', queue_key('prompt', 'interactive')), redis.call('ZCARD', queue_key('prompt', 'batch')),
  redis.call('ZCARD', queue_key('render', 'interactive')), redis.call('ZCARD', queue_key('render', 'batch')),
  redis.call('ZCARD', dead),
}

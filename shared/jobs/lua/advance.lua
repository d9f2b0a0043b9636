#!lua flags=allow-oom
-- End the prompt stage: store the prompt, and go on. Answer: {'ok', ms of the attempt}, or why not.
-- Arguments: id, token, what comes next ('render', 'awaiting_approval' or 'succeeded'), prompt.
local id, token, next_step, prompt = argument(1), argument(2), argument(3), argument(4)
local job = load(id)
local answer = ownership(job, token, 'advance')
if answer ~= 'ok' then return {answer} end

local spent_ms = leave(job)
count_finish(job.stage)
learn(job, spent_ms)
redis.call('HSET', job_key(id), 'prompt', prompt, 'did:advance', token)
append(id, 'prompt.completed', '{"prompt":' .. prompt .. '}')
if next_step == 'succeeded' then
  conclude(job, 'succeeded', 'job.succeeded', '{"images":[]}')
elseif next_step == 'awaiting_approval' then
  redis.call('HSET', job_key(id), 'status', 'awaiting_approval', 'updated', now_ms)
  -- Nothing waits for ever: unapproved jobs are dropped when finished ones would be, or at their deadline.
  redis.call('ZADD', deadlines, math.min(tonumber(job.deadline or math.huge), now_ms + retention_s * 1000), id)
  append(id, 'job.awaiting_approval', '{}')
  tell_rest(id)
else
  job.stage = 'render'
  redis.call('HSET', job_key(id), 'attempts', 0)
  enqueue(job)
end
return {'ok', spent_ms}

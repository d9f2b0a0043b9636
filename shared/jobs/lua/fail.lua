#!lua flags=allow-oom
-- End an attempt that failed. Arguments: id, token, '1' to try again, problem, problem of exhausted attempts.
-- Answer: {'failed' | 'requeued' | 'buried', ms of the attempt}, or why not.
local id, token, retry, problem, exhausted = argument(1), argument(2), argument(3), argument(4), argument(5)
local job = load(id)
local answer = ownership(job, token, 'fail')
if answer ~= 'ok' then return {answer} end

local spent_ms = leave(job)
redis.call('HSET', job_key(id), 'did:fail', token, 'last_error', problem)
if retry == '1' then return {retry_or_bury(job, exhausted), spent_ms} end
count_finish(job.stage)
fail_job(job, problem)
return {'failed', spent_ms}

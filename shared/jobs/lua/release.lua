#!lua flags=allow-oom
-- Give a job back without counting the attempt. Arguments: id, token. Answer: {'ok'}, or why not.
local id, token = argument(1), argument(2)
local job = load(id)
local answer = ownership(job, token, 'release')
if answer ~= 'ok' then return {answer} end

leave(job)
redis.call('HSET', job_key(id), 'did:release', token, 'attempts', job.attempts - 1)
enqueue(job)
return {'ok'}

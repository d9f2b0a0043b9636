#!lua flags=allow-oom
-- End a job with its pictures. Arguments: id, token, images, prompt. Answer: {'ok', ms of the attempt}, or why not.
local id, token, images, prompt = argument(1), argument(2), argument(3), argument(4)
local job = load(id)
local answer = ownership(job, token, 'finish')
if answer ~= 'ok' then return {answer} end

local spent_ms = leave(job)
count_finish(job.stage)
learn(job, spent_ms)
redis.call('HSET', job_key(id), 'images', images, 'prompt', prompt, 'did:finish', token)
conclude(job, 'succeeded', 'job.succeeded', '{"images":' .. images .. '}')
return {'ok', spent_ms}

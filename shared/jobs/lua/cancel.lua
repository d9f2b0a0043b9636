#!lua flags=allow-oom
-- End a job at its owner's wish, and tell its worker. Arguments: id, tenant.
-- Answer: {'canceled' | 'unchanged', view}, or {'missing'}.
local id, tenant = argument(1), argument(2)
local job = load(id)
if not job or job.tenant ~= tenant then return {'missing'} end
if job.status == 'queued' then
  dequeue(job)
elseif job.status == 'awaiting_approval' then
  redis.call('ZREM', deadlines, id)
elseif job.status == 'running' then
  leave(job)
  redis.call('PUBLISH', base .. 'canceled:' .. job.worker, job.token)
else
  return {'unchanged', view(id)}
end
conclude(job, 'canceled', 'job.canceled', '{}')
return {'canceled', view(id)}

#!lua
-- Start a dead letter anew, with all its attempts, at the end of its queue. Arguments: id.
-- Answer: {'ok', view}, {'missing'} or {'full', drain rate}.
local id = argument(1)
local job = load(id)
if not job then return {'missing'} end
if not redis.call('ZSCORE', dead, id) then
  -- The same call again, after its answer was lost.
  if job.status ~= 'failed' and redis.call('HEXISTS', job_key(id), 'replays') == 1 then return {'ok', view(id)} end
  return {'missing'}
end
if full(job.stage) then return {'full', drain_rate(job.stage)} end

redis.call('ZREM', dead, id)
redis.call('PERSIST', job_key(id))
redis.call('DEL', events_key(id))  -- a new life, a new stream: the old one ended
redis.call('HDEL', job_key(id), 'error', 'finished', 'deadline')
job.place, job.deadline = next_place(), false
redis.call('HSET', job_key(id), 'attempts', 0, 'place', job.place)
redis.call('HINCRBY', job_key(id), 'replays', 1)
redis.call('SADD', active_key(job.tenant), id)
list(job)
enqueue(job)
return {'ok', view(id)}

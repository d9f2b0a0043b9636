#!lua
-- Let a held job be rendered. Arguments: id, tenant, choice ('' or '=' and the edited text), edited prompt.
-- Answer: {'ok', view}, {'missing'} or {'refused'}.
local id, tenant, choice, edited = argument(1), argument(2), argument(3), argument(4)
local job = load(id)
if not job or job.tenant ~= tenant then return {'missing'} end
if job.status ~= 'awaiting_approval' then
  if redis.call('HGET', job_key(id), 'approved') == choice then return {'ok', view(id)} end
  return {'refused'}
end
redis.call('HSET', job_key(id), 'approved', choice, 'attempts', 0)
if choice ~= '' then
  local written = cjson.decode(redis.call('HGET', job_key(id), 'prompt'))
  if '=' .. written.text ~= choice then
    local prompt = cjson.decode(edited)
    prompt.source_caption = written.source_caption -- of the picture before an edit: what stays as it is
    redis.call('HSET', job_key(id), 'prompt', cjson.encode(prompt))
  end
end
redis.call('ZREM', deadlines, id)
job.stage = 'render'
enqueue(job)
return {'ok', view(id)}

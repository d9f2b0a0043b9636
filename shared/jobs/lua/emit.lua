#!lua flags=allow-oom
-- Append events of a running job.
-- Arguments: id, token, number of this call within the attempt, then type and data of each event.
local id, token, number = argument(1), argument(2), tonumber(argument(3))
local answer = ownership(load(id), token)
if answer ~= 'ok' then return answer end
-- A call that comes again after its answer was lost appends nothing.
if tonumber(redis.call('HGET', job_key(id), 'emitted') or 0) >= number then return 'ok' end  -- safeguard: emit once
redis.call('HSET', job_key(id), 'emitted', number)

local event
for n = 4, #ARGV - LIMITS, 2 do
  event = argument(n)
  local data = argument(n + 1)
  if event == 'render.progress' then
    local progress = cjson.decode(data)
    redis.call('HSET', job_key(id),
      'step:' .. progress.index, progress.step, 'total_steps', progress.total_steps, 'updated', now_ms)
  end
  local entry = redis.call('XADD', events_key(id), '*', 'type', event, 'data', data)
  if event == 'image.completed' then deliver(id, event, data, entry) end  -- no other one that is emitted is sent
end
redis.call('XTRIM', events_key(id), 'MAXLEN', max_events)  -- safeguard: event bound
redis.call('PUBLISH', base .. 'notify:' .. id, event)
return 'ok'

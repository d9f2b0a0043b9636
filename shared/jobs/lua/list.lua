#!lua flags=no-writes
-- Read a page of a tenant's jobs, the latest submission first.
-- Arguments: tenant, place after which to go on or '', most jobs, status or '', task or ''.
-- Answer: {{id, view} of each, place after which the next page goes on, '' when there is none}.
local tenant, after, most, status, task = argument(1), argument(2), tonumber(argument(3)), argument(4), argument(5)

-- A page that would cost more ends early, so that no call holds the server for long; the next one goes on.
local MAX_LOOKED = 1000
local MAX_BYTES = 262144

local is_filtered = status ~= '' or task ~= ''
local looked = is_filtered and MAX_LOOKED or most + 1
local listed = redis.call('ZREVRANGEBYSCORE', jobs_key(tenant),
  after == '' and '+inf' or '(' .. after, '-inf', 'WITHSCORES', 'LIMIT', 0, looked)

local page, bytes, last = {}, 0, ''
for n = 1, #listed, 2 do
  local id = listed[n]
  local facts = redis.call('HMGET', job_key(id), 'status', 'task')
  local is_wanted = facts[1] and (status == '' or facts[1] == status) and (task == '' or facts[2] == task)
  if is_wanted then
    if #page == most or bytes >= MAX_BYTES then return {page, last} end
    page[#page + 1] = {id, view(id)}
    for _, field in ipairs({'request', 'prompt', 'images', 'error'}) do
      bytes = bytes + redis.call('HSTRLEN', job_key(id), field)
    end
  end
  last = listed[n + 1]
end
if #listed < 2 * looked then last = '' end
return {page, last}

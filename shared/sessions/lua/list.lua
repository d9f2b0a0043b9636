#!lua flags=no-writes
-- Read a page of a tenant's sessions, the latest made first.
-- Arguments: tenant, place after which to go on or '', most sessions.
-- Answer: {{id, session hash} of each, place after which the next page goes on, '' when there is none}.
local tenant, after, most = argument(1), argument(2), tonumber(argument(3))
local listed = redis.call('ZREVRANGEBYSCORE', sessions_key(tenant),
  after == '' and '+inf' or '(' .. after, '-inf', 'WITHSCORES', 'LIMIT', 0, most + 1)
local page, last = {}, ''
for n = 1, math.min(#listed, 2 * most), 2 do
  local id = listed[n]
  if owns(tenant, id) then  -- or it has expired, and the list does not know yet
    page[#page + 1] = {id, redis.call('HGETALL', session_key(id))}
  end
  last = listed[n + 1]
end
if #listed <= 2 * most then last = '' end
return {page, last}

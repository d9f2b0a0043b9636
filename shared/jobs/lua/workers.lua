#!lua flags=no-writes
-- Read the announcements of the workers that are alive.
local alive = {}
for _, worker in ipairs(redis.call('ZRANGE', base .. 'workers', 0, -1)) do
  local announcement = redis.call('GET', base .. 'worker:' .. worker)
  if announcement then alive[#alive + 1] = announcement end
end
return alive

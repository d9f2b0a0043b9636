#!lua flags=allow-oom
-- Hand out deliveries that are due, each under a lease. Arguments: token, lease in ms, most deliveries.
-- Answer: {{id, hash} of each, deliveries that wait or are under way, dead ones}.
local token, held_ms, most = argument(1), tonumber(argument(2)), tonumber(argument(3))
local taken = {}
for _, id in ipairs(redis.call('ZRANGEBYSCORE', deliveries, '-inf', now_ms, 'LIMIT', 0, most)) do
  if redis.call('EXISTS', delivery_key(id)) == 0 then
    redis.call('ZREM', deliveries, id)  -- its time is over
  else
    redis.call('ZADD', deliveries, now_ms + held_ms, id)  -- safeguard: lease of a delivery
    redis.call('HSET', delivery_key(id), 'token', token)
    redis.call('HINCRBY', delivery_key(id), 'attempts', 1)
    taken[#taken + 1] = {id, redis.call('HGETALL', delivery_key(id))}
  end
end
return {taken, redis.call('ZCARD', deliveries), redis.call('ZCARD', dead_deliveries)}

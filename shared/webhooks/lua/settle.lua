#!lua flags=allow-oom
-- End an attempt. Arguments: id, token, 'delivered', 'again' or 'dead', ms until the next attempt, reason.
-- Answer: 'ok', or 'lost' when the attempt is no longer the caller's.
local id, token, outcome = argument(1), argument(2), argument(3)
if redis.call('HGET', delivery_key(id), 'token') ~= token then return 'lost' end  -- safeguard: token of a delivery
if outcome == 'delivered' then
  redis.call('ZREM', deliveries, id)
  redis.call('DEL', delivery_key(id))
  return 'ok'
end
redis.call('HDEL', delivery_key(id), 'token')
redis.call('HSET', delivery_key(id), 'reason', argument(5))
if outcome == 'again' then
  redis.call('ZADD', deliveries, now_ms + tonumber(argument(4)), id)
  return 'ok'
end
redis.call('ZREM', deliveries, id)
redis.call('ZADD', dead_deliveries, now_ms, id)
redis.call('ZREMRANGEBYSCORE', dead_deliveries, '-inf', now_ms - retention_s * 1000)
redis.call('ZREMRANGEBYRANK', dead_deliveries, 0, -MAX_DEAD - 1)
redis.call('EXPIRE', dead_deliveries, retention_s)
redis.call('EXPIRE', delivery_key(id), retention_s)
return 'ok'

#!lua
-- Try a dead delivery anew, from its first attempt. Arguments: id. Answer: 1, or 0 when there is none such.
local id = argument(1)
if redis.call('ZREM', dead_deliveries, id) == 0 or redis.call('EXISTS', delivery_key(id)) == 0 then return 0 end
redis.call('HSET', delivery_key(id), 'attempts', 0)
redis.call('HDEL', delivery_key(id), 'reason')
keep_delivery(id)
return 1

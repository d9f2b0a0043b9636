#!lua flags=allow-oom
-- Renew a worker's announcement. Arguments: worker, announcement.
local worker = argument(1)
redis.call('SET', base .. 'worker:' .. worker, argument(2), 'PX', lease_ms)
redis.call('ZADD', base .. 'workers', now_ms + lease_ms, worker)
redis.call('ZREMRANGEBYSCORE', base .. 'workers', '-inf', now_ms)
redis.call('PEXPIRE', base .. 'workers', lease_ms)
return 'ok'

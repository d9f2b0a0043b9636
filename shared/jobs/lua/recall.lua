#!lua flags=no-writes
-- Find the job that an idempotency key made. Arguments: tenant, body hash, idempotency key.
-- Answer: {'known', view}, {'conflict'}, {'gone'}, or {'unknown'}.
return recall(argument(1), argument(2), argument(3)) or {'unknown'}

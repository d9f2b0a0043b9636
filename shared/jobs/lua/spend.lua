#!lua
-- Take a token of a tenant's bucket for what makes no job. Arguments: tenant, requests per minute, burst.
-- Answer: {'ok' or 'limited', ms to wait, standing}.
local bucket = look_into_bucket(argument(1), tonumber(argument(2)), tonumber(argument(3)))
local none = {left = -1, full_ms = -1}
if bucket.wait_ms > 0 then return {'limited', bucket.wait_ms, standing(bucket, none, none)} end
take_token(bucket)
return {'ok', 0, standing(bucket, none, none)}

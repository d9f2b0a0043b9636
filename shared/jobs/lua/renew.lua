#!lua flags=allow-oom
-- Renew leases. Arguments: id and token of each. Answer: 'ok', 'canceled' or 'lost' for each.
local answers = {}
for n = 1, #ARGV - LIMITS, 2 do
  local id, token = argument(n), argument(n + 1)
  local answer = ownership(load(id), token)
  if answer == 'ok' then
    redis.call('ZADD', leases, 'XX', now_ms + lease_ms, id)  -- safeguard: lease renewal
  end
  answers[#answers + 1] = answer
end
return answers

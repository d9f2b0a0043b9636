-- The load of `benchmarks.plumbing` for wrk: one POST over and over, and a line of JSON at the end.
-- An answer other than 200 (the job did not end in time, or was refused) counts as failed.

local threads = {}

function setup(thread)
  table.insert(threads, thread)
end

function init(args)
  failed = 0
  wrk.method = "POST"
  wrk.body = '{"instruction": "a snowman at night", "prompt_mode": "verbatim", "seed": 7}'
  wrk.headers["Content-Type"] = "application/json"
  wrk.headers["Prefer"] = "wait=30"
  wrk.headers["Authorization"] = "Bearer " .. os.getenv("LLMGA_API_KEY")
  sent, run = 0, os.time() .. "-" .. tostring({}):match("0x(%x+)")
end

function request()
  sent = sent + 1
  wrk.headers["Idempotency-Key"] = run .. "-" .. sent
  return wrk.format()
end

function response(status, headers, body)
  if status ~= 200 then failed = failed + 1 end
end

function done(summary, latency, requests)
  local failed = 0
  for _, thread in ipairs(threads) do failed = failed + thread:get("failed") end
  local errors = summary.errors
  io.write(string.format(
    '\n{"requests": %d, "duration_us": %d, "failed": %d, "socket_errors": %d, "p50_us": %d, "p99_us": %d, "max_us": %d}\n',
    summary.requests, summary.duration, failed, errors.connect + errors.read + errors.write + errors.timeout,
    latency:percentile(50), latency:percentile(99), latency.max))
end

-- wrk script: GET of random ranges of one object. Arguments after `--`: bytes of a range, bytes of the object.
-- Writes one line to $BENCH_OUT: requests, seconds, p50 and p99 in microseconds, errors, bytes read.

local prepared, next_one = {}, 0
local COUNT = 4096

local thread_number = 0
function setup(thread)
  thread_number = thread_number + 1
  thread:set("seed", thread_number)
end

function init(arguments)
  local block, size = tonumber(arguments[1]), tonumber(arguments[2])
  math.randomseed(977 * seed)
  for n = 1, COUNT do
    local first = math.random(0, math.floor(size / block) - 1) * block
    prepared[n] = wrk.format("GET", nil, { ["Range"] = string.format("bytes=%d-%d", first, first + block - 1) })
  end
end

function request()
  next_one = next_one % COUNT + 1
  return prepared[next_one]
end

function done(summary, latency, _)
  local failed = summary.errors
  local out = io.open(os.getenv("BENCH_OUT"), "w")
  out:write(string.format("%d %.3f %d %d %d %d\n", summary.requests, summary.duration / 1e6, latency:percentile(50),
    latency:percentile(99), failed.connect + failed.read + failed.write + failed.status + failed.timeout, summary.bytes))
  out:close()
end

-- One signed body under ever new keys, as fast as the connections take it or at a pace.
-- Arguments: body file, the signature's header, signature, key prefix, "fresh" or "twice", events a second (0: no pace).
local ffi = require("ffi")
ffi.cdef("typedef struct { long seconds; long nanos; } moment; int clock_gettime(int, moment *);")
local MONOTONIC = 1
-- How many new keys go out between a key and its repeat. Only 32 requests are in flight at a time, so the first has been
-- answered by then, even when the application is slow and repeats, which do not need it, overtake.
local LAG = 64
local before, after, twice
local sent = 0

function init(arguments)
  local file = assert(io.open(arguments[1], "rb"))
  local body = file:read("*a")
  file:close()
  before = "POST " .. wrk.path .. " HTTP/1.1\r\nHost: " .. wrk.host .. ":" .. wrk.port
    .. "\r\nContent-Type: application/json\r\nContent-Length: " .. #body
    .. "\r\n" .. arguments[2] .. ": " .. arguments[3] .. "\r\nIdempotency-Key: " .. arguments[4]
  after = "\r\n\r\n" .. body
  twice = arguments[5] == "twice"
  local per_second = tonumber(arguments[6])
  if per_second > 0 then
    -- wrk asks for a delay before each request only when there is such a function.
    delay = paced(per_second)
  end
end

-- Milliseconds until the next event is due: an answer that is late does not put off the events after it, as long as
-- a connection is free for them.
function paced(per_second)
  local moment = ffi.new("moment")
  local due
  return function()
    ffi.C.clock_gettime(MONOTONIC, moment)
    local now = tonumber(moment.seconds) * 1000 + tonumber(moment.nanos) / 1e6
    due = (due or now) + 1000 / per_second
    return math.max(due - now, 0)
  end
end

function request()
  local key = sent
  sent = sent + 1
  if twice and key >= LAG then
    -- 0, 1, … 63, then 64, 0, 65, 1, 66, 2, …
    local since = key - LAG
    local pair = math.floor(since / 2)
    key = since % 2 == 0 and LAG + pair or pair
  end
  return before .. string.format("%012x", key) .. after
end

function done(summary, latency)
  local errors = summary.errors
  io.write(string.format(
    '\n{"requests":%d,"micros":%d,"non_2xx":%d,"socket_errors":%d,"p50_micros":%d,"p99_micros":%d}\n',
    summary.requests, summary.duration, errors.status,
    errors.connect + errors.read + errors.write + errors.timeout,
    latency:percentile(50), latency:percentile(99)))
end

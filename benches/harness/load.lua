-- One signed body under ever new keys, as fast as the connections take it.
-- Arguments: body file, signature, key prefix, "fresh" or "twice".
-- How many new keys go out between a key and its repeat. Only 32 requests are in flight at a time, so the first has been
-- answered by then, even when the application is slow and repeats, which do not need it, overtake.
local LAG = 64
local before, after, twice
local sent = 0

function init(arguments)
  local file = assert(io.open(arguments[1], "rb"))
  local body = file:read("*a")
  file:close()
  before = "POST /hook HTTP/1.1\r\nHost: " .. wrk.host .. ":" .. wrk.port
    .. "\r\nContent-Type: application/json\r\nContent-Length: " .. #body
    .. "\r\nTinyTalk-Signature: " .. arguments[2] .. "\r\nIdempotency-Key: " .. arguments[3]
  after = "\r\n\r\n" .. body
  twice = arguments[4] == "twice"
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

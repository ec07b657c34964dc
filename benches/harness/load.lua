-- One signed body under ever new keys, as fast as the connections take it.
-- Arguments: body file, signature, key prefix, "fresh" or "twice".
local BLOCK = 64 -- a repeat comes this many requests after its first; 32 are in flight at a time
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
  if twice then
    -- 0 … 63, 0 … 63, 64 … 127, 64 … 127, …
    key = math.floor(key / (2 * BLOCK)) * BLOCK + key % BLOCK
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

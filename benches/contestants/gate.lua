-- Verification and duplicates for nginx: libcrypto's HMAC with the key schedule prepared once.
local bit = require("bit")
local ffi = require("ffi")

ffi.cdef [[
typedef struct hmac_ctx_st HMAC_CTX;
typedef struct evp_md_st EVP_MD;
HMAC_CTX *HMAC_CTX_new(void);
const EVP_MD *EVP_sha256(void);
int HMAC_Init_ex(HMAC_CTX *ctx, const void *key, int len, const EVP_MD *md, void *engine);
int HMAC_Update(HMAC_CTX *ctx, const unsigned char *data, size_t len);
int HMAC_Final(HMAC_CTX *ctx, unsigned char *out, unsigned int *len);
int CRYPTO_memcmp(const void *a, const void *b, size_t len);
]]

local crypto = ffi.load("libcrypto.so.3")
local mac = crypto.HMAC_CTX_new()
local tag = ffi.new("unsigned char[32]")
local tag_hex = ffi.new("unsigned char[64]")
local digits = ffi.new("unsigned char[16]", "0123456789abcdef")
local keys = ngx.shared.keys
local DAY_SECONDS = 24 * 60 * 60
local gate = {}

function gate.secret(secret)
  assert(crypto.HMAC_Init_ex(mac, secret, #secret, crypto.EVP_sha256(), nil) == 1)
end

-- Lower-case hex of the body's tag. Without a key, HMAC_Init_ex starts over with the one it has.
local function tag_of(body)
  crypto.HMAC_Init_ex(mac, nil, 0, nil, nil)
  crypto.HMAC_Update(mac, body, #body)
  crypto.HMAC_Final(mac, tag, nil)
  for i = 0, 31 do
    tag_hex[2 * i] = digits[bit.rshift(tag[i], 4)]
    tag_hex[2 * i + 1] = digits[bit.band(tag[i], 15)]
  end
  return tag_hex
end

function gate.admit()
  ngx.req.read_body()
  local signature = ngx.var.http_tinytalk_signature
  local expected = tag_of(ngx.req.get_body_data() or "")
  if not signature or #signature ~= 64 or crypto.CRYPTO_memcmp(signature, expected, 64) ~= 0 then
    return ngx.exit(401)
  end
  local key = ngx.var.http_idempotency_key
  if key and keys:get(key) then
    return ngx.exit(200)
  end
  ngx.ctx.key = key
end

-- Only the application's 2xx makes a key done.
function gate.mark()
  local key = ngx.ctx.key
  if key and ngx.status >= 200 and ngx.status < 300 then
    keys:set(key, true, DAY_SECONDS)
  end
end

return gate

-- Blocks of GGUF's q4_1, q5_0 and q5_1 with their values, straight from the definitions and one value at a time:
--
--   q4_1   f16 d, m; 16 bytes of nibbles              d q + m
--   q5_0   f16 d; 32 bits h; 16 bytes of nibbles      d (q + 16 h_i - 16)
--   q5_1   f16 d, m; 32 bits h; 16 bytes of nibbles   d (q + 16 h_i) + m
--
-- Value i of the first 16 is the low nibble of byte i, value 16 + i the high one. A double holds d q + m exactly (d has 11
-- bits, q 5, and exponents span 40), so that packing it as a float rounds once, as a float's arithmetic does.
local legacy = {}

legacy.bytes = { q4_1 = 20, q5_0 = 22, q5_1 = 24 }
legacy.types = { q4_1 = 3, q5_0 = 6, q5_1 = 7 }     -- of GGUF

local function half(bits)
  local exponent, fraction = bits >> 10 & 31, bits & 1023
  local size = exponent == 0 and fraction * 2.0 ^ -24 or (1024 + fraction) * 2.0 ^ (exponent - 25)
  return bits >> 15 == 1 and -size or size
end

local function value(dtype, block, i)
  local d = half(("<I2"):unpack(block))
  local m = dtype ~= "q5_0" and half(("<I2"):unpack(block, 3)) or 0.0
  local at = dtype == "q5_0" and 3 or 5
  local high = 0
  if dtype ~= "q4_1" then
    high = ("<I4"):unpack(block, at) >> i & 1
    at = at + 4
  end
  local byte = block:byte(at + i % 16)
  local q = (i < 16 and byte & 15 or byte >> 4) + 16 * high
  return dtype == "q5_0" and d * (q - 16) or d * q + m
end

local state
local function random(n)     -- 0 .. n - 1; its own, so that busted's is left alone
  state = state * 6364136223846793005 + 1442695040888963407
  return (state >> 33) % n
end

--- `count` blocks of any bits, scales of magnitudes 2^low .. 2^high, and their values as f32.
---@param dtype "q4_1"|"q5_0"|"q5_1"
---@param count integer
---@param seed integer
---@param low? integer   -14 .. 15, where not given -14
---@param high? integer  likewise, where not given 15
---@return string blocks
---@return string values
function legacy.random(dtype, count, seed, low, high)
  state = seed
  low, high = low or -14, high or 15
  local blocks, values = {}, {}
  for b = 1, count do
    local bytes = {}
    local function scale()
      bytes[#bytes + 1] = ("<I2"):pack(random(2) << 15 | (15 + low + random(high - low + 1)) << 10 | random(1024))
    end
    scale()
    if dtype ~= "q5_0" then scale() end
    while #bytes < legacy.bytes[dtype] - (dtype == "q5_0" and 1 or 2) do bytes[#bytes + 1] = string.char(random(256)) end
    blocks[b] = table.concat(bytes)
    for i = 0, 31 do values[#values + 1] = ("<f"):pack(value(dtype, blocks[b], i)) end
  end
  return table.concat(blocks), table.concat(values)
end

return legacy

-- Blocks of the types that are only read, with their values: straight from the
-- definitions (core/base/dtype.c states them), one value at a time and in doubles. Each value is
-- exact in a double, or a difference that rounds once, so that packing it as a float gives what a
-- float's arithmetic does.
local blocks = {}

local function half(bits)
  local exponent, fraction = bits >> 10 & 31, bits & 1023
  local size = exponent == 0 and fraction * 2.0 ^ -24 or (1024 + fraction) * 2.0 ^ (exponent - 25)
  return bits >> 15 == 1 and -size or size
end

-- The half and the byte that begin at byte `at` of a block, from 0.
local function half_at(block, at) return half((("<I2"):unpack(block, at + 1))) end
local function byte_at(block, at) return block:byte(at + 1) end

-- Number i of `count`, in nibbles from byte `at` on: the low ones are the first half.
local function nibble(block, at, i, count)
  local byte = byte_at(block, at + i % (count // 2))
  return i < count // 2 and byte & 15 or byte >> 4
end

-- Number i of 256 in pairs of bits from byte `at` on: 32 bytes hold 128 of them.
local function pair(block, at, i)
  return byte_at(block, at + i // 128 * 32 + i % 32) >> (i // 32 % 4 * 2) & 3
end

local levels = { [0] = -127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113 }
local fp4 = { [0] = 0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12 }

-- type: GGUF's number; halves: where scales lie; bytes_of: other bytes that may not be any;
-- value(block, i): from 0.
blocks.types = {
  q4_1 = { type = 3, block = 32, bytes = 20, halves = { 0, 2 }, value = function(b, i)
    return half_at(b, 0) * nibble(b, 4, i, 32) + half_at(b, 2)
  end },
  q5_0 = { type = 6, block = 32, bytes = 22, halves = { 0 }, value = function(b, i)
    local high = ("<I4"):unpack(b, 3) >> i & 1
    return half_at(b, 0) * (nibble(b, 6, i, 32) + 16 * high - 16)
  end },
  q5_1 = { type = 7, block = 32, bytes = 24, halves = { 0, 2 }, value = function(b, i)
    local high = ("<I4"):unpack(b, 5) >> i & 1
    return half_at(b, 0) * (nibble(b, 8, i, 32) + 16 * high) + half_at(b, 2)
  end },
  q2_k = { type = 10, block = 256, bytes = 84, halves = { 80, 82 }, value = function(b, i)
    local s = byte_at(b, i // 16)
    return half_at(b, 80) * (s & 15) * pair(b, 16, i) - half_at(b, 82) * (s >> 4)
  end },
  q3_k = { type = 11, block = 256, bytes = 110, halves = { 108 }, value = function(b, i)
    local g = i // 16
    local low = byte_at(b, 96 + g % 8) >> (g < 8 and 0 or 4) & 15
    local high = byte_at(b, 104 + g % 4) >> (g // 4 * 2) & 3
    local set = byte_at(b, i % 32) >> (i // 32) & 1
    return half_at(b, 108) * ((low | high << 4) - 32) * (pair(b, 32, i) - (set == 1 and 0 or 4))
  end },
  iq4_nl = { type = 20, block = 32, bytes = 18, halves = { 0 }, value = function(b, i)
    return half_at(b, 0) * levels[nibble(b, 2, i, 32)]
  end },
  iq4_xs = { type = 23, block = 256, bytes = 136, halves = { 0 }, value = function(b, i)
    local g = i // 32
    local low = byte_at(b, 4 + g // 2) >> (g % 2 * 4) & 15
    local high = ("<I2"):unpack(b, 3) >> (2 * g) & 3
    return half_at(b, 0) * ((low | high << 4) - 32) * levels[nibble(b, 8 + 16 * g, i % 32, 32)]
  end },
  mxfp4 = { type = 39, block = 32, bytes = 17, halves = {}, exponents = { 0 },
    value = function(b, i)
    return 2.0 ^ (byte_at(b, 0) - 128) * fp4[nibble(b, 1, i, 32)]
  end },
  nvfp4 = { type = 40, block = 64, bytes = 36, halves = {}, scales = { 0, 1, 2, 3 },
    value = function(b, i)
    local g = i // 16
    local e = byte_at(b, g)
    local scale = e < 8 and e * 2.0 ^ -9 or (8 + e % 8) * 2.0 ^ (e // 8 - 10)
    return scale / 2 * fp4[nibble(b, 4 + 8 * g, i % 16, 16)]
  end },
  f64 = { type = 28, block = 1, bytes = 8, halves = {}, doubles = true, value = function(b)
    return (("<d"):unpack(b))
  end },
}

local state
local function random(n)     -- 0 .. n - 1; its own, so that busted's is left alone
  state = state * 6364136223846793005 + 1442695040888963407
  return (state >> 33) % n
end

-- One block of any bits whose scales are numbers of magnitudes 2^low .. 2^high.
local function random_block(t, low, high)
  local function exponent() return low + random(high - low + 1) end
  if t.doubles then
    return ("<d"):pack((random(2) * 2 - 1) * (1 + random(1 << 30) / (1 << 30)) * 2.0 ^ exponent())
  end
  local bytes = {}
  for i = 1, t.bytes do bytes[i] = random(256) end
  for _, at in ipairs(t.halves) do
    local bits = random(2) << 15 | (15 + exponent()) << 10 | random(1024)
    bytes[at + 1], bytes[at + 2] = bits & 255, bits >> 8
  end
  for _, at in ipairs(t.exponents or {}) do bytes[at + 1] = 128 + exponent() end
  for _, at in ipairs(t.scales or {}) do
    bytes[at + 1] = math.max(0, 7 + exponent()) % 16 << 3 | random(7)
  end
  local out = {}
  for i = 1, t.bytes do out[i] = string.char(bytes[i]) end
  return table.concat(out)
end

--- `count` blocks of any bits, scales of magnitudes 2^low .. 2^high, and their values as f32.
---@param dtype string
---@param count integer
---@param seed integer
---@param low? integer   -14 .. 15, where not given -14
---@param high? integer  likewise, where not given 15
---@return string blocks
---@return string values
function blocks.random(dtype, count, seed, low, high)
  state = seed
  local t, made, values = blocks.types[dtype], {}, {}
  for b = 1, count do
    made[b] = random_block(t, low or -14, high or 15)
    for i = 0, t.block - 1 do values[#values + 1] = ("<f"):pack(t.value(made[b], i)) end
  end
  return table.concat(made), table.concat(values)
end

return blocks

--- The smallest part of PNG that a strip of positions needs: levels (16 at most) of one colour,
--- from clear to opaque, so that a picture holds on a light page and on a dark one. What is asked
--- for is a data URI, which loads nothing.
local base64 = require "pyramid.base64"

local png = {}

local crc_table = {}
for n = 0, 255 do
  local c = n
  for _ = 1, 8 do c = c & 1 == 1 and 0xedb88320 ~ (c >> 1) or c >> 1 end
  crc_table[n] = c
end

local function crc32(bytes)
  local c = 0xffffffff
  for i = 1, #bytes do c = crc_table[(c ~ bytes:byte(i)) & 0xff] ~ (c >> 8) end
  return c ~ 0xffffffff
end

local function adler32(bytes)
  local a, b = 1, 0
  for i = 1, #bytes do
    a = (a + bytes:byte(i)) % 65521
    b = (b + a) % 65521
  end
  return b << 16 | a
end

local function chunk(kind, data)
  return (">I4"):pack(#data) .. kind .. data .. (">I4"):pack(crc32(kind .. data))
end

-- Stored, not compressed: a strip is less than half a kilobyte, and a stored block holds 64.
local function zlib(bytes)
  assert(#bytes <= 0xffff)
  return "\x78\x01\x01" .. ("<I2I2"):pack(#bytes, #bytes ~ 0xffff) .. bytes
    .. (">I4"):pack(adler32(bytes))
end

---A PNG of one row of pixels, with no more bits for each than its levels need: KV heads are few.
---@param digits string     a hexadecimal digit for each pixel: 0 is clear, f opaque
---@param red integer       0 to 255
---@param green integer
---@param blue integer
---@return string
function png.strip(digits, red, green, blue)
  local levels, index, count = {}, {}, 0
  for digit in digits:gmatch "." do
    if not index[digit] then
      index[digit], count = count, count + 1
      levels[count] = string.char(tonumber(digit, 16) * 17)
    end
  end
  local bits = count <= 2 and 1 or count <= 4 and 2 or 4
  local pixels, byte, filled = {}, 0, 0
  for digit in digits:gmatch "." do
    byte, filled = byte << bits | index[digit], filled + bits
    if filled == 8 then
      pixels[#pixels + 1], byte, filled = string.char(byte), 0, 0
    end
  end
  if filled > 0 then pixels[#pixels + 1] = string.char(byte << 8 - filled) end
  return "\x89PNG\r\n\x1a\n" .. chunk("IHDR", (">I4I4BBBBB"):pack(#digits, 1, bits, 3, 0, 0, 0))
    .. chunk("PLTE", string.char(red, green, blue):rep(count))
      .. chunk("tRNS", table.concat(levels))
    .. chunk("IDAT", zlib("\0" .. table.concat(pixels))) .. chunk("IEND", "")
end

---@param bytes string   a PNG
---@return string
function png.uri(bytes) return "data:image/png;base64," .. base64(bytes) end

return png

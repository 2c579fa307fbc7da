-- What a page of keys is known by where steps read less than is held, in plain Lua, and how it
-- ranks for a query: the papers' formulas, held against core/cpu/digests.c.
local ops = require "pyramid_specs"

local digests = {}

--- Floats of a page's digest, padding included.
function digests.width(by, d)
  local n = by == "bound" and 2 * d or by == "ball" and d + 1
    or by == "signs" and (d + 15) // 16 * 16 + 32 + (d + 7) // 8 * 8 or d
  return (n + 15) // 16 * 16
end

-- x under Hadamard's matrix, whose sizes are the largest power of two that divides #x: entry (i, j)
-- of a block is 1 or -1 as the bits that i and j share are even or odd in number.
local function rotated(x)
  local size, y = #x & -#x, {}
  for i = 0, #x - 1 do
    local first, sum = i // size * size, 0
    for j = 0, size - 1 do
      local shared, odd = (i - first) & j, 0
      while shared > 0 do shared, odd = shared & (shared - 1), odd ~ 1 end
      sum = sum + (odd == 1 and -1 or 1) * x[first + j + 1]
    end
    y[i + 1] = sum / math.sqrt(size)
  end
  return y
end

--- The digest of a page of keys (a sequence of rows), by its kind: its numbers without padding; of
--- "signs" the mean alone, and `y`, what each row has beside it in the rotated frame, and `scales`.
function digests.of(by, keys)
  local d, out = #keys[1], {}
  for i = 1, d do
    local high, low, sum = -math.huge, math.huge, 0
    for _, key in ipairs(keys) do
      high, low, sum = math.max(high, key[i]), math.min(low, key[i]), sum + key[i]
    end
    if by == "bound" then out[i], out[d + i] = high, low else out[i] = sum / #keys end
  end
  if by == "ball" then
    local most = 0
    for _, key in ipairs(keys) do
      local sum = 0
      for i = 1, d do sum = sum + (key[i] - out[i]) ^ 2 end
      most = math.max(most, sum)
    end
    out[d + 1] = math.sqrt(most)
  end
  if by == "signs" then
    out.y, out.scales = {}, {}
    for row, key in ipairs(keys) do
      local apart, square, sum = {}, 0, 0
      for i = 1, d do apart[i] = key[i] - out[i] end
      local y = rotated(apart)
      for i = 1, d do square, sum = square + y[i] * y[i], sum + math.abs(y[i]) end
      out.y[row], out.scales[row] = y, sum == 0 and 0 or square / sum
    end
  end
  return out
end

--- A digest as the core has it, `width` floats: of "signs" with four channels of two rows in each
--- byte.
function digests.bytes(by, digest, d)
  local flat, width = {}, digests.width(by, d)
  for i = 1, by == "signs" and (d + 15) // 16 * 16 or width do flat[i] = digest[i] or 0 end
  if by ~= "signs" then return ops.floats(flat) end
  for _, scale in ipairs(digest.scales) do flat[#flat + 1] = scale end
  local bytes = {}
  for first = 1, (width - #flat) * 4 // 16 * 4, 4 do
    for row = 1, 16 do
      local byte = 0
      for i = 0, 3 do
        if (digest.y[row][first + i] or 0) > 0 then byte = byte | 1 << i end
        if (digest.y[row + 16][first + i] or 0) > 0 then byte = byte | 16 << i end
      end
      bytes[#bytes + 1] = string.char(byte)
    end
  end
  return ops.floats(flat) .. table.concat(bytes)
end

-- The most that q has with one of the rows beside their mean, its sums of four channels rounded to
-- so many steps that the highest is 127.
local function signs_most(q, digest)
  local turned, most, best = rotated(q), 0, -math.huge
  local function sum(row, first)
    local s = 0
    for i = first, math.min(first + 3, #q) do
      s = s + (row and (row[i] > 0 and turned[i] or -turned[i]) or math.abs(turned[i]))
    end
    return s
  end
  for first = 1, #q, 4 do most = math.max(most, sum(nil, first)) end
  if most == 0 then return 0 end
  for r, row in ipairs(digest.y) do
    local steps = 0
    for first = 1, #q, 4 do
      local x = sum(row, first) * 127 / most
      steps = steps + (x < 0 and math.ceil(x - 0.5) or math.floor(x + 0.5))
    end
    best = math.max(best, digest.scales[r] * most / 127 * steps)
  end
  return best
end

--- How a page ranks for a query, from its digest, as the papers write it; before scale.
function digests.score(by, q, digest)
  local sum, size = 0, 0
  for i = 1, #q do
    sum = sum + (by == "bound" and math.max(q[i] * digest[i], q[i] * digest[#q + i])
      or q[i] * digest[i])
    size = size + q[i] * q[i]
  end
  if by == "signs" then return sum + signs_most(q, digest) end
  return sum + (by == "ball" and math.sqrt(size) * digest[#q + 1] or 0)
end

return digests

-- ALiBi (arXiv 2108.12409): no position is told to a layer; scores fall with distance instead, by a
-- slope for each head.
--
--     8 heads   1/2, 1/4, …, 1/256: the powers of 2^(-8/8)
--     6 heads   those of 4 heads, 1/4, 1/16, 1/64, 1/256, and of 8 heads the first, third, …:
--               1/2, 1/8
--
-- Checked against transformers' build_alibi_tensor. That one rounds slopes and their products with
-- positions to bf16; here they are f32.

local alibi = {}

--- The slopes of so many heads.
---@param heads integer
---@param scale? number    multiplies each (default 1)
---@param greatest? number  ALiBi's largest bias, of which 2^(-greatest / heads) is the first slope
---                         (default 8)
---@return number[]
function alibi.slopes(heads, scale, greatest)
  local whole, out = 1, {}
  while 2 * whole <= heads do whole = 2 * whole end
  local exponent = (greatest or 8) / whole
  for i = 1, heads do
    local power = i <= whole and i * exponent or (2 * (i - whole) - 1) * exponent / 2
    out[i] = (scale or 1) * 2 ^ -power
  end
  return out
end

--- The largest bias of slopes that are not scaled.
---@param slopes number[]
---@return number
function alibi.greatest(slopes)
  local whole = 1
  while 2 * whole <= #slopes do whole = 2 * whole end
  return -math.log(slopes[1], 2) * whole
end

return alibi

-- Matrix products with weights of every dtype, against plain sums.
local helper = require "spec.helper"
local ops = require "pyramid_specs"
local probe = require "pyramid.probe"
local reference = require "spec.support.ops_reference"

local small = ops.small_n   -- from so many tokens on a product may be summed in another order
local dtypes, blocks = helper.dtypes "weights"

local function compare(dtype, n, rows, cols, o)
  o = o or {}
  local w, w_values = reference.matrix(dtype, rows, cols)
  local x, x_bytes = reference.random(n * cols)
  local bias, bias_bytes, out, out_bytes
  if o.bias then bias, bias_bytes = reference.random(rows) end
  if o.accumulate then out, out_bytes = reference.random(n * rows) end
  local ref = reference.linear(x, w_values, rows, cols, bias, out)
  local stride
  if o.pad then
    local row = #w // rows
    stride = row + o.pad
    local padded = {}
    for r = 0, rows - 1 do
      padded[r + 1] = w:sub(r * row + 1, (r + 1) * row) .. ("\xff"):rep(r < rows - 1 and o.pad or 0)
    end
    w = table.concat(padded)
  end
  local terms = 0                        -- of one sum, which may cancel where it is the only one
  for j = 1, cols do terms = terms + (x[j] * w_values[j]) ^ 2 end
  reference.each(function(rt)
    return ops.linear(rt, x_bytes, dtype, w, rows, cols, bias_bytes, out_bytes, stride)
  end, function(result, fail)
    reference.near(result, ref, 1e-5, fail, ("%s, %d x %d x %d"):format(dtype, n, rows, cols),
      math.sqrt(terms))
  end)
end

-- The emulated library has no way to multiply matrices of an odd number of rows: those go as if
-- nobody had asked for rounding.
describe("linear, on a device that rounds", function()
  local function rounded(dtype, values)
    return ops.numbers(ops.to_f32(dtype, ops.from_f32(dtype, ops.floats(values))))
  end

  for _, dtype in ipairs(dtypes) do
    it("multiplies " .. dtype .. ", by the library or without it", function()
      for _, shape in ipairs { { small, 64 }, { small + 9, 38 }, { small + 1, 37 } } do
        local n, rows, cols = shape[1], shape[2], 256
        local w, w_values = reference.matrix(dtype, rows, cols)
        local x, x_bytes = reference.random(n * cols)
        local bias, bias_bytes = reference.random(rows)
        local as = (dtype == "f16" or dtype == "f32") and dtype or "bf16"
        reference.each(function(rt)
          local before = assert(probe.device_ways(rt))
          local result = ops.linear(rt, x_bytes, dtype, w, rows, cols, bias_bytes)
          local after = assert(probe.device_ways(rt))
          assert.equal(1, after.library - before.library + after.refused - before.refused)
          if reference.rounding_device.isa:find "^emulated" then
            assert.equal(rows % 2, after.refused - before.refused)
          end
          return { result, after.refused > before.refused and "f32" or as }
        end, function(results, fail)
          local result, precision = results[1], results[2]
          local ref = reference.linear(rounded(precision, x), rounded(precision, w_values), rows,
            cols, bias)
          reference.near(result, ref, 1e-5, fail, ("%s, %d x %d x %d"):format(dtype, n, rows, cols))
        end, { reference.rounding_device })
      end
    end)
  end
end)

for _, dtype in ipairs(dtypes) do
  local block = blocks[dtype]

  describe("linear, " .. dtype, function()
    it("multiplies few tokens", function()
      for n = 1, small - 1, small > 10 and math.random(1, 5) or 1 do
        compare(dtype, n, math.random(1, 40), block)
        compare(dtype, n, math.random(1, 40), block * (block == 1 and math.random(2, 200) or 2))
      end
      compare(dtype, 1, 3, 1024)
      compare(dtype, 3, 1, 1024)
      compare(dtype, small - 1, 6, 256)
    end)

    it("multiplies with rows in sixteens, and parts of columns", function()
      for _, shape in ipairs { { 1, 16, 96 }, { 3, 48, 160 }, { 9, 32, 416 }, { 17, 144, 288 },
        { 33, 16, 1312 } } do
        compare(dtype, shape[1], shape[2], (shape[3] + block - 1) // block * block)
      end
      compare(dtype, 5, 272, 512, { bias = true, accumulate = true })
      compare(dtype, 2, 272, 2304)           -- a part of several stages of x, where it is staged
      compare(dtype, small + 3, 48, 256, { bias = true })
    end)

    it("multiplies many tokens", function()
      for n = small, small + 13, math.random(1, 4) do
        compare(dtype, n, math.random(1, 70), block)
        compare(dtype, n, math.random(1, 40), block * (block == 1 and math.random(2, 300) or 2))
      end
      compare(dtype, small + 2, 301, 256)
      compare(dtype, 500, 5, block == 1 and 7 or block)
    end)

    it("adds a bias, and adds to what is there", function()
      for _, n in ipairs { 1, 4, 8, small + 3 } do
        compare(dtype, n, 37, 256, { bias = true })
        compare(dtype, n, 37, 256, { accumulate = true })
        compare(dtype, n, 33, 256, { bias = true, accumulate = true })
      end
    end)

    it("heeds the stride between rows", function()
      for _, n in ipairs { 2, 11, small + 1 } do
        compare(dtype, n, 9, 256, { pad = block == 1 and 12 or 5 })
      end
    end)

    it("gives a token the same result in any company", function()
      local rows, cols, many = math.random(2) == 1 and 45 or 48, 512, small + 40
      local w = reference.matrix(dtype, rows, cols)
      -- tokens of unlike sizes: each is scaled by itself
      local values, sizes = reference.random(many * cols), { 1, 0.01, 300 }
      for i = 1, #values do values[i] = values[i] * sizes[(i - 1) // cols % 3 + 1] end
      local _, x = reference.pack(values)
      local function some(rt, first, n)
        return ops.linear(rt, x:sub(first * cols * 4 + 1, (first + n) * cols * 4), dtype, w, rows,
          cols)
      end
      local function part(out, first, n)
        return out:sub(first * rows * 4 + 1, (first + n) * rows * 4)
      end
      reference.each(function(rt)
        return { some(rt, 0, small - 1), some(rt, 3, 1), some(rt, 5, 2), some(rt, 0, many),
          some(rt, 7, small + 5) }
      end, function(r, fail)
        if part(r[1], 3, 1) ~= r[2] then fail("%s: token 3 of few differs from it alone", dtype) end
        if part(r[1], 5, 2) ~= r[3] then
          fail("%s: two tokens differ from them among few", dtype)
        end
        if part(r[4], 7, small + 5) ~= r[5] then
          fail("%s: tokens differ from them among many", dtype)
        end
      end)
    end)
  end)
end

-- Vectors of scores: selection, reduction over heads, pooling, arithmetic. Where f32 is exact, so is the comparison.
local ops = require "pyramid.core".ops
local reference = require "ops_reference"

local lengths = { 1, 2, 3, 7, 16, 17, 31, 64, 100, 1000 }

local function equal(bytes, ref, fail, what, ints)
  local out = ops.numbers(bytes, ints)
  if #out ~= #ref then fail("%s: %d values, not %d", what, #out, #ref) end
  for i = 1, #ref do
    local both_nan = out[i] ~= out[i] and ref[i] ~= ref[i]
    if out[i] ~= ref[i] and not both_nan then fail("%s: value %d is %s, not %s", what, i, out[i], ref[i]) end
  end
end

describe("select", function()
  --- By sorting: higher first, NaN last, ties to the lower row.
  local function by_sorting(scores, k, offset)
    local order = {}
    for i = 1, #scores do order[i] = i end
    table.sort(order, function(a, b)
      local x, y = scores[a], scores[b]
      if (x == x) ~= (y == y) then return x == x end
      if x ~= y and x == x then return x > y end
      return a < b
    end)
    local idx = {}
    for i = 1, k do idx[i] = order[i] - 1 + offset end
    table.sort(idx)
    return idx
  end

  local function check(values, k, offset)
    local scores, bytes = reference.pack(values)
    local ref = by_sorting(scores, k, offset)
    reference.each(function(rt) return ops.select(rt, bytes, k, offset) end, function(result, fail)
      equal(result, ref, fail, ("%d of %d"):format(k, #values), true)
    end)
  end

  it("takes the highest, ascending", function()
    for _, n in ipairs(lengths) do
      local values = reference.random(n, 10)
      for _, k in ipairs { 0, 1, n // 2, n - 1, n } do check(values, k, math.random(0, 9)) end
    end
    check(reference.random(20000, 1e-30), 7777, 0)
  end)

  it("breaks ties to the lower row", function()
    for _ = 1, 20 do
      local n, values = math.random(1, 200), {}
      for i = 1, n do values[i] = math.random(0, 3) / 4 end
      check(values, math.random(0, n), 4)
    end
    local all_equal = {}
    for i = 1, 50 do all_equal[i] = 0.25 end
    check(all_equal, 20, 0)
  end)

  it("orders zeros, infinities, NaN and the smallest numbers", function()
    local odd = { 0.0, -0.0, 1 / 0, -1 / 0, 0 / 0, -(0 / 0), 1e-45, -1e-45, 1e38, -1e38, 1.5, -1.5 }
    for _ = 1, 50 do
      local n, values = math.random(1, 40), {}
      for i = 1, n do values[i] = odd[math.random(#odd)] end
      for k = 0, n do check(values, k, 0) end
    end
  end)

  it("refuses more rows than there are", function()
    local _, bytes = reference.random(5)
    for _, k in ipairs { 6, -1 } do
      local result, _, code = ops.select(reference.runtime(), bytes, k, 0)
      assert.is_nil(result)
      assert.equal("argument", code)
    end
  end)
end)

describe("reduce_rows", function()
  it("takes means, sums and maxima of rows", function()
    for _, n in ipairs(lengths) do
      for _, count in ipairs { 1, 2, 5, 32 } do
        local stride = n + math.random(0, 3)
        local x, bytes = reference.random(count * stride)
        for how, f in pairs {
          sum = function(a, b) return a + b end, mean = function(a, b) return a + b / count end, max = math.max,
        } do
          local ref = {}
          for i = 1, n do
            local y = how == "mean" and x[i] / count or x[i]
            for r = 1, count - 1 do y = f(y, x[r * stride + i]) end
            ref[i] = y * 0.5
          end
          reference.each(function(rt) return ops.reduce_rows(rt, bytes, count, stride, n, how, 0.5) end, function(result, fail)
            reference.near(result, ref, 1e-6, fail, how, 1)
          end)
        end
      end
    end
  end)
end)

describe("arith", function()
  it("adds, subtracts, multiplies, divides, and takes x/0 for 0", function()
    for _, n in ipairs(lengths) do
      local a, a_bytes = reference.random(n)
      local b = reference.random(n)
      for i = 1, n, 3 do b[i] = 0 end
      local b_bytes = ops.floats(b)
      for how, f in pairs {
        add = function(x, y) return x + y end, sub = function(x, y) return x - y end, mul = function(x, y) return x * y end,
        div = function(x, y) return y == 0 and 0 or x / y end,
      } do
        local ref = {}
        for i = 1, n do ref[i] = f(a[i], b[i]) end
        local rounded = reference.pack(ref)
        reference.each(function(rt) return ops.arith(rt, a_bytes, b_bytes, how) end, function(result, fail)
          equal(result, rounded, fail, how)
        end)
      end
    end
  end)
end)

describe("pool", function()
  it("averages or takes the maximum over a centred window, cut at the ends", function()
    for _, n in ipairs(lengths) do
      for _, width in ipairs { 1, 3, 7, 31 } do
        local x, bytes = reference.random(n)
        local average, maximum = {}, {}
        for i = 1, n do
          local sum, count, top = 0.0, 0, -math.huge
          for j = math.max(1, i - width // 2), math.min(n, i + width // 2) do
            sum, count, top = sum + x[j], count + 1, math.max(top, x[j])
          end
          average[i], maximum[i] = sum / count, top
        end
        reference.each(function(rt) return { ops.pool(rt, bytes, width, "average"), ops.pool(rt, bytes, width, "maximum") } end,
          function(result, fail)
            reference.near(result[1], average, 1e-6, fail, "average", 1)
            equal(result[2], maximum, fail, "maximum")
          end)
      end
    end
    local _, long = reference.random(50000)
    reference.each(function(rt) return ops.pool(rt, long, 9, "average") end, function() end)   -- cut among threads
  end)

  it("refuses an even width", function()
    local _, bytes = reference.random(5)
    assert.equal("argument", (select(3, ops.pool(reference.runtime(), bytes, 4, "average"))))
  end)
end)

describe("normalize", function()
  it("divides by the sum, and leaves a zero sum alone", function()
    for _, n in ipairs(lengths) do
      local x = reference.random(n)
      local sum, ref = 0.0, {}
      for i = 1, n do
        x[i] = math.abs(x[i])
        sum = sum + x[i]
      end
      for i = 1, n do ref[i] = x[i] / sum end
      local bytes = ops.floats(x)
      reference.each(function(rt) return ops.normalize(rt, bytes) end, function(result, fail)
        reference.near(result, ref, 1e-6, fail, "normalized")
      end)
    end
    local zeros = ops.floats { 0, 0, 1, -1 }
    assert.equal(zeros, ops.normalize(reference.runtime(), zeros))
  end)
end)

describe("fill and iota", function()
  it("give positions, constants and counts", function()
    for _, n in ipairs(lengths) do
      local positions, bytes = reference.ascending(n, 3, 4)
      local constant, counted = {}, {}
      for i = 1, n do constant[i], counted[i] = 0.25, 6 + i end
      reference.each(function(rt)
        return { ops.fill(rt, n, "positions", bytes), ops.fill(rt, n, "value", nil, 0, 0.25), ops.iota(rt, 7, n) }
      end, function(result, fail)
        equal(result[1], positions, fail, "positions")
        equal(result[2], constant, fail, "constant")
        equal(result[3], counted, fail, "iota", true)
      end)
    end
  end)

  it("hash a seed and a position to [0, 1)", function()
    local positions, bytes = reference.ascending(1000, 0, 9)
    local seed = math.random(0)
    local ref = {}
    for i, position in ipairs(positions) do
      local z = seed + (position + 1) * 0x9E3779B97F4A7C15
      z = (z ~ (z >> 30)) * 0xBF58476D1CE4E5B9
      z = (z ~ (z >> 27)) * 0x94D049BB133111EB
      ref[i] = ((z ~ (z >> 31)) >> 40) / 2 ^ 24
    end
    reference.each(function(rt) return ops.fill(rt, 1000, "hash", bytes, seed) end, function(result, fail)
      equal(result, ref, fail, "hash")
      local sum = 0
      for _, x in ipairs(ops.numbers(result)) do sum = sum + x end
      if math.abs(sum / 1000 - 0.5) > 0.05 then fail("mean is %g", sum / 1000) end
    end)
  end)
end)

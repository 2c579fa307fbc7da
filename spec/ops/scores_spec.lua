-- Vectors of scores: selection, reduction over heads, pooling, arithmetic. Where f32 is exact, so
-- is the comparison.
local ops = require "pyramid_specs"
local reference = require "spec.support.ops_reference"

local lengths = { 1, 2, 3, 7, 16, 17, 31, 64, 100, 1000 }

local function equal(bytes, ref, fail, what, ints)
  local out = ops.numbers(bytes, ints)
  if #out ~= #ref then fail("%s: %d values, not %d", what, #out, #ref) end
  for i = 1, #ref do
    local both_nan = out[i] ~= out[i] and ref[i] ~= ref[i]
    if out[i] ~= ref[i] and not both_nan then
      fail("%s: value %d is %s, not %s", what, i, out[i], ref[i])
    end
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

describe("choose", function()
  local function check(segments, least, most, mass, above)
    local packed, values, offset = {}, {}, math.random(0, 9)
    for s, scores in ipairs(segments) do values[s], packed[s] = reference.pack(scores) end
    local ref = reference.choose(values, least, most, mass, above)
    reference.each(function(rt)
      return ops.choose(rt, packed, least, most, mass, offset, above)
    end,
      function(result, fail)
      for s, rows in ipairs(ref) do
        local wanted = {}
        for i, row in ipairs(rows) do wanted[i] = row + offset end
        equal(result[s], wanted, fail, ("segment %d of %d, most %d, mass %g, above %s"):format(s,
          #ref, most, mass, tostring(above)), true)
      end
    end)
  end

  local function sizes(segments)
    local n, least, sum = 0, {}, 0
    for s, scores in ipairs(segments) do
      n, least[s] = n + #scores, math.random() < 0.4 and math.random(0, #scores) or 0
      sum = sum + least[s]
    end
    return n, least, sum
  end

  local masses = { 0, 1e-9, 0.1, 0.5, 0.9, 0.999999, 1 }

  it("takes the highest of all segments together, or so many as hold a share of the sum", function()
    for _, lengths_of in ipairs { { 1 }, { 2, 0, 3 }, { 17, 31, 64, 100 }, { 1000, 7 },
      { 300, 300, 300 } } do
      for _, size in ipairs { 1, 1e-30, 1e30 } do
        local segments = {}
        for s, n in ipairs(lengths_of) do segments[s] = reference.random(n, size) end
        for _, mass in ipairs(masses) do
          local n, least, sum = sizes(segments)
          check(segments, least, math.random(sum, n), mass)
          check(segments, least, n, mass)
        end
      end
    end
  end)

  it("breaks ties to the lower segment, then to the lower row", function()
    for _ = 1, 40 do
      local segments = {}
      for s = 1, math.random(1, 4) do
        segments[s] = {}
        for i = 1, math.random(0, 60) do segments[s][i] = math.random(-1, 3) / 4 end
      end
      local n, least, sum = sizes(segments)
      check(segments, least, math.random(sum, n), masses[math.random(#masses)])
    end
    local all_equal = {}
    for i = 1, 50 do all_equal[i] = 0.25 end
    check({ all_equal, all_equal }, { 0, 3 }, 60, 0)
    check({ all_equal, all_equal }, { 0, 3 }, 100, 0.5)
  end)

  it("takes none below a bound but what each segment is promised", function()
    for _, lengths_of in ipairs { { 1 }, { 2, 0, 3 }, { 17, 31, 64, 100 }, { 1000, 7 } } do
      local segments, all = {}, { -math.huge, math.huge, 0, -0.0 }
      for s, n in ipairs(lengths_of) do
        segments[s] = reference.random(n, 1)
        all[#all + 1] = segments[s][math.random(math.max(n, 1))]        -- one that is there
      end
      for _, above in ipairs(all) do
        local n, least, sum = sizes(segments)
        check(segments, least, math.random(sum, n), 0, above)
        check(segments, least, n, 0, above)
        check(segments, least, n, masses[math.random(#masses)], above)
      end
    end
    for _ = 1, 40 do                                                     -- ties at the bound
      local segments = {}
      for s = 1, math.random(1, 4) do
        segments[s] = {}
        for i = 1, math.random(0, 60) do
          segments[s][i] = math.random(8) == 1 and 0 / 0 or math.random(-1, 3) / 4
        end
      end
      local n, least, sum = sizes(segments)
      check(segments, least, math.random(sum, n), 0, math.random(-2, 4) / 4)
    end
  end)

  it("sums zeros, negatives, infinities, NaN and the smallest numbers as it says", function()
    local odd = { 0.0, -0.0, 1 / 0, -1 / 0, 0 / 0, -(0 / 0), 1e-45, -1e-45, 1e38, -1e38, 1.5, -1.5,
      3e38 }
    for _ = 1, 100 do
      local segments, from = {}, math.random(#odd)
      for s = 1, math.random(1, 3) do
        segments[s] = {}
        for i = 1, math.random(0, 20) do segments[s][i] = odd[math.random(from)] end
      end
      local n, least, sum = sizes(segments)
      check(segments, least, math.random(sum, n), masses[math.random(#masses)])
    end
    check({ { 0, 0, 0 }, { -1, -2 } }, { 1, 0 }, 5, 0.9)  -- nothing to hold: only what is promised
    check({ { 0, 0, 0 }, { -1, -2 } }, { 0, 0 }, 5, 1)
  end)

  it("sums exactly: what a large score leaves, many small ones fill", function()
    local scores = { 1.0 }
    for i = 2, 5000 do scores[i] = 2.0 ^ -20 end
    check({ scores }, { 0 }, 5000, 1)
    check({ scores }, { 0 }, 5000, 0.997)
    local falling = {}
    for i = 1, 400 do falling[i] = 0.97 ^ i end
    for _, mass in ipairs(masses) do check({ falling, falling }, { 5, 0 }, 800, mass) end
  end)

  it("refuses counts and shares that cannot be", function()
    local _, bytes = reference.random(5)
    for _, case in ipairs { { { 6 }, 6, 0 }, { { 0 }, 6, 0 }, { { 3 }, 2, 0 }, { { -1 }, 2, 0 },
      { { 0 }, 2, 1.5 }, { { 0 }, 2, 0 / 0 } } do
      local result, _, code = ops.choose(reference.runtime(), { bytes }, case[1], case[2], case[3])
      assert.is_nil(result)
      assert.equal("argument", code)
    end
    local result, _, code = ops.choose(reference.runtime(), { bytes }, { 0 }, 2, 0, 0, 0 / 0)
    assert.is_nil(result)
    assert.equal("argument", code)
  end)
end)

describe("reduce_rows", function()
  it("takes means, sums and maxima of rows", function()
    for _, n in ipairs(lengths) do
      for _, count in ipairs { 1, 2, 5, 32 } do
        local stride = n + math.random(0, 3)
        local x, bytes = reference.random(count * stride)
        for how, f in pairs {
          sum = function(a, b) return a + b end, mean = function(a, b) return a + b / count end,
            max = math.max,
        } do
          local ref = {}
          for i = 1, n do
            local y = how == "mean" and x[i] / count or x[i]
            for r = 1, count - 1 do y = f(y, x[r * stride + i]) end
            ref[i] = y * 0.5
          end
          reference.each(function(rt) return ops.reduce_rows(rt, bytes, count, stride, n, how,
            0.5) end, function(result, fail)
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
        add = function(x, y) return x + y end, sub = function(x, y) return x - y end,
          mul = function(x, y) return x * y end,
        div = function(x, y) return y == 0 and 0 or x / y end,
      } do
        local ref = {}
        for i = 1, n do ref[i] = f(a[i], b[i]) end
        local rounded = reference.pack(ref)
        reference.each(function(rt) return ops.arith(rt, a_bytes, b_bytes, how) end,
          function(result, fail)
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
        reference.each(function(rt) return { ops.pool(rt, bytes, width, "average"),
          ops.pool(rt, bytes, width, "maximum") } end,
          function(result, fail)
            reference.near(result[1], average, 1e-6, fail, "average", 1)
            equal(result[2], maximum, fail, "maximum")
          end)
      end
    end
    local _, long = reference.random(50000)
    -- cut among threads
    reference.each(function(rt) return ops.pool(rt, long, 9, "average") end, function() end)
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

describe("look_up", function()
  it("gives what values have of the ids of positions, and 0 for what is not there", function()
    for _, n in ipairs(lengths) do
      local known, vocab = math.random(1, 2 * n), math.random(1, 40)
      local positions, ids, values = {}, {}, {}
      for i = 1, n do positions[i] = math.random(-1, known + 2) end
      for i = 1, known do ids[i] = math.random(-1, vocab + 3) end
      for i = 1, vocab do values[i] = math.random(-8, 8) / 4 end
      positions[1], ids[1] = math.maxinteger >> 32, -2147483648
      local ref = reference.look_up(positions, ids, values)
      reference.each(function(rt)
        return ops.look_up(rt, ops.ints(positions), ops.ints(ids), ops.floats(values))
      end, function(result, fail) equal(result, ref, fail, ("%d of %d"):format(n, known)) end)
    end
  end)
end)

describe("fill and iota", function()
  it("give positions, constants and counts", function()
    for _, n in ipairs(lengths) do
      local positions, bytes = reference.ascending(n, 3, 4)
      local constant, counted = {}, {}
      for i = 1, n do constant[i], counted[i] = 0.25, 6 + i end
      reference.each(function(rt)
        return { ops.fill(rt, n, "positions", bytes), ops.fill(rt, n, "value", nil, 0, 0.25),
          ops.iota(rt, 7, n) }
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
    reference.each(function(rt) return ops.fill(rt, 1000, "hash", bytes, seed) end,
      function(result, fail)
      equal(result, ref, fail, "hash")
      local sum = 0
      for _, x in ipairs(ops.numbers(result)) do sum = sum + x end
      if math.abs(sum / 1000 - 0.5) > 0.05 then fail("mean is %g", sum / 1000) end
    end)
  end)
end)

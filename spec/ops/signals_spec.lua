-- What rows, queries and weights say of rows: similarity of keys, lag, output norms, expected
-- attention; and vectors of scores made of those. References are in ops_reference.lua.
local helper = require "spec.helper"
local ops = require "pyramid_specs"
local reference = require "spec.support.ops_reference"

local dtypes = helper.dtypes "rows"

local function each_shape(f)
  for _, dtype in ipairs(dtypes) do
    for _, d in ipairs { 16, 18, 20, 32, 64, 80, 128 } do
      if dtype ~= "q8_0" or d % 32 == 0 then f { dtype = dtype, head_dim = d } end
    end
  end
end

--- A lane of `rows` rows and judged rows [from, to) of it.
local function random_lane(layout, most)
  local rows = math.random(1, most)
  local from = math.random(0, rows - 1)
  return reference.lane(layout, (reference.ascending(rows, 0, 2))), from, math.random(from, rows)
end

describe("read_rows", function()
  it("gives rows as f32", function()
    each_shape(function(layout)
      local lane, from, to = random_lane(layout, 90)
      for what, values in pairs { [0] = lane.k, lane.v } do
        local ref = table.move(values, from * layout.head_dim + 1, to * layout.head_dim, 1, {})
        reference.each(function(rt) return ops.read_rows(rt, layout, lane, from, to, what) end,
          function(result, fail)
          reference.near(result, ref, 0, fail, "rows of " .. layout.dtype)
        end)
      end
    end)
  end)
end)

describe("key_similarity", function()
  local function check(layout, lane, from, to)
    local ref = reference.key_similarity(lane.k, layout.head_dim, from, to)
    reference.each(function(rt) return ops.key_similarity(rt, layout, lane, from, to) end,
      function(result, fail)
      reference.near(result, ref, 2e-6, fail, ("%s, d %d"):format(layout.dtype, layout.head_dim), 1)
    end)
  end

  it("is the cosine to the mean of normalised keys", function()
    each_shape(function(layout) check(layout, random_lane(layout, 400)) end)
  end)

  it("is 0 of a key that is 0", function()
    local layout = { dtype = "f32", head_dim = 16 }
    local lane = reference.lane(layout, (reference.ascending(5, 0)))
    lane.pages = ("\0"):rep(16 * 4) .. lane.pages:sub(16 * 4 + 1)
    for c = 1, 16 do lane.k[c] = 0 end
    check(layout, lane, 0, 5)
    check(layout, lane, 0, 1)
    check(layout, lane, 2, 2)
  end)
end)

describe("redundancy", function()
  -- A cosine that rounds to the other side of the threshold moves some rows by 1 / rows.
  local function check(layout, lane, from, to, threshold)
    local raw, margin = reference.redundancy(lane.k, layout.head_dim, lane.rows, threshold)
    if margin < 1e-5 then return false end
    local ref = table.move(reference.softmax(raw), from + 1, to, 1, {})
    reference.each(function(rt) return ops.redundancy(rt, layout, lane, from, to, threshold) end,
      function(result, fail)
      reference.near(result, ref, 2e-6, fail, ("%s, d %d, rows %d to %d of %d, above %g"):format(
        layout.dtype, layout.head_dim, from, to, lane.rows, threshold))
    end)
    return true
  end

  -- Keys around a few directions, so that many are alike.
  local function crowded_lane(layout, rows, directions)
    local d, k, v = layout.head_dim, {}, {}
    local centres = {}
    for i = 1, directions * d do centres[i] = math.random() * 2 - 1 end
    for j = 0, rows - 1 do
      local centre, noise = math.random(0, directions - 1), math.random()
      for c = 1, d do
        k[j * d + c] = centres[centre * d + c] + noise * (math.random() * 2 - 1)
        v[j * d + c] = math.random()
      end
    end
    return reference.lane(layout, (reference.ascending(rows, 0, 2)), nil, { k = k, v = v })
  end

  it("is the mean cosine to the other keys, less what a row's last one alike has of it", function()
    local done = 0
    each_shape(function(layout)
      local rows = math.random(1, 300)
      local from = math.random(0, rows - 1)
      local lane = crowded_lane(layout, rows, math.random(1, 6))
      if check(layout, lane, from, math.random(from, rows), 0.5) then done = done + 1 end
      if check(layout, lane, 0, rows, 0.9) then done = done + 1 end
    end)
    assert.is_true(done > 20)
  end)

  it("finds none alike above 1, and all but a row itself above -2", function()
    each_shape(function(layout)
      local lane, from, to = random_lane(layout, 200)
      assert.is_true(check(layout, lane, from, to, 1.5))
      assert.is_true(check(layout, lane, from, to, -2))
    end)
  end)

  it("knows zeros, equal keys and single rows", function()
    local layout = { dtype = "f32", head_dim = 16 }
    local lane = reference.lane(layout, (reference.ascending(70, 0)))
    local row = 16 * 4
    local second = lane.pages:sub(row + 1, 2 * row)
    lane.pages = ("\0"):rep(row) .. second .. second .. lane.pages:sub(3 * row + 1)
    for c = 1, 16 do lane.k[c], lane.k[32 + c] = 0, lane.k[16 + c] end
    check(layout, lane, 0, 70, 0.25)
    check(layout, lane, 2, 2, 0.25)
    for rows = 1, 3 do
      local few = reference.lane(layout, (reference.ascending(rows, 0)))
      check(layout, few, 0, rows, 0.25)
      check(layout, few, 0, rows, -2)
    end
  end)

  it("has NaN where a key has", function()
    local layout = { dtype = "f32", head_dim = 16 }
    local lane = reference.lane(layout, (reference.ascending(40, 0)))
    lane.pages = ("\xff"):rep(4) .. lane.pages:sub(5)
    reference.each(function(rt) return ops.redundancy(rt, layout, lane, 5, 9, 0.5) end,
      function(result, fail)
      for _, x in ipairs(ops.numbers(result)) do if x == x then fail("%g is a number", x) end end
    end)
  end)
end)

describe("along", function()
  it("is a product with each head's vector, and what its pairs' lengths add", function()
    each_shape(function(layout)
      local d, lane, from, to = layout.head_dim, random_lane(layout, 200)
      for style, step in pairs { [0] = 1, 2 } do
        local dims = style == 0 and d or d // 4 * 2
        local count = math.random(1, 4)
        local vectors, bytes = reference.random(count * d)
        local spreads, more = reference.random(count * dims // 2)
        local other = step == 1 and dims // 2 or 1
        local bare, both = {}, {}
        for h = 0, count - 1 do
          for j = from, to - 1 do
            local dot, lengths = 0.0, 0.0
            for c = 1, d do dot = dot + vectors[h * d + c] * lane.k[j * d + c] end
            for p = 0, dims // 2 - 1 do
              local a, b = lane.k[j * d + p * step + 1], lane.k[j * d + p * step + other + 1]
              lengths = lengths + spreads[h * (dims // 2) + p + 1] * (a * a + b * b) ^ 0.5
            end
            bare[#bare + 1], both[#both + 1] = dot, dot + lengths
          end
        end
        local given = { from = from, to = to, count = count, vectors = bytes, dims = dims,
          style = style }
        local full = { spreads = more }
        for key, value in pairs(given) do full[key] = value end
        reference.each(function(rt)
          return { ops.along(rt, layout, lane, given), ops.along(rt, layout, lane, full) }
        end, function(result, fail)
          local what = ("%s, d %d, style %d"):format(layout.dtype, d, style)
          reference.near(result[1], bare, 1e-5, fail, what, 1)
          reference.near(result[2], both, 1e-5, fail, what .. " and lengths", 1)
        end)
      end
    end)
  end)
end)

describe("standardize", function()
  it("takes the mean off and divides by the deviation", function()
    for _, n in ipairs { 1, 2, 3, 16, 31, 100, 1000 } do
      local x, bytes = reference.random(n, 5)
      local mean, square, ref = 0.0, 0.0, {}
      for _, y in ipairs(x) do mean = mean + y / n end
      for _, y in ipairs(x) do square = square + (y - mean) ^ 2 / n end
      for i, y in ipairs(x) do ref[i] = (y - mean) / math.max(square ^ 0.5, 1e-6) end
      reference.each(function(rt) return ops.standardize(rt, bytes) end, function(result, fail)
        reference.near(result, ref, 1e-5, fail, n .. " values", 1)
      end)
    end
    local same = ops.floats { 3, 3, 3 }
    reference.each(function(rt) return ops.standardize(rt, same) end, function(result, fail)
      reference.near(result, { 0, 0, 0 }, 0, fail, "equal values")
    end)
  end)
end)

describe("lag", function()
  local function check(layout, lane, from, to, lag)
    local ref = reference.lag(lane, layout.head_dim, from, to, lag)
    reference.each(function(rt)
      return { ops.lag(rt, layout, lane, from, to, lag, false),
        ops.lag(rt, layout, lane, from, to, lag, true) }
    end, function(result, fail)
      local what = ("%s, d %d, rows %d of %d from %d, lag %d"):format(layout.dtype,
        layout.head_dim, to - from, lane.rows, from, lag)
      -- two rows alone may all but agree in a channel: spreads are some hundreds then, and f32 has
      -- their exponentials to 1e-5
      reference.near(result[1], ref, lag == 2 and 5e-5 or 1e-5, fail, what)
      local ranks, raw = ops.numbers(result[2]), ops.numbers(result[1])
      for i = 1, #raw do
        local start, below = (i - 1) // lag * lag, 0
        if from + start + 2 * lag > lane.rows then
          if ranks[i] ~= 1 then fail("%s: row %d has no run behind it", what, i) end
        elseif from + start + lag <= to then  -- of a run judged in part, not all scores are here
          for j = start + 1, start + lag do
            if raw[j] < raw[i] or (raw[j] == raw[i] and j < i) then below = below + 1 end
          end
          if math.abs(ranks[i] - below / lag) > 1e-6 then
            fail("%s: rank %d is %g, not %g", what, i, ranks[i], below / lag)
          end
        end
      end
    end)
  end

  it("is the spread over the range of the run behind", function()
    each_shape(function(layout)
      local lane, from, to = random_lane(layout, 120)
      for _, lag in ipairs { 2, 5, 16, 33 } do check(layout, lane, from, to, lag) end
    end)
  end)

  it("is 1 where no whole run is behind, whatever the lag", function()
    local layout = { dtype = "f16", head_dim = 16 }
    local lane = reference.lane(layout, (reference.ascending(20, 0)))
    check(layout, lane, 0, 20, 10)
    check(layout, lane, 0, 20, 11)
    check(layout, lane, 4, 20, 8)
    check(layout, lane, 4, 9, 8)
    check(layout, lane, 0, 20, 1000000)
  end)

  it("counts a channel without a range as 0", function()
    local layout = { dtype = "f32", head_dim = 16 }
    local lane = reference.lane(layout, (reference.ascending(8, 0)))
    local k, floats = {}, {}
    for i, x in ipairs(lane.k) do k[i] = i % 16 == 3 and 0.5 or x end
    lane.k = k
    for i = 1, reference.page_rows * 16 do floats[i] = k[i] or 0 end
    lane.pages = ops.floats(floats) .. lane.pages:sub(#floats * 4 + 1)
    check(layout, lane, 0, 8, 4)
  end)
end)

describe("output_norm", function()
  -- the latter with weights interleaved
  local rounding = reference.teams("avx512bf16", "avx512int8", "amxint8")
  it("is the sum of absolute values of W_o v, head by head", function()
    local weights, blocks = helper.dtypes "weights"
    for _, dtype in ipairs(weights) do
      for _, d in ipairs { 16, 32, 64, 80 } do
        local heads, width = 4 + 4 * math.random(0, 1), math.random(1, 70)
        if width > 35 then width = width // 16 * 16 end       -- rows that may lie interleaved
        local block = blocks[dtype]
        local layout = { dtype = dtypes[math.random(3)], head_dim = d, heads = heads, kv_heads = 2 }
        if heads * d % block == 0 then
          local lane, from, to = random_lane(layout, 300)
          local o, values = reference.matrix(dtype, width, heads * d)
          local first = math.random(0, 1) * heads // 2
          local call = { from = from, to = to, first = first, count = heads // 2, dtype = dtype,
            rows = width, o = o }
          local ref = {}
          for h = first, first + heads // 2 - 1 do
            table.move(reference.output_norm(lane.v, d, from, to, values, width, heads, h), 1,
              to - from, #ref + 1, ref)
          end
          reference.each(function(rt) return ops.output_norm(rt, layout, lane, call) end,
            function(result, fail)
            reference.near(result, ref, 4e-6, fail,
              ("%s, d %d, %d rows of o"):format(dtype, d, width))
          end)
          local exact = dtype == "bf16" and layout.dtype == "bf16"     -- what bf16 holds
          reference.each(function(rt) return ops.output_norm(rt, layout, lane, call) end,
            function(result, fail)
            reference.near(result, ref, exact and 4e-6 or 1e-2, fail,
              ("rounded, %s, d %d, %d rows of o"):format(dtype, d, width))
          end, rounding)
        end
      end
    end
  end)
end)

describe("expected attention", function()
  it("is the exponent of a Gaussian query's, turned to what comes", function()
    each_shape(function(layout)
      local d, heads = layout.head_dim, math.random() < 0.5 and 2 or 6
      layout.heads, layout.kv_heads, layout.scale = heads, 2, d ^ -0.5
      local lane, from, to = random_lane(layout, 150)
      local n, pairs_count = math.random(1, 150),
        math.random() < 0.5 and d // 2 or math.max(1, d // 4)
      local how = { next = math.random(0, 300), future = math.random(1, 40),
        style = math.random(0, 1), gain = 0.7 + math.random(), scale = layout.scale,
          covariance = math.random() < 0.7, freq = {} }
      for p = 1, pairs_count do how.freq[p] = 100 ^ -((p - 1) / pairs_count) end
      how.freq = reference.pack(how.freq)
      local positions = reference.ascending(n, math.random(0, 20), 1)
      local before, after = {}, {}
      for h = 1, heads do
        before[h] = {}
        local offset = reference.random(d, 3)
        for i = 1, n do
          local q = reference.random(d, 0.7)
          for c = 1, d do q[c] = q[c] + offset[c] end                       -- a mean far from 0
          before[h][i] = q
        end
      end
      for i = 1, n do
        for h = 1, heads do
          local q = reference.turned(before[h][i], positions[i], 1, how.freq, how.style, how.gain)
          table.move(q, 1, d, #after + 1, after)
        end
      end
      local first = heads // 2 * math.random(0, 1)
      local call = { from = from, to = to, first = first, count = heads // 2,
        q = ops.floats(after), q_pos = ops.ints(positions), freq = ops.floats(how.freq),
          style = how.style, gain = how.gain, next = how.next, future = how.future,
            covariance = how.covariance and 1 or 0 }
      local ref = {}
      for h = first + 1, first + heads // 2 do
        table.move(reference.expected(before[h], lane.k, d, from, to, how), 1, to - from, #ref + 1,
          ref)
      end
      for _, pieces in ipairs { 1, 3 } do
        call.pieces = pieces
        reference.each(function(rt) return ops.expected(rt, layout, lane, call) end,
          function(result, fail)
          reference.near(result, ref, 2e-5, fail,
            ("%s, d %d, %d queries"):format(layout.dtype, d, n), 1)
        end)
      end
    end)
  end)

  it("is 0 where there was no query", function()
    local layout = { dtype = "f32", head_dim = 16, heads = 2, kv_heads = 2, scale = 0.25 }
    local lane = reference.lane(layout, (reference.ascending(5, 0)))
    reference.each(function(rt)
      return ops.expected(rt, layout, lane, { from = 1, to = 4, first = 1, q = "", q_pos = "",
        freq = ops.floats { 1, 0.1 }, next = 5, future = 9 })
    end, function(result, fail) reference.near(result, { 0, 0, 0 }, 0, fail, "no queries") end)
  end)
end)

describe("softmax, chunk, mark and place", function()
  it("do what they say", function()
    for _, n in ipairs { 1, 2, 3, 16, 31, 100, 1000 } do
      local x, bytes = reference.random(n, 5)
      local width, chunks, place, marks, idx = math.random(1, n + 1), {}, {}, {}, {}
      for at = 1, n, width do
        local sum, last = 0.0, math.min(n, at + width - 1)
        for i = at, last do sum = sum + x[i] end
        for i = at, last do chunks[i] = sum / (last - at + 1) end
      end
      for i = 1, n do
        place[i] = n == 1 and 1 or (i - 1) / (n - 1)
        marks[i] = math.random(0, 1)
        if marks[i] == 1 then idx[#idx + 1] = i - 1 end
      end
      reference.each(function(rt)
        return { ops.softmax(rt, bytes), ops.chunk(rt, bytes, width), ops.fill(rt, n, "place"),
          ops.mark(rt, n, ops.ints(idx)) }
      end, function(result, fail)
        reference.near(result[1], reference.softmax(x), 1e-6, fail, "softmax")
        reference.near(result[2], chunks, 1e-6, fail, "chunk", 5)
        reference.near(result[3], place, 1e-7, fail, "place")
        reference.near(result[4], marks, 0, fail, "mark")
      end)
    end
  end)

  it("give a sum to all, and map each", function()
    for _, n in ipairs { 1, 2, 31, 100, 3000 } do
      local x, bytes = reference.random(n, 5)
      reference.each(function(rt)
        return { ops.total(rt, bytes), ops.map(rt, bytes, "log"), ops.map(rt, bytes, "power", 0.7),
          ops.map(rt, bytes, "power", 3), ops.map(rt, bytes, "above", x[1]),
          ops.total(rt, bytes, true) }
      end, function(result, fail)
        reference.near(result[1], reference.total(x), 1e-5, fail, "total")
        reference.near(result[2], reference.map(x, "log"), 1e-5, fail, "log", 80)
        reference.near(result[3], reference.map(x, "power", 0.7), 1e-5, fail, "power", 5)
        reference.near(result[4], reference.map(x, "power", 3), 1e-5, fail, "power", 100)
        reference.near(result[6], reference.total(x, true), 0, fail, "highest")
        reference.near(result[5], reference.map(x, "above", x[1]), 0, fail, "above")
      end)
    end
    local hard = ops.floats { 0, -0.0, -1, 1e-44, 0 / 0, 1 / 0, 1e38 }
    reference.each(function(rt)
      return { ops.map(rt, hard, "log"), ops.map(rt, hard, "power", 0.5),
        ops.map(rt, hard, "above", 0), ops.total(rt, hard), ops.total(rt, hard, true) }
    end, function(result, fail)
      local function list(bytes) return { ("<fffffff"):unpack(bytes) } end
      local log, power, above, total = list(result[1]), list(result[2]), list(result[3]),
        list(result[4])
      for i = 1, 4 do
        if math.abs(log[i] + 87.33654) > 1e-4 then fail("log " .. i) end
        if i < 4 and power[i] ~= 0 then fail("power " .. i) end
      end
      if log[5] == log[5] or power[5] == power[5] or total[1] == total[1]
        or list(result[5])[1] == list(result[5])[1] then fail("NaN") end
      if log[6] ~= math.huge or power[6] ~= math.huge then fail("infinity") end
      local wanted = { 0, 0, 0, above[4], 0, 1, 1 }                -- denormals may count as 0
      for i, x in ipairs(wanted) do if above[i] ~= x then fail("above " .. i) end end
    end)
  end)

  it("stands scores of any size", function()
    local x, bytes = reference.random(300, 4000)
    reference.each(function(rt) return ops.softmax(rt, bytes) end, function(result, fail)
      reference.near(result, reference.softmax(x), 1e-6, fail, "softmax")
    end)
  end)
end)

-- Attention, the tracked history and the score pass, against their definitions.
local helper = require "spec.helper"
local ops = require "pyramid_specs"
local reference = require "spec.support.ops_reference"

local dtypes = helper.dtypes "rows"
local dims = { 16, 20, 32, 48, 64, 80, 128 }

local function layout_of(dtype, head_dim, heads, kv_heads)
  return { dtype = dtype, head_dim = head_dim, heads = heads, kv_heads = kv_heads,
    scale = head_dim ^ -0.5 }
end

local function fits(dtype, head_dim) return dtype ~= "q8_0" or head_dim % 32 == 0 end

--- One call: the last n of `rows` rows are the queries' own; before them positions have holes.
--- Lanes differ in their positions, and in their length if `ragged`. `rounded`: queries that bf16
--- holds.
local function make_call(layout, n, rows, o)
  o = o or {}
  local call = { lanes = {}, window = o.window or 0 }
  local last = 3 * rows
  local own = {}
  for i = 1, n do own[i] = last + i - 1 end
  for g = 1, layout.kv_heads do
    local before = {}
    local count = rows - n - (o.ragged and math.random(0, (rows - n) // 2) or 0)
    local at = math.random(0, 2)
    for j = 1, count do
      before[j] = at
      at = at + 1 + math.random(0, 1)
    end
    call.lanes[g] = reference.lane(layout, table.move(own, 1, n, count + 1, before), 2)
  end
  call.at, call.q_pos = own, ops.ints(own)
  call.q = reference.random(n * layout.heads * layout.head_dim, 2)
  if o.rounded then
    call.q = ops.numbers(ops.to_f32("bf16", ops.from_f32("bf16", ops.floats(call.q))))
  end
  call.q_bytes = ops.floats(call.q)
  return call
end

--- Gives a call what a model may add to its scores: those of cap, slopes and sinks that `which`
--- names. Scores are about 1.3 in size, distances up to three times the rows.
local function bend(layout, which, call)
  if which:find "cap" then call.cap = 1.5 end
  if which:find "slopes" then
    call.slopes = {}
    for h = 1, layout.heads do call.slopes[h] = 0.3 / 2 ^ h end
    call.slopes, call.slope_bytes = reference.pack(call.slopes)
  end
  if which:find "sinks" then
    call.sinks = reference.random(layout.heads, 4)
    if layout.heads > 1 then call.sinks[2] = -math.huge end
    call.sinks, call.sink_bytes = reference.pack(call.sinks)
  end
  return call
end

local function packed(call)
  return { q = call.q_bytes, q_pos = call.q_pos, lanes = call.lanes, window = call.window,
    track = call.track, cap = call.cap, slopes = call.slope_bytes, sinks = call.sink_bytes }
end

local function check(layout, calls, limit, teams)
  local refs, packs = {}, {}
  for i, call in ipairs(calls) do
    local out, lse = reference.attention(layout, call)
    refs[i], packs[i] = { out = out, lse = lse }, packed(call)
  end
  reference.each(function(rt) return ops.attention(rt, layout, packs) end, function(results, fail)
    for i, result in ipairs(results) do
      local call = calls[i]
      local what = ("%s, %d queries on %d rows, d %d, %d/%d heads, window %d"):format(layout.dtype,
        #call.at, call.lanes[1].rows, layout.head_dim, layout.heads, layout.kv_heads, call.window)
      reference.near(result.out, refs[i].out, limit or 3e-6, fail, what .. ": out")
      -- a logarithm's error does not shrink with it, as where the sum is near 1
      reference.near(result.lse, refs[i].lse, 2e-6, fail, what .. ": lse", 1)
    end
  end, teams)
end

describe("attention", function()
  for _, dtype in ipairs(dtypes) do
    it("of one query equals its definition, on rows in " .. dtype, function()
      for _, d in ipairs(dims) do
        if fits(dtype, d) then
          local layout = layout_of(dtype, d, 6, 2)
          check(layout, { make_call(layout, 1, 1) })
          check(layout, { make_call(layout, 1, 75, { ragged = true }) })
          check(layout, { make_call(layout, 1, 64, { window = 40 }) })
        end
      end
    end)

    it("of many queries equals its definition, on rows in " .. dtype, function()
      for _, d in ipairs(dims) do
        if fits(dtype, d) then
          local layout = layout_of(dtype, d, 4, 2)
          check(layout, { make_call(layout, 2, 2) })
          check(layout, { make_call(layout, 19, 90, { ragged = true }) })
          check(layout, { make_call(layout, 40, 40, { window = 11 }) })
        end
      end
    end)
  end

  it("shares lanes among any number of heads", function()
    for _, shape in ipairs { { 1, 1 }, { 3, 3 }, { 8, 1 }, { 7, 1 }, { 10, 2 }, { 16, 4 } } do
      local layout = layout_of("f16", 32, shape[1], shape[2])
      check(layout, { make_call(layout, 1, 50, { ragged = true }), make_call(layout, 1, 16),
        make_call(layout, 1, 39) })
      check(layout, { make_call(layout, 30, 50, { ragged = true }) })
    end
    for _, dtype in ipairs { "f32", "f16" } do
      local wide = layout_of(dtype, 16, 250, 1)   -- more heads on a lane than a tile has columns
      check(wide, { make_call(wide, 3, 9), make_call(wide, 1, 300) })
    end
  end)

  it("crosses tiles of rows and of queries", function()
    for _, layout in ipairs { layout_of("f32", 16, 1, 1), layout_of("f16", 16, 1, 1),
      layout_of("bf16", 72, 1, 1) } do
      check(layout, { make_call(layout, 260, 330) })
      check(layout, { make_call(layout, 260, 330, { window = 70 }) })
      check(layout, { make_call(layout, 1, 700) })
    end
  end)

  it("walks long lanes in segments", function()
    for _, layout in ipairs { layout_of("f16", 64, 4, 1), layout_of("q8_0", 32, 3, 3),
      layout_of("bf16", 20, 2, 1) } do
      check(layout, { make_call(layout, 1, 1500, { ragged = true }), make_call(layout, 1, 513),
        make_call(layout, 1, 40), make_call(layout, 1, 1300, { window = 900 }) })
    end
  end)

  it("takes a lane page by page, wherever it begins and ends", function()
    for _, dtype in ipairs(dtypes) do
      for _, d in ipairs { 48, 64, 80, 96, 160 } do
        local layout, calls = fits(dtype, d) and layout_of(dtype, d, 7, 1), {}
        for _, rows in ipairs(layout and { 31, 32, 33, 64, 65 } or {}) do
          calls[#calls + 1] = make_call(layout, 1, rows)
          calls[#calls + 1] = make_call(layout, 1, rows + 32, { window = math.random(1, 90) })
        end
        if layout then check(layout, calls) end
      end
    end
  end)

  it("of one query is the same whether its lane is tracked or not", function()
    local layout = layout_of("f16", 64, 6, 2)
    local call = packed(make_call(layout, 1, 1400, { ragged = true }))
    local plain = ops.attention(reference.runtime(), layout, { call })[1]
    call.track = { decay = 1 }
    for _, lane in ipairs(call.lanes) do
      lane.history = ops.floats(reference.random(lane.rows, 1))
    end
    assert.equal(plain.out, ops.attention(reference.runtime(), layout, { call })[1].out)
  end)

  it("takes several sequences in one call", function()
    local layout = layout_of("f32", 32, 4, 2)
    local calls = {}
    for i, n in ipairs { 1, 20, 1, 7, 1 } do
      calls[i] = make_call(layout, n, n + 13 * i, { ragged = true, window = i == 3 and 9 or 0 })
    end
    check(layout, calls)
    local alone = ops.attention(reference.runtime(), layout, { packed(calls[4]) })[1].out
    local together = {}
    for i, call in ipairs(calls) do together[i] = packed(call) end
    assert.equal(alone, ops.attention(reference.runtime(), layout, together)[4].out)
  end)

  it("rounds operands to bf16 where that is asked for, and nothing else", function()
    -- queries and keys that bf16 holds: only probabilities and sums of values are rounded then
    for _, d in ipairs(dims) do
      local layout = layout_of("bf16", d, 4, 2)
      layout.scale = 0.125
      check(layout, { make_call(layout, 19, 90, { ragged = true, rounded = true }) }, 6e-3,
        reference.rounding_attention)
      local windowed = make_call(layout, 150, 233, { window = 71, rounded = true })
      check(layout, { windowed, make_call(layout, 2, 2, { rounded = true }) }, 6e-3,
        reference.rounding_attention)
      check(layout, { make_call(layout, 1, 700) }, 3e-6, reference.rounding_attention)
    end
  end)

  it("packs a prompt's rows once for all its tiles, whatever the shape of its heads", function()
    for _, shape in ipairs { { 64, 9, 3 }, { 80, 4, 4 }, { 96, 5, 1 }, { 128, 4, 2 }, { 256, 2, 1 },
      { 72, 7, 1 }, { 20, 3, 3 }, { 33, 2, 2 }, { 7, 1, 1 }, { 264, 3, 1 } } do
      local layout = layout_of("bf16", shape[1], shape[2], shape[3])
      layout.scale = 0.125
      local n = math.random(193, 230)
      for _, window in ipairs { 0, math.random(40, 190) } do
        check(layout, { make_call(layout, n, n + math.random(0, 90),
          { ragged = true, rounded = true, window = window }) }, 6e-3, reference.rounding)
      end
    end
  end)

  it("rounds rows of any dtype", function()
    for dtype, limit in pairs { f16 = 6e-3, q8_0 = 1.5e-2, fp8_e4m3 = 6e-3 } do
      for _, d in ipairs { 32, 64, 96 } do
        local layout = layout_of(dtype, d, 6, 2)
        layout.scale = 0.0625
        local call = make_call(layout, 80, 133, { ragged = true, rounded = true })
        local out, lse = reference.attention(layout, call)
        reference.each(function(rt) return ops.attention(rt, layout, { packed(call) }) end,
          function(r, fail)
          reference.near(r[1].out, out, limit, fail, dtype .. ": out")
          reference.near(r[1].lse, lse, limit, fail, dtype .. ": lse")
        end, reference.rounding)
      end
    end
  end)

  it("gives a query the same in any company where operands are rounded, alone in a call or not",
    function()
    for _, shape in ipairs { { 64, 6, 2 }, { 80, 3, 3 } } do
      local layout = layout_of("f16", table.unpack(shape))
      for _, window in ipairs { 0, 50 } do
        local call = make_call(layout, 150, 230, { window = window, ragged = true })
        local other = make_call(layout, 20, 31, { window = window })
        local width = layout.heads * layout.head_dim * 4
        local function some(first, n)
          local part = packed(call)
          part.q = call.q_bytes:sub(first * width + 1, (first + n) * width)
          part.q_pos = call.q_pos:sub(first * 4 + 1, (first + n) * 4)
          return part
        end
        reference.each(function(rt)
          return { ops.attention(rt, layout, { some(0, 150) })[1].out,
            ops.attention(rt, layout, { some(77, 40) })[1].out,
            ops.attention(rt, layout, { packed(other), some(0, 150) })[2].out }
        end, function(r, fail)
          if r[1]:sub(77 * width + 1, 117 * width) ~= r[2] then
            fail "queries 77 to 116 differ from them among 150"
          end
          if r[1] ~= r[3] then fail "a sequence differs beside another one" end
        end, reference.rounding)
      end
    end
  end)

  it("gives 0 where a query sees nothing, and no number where a key is none, rounded too",
    function()
    local layout = layout_of("f32", 16, 2, 1)
    local blind = make_call(layout, 5, 11)
    blind.at = reference.ascending(5, -5)
    blind.q_pos = ops.ints(blind.at)
    local at, values = reference.ascending(70, 0, 1), { k = {}, v = {} }
    for i = 1, 70 * 16 do values.k[i], values.v[i] = math.random() - 0.5, math.random() end
    values.k[40 * 16 + 3] = 0 / 0
    local call = make_call(layout, 70, 70)
    call.at, call.q_pos = at, ops.ints(at)
    call.lanes = { reference.lane(layout, at, 1, values) }
    reference.each(function(rt)
      return { ops.attention(rt, layout, { packed(blind) })[1],
        ops.attention(rt, layout, { packed(call) })[1] }
    end, function(r, fail)
      for _, x in ipairs(ops.numbers(r[1].out)) do if x ~= 0 then fail("out is %g", x) end end
      for _, x in ipairs(ops.numbers(r[1].lse)) do
        if x ~= -math.huge then fail("lse is %g", x) end
      end
      for i, x in ipairs(ops.numbers(r[2].lse)) do
        local query = (i - 1) // 2
        if (x ~= x) ~= (query >= 40) then fail("query %d: lse %g", query, x) end
      end
    end, reference.rounding)
  end)

  it("rounds rows of any dtype on a device, where that is asked for", function()
    for dtype, limit in pairs { f32 = 1.5e-2, f16 = 2e-3, q8_0 = 1.5e-2, fp8_e4m3 = 2e-3 } do
      for _, d in ipairs { 32, 64, 72, 128, 256 } do
        if fits(dtype, d) then
          local lanes = d == 64 and 2 or 1
          local layout = layout_of(dtype, d, 3 * lanes, lanes)
          layout.scale = 0.3 * d ^ -0.5
          local calls = { make_call(layout, 57, 101, { ragged = true }), make_call(layout, 1, 90),
            make_call(layout, 70, 70, { window = 31 }), make_call(layout, 9, 50) }
          local refs, packs = {}, {}
          for i, call in ipairs(calls) do
            local out, lse = reference.attention(layout, call)
            refs[i], packs[i] = { out = out, lse = lse }, packed(call)
          end
          reference.each(function(rt) return ops.attention(rt, layout, packs) end,
            function(results, fail)
            for i, result in ipairs(results) do
              -- few queries are not rounded
              local what, exact = ("%s, d %d, call %d"):format(dtype, d, i), #calls[i].at < 48
              reference.near(result.out, refs[i].out, exact and 3e-6 or limit, fail,
                what .. ": out")
              reference.near(result.lse, refs[i].lse, exact and 3e-6 or limit, fail,
                what .. ": lse")
            end
          end, { reference.rounding_device })
        end
      end
    end
  end)

  it("is exact with queries of any size", function()   -- beyond what 16 bits of either format hold
    for _, dtype in ipairs { "f16", "bf16", "fp8_e4m3" } do
      for _, size in ipairs { 1e-9, 1e-4, 3e5, 1e12 } do
        local layout = layout_of(dtype, 64, 4, 2)
        layout.scale = 0.5 / size
        local call, q = make_call(layout, 17, 60), {}
        for i, x in ipairs(call.q) do q[i] = x * size * (i % 5 == 0 and 1e-3 or 1) end
        call.q, call.q_bytes = reference.pack(q)
        check(layout, { call }, 4e-6)
      end
    end
  end)

  it("adds up many rows of little weight", function()
    -- Each has a share below what f16 holds, while the row of all others' share has no value. (Two
    -- terms of f16 are steps of 2^-40 of the highest share: 1e-4 of these. A score of 19, summed up
    -- of 32 in f32, is right to some 2^-18, and so is its weight.)
    for dtype, limit in pairs { f32 = 5e-5, f16 = 2e-4, bf16 = 5e-5 } do
      local layout, rows, values, at = layout_of(dtype, 32, 2, 1), 700, { k = {}, v = {} }, {}
      layout.scale = 1
      for j = 1, rows do
        for _ = 1, 32 do
          table.insert(values.k, j == 5 and 1 or 0)
          table.insert(values.v, j == 5 and 0 or 1 + math.random())
        end
        at[j] = j
      end
      for _, n in ipairs { 1, 3 } do
        local call, q = { lanes = { reference.lane(layout, at, 1, values) }, window = 0, at = {} },
          {}
        for i = 1, n do
          call.at[i] = rows + i - n
          for _ = 1, 64 do q[#q + 1] = (18 + math.random()) / 32 end
        end
        call.q_pos = ops.ints(call.at)
        call.q, call.q_bytes = reference.pack(q)
        check(layout, { call }, limit)
      end
    end
  end)

  it("takes heads of up to 256 dimensions by tiles, and larger ones", function()
    for _, dtype in ipairs { "f16", "bf16" } do
      for _, d in ipairs { 136, 256, 264 } do
        local layout = layout_of(dtype, d, 5, 1)
        check(layout, { make_call(layout, 1, 290, { ragged = true }), make_call(layout, 9, 40),
          make_call(layout, 1, 3) })
      end
    end
  end)

  it("gives a query the same result in any company", function()
    local layout = layout_of("f16", 64, 4, 2)
    for _, window in ipairs { 0, 50 } do
      local call = make_call(layout, 150, 230, { window = window })
      local width = layout.heads * layout.head_dim * 4
      local function some(rt, first, n)
        local part = packed(call)
        part.q = call.q_bytes:sub(first * width + 1, (first + n) * width)
        part.q_pos = call.q_pos:sub(first * 4 + 1, (first + n) * 4)
        return ops.attention(rt, layout, { part })[1].out
      end
      reference.each(function(rt) return { some(rt, 0, 150), some(rt, 77, 40),
        some(rt, 100, 1) } end, function(r, fail)
        if r[1]:sub(77 * width + 1, 117 * width) ~= r[2] then
          fail("queries 77 to 116 differ from them among 150")
        end
        reference.near(r[3], ops.numbers(r[1]:sub(100 * width + 1, 101 * width)), 3e-6, fail,
          "query 100 alone")
      end)
    end
  end)

  -- What core/cache/slide.c does to a lane: the first rows and their pages are gone.
  it("does not change by a bit as rows before the window leave, by slides", function()
    local slide, pages = ops.slide_rows, ops.slide_rows // reference.page_rows
    for _, dtype in ipairs { "f32", "f16", "bf16", "q8_0" } do
      local layout = layout_of(dtype, 32, 4, 2)
      for _, shape in ipairs { { 1, slide + 40, 41 }, { 1, slide + 700, 640 },
        { 30, slide + 99, 70 }, { 70, slide + 300, 90 } } do
        local call = packed(make_call(layout, shape[1], shape[2], { window = shape[3] }))
        local slid, lanes = {}, {}
        for key, value in pairs(call) do slid[key] = value end
        for g, lane in ipairs(call.lanes) do
          local page_bytes = #lane.pages // ((lane.rows + reference.page_rows - 1)
            // reference.page_rows)
          lanes[g] = { rows = lane.rows - slide, positions = lane.positions:sub(4 * slide + 1),
            pages = lane.pages:sub(pages * page_bytes + 1) }
        end
        slid.lanes = lanes
        local function both(rt)
          local out = {}
          for i, each in ipairs { call, slid } do
            local done = assert(ops.attention(rt, layout, { each }))[1]
            out[i] = done.out .. done.lse
          end
          return out
        end
        local function equal(r, fail)
          if r[1] ~= r[2] then
            fail("%s, %d queries on %d rows: other bits", dtype, shape[1], shape[2])
          end
        end
        reference.each(both, equal)
        reference.each(both, equal, reference.rounding_attention)
      end
    end
  end)

  it("gives 0 where a query sees nothing", function()
    local layout = layout_of("f32", 16, 2, 1)
    for _, n in ipairs { 1, 5 } do
      local call = make_call(layout, n, n + 6)
      call.at = reference.ascending(n, -n)
      call.q_pos = ops.ints(call.at)
      reference.each(function(rt) return ops.attention(rt, layout, { packed(call) }) end,
        function(r, fail)
        for _, x in ipairs(ops.numbers(r[1].out)) do if x ~= 0 then fail("out is %g", x) end end
        for _, x in ipairs(ops.numbers(r[1].lse)) do if x ~= -math.huge then fail("lse is %g",
          x) end end
      end)
    end
  end)

  it("stands scores of any size", function()
    local layout = layout_of("f32", 32, 2, 1)
    layout.scale = 30   -- scores in the thousands, of which f32 keeps four decimals
    check(layout, { make_call(layout, 1, 40), make_call(layout, 33, 90) }, 1e-3)
  end)

  it("can leave the lse out", function()
    local layout = layout_of("f32", 16, 2, 1)
    for _, n in ipairs { 1, 6 } do
      local call = packed(make_call(layout, n, 20))
      local with = ops.attention(reference.runtime(), layout, { call })[1]
      call.no_lse = 1
      local without = ops.attention(reference.runtime(), layout, { call })[1]
      assert.equal(with.out, without.out)
      assert.is_nil(without.lse)
    end
  end)

  it("refuses a call larger than what was reserved", function()
    local fresh <close> = require "pyramid.core".runtime { threads = 1 }
    local layout = layout_of("f32", 128, 16, 1)
    local result, message, code = ops.attention(fresh, layout,
      { packed(make_call(layout, 1, 4000)) }, true)
    assert.is_nil(result)
    assert.truthy(message:find "scratch")
    assert.equal("argument", code)
  end)
end)

describe("scores that are capped or sloped, and sinks,", function()
  local all = "cap, slopes, sinks"

  for _, dtype in ipairs(dtypes) do
    it("equal their definition, on rows in " .. dtype, function()
      for _, which in ipairs { "cap", "slopes", "sinks", all } do
        local layout = layout_of(dtype, 64, 4, 2)
        check(layout, { bend(layout, which, make_call(layout, 1, 45, { ragged = true })),
          bend(layout, which, make_call(layout, 1, 33, { window = 20 })),
          bend(layout, which, make_call(layout, 9, 40, { window = 11 })) })
      end
    end)
  end

  it("come with heads of any size, alone on their lane or many", function()
    for _, shape in ipairs { { "f16", 20, 3, 3 }, { "f32", 16, 7, 1 }, { "bf16", 80, 6, 2 },
      { "f16", 128, 5, 1 }, { "f16", 256, 2, 1 }, { "bf16", 264, 1, 1 } } do
      local layout = layout_of(shape[1], shape[2], shape[3], shape[4])
      check(layout, { bend(layout, "cap, slopes", make_call(layout, 1, 34)),
        bend(layout, "cap, slopes", make_call(layout, 21, 40, { ragged = true })) })
      check(layout, { bend(layout, "slopes, sinks", make_call(layout, 6, 21)) })
    end
  end)

  it("cross tiles and segments", function()
    for _, layout in ipairs { layout_of("f16", 16, 2, 1), layout_of("f32", 16, 2, 1) } do
      check(layout, { bend(layout, all, make_call(layout, 1, 1100, { ragged = true })),
        bend(layout, all, make_call(layout, 1, 600, { window = 300 })),
        bend(layout, all, make_call(layout, 110, 150, { window = 70 })) })
    end
  end)

  it("are f32 where operands are rounded to bf16", function()
    for _, d in ipairs { 20, 64, 256 } do
      local layout = layout_of("bf16", d, 4, 2)
      layout.scale = 0.125
      check(layout, { bend(layout, all, make_call(layout, 70, 90, { rounded = true })),
        bend(layout, all, make_call(layout, 19, 64, { window = 31, rounded = true })) }, 6e-3,
        reference.rounding_attention)
    end
    for dtype, limit in pairs { f16 = 2e-3, fp8_e4m3 = 2e-3, q8_0 = 1.5e-2 } do
      local layout = layout_of(dtype, 64, 4, 2)
      layout.scale = 0.3 / 8
      local call = bend(layout, all, make_call(layout, 50, 70))
      local out, lse = reference.attention(layout, call)
      reference.each(function(rt) return ops.attention(rt, layout, { packed(call) }) end,
        function(r, fail)
        reference.near(r[1].out, out, limit, fail, dtype .. ": out")
        reference.near(r[1].lse, lse, limit, fail, dtype .. ": lse")
      end, { reference.rounding_device })
    end
  end)

  it("give a query the same result in any company", function()
    local layout = layout_of("f16", 64, 4, 2)
    local step, many = bend(layout, all, make_call(layout, 1, 70)), make_call(layout, 40, 60)
    many.cap, many.slopes, many.slope_bytes = step.cap, step.slopes, step.slope_bytes
    many.sinks, many.sink_bytes = step.sinks, step.sink_bytes
    local width = layout.heads * layout.head_dim * 4
    reference.each(function(rt)
      local some = packed(many)
      some.q, some.q_pos = many.q_bytes:sub(17 * width + 1, 30 * width),
        many.q_pos:sub(17 * 4 + 1, 30 * 4)
      local together = ops.attention(rt, layout, { packed(many), packed(step) })
      return { together[1].out:sub(17 * width + 1, 30 * width), together[2].out,
        ops.attention(rt, layout, { some })[1].out,
        ops.attention(rt, layout, { packed(step) })[1].out }
    end, function(r, fail)
      if r[1] ~= r[3] then fail "queries 17 to 29 differ from them among 40" end
      if r[2] ~= r[4] then fail "a step differs from itself among others" end
    end)
  end)

  it("are nothing where the sink is -inf, and all where a query sees nothing", function()
    local layout = layout_of("f32", 16, 2, 1)
    for _, n in ipairs { 1, 5 } do
      local call = make_call(layout, n, n + 20)
      local with, before = packed(call), packed(call)
      with.sinks = ops.floats { -math.huge, -math.huge }
      before.q_pos, before.sinks = ops.ints(reference.ascending(n, -n)), ops.floats { 0.5, -3 }
      reference.each(function(rt)
        return { ops.attention(rt, layout, { packed(call) })[1],
          ops.attention(rt, layout, { with })[1], ops.attention(rt, layout, { before })[1] }
      end, function(r, fail)
        if r[1].out ~= r[2].out or r[1].lse ~= r[2].lse then fail "a sink of -inf weighs" end
        for _, x in ipairs(ops.numbers(r[3].out)) do if x ~= 0 then fail("out is %g", x) end end
        for i, x in ipairs(ops.numbers(r[3].lse)) do
          if x ~= (i % 2 == 1 and 0.5 or -3) then fail("lse is %g", x) end
        end
      end)
    end
  end)

  it("cap a score of any size to seven digits", function()   -- of one row alone, lse is the score
    local layout, size, q = layout_of("f32", 16, 96, 1), 96, {}
    layout.scale = 1
    for h = 1, size do
      q[(h - 1) * 16 + 1] = 50 * 10 ^ ((h - 60) / 12) * (h % 2 == 0 and 1 or -1)
      for c = 2, 16 do q[(h - 1) * 16 + c] = 0 end
    end
    local ones = {}
    for c = 1, 16 do ones[c] = 1 end
    for _, n in ipairs { 1, 2 } do
      local call = { lanes = { reference.lane(layout, { 3 }, 1, { k = ones, v = ones }) },
        window = 0, cap = 50, at = { 3, 4 } }
      call.at[n + 1] = nil
      local rows = table.move(q, 1, #q, 1, {})
      if n == 2 then table.move(q, 1, #q, #q + 1, rows) end
      call.q, call.q_bytes = reference.pack(rows)
      call.q_pos = ops.ints(call.at)
      local _, lse = reference.attention(layout, call)
      reference.each(function(rt) return ops.attention(rt, layout, { packed(call) }) end,
        function(r, fail)
        for i, x in ipairs(ops.numbers(r[1].lse)) do
          if math.abs(x - lse[i]) > 5e-7 * math.abs(lse[i]) then
            fail("%.9g becomes %.9g, not %.9g", call.q[(i - 1) * 16 + 1], x, lse[i])
          end
        end
      end)
    end
  end)
end)

describe("tracked attention", function()
  local function check_track(layout, call)
    local _, _, p = reference.attention(layout, call)
    local group, refs = layout.heads // layout.kv_heads, {}
    for g, lane in ipairs(call.lanes) do
      local values
      values, lane.history = reference.random(lane.rows, 3)
      if call.track.max then                   -- what is tracked is never below 0
        for j, x in ipairs(values) do values[j] = math.abs(x) end
        values, lane.history = reference.pack(values)
      end
      refs[g] = {}
      for j = 1, lane.rows do
        local mean, most = 0, 0
        for h = (g - 1) * group + 1, g * group do
          mean, most = mean + p[h][1][j] / group, math.max(most, p[h][1][j])
        end
        local weight = reference.weight(call.track, call.at[1], j - 1 - lane.rows)
        refs[g][j] = call.track.max and math.max(values[j], weight * most)
          or (call.track.decay or 1) * values[j] + weight * mean
      end
    end
    reference.each(function(rt) return ops.attention(rt, layout, { packed(call) }) end,
      function(r, fail)
      for g, ref in ipairs(refs) do
        reference.near(r[1].history[g], ref, 2e-6, fail, "history of lane " .. g)
      end
    end)
  end

  it("adds the mean over the lane's heads to a decaying history", function()
    for _, shape in ipairs { { 1, 1 }, { 6, 2 }, { 8, 1 } } do
      for _, decay in ipairs { 1, 0.9, 0 } do
        local layout = layout_of("f16", 32, shape[1], shape[2])
        local call = make_call(layout, 1, 70, { ragged = true, window = decay == 0 and 60 or 0 })
        call.track = { decay = decay }
        check_track(layout, call)
      end
    end
    local layout = layout_of("f32", 32, 2, 1)   -- more than one segment
    local call = make_call(layout, 1, 1200)
    call.track = { decay = 0.9 }
    check_track(layout, call)
  end)

  it("keeps the highest that any query and any head of the lane gave", function()
    for _, shape in ipairs { { 1, 1 }, { 6, 2 }, { 8, 1 } } do
      for _, rows in ipairs { 1, 31, 70, 700 } do
        local layout = layout_of("f16", 32, shape[1], shape[2])
        local call = make_call(layout, 1, rows,
          { ragged = rows > 31, window = rows == 70 and 60 or 0 })
        call.track = { max = 1 }
        check_track(layout, call)
        call = bend(layout, "cap, slopes, sinks", make_call(layout, 1, rows))
        call.track = { max = 1, decay = 0.5, queries = 9, ramp = 0.4, due = call.at[1] + 3,
          threshold = -20, every = 4 }
        check_track(layout, call)
      end
    end
  end)

  it("adds what is left beside sinks, of capped and sloped scores", function()
    for _, dtype in ipairs { "f16", "f32" } do
      local layout = layout_of(dtype, 32, 6, 2)
      local call = bend(layout, "cap, slopes, sinks", make_call(layout, 1, 300))
      call.track = { decay = 0.9 }
      check_track(layout, call)
    end
  end)

  it("counts a query only in the rows' recent windows, ramped", function()
    local layout = layout_of("f32", 16, 2, 1)
    for _, queries in ipairs { 1, 2, 16 } do
      for _, every in ipairs { 0, 5 } do
        for late = -2, 20, 3 do
          local call = make_call(layout, 1, 50)
          call.track = { decay = 1, queries = queries, ramp = 1.2, due = call.at[1] + late,
            threshold = -30, every = every }
          check_track(layout, call)
        end
      end
    end
  end)
end)

describe("the score pass", function()
  --- Masses of queries on rows from <= j < to, on top of `before`, as defined.
  local function mass_reference(layout, call, m, p, before)
    local out = table.move(before, 1, #before, 1, {})
    for h = 1, layout.heads do
      local range = m.ranges and m.ranges[(h - 1) // (layout.heads // layout.kv_heads) + 1]
        or { m.from, m.to, 0 }
      local lane, given = call.lanes[(h - 1) // (layout.heads // layout.kv_heads) + 1], p[h]
      for j = range[1], range[2] - 1 do
        local sum, position, from = out[(h - 1) * m.stride + j - range[1] + 1], lane.at[j + 1],
          j - range[3]
        for i, q_pos in ipairs(call.at) do
          if reference.visible(position, q_pos, call.window) then
            local weight = reference.weight(m, q_pos, from)
            local x = weight * given[i][j + 1]
            if m.reduce == "variance" then x = x * x end
            if m.reduce == "entropy" then x = x > 0 and -x * math.log(x) or 0.0 end
            if m.reduce ~= "max" then sum = sum + x
            elseif weight ~= 0 then sum = math.max(sum, x) end
          end
        end
        out[(h - 1) * m.stride + j - range[1] + 1] = sum
      end
    end
    return out
  end

  local function check_mass(layout, call, m, teams, limit)
    local _, lse, p = reference.attention(layout, call)
    m.stride = m.to - m.from + (m.pad or 0)
    local before
    before, m.out = reference.random(layout.heads * m.stride, 0.1)
    for i = 1, #before do before[i] = math.abs(before[i]) end
    before, m.out = reference.pack(before)
    m.q, m.q_pos, m.lanes, m.window, m.lse = call.q_bytes, call.q_pos, call.lanes, call.window,
      ops.floats(lse)
    m.cap, m.slopes = call.cap, call.slope_bytes
    local ref = mass_reference(layout, call, m, p, before)
    reference.each(function(rt) return ops.mass(rt, layout, m) end, function(result, fail)
      local what = ("mass, %s, %d queries, rows %d to %d"):format(layout.dtype, #call.at, m.from,
        m.to)
      reference.near(result, ref, limit or 1e-5, fail, what)
    end, teams)
  end

  it("sums what queries gave to rows, on every dtype and size of head", function()
    for _, dtype in ipairs(dtypes) do
      for _, d in ipairs(dims) do
        if fits(dtype, d) then
          local layout = layout_of(dtype, d, 4, 2)
          check_mass(layout, make_call(layout, 15, 90), { from = 0, to = 75 })
        end
      end
    end
  end)

  it("rounds operands to bf16 where that is asked for, and nothing else", function()
    for _, d in ipairs(dims) do
      local layout = layout_of("bf16", d, 4, 2)
      layout.scale = 0.25
      local m = { from = 3, to = 175, queries = 12, ramp = 1.2, due = 600 }
      check_mass(layout, make_call(layout, 29, 190, { rounded = true }), m,
        reference.rounding_attention)
    end
  end)

  it("rounds rows of any dtype on a device, where that is asked for", function()
    for dtype, limit in pairs { f32 = 1.5e-2, f16 = 2e-3, q8_0 = 1.5e-2, fp8_e4m3 = 1.5e-2 } do
      for _, d in ipairs { 32, 100, 256 } do
        if fits(dtype, d) then
          local lanes = d == 32 and 2 or 1
          local layout = layout_of(dtype, d, 3 * lanes, lanes)
          layout.scale = 0.3 * d ^ -0.5
          check_mass(layout, make_call(layout, 61, 190), { from = 3, to = 175 },
            { reference.rounding_device }, limit)
          check_mass(layout, make_call(layout, 9, 90), { from = 3, to = 85 },
            { reference.rounding_device })
        end
      end
    end
  end)

  it("sums squares, and what entropies are made of", function()
    for _, dtype in ipairs(dtypes) do
      for _, reduce in ipairs { "variance", "entropy" } do
        check_mass(layout_of(dtype, 64, 4, 2), make_call(layout_of(dtype, 64, 4, 2), 15, 90),
          { from = 3, to = 85, pad = 2, reduce = reduce })
        check_mass(layout_of(dtype, 128, 3, 1), make_call(layout_of(dtype, 128, 3, 1), 33, 200,
          { window = 50 }), { from = 0, to = 190, reduce = reduce, queries = 9, due = 199 })
      end
    end
    for _, reduce in ipairs { "variance", "entropy" } do
      local layout = layout_of("f32", 20, 2, 2)
      check_mass(layout, bend(layout, "cap, slopes, sinks", make_call(layout, 7, 40)),
        { from = 0, to = 40, reduce = reduce })
    end
  end)

  it("sees capped and sloped scores, and sinks", function()
    for _, dtype in ipairs(dtypes) do
      for _, which in ipairs { "cap", "slopes, sinks", "cap, slopes, sinks" } do
        local layout = layout_of(dtype, 64, 4, 2)
        local call = bend(layout, which, make_call(layout, 15, 70, { window = 40 }))
        check_mass(layout, call, { from = 0, to = 60 })
      end
    end
    for _, layout in ipairs { layout_of("f16", 264, 2, 1), layout_of("bf16", 20, 3, 1) } do
      local call = bend(layout, "cap, slopes, sinks", make_call(layout, 30, 190))
      check_mass(layout, call, { from = 7, to = 180, reduce = "max", queries = 12, ramp = 1.3,
        due = call.at[30] - 3 })
    end
    local layout = layout_of("bf16", 64, 4, 2)
    layout.scale = 0.25
    check_mass(layout, bend(layout, "cap, slopes, sinks", make_call(layout, 61, 90,
      { rounded = true })), { from = 3, to = 85 }, reference.rounding_attention)
  end)

  --- A call with masses, of its last queries each, in one attention: against the definition.
  --- `options`: last, place, reduce, from, to or ranges, and weightings.
  local function check_summed(layout, call, list)
    local _, _, p = reference.attention(layout, call)
    local given, refs = packed(call), {}
    given.masses = list
    for i, m in ipairs(list) do
      m.last = m.last or #call.at
      m.stride = m.to - m.from + (m.pad or 0)
      local before = reference.random(layout.heads * m.stride, 0.1)
      for j = 1, #before do before[j] = math.abs(before[j]) end
      before, m.out = reference.pack(before)
      local skip, tail, rows = #call.at - m.last, { lanes = call.lanes, window = call.window }, {}
      tail.at = table.move(call.at, skip + 1, #call.at, 1, {})
      for h = 1, layout.heads do rows[h] = table.move(p[h], skip + 1, #call.at, 1, {}) end
      refs[i] = mass_reference(layout, tail, m, rows, before)
    end
    reference.each(function(rt)
      local r = ops.attention(rt, layout, { given })[1]
      assert.is_true(r.summed)
      local out = {}
      for i = 1, #list do out[i] = r.masses[i] end
      return out
    end, function(r, fail)
      for i, ref in ipairs(refs) do
        reference.near(r[i], ref, 6e-3, fail, ("mass %d, %d queries on %d rows, d %d, %d/%d heads")
          :format(i, #call.at, call.lanes[1].rows, layout.head_dim, layout.heads, layout.kv_heads))
      end
    end, reference.rounding)
  end

  it("is attention's own where its products are rounded: many queries, heads and masses", function()
    for _, shape in ipairs { { 64, 9, 3 }, { 80, 4, 4 }, { 32, 5, 1 }, { 128, 8, 2 }, { 16, 20, 1 },
      { 20, 14, 2 }, { 264, 1, 1 }, { 16, 200, 1 }, { 48, 16, 1 } } do
      local layout = layout_of("bf16", shape[1], shape[2], shape[3])
      layout.scale = 0.125
      local n = shape[2] > 16 and 9 or math.random(70, 210)
      local rows = n + math.random(60, 150)
      local call = make_call(layout, n, rows, { rounded = true })
      local to = rows - math.random(0, n)
      check_summed(layout, call, { { from = 0, to = to },
        { from = math.random(0, 40), to = to, queries = n // 2, ramp = 1.2, due = call.at[n],
          last = n // 2, pad = 5 } })
      check_summed(layout, call, { { from = 3, to = to, last = 1, reduce = "max" } })
    end
  end)

  it("is attention's own where rows differ: due dates, windows, caps, slopes and sinks", function()
    for _, which in ipairs { "", "cap", "cap, slopes, sinks" } do
      for _, window in ipairs { 0, 77 } do
        local layout = layout_of("bf16", 64, 6, 2)
        layout.scale = 0.125
        local n, rows = 150, 260
        local call = bend(layout, which, make_call(layout, n, rows,
          { rounded = true, window = window, ragged = true }))
        local ranges = {}
        for g, lane in ipairs(call.lanes) do
          local from = math.random(0, 60)
          ranges[g] = { from, g == 2 and from or math.random(from, lane.rows), lane.rows }
        end
        check_summed(layout, call, {
          { from = 0, to = 300, ranges = ranges, queries = 9, ramp = 1.2, due = call.at[n] - 7,
            threshold = -100, every = 4 },
          { from = 0, to = 300, ranges = ranges, queries = 33, ramp = 1.5, due = call.at[n],
            reduce = "max", last = 40 } })
      end
    end
  end)

  it("is left to its own pass where a call has more than is reserved", function()
    local layout = layout_of("f16", 32, 4, 2)
    local call = packed(make_call(layout, 30, 90))
    local _, out = reference.random(layout.heads * 50, 0)
    call.masses = { { from = 0, to = 50, stride = 50, out = out } }
    local results = {}
    reference.each(function(rt)
      local r = ops.attention(rt, layout, { call })[1]
      results[#results + 1] = r.masses[1]
      local two = ops.attention(rt, layout, { call, call })
      assert.is_false(two[2].summed)
      return two[1].masses[1] .. two[2].masses[1]
    end, function(r, fail)
      if r:sub(1, #r // 2) ~= r:sub(#r // 2 + 1) then fail "two passes differ" end
      reference.near(results[#results], ops.numbers(r:sub(1, #r // 2)), 6e-3, fail, "own pass")
    end, reference.rounding)
  end)

  it("takes the maximum over queries", function()
    local layout = layout_of("f16", 32, 6, 2)
    check_mass(layout, make_call(layout, 30, 80), { from = 0, to = 60, reduce = "max" })
    check_mass(layout, make_call(layout, 30, 80),
      { from = 7, to = 60, reduce = "max", queries = 9, ramp = 1.5, due = 80 * 3 + 20 })
  end)

  it("judges any run of rows, with any number of queries", function()
    local layout = layout_of("f32", 16, 3, 1)
    for _, n in ipairs { 1, 2, 11, 12, 13, 37 } do
      local rows = n + 150
      local call = make_call(layout, n, rows)
      check_mass(layout, call, { from = 0, to = rows, pad = 3 })
      local from = math.random(0, rows - 1)
      check_mass(layout, call, { from = from, to = math.random(from + 1, rows) })
    end
    check_mass(layout, make_call(layout, 4, 300), { from = 0, to = 300 })
  end)

  it("crosses tiles of rows and of queries", function()
    for _, layout in ipairs { layout_of("f16", 20, 4, 2), layout_of("bf16", 80, 2, 1),
      layout_of("f16", 264, 1, 1) } do
      local n = math.random(65, 130)
      local call = make_call(layout, n, n + 200, { ragged = true })
      local rows = math.min(call.lanes[1].rows, call.lanes[#call.lanes].rows)
      check_mass(layout, call, { from = 0, to = rows, pad = 1 })
      -- whole tiles of queries count for no row, others only some
      local due = call.at[n] - math.random(0, 40)
      local m = { from = math.random(0, 40), to = rows, queries = 50, ramp = 1.4, due = due,
        threshold = 120, every = 9 }
      check_mass(layout, call, m)
      m.reduce = "max"
      check_mass(layout, call, m)
      local windowed = make_call(layout, n, n + 200, { window = math.random(40, 90) })
      check_mass(layout, windowed, { from = 0, to = n + 200, reduce = "max" })
    end
  end)

  it("sees what attention saw", function()
    local layout = layout_of("f32", 16, 2, 2)
    check_mass(layout, make_call(layout, 40, 100, { window = 30 }), { from = 0, to = 100 })
  end)

  it("weighs queries by a ramp, and counts none past a row's due date", function()
    local layout = layout_of("f32", 16, 2, 1)
    for _, queries in ipairs { 1, 5, 24, 100 } do
      for _, every in ipairs { 0, 7 } do
        local call = make_call(layout, 24, 80)
        local due = call.at[24] - every
        check_mass(layout, call, { from = 0, to = 80, queries = queries, ramp = 1.2, due = due,
          threshold = 30, every = every })
      end
    end
  end)

  it("judges each lane by its own rows", function()
    local layout = layout_of("f16", 32, 6, 3)
    for _, every in ipairs { 0, 7 } do
      local call, ranges = make_call(layout, 24, 80, { ragged = true }), {}
      for g, lane in ipairs(call.lanes) do
        local from = math.random(0, lane.rows)
        ranges[g] = { from, g == 2 and from or math.random(from, lane.rows), lane.rows }
      end
      check_mass(layout, call, { from = 0, to = 200, ranges = ranges })
      check_mass(layout, call, { from = 0, to = 200, ranges = ranges, queries = 9, ramp = 1.2,
        due = call.at[24] - every, threshold = -30, every = every })
    end
  end)

  it("skips queries that saw nothing", function()
    local function blind(layout, n, rows, gap, to)
      local call = make_call(layout, n, rows)
      call.at = reference.ascending(n, call.lanes[1].at[1] - gap)
      call.q_pos = ops.ints(call.at)
      check_mass(layout, call, { from = 0, to = to })
      check_mass(layout, call, { from = 0, to = to, reduce = "max" })
    end
    blind(layout_of("f32", 16, 1, 1), 5, 40, 2, 40)
    blind(layout_of("f16", 16, 2, 1), 40, 70, 7, 60)
  end)
end)

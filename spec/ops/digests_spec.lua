-- Digests of pages, and which pages a query picks by them, against their definitions.
local helper = require "spec.helper"
local ops = require "pyramid_specs"
local plain = require "spec.support.digests"
local reference = require "spec.support.ops_reference"

local page = ops.page_rows
local kinds = { "bound", "ball", "mean", "signs" }
local width_of = plain.width
local teams = reference.teams("base", "avx2", "avx512")

--- The keys of one page of a lane.
local function keys_of(lane, d, at)
  local keys = {}
  for row = at * page, at * page + page - 1 do
    keys[#keys + 1] = table.move(lane.k, row * d + 1, (row + 1) * d, 1, {})
  end
  return keys
end

local function digests_of(lane, by, d)
  local all = {}
  for at = 0, lane.rows // page - 1 do all[at + 1] = plain.of(by, keys_of(lane, d, at)) end
  return all
end

local function packed(digests, by, d)
  local all = {}
  for i, digest in ipairs(digests) do all[i] = plain.bytes(by, digest, d) end
  return table.concat(all)
end

describe("digest", function()
  it("is what the papers say of each full page, and padded with zeros", function()
    for _, dtype in ipairs(helper.dtypes "rows") do
      for _, d in ipairs { 1, 6, 16, 20, 64, 80, 128 } do
        if (dtype ~= "q8_0" or d % 32 == 0) and (dtype ~= "fp8_e4m3" or d % 2 == 0) then
          local layout, call = { dtype = dtype, head_dim = d, kv_heads = math.random(1, 3) },
            { lanes = {} }
          for g = 1, layout.kv_heads do
            local rows = g == 1 and page * math.random(1, 4) or math.random(1, 5 * page)
            call.lanes[g] = reference.lane(layout, (reference.ascending(rows, 0, 2)), 3)
          end
          local by = kinds[math.random(3)]
          reference.each(function(rt) return ops.digest(rt, layout, by, call) end,
            function(result, fail)
              for g, lane in ipairs(call.lanes) do
                reference.near(result[g], ops.numbers(packed(digests_of(lane, by, d), by, d)), 3e-6,
                  fail, ("%s, %s, d %d, %d rows"):format(by, dtype, d, lane.rows))
              end
            end, teams)
        end
      end
    end
  end)

  it("holds means, scales and signs of each key, whatever the head", function()
    for _, d in ipairs { 1, 2, 6, 20, 64, 80, 96, 256 } do
      local layout = { dtype = "f16", head_dim = d, kv_heads = 1 }
      local lane = reference.lane(layout, (reference.ascending(3 * page, 0)), 3)
      local floats = width_of("signs", d)
      local numbers = (d + 15) // 16 * 16 + page
      local wanted = digests_of(lane, "signs", d)
      reference.each(function(rt)
        return ops.digest(rt, layout, "signs", { lanes = { lane } })
      end, function(result, fail)
        for at, digest in ipairs(wanted) do
          local got = result[1]:sub((at - 1) * floats * 4 + 1, at * floats * 4)
          local right = plain.bytes("signs", digest, d)
          reference.near(got:sub(1, numbers * 4), ops.numbers(right:sub(1, numbers * 4)), 3e-5,
            fail, ("d %d, page %d"):format(d, at))
          for i = numbers * 4 + 1, floats * 4 do
            local odd, group, row = got:byte(i) ~ right:byte(i), (i - numbers * 4 - 1) // 16,
              (i - 1) % 16 + 1
            for bit = 0, 7 do                   -- those that differ are of values that round to 0
              local y = digest.y[row + bit // 4 * 16][group * 4 + bit % 4 + 1] or 1
              if odd & 1 << bit ~= 0 and math.abs(y) > 1e-5 then
                fail("d %d, page %d, row %d, channel %d: the sign of %g", d, at,
                  row + bit // 4 * 16, group * 4 + bit % 4, y)
              end
            end
          end
        end
      end, teams)
    end
  end)

  it("is exact where it is a bound, and written for the pages asked for alone", function()
    local layout = { dtype = "f16", head_dim = 20, kv_heads = 1 }
    local lane = reference.lane(layout, (reference.ascending(6 * page + 5, 0)), 4)
    local call = { lanes = { lane }, begin = 2, ["end"] = 5 }
    local right = packed(digests_of(lane, "bound", 20), "bound", 20)
    local bytes = 4 * width_of("bound", 20)
    reference.each(function(rt) return ops.digest(rt, layout, "bound", call) end,
      function(result, fail)
        for at = 0, 5 do
          local asked = at >= 2 and at < 5
          local wanted = asked and right:sub(at * bytes + 1, (at + 1) * bytes)
            or ("\xff"):rep(bytes)
          if result[1]:sub(at * bytes + 1, (at + 1) * bytes) ~= wanted then
            fail("page %d, which is%s asked for", at, asked and "" or " not")
          end
        end
      end, teams)
  end)

  it("shows a key that is no number", function()
    local layout = { dtype = "f32", head_dim = 4, kv_heads = 1 }
    local k = reference.random(2 * page * 4)
    k[(page + 7) * 4 + 3] = 0 / 0
    local lane = reference.lane(layout, (reference.ascending(2 * page, 0)), 1, { k = k, v = k })
    for _, by in ipairs(kinds) do
      reference.each(function(rt) return ops.digest(rt, layout, by, { lanes = { lane } }) end,
        function(result, fail)
          local values, seen = ops.numbers(result[1]), { false, false }
          for i, x in ipairs(values) do          -- bits behind means and scales are no numbers
            local which, at = (i - 1) // width_of(by, 4) + 1, (i - 1) % width_of(by, 4)
            seen[which] = seen[which] or x ~= x and at < 16 + page
          end
          if seen[1] or not seen[2] then fail("%s hides it, or spreads it", by) end
        end, teams)
    end
  end)
end)

--- A reading of lanes that end with the query's own row, with digests made here.
local function reading(layout, o)
  local d, call = layout.head_dim, { lanes = {}, digests = {}, by = o.by, rows = o.rows,
    first = o.first, last = o.last, window = o.window, cap = o.cap }
  local top = 0
  for g = 1, layout.kv_heads do
    local rows = o.held or math.random(1, 12 * page)
    local at = reference.ascending(rows, math.random(0, 3), 2)
    call.lanes[g] = reference.lane(layout, at, o.size or 2, o.values and o.values(rows))
    top = math.max(top, at[rows])
  end
  for g, lane in ipairs(call.lanes) do
    lane.at[lane.rows] = top
    lane.positions = ops.ints(lane.at)
    lane.digest = digests_of(lane, o.by, d)
    call.digests[g] = packed(lane.digest, o.by, d)
  end
  call.query = o.query or reference.random(layout.heads * d, 2)
  call.q, call.q_pos, call.top = ops.floats(call.query), ops.ints { top }, top
  if o.slopes then
    call.slopes_at = {}
    for h = 1, layout.heads do call.slopes_at[h] = 0.02 / 2 ^ h end
    call.slopes_at, call.slopes = reference.pack(call.slopes_at)
  end
  return call
end

--- What a lane's pages rank by: the highest of the group's heads.
local function score_of(layout, call, g, at)
  local lane, d, group = call.lanes[g], layout.head_dim, layout.heads // layout.kv_heads
  local most = -math.huge
  for h = (g - 1) * group + 1, g * group do
    local q = table.move(call.query, (h - 1) * d + 1, h * d, 1, {})
    local s = plain.score(call.by, q, lane.digest[at + 1]) * layout.scale
    most = math.max(most, reference.bent(s, call.cap, call.slopes_at and call.slopes_at[h],
      call.top - lane.at[(at + 1) * page]))
  end
  return most
end

--- What a lane's reading must be: pages that are settled, and how many others; nil: all of it.
local function settled(call, lane)
  local all = (lane.rows + page - 1) // page
  local low = 0
  while (call.window or 0) > 0 and call.top - lane.at[math.min((low + 1) * page, lane.rows)]
    >= call.window do low = low + 1 end
  local set, count = {}, 0
  for at = low, all - 1 do
    local first = at * page < (call.first or 0)
    local last = math.min((at + 1) * page, lane.rows) > lane.rows - math.max(call.last or 0, 1)
    if first or last then set[at], count = true, count + 1 end
  end
  local k = (call.rows + page - 1) // page - count
  if k >= all - low - count then return nil end
  return set, math.max(k, 0), low, all
end

local function check_lane(layout, call, g, got, fail, exact)
  local lane = call.lanes[g]
  local set, k, low, all = settled(call, lane)
  local what = ("%s, %d rows of %d, lane %d"):format(call.by, call.rows, lane.rows, g)
  if not set then
    if not got.whole then fail("%s: is not the lane itself", what) end
    return
  end
  if got.whole then fail("%s: is all of it", what) end
  local taken, positions = {}, {}
  for i, at in ipairs(got.pages) do
    if i > 1 and at <= got.pages[i - 1] then fail("%s: pages do not ascend", what) end
    taken[at] = true
    table.move(lane.at, at * page + 1, math.min((at + 1) * page, lane.rows), #positions + 1,
      positions)
  end
  if got.positions ~= ops.ints(positions) then fail("%s: positions are not its pages'", what) end
  local others = {}
  for at = low, all - 1 do
    if set[at] then
      if not taken[at] then fail("%s: page %d is missing", what, at) end
    else
      others[#others + 1] = { at = at, score = score_of(layout, call, g, at) }
    end
  end
  table.sort(others, function(a, b)
    if a.score ~= b.score then return a.score > b.score end
    return a.at < b.at
  end)
  local picked = 0
  local unsure = call.by == "signs" and 0.03 or 1e-4    -- a sum of signs may round the other way
  for i, other in ipairs(others) do
    if taken[other.at] then picked = picked + 1 end
    local clear = k > 0 and k < #others and math.abs(other.score - others[k].score) < unsure
      * (1 + math.abs(other.score))
    if (exact or not clear or k == 0) and (taken[other.at] or false) ~= (i <= k) then
      fail("%s: page %d, which ranks %d of %d, for %d", what, other.at, i, #others, k)
    end
  end
  if picked ~= k then fail("%s: %d pages, not %d", what, picked, k) end
end

local function check(layout, calls, exact)
  reference.each(function(rt) return ops.pick_pages(rt, layout, calls) end,
    function(results, fail)
      for i, call in ipairs(calls) do
        for g = 1, layout.kv_heads do
          check_lane(layout, call, g, results[i][g], fail, exact)
        end
      end
    end, teams)
end

local function layout_of(dtype, d, heads, kv_heads)
  return { dtype = dtype, head_dim = d, heads = heads, kv_heads = kv_heads, scale = d ^ -0.5 }
end

describe("pick_pages", function()
  it("takes the pages that rank highest for any head of a group, and what is settled", function()
    for _, by in ipairs(kinds) do
      for _, d in ipairs { 6, 16, 64, 80 } do
        local kv_heads, calls = math.random(1, 3), {}
        local layout = layout_of("f16", d, kv_heads * math.random(1, 4), kv_heads)
        for i = 1, 4 do
          calls[i] = reading(layout, { by = by, rows = math.random(1, 10 * page),
            first = math.random(0, 40), last = math.random(0, 90) })
        end
        check(layout, calls)
      end
    end
  end)

  it("weighs what a model bends scores by", function()
    local layout = layout_of("f32", 16, 6, 2)
    for _, by in ipairs(kinds) do
      check(layout, { reading(layout, { by = by, rows = 4 * page, held = 11 * page + 3,
        slopes = true }), reading(layout, { by = by, rows = 5 * page, held = 9 * page, cap = 1.5,
          slopes = true, size = 8 }) })
    end
  end)

  it("looks at a sliding window's pages alone", function()
    local layout = layout_of("f16", 20, 4, 2)
    for _ = 1, 6 do
      check(layout, { reading(layout, { by = "bound", rows = math.random(1, 6 * page), first = 4,
        last = 32, window = math.random(1, 20 * page), held = math.random(page, 12 * page) }) })
    end
  end)

  it("gives ties to the lower page", function()
    local layout = layout_of("f32", 4, 2, 1)
    layout.scale = 1
    for _, by in ipairs(kinds) do
      local query = { 1, 1, 0, 0, -1, 0, 0, 0 }
      check(layout, { reading(layout, { by = by, rows = 5 * page, first = 1, last = 1,
        held = 12 * page + 1, query = query, values = function(rows)
          local k = {}
          for row = 0, rows - 1 do                          -- three kinds of pages, all rows alike
            local size = row // page % 3
            for i = 1, 4 do k[row * 4 + i] = i == 1 and size or 0 end
          end
          return { k = k, v = k }
        end }) }, true)
    end
  end)

  it("leaves short lanes as they are, at the edges of pages", function()
    local layout = layout_of("f16", 16, 2, 1)
    for _, held in ipairs { 1, page - 1, page, page + 1, 3 * page, 3 * page + 1, 4 * page } do
      for _, rows in ipairs { 1, page, 3 * page - 1, 3 * page, 3 * page + 1, 1 << 40 } do
        check(layout, { reading(layout, { by = "bound", rows = rows, held = held, first = 4,
          last = 1 }) })
      end
    end
  end)

  it("reads a page with a key that is no number", function()
    local layout = layout_of("f32", 4, 1, 1)
    local call = reading(layout, { by = "bound", rows = 3 * page, held = 9 * page, first = 1,
      last = 1 })
    local digests = ops.numbers(call.digests[1])
    digests[5 * width_of("bound", 4) + 2] = 0 / 0
    call.digests[1] = ops.floats(digests)
    reference.each(function(rt) return ops.pick_pages(rt, layout, { call }) end,
      function(results, fail)
        local found = false
        for _, at in ipairs(results[1][1].pages) do found = found or at == 5 end
        if not found then fail "the page of the NaN was left out" end
      end, teams)
  end)
end)

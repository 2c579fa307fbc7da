-- What caches of several tiers are made of: rows that go from a lane of one dtype to another's, and
-- attentions over some of the rows each that become one over all.
local core = require "pyramid.core"
local helper = require "spec.helper"
local ops = require "pyramid_specs"
local reference = require "spec.support.ops_reference"

local dtypes = helper.dtypes "rows"
local page_rows = ops.page_rows

local function row_of(pages, row_bytes, j, what)
  local at = (j // page_rows * 2 * page_rows + j % page_rows + what * page_rows) * row_bytes
  return pages:sub(at + 1, at + row_bytes)
end

-- A lane of random rows, and its rows as they lie: rows[j][what].
local function lane_of(dtype, d, n, history)
  local row_bytes, rows, parts = #ops.from_f32(dtype, ops.floats(reference.random(d))), {}, {}
  for page = 0, (n - 1) // page_rows do
    for what = 0, 1 do
      for j = page * page_rows, (page + 1) * page_rows - 1 do
        rows[j] = rows[j] or {}
        rows[j][what] = ops.from_f32(dtype, ops.floats(reference.random(d, 3)))
        parts[#parts + 1] = rows[j][what]
      end
    end
  end
  return { pages = table.concat(parts), positions = ops.ints((reference.ascending(n, 0, 9))),
    history = history and select(2, reference.random(n)) or nil }, rows, row_bytes
end

-- n of the numbers 0 .. most-1, in any order.
local function some(n, most)
  local all = {}
  for i = 1, most do all[i] = i - 1 end
  for i = 1, n do
    local j = math.random(i, most)
    all[i], all[j] = all[j], all[i]
  end
  return table.move(all, 1, n, 1, {})
end

describe("move_rows", function()
  it("converts rows once, to any place, and leaves all others", function()
    local rt <close> = core.runtime { threads = 2 }
    for _, to in ipairs(dtypes) do
      for _, from in ipairs(dtypes) do
        for _, d in ipairs { 32, 64, 320 } do
          local rows, others = math.random(1, 80), math.random(1, 80)
          local n = math.random(0, math.min(rows, others))
          local tracked, given = math.random(2) == 1, math.random(2) == 1
          local dst, before, to_bytes = lane_of(to, d, rows, tracked)
          local src, source = lane_of(from, d, others, given)
          local places, taken = some(n, rows), some(n, others)
          local made = ops.move_rows(rt, { dtype = to, head_dim = d }, dst, ops.ints(places),
            { dtype = from, head_dim = d }, src, ops.ints(taken))
          local came = {}
          for i, place in ipairs(places) do came[place] = taken[i] end
          for j = 0, rows - 1 do
            for what = 0, 1 do
              local wanted = before[j][what]
              if came[j] then
                wanted = source[came[j]][what]
                if to ~= from then wanted = ops.from_f32(to, ops.to_f32(from, wanted)) end
              end
              assert.is_true(wanted == row_of(made.pages, to_bytes, j, what),
                ("%s to %s, d %d, row %d"):format(from, to, d, j))
            end
            local function four(bytes, at) return bytes:sub(4 * at + 1, 4 * at + 4) end
            assert.equal(came[j] and four(src.positions, came[j]) or four(dst.positions, j),
              four(made.positions, j))
            if tracked then
              assert.equal(not came[j] and four(dst.history, j)
                or given and four(src.history, came[j]) or ops.floats { 0 },
                four(made.history, j))
            end
          end
        end
      end
    end
  end)
end)

describe("join", function()
  local none = -math.huge

  it("is the softmax over the rows of both", function()
    for _, threads in ipairs { 1, 2 } do
      local rt <close> = core.runtime { threads = threads }
      for _, d in ipairs { 1, 20, 64, 128 } do
        local n = math.random(1, 70)
        local out, lse, other, other_lse, wanted, sum = {}, {}, {}, {}, {}, {}
        for i = 1, n do
          lse[i], other_lse[i] = (math.random() - 0.5) * 40, (math.random() - 0.5) * 40
          if math.random(5) == 1 then lse[i] = none end
          if math.random(5) == 1 then other_lse[i] = none end
          local m = math.max(lse[i], other_lse[i])
          local a = lse[i] == none and 0 or math.exp(lse[i] - m)
          local b = other_lse[i] == none and 0 or math.exp(other_lse[i] - m)
          sum[i] = m == none and none or m + math.log(a + b)
          for j = 1, d do
            local at = (i - 1) * d + j
            out[at] = lse[i] == none and 0 or math.random() - 0.5
            other[at] = other_lse[i] == none and 0 or math.random() - 0.5
            wanted[at] = m == none and 0 or (a * out[at] + b * other[at]) / (a + b)
          end
        end
        local made, denominators = ops.join(rt, ops.floats(out), ops.floats(lse),
          ops.floats(other), ops.floats(other_lse), d)
        made, denominators = ops.numbers(made), ops.numbers(denominators)
        for i, x in ipairs(wanted) do assert.is_true(math.abs(made[i] - x) <= 1e-6, "out") end
        for i, x in ipairs(sum) do
          assert.is_true(denominators[i] == x or math.abs(denominators[i] - x) <= 4e-6, "lse")
        end
      end
    end
  end)

  it("hides no NaN, and overflows nowhere", function()
    local rt <close> = core.runtime { threads = 1 }
    local out, lse = ops.join(rt, ops.floats { 1, 1, 1 }, ops.floats { 0 / 0, 900, -900 },
      ops.floats { 3, 3, 3 }, ops.floats { 0, 900, 900 }, 1)
    out, lse = ops.numbers(out), ops.numbers(lse)
    assert.is_true(out[1] ~= out[1] and lse[1] ~= lse[1])
    assert.equal(2, out[2])
    assert.equal(3, out[3])
    assert.equal(900, lse[3])
  end)
end)

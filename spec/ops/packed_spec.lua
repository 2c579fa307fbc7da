-- Rows of few bits: the formats against their definition, and every operation on lanes some of
-- whose pages are packed against the same rows as numbers.
local ops = require "pyramid_specs"
local reference = require "spec.support.ops_reference"

local kinds = { "q8_0", "q4", "q3", "q2" }
local teams = reference.teams("base", "avx2", "avx512")
local page_rows = ops.page_rows

-- By quarter, of keys and of values.
local quarters = {
  q8_0 = { { 8, 8, 8, 8 }, { 8, 8, 8, 8 } }, q4 = { { 6, 4, 4, 2 }, { 4, 4, 4, 4 } },
  q3 = { { 4, 4, 2, 2 }, { 3, 3, 3, 3 } }, q2 = { { 4, 2, 2, 0 }, { 2, 2, 2, 2 } },
}
local half_levels = { [0] = {}, { 0.7979 }, { 0.4528, 1.5104 }, { 0.2451, 0.7560, 1.3439, 2.1519 },
  { 0.1284, 0.3880, 0.6568, 0.9423, 1.2562, 1.6180, 2.0690, 2.7326 } }
local steps = { [5] = 0.1881, [6] = 0.1041, [7] = 0.0569, [8] = 0.0308 }

local function level(index, b)
  if b == 0 then return 0 end
  if b > 4 then return (index - (2 ^ b - 1) / 2) * steps[b] end
  local half = 1 << b - 1
  return index < half and -half_levels[b][half - index] or half_levels[b][index - half + 1]
end

--- Sign of Hadamard's matrix at (i, j): the parity of the bits that both have.
local function hadamard(x, size)
  local out = {}
  for first = 0, #x - 1, size do
    for i = 0, size - 1 do
      local sum = 0
      for j = 0, size - 1 do
        local both, odd = i & j, 0
        while both > 0 do odd, both = odd ~ (both & 1), both >> 1 end
        sum = sum + (odd == 1 and -1 or 1) * x[first + j + 1]
      end
      out[first + i + 1] = sum / math.sqrt(size)
    end
  end
  return out
end

--- What a frame says, out of its bytes.
local function parse(frame)
  local d, learned = ("<i4i4"):unpack(frame)
  local out = { d = d, learned = learned, weight = { ("<ffff"):unpack(frame, 9) } }
  for i = 1, d do
    local from, centre, factor, value = ("<i4fff"):unpack(frame, 25 + 20 * (i - 1))
    out[i] = { from = from, centre = centre, factor = factor, value = value }
  end
  return out
end

--- A row by the definition alone.
local function decode(f, kind, value, bytes)
  local b, y, at = quarters[kind][value and 2 or 1], {}, 3
  local scale = ops.numbers(ops.to_f32("f16", bytes:sub(1, 2)))[1]
  for g = 1, 4 do
    for _ = 1, f.d // 4, 8 do
      local word = 0
      for i = 0, b[g] - 1 do word = word | bytes:byte(at + i) << 8 * i end
      for i = 0, 7 do
        y[#y + 1] = scale * level(word >> i * b[g] & (1 << b[g]) - 1, b[g])
      end
      at = at + b[g]
    end
  end
  assert(at == #bytes + 1)
  local n = value and f.d or f.d // 4
  y = hadamard(y, n & -n)
  local out = {}
  for i, c in ipairs(f) do
    if value then out[i] = y[i] + c.value else out[c.from + 1] = y[i] / c.factor + c.centre end
  end
  return out
end

local function gauss()
  return math.sqrt(-2 * math.log(1 - math.random())) * math.cos(2 * math.pi * math.random())
end

--- n rows as models make them: channels with centres and sizes of their own.
local function rows_of(n, d)
  local centre, size, out = {}, {}, {}
  for i = 1, d do centre[i], size[i] = 3 * gauss(), math.exp(gauss()) end
  for _ = 1, n do
    for i = 1, d do out[#out + 1] = centre[i] + size[i] * gauss() end
  end
  return reference.pack(out)
end

local function frame_of(d, n)
  local keys, key_bytes = rows_of(n or 96, d)
  local values, value_bytes = rows_of(n or 96, d)
  local needs = {}
  for i = 1, d do needs[i] = math.exp(2 * gauss()) end
  return ops.frame(d, key_bytes, value_bytes, ops.floats(needs)), keys, values, needs
end

local function row(values, d, r) return table.move(values, r * d + 1, (r + 1) * d, 1, {}) end

local function close(a, b, limit, what)
  local size = 1e-30
  for i = 1, #b do size = math.max(size, math.abs(b[i])) end
  for i = 1, #b do
    if math.abs(a[i] - b[i]) > limit * size or a[i] ~= a[i] then
      error(("%s: value %d is %.9g, not %.9g (PYRAMID_SEED=%d)"):format(what, i, a[i], b[i],
        reference.seed), 0)
    end
  end
end

describe("rows of few bits", function()
  it("are what their bytes say", function()
    for _, d in ipairs { 32, 64, 96, 128, 256, 512 } do
      local frame, keys, values = frame_of(d, 64)
      local f = parse(frame)
      for _, kind in ipairs(kinds) do
        for what, from in ipairs { keys, values } do
          local value = what == 2
          local bytes = ops.pack_row(frame, kind, value, ops.floats(row(from, d, 3)))
          local got = ops.numbers(ops.unpack_row(frame, kind, value, bytes))
          close(got, decode(f, kind, value, bytes), 1e-5, ("%s, d %d"):format(kind, d))
          -- whatever the bytes are
          local any = { ops.from_f32("f16", ops.floats { 0.7 }) }
          for i = 3, #bytes do any[i - 1] = string.char(math.random(0, 255)) end
          any = table.concat(any)
          got = ops.numbers(ops.unpack_row(frame, kind, value, any))
          close(got, decode(f, kind, value, any), 1e-5, ("any %s, d %d"):format(kind, d))
        end
      end
    end
  end)

  it("err as little as their bits let them", function()
    -- of keys the errors that queries see, of values all; as shares of the variance
    local most = { q8_0 = 0.0004, q4 = 0.012, q3 = 0.045, q2 = 0.15 }
    for _, d in ipairs { 64, 128 } do
      local frame, keys, values, needs = frame_of(d, 256)
      local f = parse(frame)
      local centre = {}
      for _, c in ipairs(f) do centre[c.from + 1] = c.centre end
      for _, kind in ipairs(kinds) do
        for what, from in ipairs { keys, values } do
          local value, off, all = what == 2, 0, 0
          for r = 0, 63 do
            local x = row(from, d, r)
            local y = ops.numbers(ops.unpack_row(frame, kind, value,
              ops.pack_row(frame, kind, value, ops.floats(x))))
            for i = 1, d do
              local w = value and 1 or needs[i]
              off = off + w * (x[i] - y[i]) ^ 2
              all = all + w * (x[i] - (value and f[i].value or centre[i])) ^ 2
            end
          end
          assert(off / all < most[kind], ("%s %s, d %d: %.4f (PYRAMID_SEED=%d)"):format(
            value and "values" or "keys", kind, d, off / all, reference.seed))
        end
      end
    end
  end)

  it("learn a frame that lists every channel once, the needed ones first", function()
    local d = 64
    local frame, keys, values, needs = frame_of(d, 100)
    local f, seen, last = parse(frame), {}, math.huge
    assert.equal(1, f.learned)
    local mean, var, mean_v, need = {}, {}, {}, 0
    for i = 1, d do
      mean[i], var[i], mean_v[i] = 0, 0, 0
      for r = 0, 99 do
        mean[i], mean_v[i] = mean[i] + keys[r * d + i] / 100, mean_v[i] + values[r * d + i] / 100
      end
      for r = 0, 99 do var[i] = var[i] + (keys[r * d + i] - mean[i]) ^ 2 / 100 end
      need = need + math.sqrt(needs[i]) / d
    end
    for i, c in ipairs(f) do
      assert.is_nil(seen[c.from])
      seen[c.from] = true
      local at = c.from + 1
      local factor = math.max(math.sqrt(needs[at]) / need, 0.02)
      assert(math.abs(c.centre - mean[at]) < 1e-4 and math.abs(f[i].value - mean_v[i]) < 1e-4)
      local weight = var[at] * factor ^ 2
      assert(weight <= last * (1 + 1e-5), "places do not follow their weights")
      last = weight
    end
    for g = 0, 3 do                                -- in each quarter values have a variance of 1
      local sum = 0
      for i = 1, 16 do
        local c = f[16 * g + i]
        sum = sum + var[c.from + 1] * c.factor ^ 2 / 16
      end
      assert(math.abs(sum - 1) < 1e-3)
    end
  end)

  it("take queries into the frame without changing a product", function()
    for _, d in ipairs { 32, 64, 96 } do
      local frame, keys = frame_of(d)
      local f = parse(frame)
      local q = reference.random(d)
      local y, shift = ops.frame_query(frame, ops.floats(q))
      local framed, sum, want = {}, shift, 0
      local k = row(keys, d, 5)
      for i, c in ipairs(f) do framed[i] = (k[c.from + 1] - c.centre) * c.factor end
      local n = d // 4
      framed, y = hadamard(framed, n & -n), ops.numbers(y)
      for i = 1, d do sum, want = sum + y[i] * framed[i], want + q[i] * k[i] end
      assert(math.abs(sum - want) < 1e-4 * d)
    end
  end)

  it("keep what is no number, rows of the centre, and rows that do not vary", function()
    local d = 64
    local frame, keys, values = frame_of(d)
    local f = parse(frame)
    for _, kind in ipairs(kinds) do
      local centre = {}
      for i, c in ipairs(f) do centre[i] = c.value end
      local back = ops.numbers(ops.unpack_row(frame, kind, true,
        ops.pack_row(frame, kind, true, ops.floats(centre))))
      close(back, centre, 1e-6, kind)
      local bad = row(values, d, 1)
      bad[7] = 0 / 0
      back = ops.numbers(ops.unpack_row(frame, kind, true,
        ops.pack_row(frame, kind, true, ops.floats(bad))))
      assert.is_true(back[1] ~= back[1], kind)
    end
    local same = {}
    for r = 0, 63 do table.move(keys, 1, d, r * d + 1, same) end
    local still = ops.frame(d, ops.floats(same), ops.floats(same))
    local back = ops.numbers(ops.unpack_row(still, "q2", false,
      ops.pack_row(still, "q2", false, ops.floats(row(keys, d, 0)))))
    close(back, row(keys, d, 0), 1e-5, "rows that do not vary")
  end)
end)

-- ---- lanes --------------------------------------------------------------------------------------

local shapes = {
  { "q4", "q4" }, { "q8_0", "q4" }, { "q3", "q2" }, { "q2", "q3" }, { nil, "q4" }, { "q4", nil },
}

local function layout_of(shape, d, heads, kv_heads)
  return { dtype = "f16", head_dim = d, k = shape[1], v = shape[2], heads = heads or 1,
    kv_heads = kv_heads or 1, scale = d ^ -0.5 }
end

--- The bytes of a page of poison.
local function page_bytes(layout, packed)
  local function plane(kind, value)
    if not packed or not kind then return page_rows * 2 * layout.head_dim end
    local bits = 0
    for _, b in ipairs(quarters[kind][value]) do bits = bits + b end
    return page_rows * (2 + layout.head_dim // 32 * bits)
  end
  return plane(layout.k, 1) + plane(layout.v, 2) + (packed and 8 or 0)
end

local rt = teams[1][1]

--- A lane of `rows` rows, of which the pages that `packed` names (bytes) are packed, by gathering
--- a plain one; k and v are its rows as read_rows reads them, which is the definition.
local function lane_of(layout, positions, packed)
  local d, rows = layout.head_dim, #positions
  local _, keys = rows_of(math.max(rows, 96), d)
  local _, values = rows_of(math.max(rows, 96), d)
  local needs = {}
  for i = 1, d do needs[i] = math.exp(gauss()) end
  local plain = reference.lane({ dtype = "f16", head_dim = d }, positions, 1,
    { k = row(ops.numbers(keys), rows * d, 0), v = row(ops.numbers(values), rows * d, 0) })
  local frame = ops.frame(d, keys, values, ops.floats(needs))
  local idx, pages = {}, {}
  for i = 1, rows do idx[i] = i - 1 end
  for p = 1, (rows + page_rows - 1) // page_rows do
    pages[p] = ("\xa5"):rep(page_bytes(layout, packed:byte(p) == 1))
  end
  local made = assert(ops.gather(rt, layout, { { pages = plain.pages, positions = plain.positions,
    frame = frame } }, ops.ints(idx), table.concat(pages), packed))[1]
  local lane = { pages = made.pages, positions = plain.positions, packed = packed, frame = frame,
    rows = rows, at = positions, plain = plain }
  lane.k = ops.numbers(assert(ops.read_rows(rt, layout, lane, 0, rows, 0)))
  lane.v = ops.numbers(assert(ops.read_rows(rt, layout, lane, 0, rows, 1)))
  return lane
end

--- Random kinds for so many pages, both of which occur where there are two.
local function some_kinds(pages)
  local list = {}
  for p = 1, pages do list[p] = string.char(math.random(0, 1)) end
  if pages > 1 then list[1], list[pages] = "\0", "\1" end
  return table.concat(list)
end

local function ascending(n)
  local at, positions = 0, {}
  for i = 1, n do positions[i], at = at, at + math.random(1, 3) end
  return positions
end

describe("lanes with packed pages", function()
  it("hold rows that were packed as they came", function()
    for _, shape in ipairs(shapes) do
      local layout = layout_of(shape, 64)
      local lane = lane_of(layout, ascending(75), "\0\1\1")
      for r = 0, 74 do
        for what, name in ipairs { "k", "v" } do
          local kind, want = shape[what], row(lane.plain[name], 64, r)
          if r >= page_rows and kind then
            want = ops.numbers(ops.unpack_row(lane.frame, kind, what == 2,
              ops.pack_row(lane.frame, kind, what == 2, ops.floats(want))))
          end
          close(row(lane[name], 64, r), want, 0, ("row %d of %s"):format(r, name))
        end
      end
    end
  end)

  it("are gathered without rounding a packed row again", function()
    for _, shape in ipairs(shapes) do
      local layout = layout_of(shape, 64)
      local packed = "\0\1\1\0"
      local lane = lane_of(layout, ascending(110), packed)
      local idx = {}
      for i = 0, 109 do if i < 5 or math.random() < 0.7 then idx[#idx + 1] = i end end
      reference.each(function(runtime)
        local made = assert(ops.gather(runtime, layout, { lane }, ops.ints(idx)))[1]
        made.packed, made.frame = packed:sub(1, (#idx + page_rows - 1) // page_rows), lane.frame
        return { ops.read_rows(runtime, layout, made, 0, #idx, 0),
          ops.read_rows(runtime, layout, made, 0, #idx, 1), made.positions }
      end, function(result, fail)
        for i, from in ipairs(idx) do
          local to = i - 1
          local was, is = packed:byte(from // page_rows + 1), packed:byte(to // page_rows + 1)
          for what, name in ipairs { "k", "v" } do
            local kind, want = shape[what], row(lane[name], 64, from)
            if was == 0 and is == 1 and kind then
              want = ops.numbers(ops.unpack_row(lane.frame, kind, what == 2,
                ops.pack_row(lane.frame, kind, what == 2, ops.floats(want))))
            elseif was == 1 and is == 0 and kind then
              want = ops.numbers(ops.to_f32("f16", ops.from_f32("f16", ops.floats(want))))
            end
            local got = row(ops.numbers(result[what]), 64, to)
            for c = 1, 64 do
              if got[c] ~= want[c] then fail("%s of row %d, from %d", name, to, from) end
            end
          end
        end
      end, teams)
    end
  end)

  local function check(layout, n, rows, o)
    o = o or {}
    local call = { lanes = {}, window = o.window or 0, cap = o.cap }
    for g = 1, layout.kv_heads do
      local count = rows - (o.ragged and math.random(0, rows // 3) or 0)
      local positions = ascending(count - n)
      for i = 1, n do positions[count - n + i] = 3 * rows + i end
      local pages = (count + page_rows - 1) // page_rows
      call.lanes[g] = lane_of(layout, positions, o.packed or some_kinds(pages))
    end
    call.at = {}
    for i = 1, n do call.at[i] = 3 * rows + i end
    call.q_pos = ops.ints(call.at)
    call.q, call.q_bytes = reference.random(n * layout.heads * layout.head_dim, o.size or 0.3)
    if o.slopes then
      local slopes = {}
      for h = 1, layout.heads do slopes[h] = 0.01 / h end
      call.slopes, call.slope_bytes = reference.pack(slopes)
    end
    local out, lse = reference.attention(layout, call)
    reference.each(function(runtime)
      return ops.attention(runtime, layout, { { q = call.q_bytes, q_pos = call.q_pos,
        lanes = call.lanes, window = call.window, cap = call.cap, slopes = call.slope_bytes } })
    end, function(results, fail)
      local what = ("%s %s, %d queries on %d rows, d %d, %d/%d"):format(layout.k or "f16",
        layout.v or "f16", n, rows, layout.head_dim, layout.heads, layout.kv_heads)
      reference.near(results[1].out, out, 2e-5, fail, what .. ": out", 1)
      reference.near(results[1].lse, lse, 1e-5, fail, what .. ": lse", 1)
    end, teams)
  end

  it("are attended to by one query as their rows are", function()
    for _, shape in ipairs(shapes) do
      for _, d in ipairs { 32, 64, 96, 128 } do
        check(layout_of(shape, d, 6, 2), 1, 100, { ragged = true })
      end
      check(layout_of(shape, 64, 9, 3), 1, 64, { packed = "\0\1" })
      check(layout_of(shape, 64, 1, 1), 1, 33, { packed = "\1\1" })
      check(layout_of(shape, 64, 8, 1), 1, 1200, {})
    end
    check(layout_of({ "q4", "q4" }, 256, 4, 1), 1, 100)
  end)

  it("are attended to with windows, caps and slopes", function()
    for _, shape in ipairs(shapes) do
      check(layout_of(shape, 64, 6, 2), 1, 150, { window = 120 })
      check(layout_of(shape, 64, 6, 2), 1, 150, { cap = 1.5, slopes = true })
    end
  end)

  it("are attended to by many queries as their rows are", function()
    for _, shape in ipairs(shapes) do
      check(layout_of(shape, 64, 6, 2), 19, 140, { ragged = true })
      check(layout_of(shape, 96, 4, 2), 3, 70)
    end
  end)

  it("are normed and merged as their rows are", function()
    local layout = layout_of({ "q4", "q3" }, 64)
    local lane = lane_of(layout, ascending(90), "\0\1\1")
    for what, name in ipairs { "k", "v" } do
      local want = {}
      for r = 0, 89 do
        local sum = 0
        for _, x in ipairs(row(lane[name], 64, r)) do sum = sum + x * x end
        want[r + 1] = math.sqrt(sum)
      end
      reference.each(function(runtime)
        return ops.row_norms(runtime, layout, lane, 0, 90, what - 1)
      end, function(result, fail) reference.near(result, want, 1e-5, fail, name) end, teams)
    end
    local idx = {}
    for i = 0, 89, 2 do idx[#idx + 1] = i end
    local rows = { {}, {} }
    for r = 0, 89 do
      rows[1][r + 1], rows[2][r + 1] = row(lane.k, 64, r), row(lane.v, 64, r)
    end
    local k, v = reference.merge(rows[1], rows[2], idx, 0.3)
    reference.each(function(runtime)
      local made = assert(ops.merge(runtime, layout, lane, ops.ints(idx), 0.3))
      made.packed, made.frame = lane.packed, lane.frame
      return { ops.read_rows(runtime, layout, made, 0, 90, 0),
        ops.read_rows(runtime, layout, made, 0, 90, 1) }
    end, function(result, fail)
      local got = { ops.numbers(result[1]), ops.numbers(result[2]) }
      for at, i in ipairs(idx) do                 -- means, rounded to f16, or packed again
        for what, means in ipairs { k, v } do
          local limit, size = i < page_rows and 1e-3 or 2, 0
          -- values are packed turned, so that each is off by some of what its row has in all
          for c = 1, 64 do size = size + means[at][c] ^ 2 end
          local off = i >= page_rows and what == 2 and math.sqrt(size / 64) or 0
          for c = 1, 64 do
            local x, y = got[what][i * 64 + c], means[at][c]
            if math.abs(x - y) > math.max(limit * (1 + math.abs(y)), off) then
              fail("%s of row %d: %g, not %g", what == 1 and "key" or "value", i, x, y)
            end
          end
        end
      end
    end, teams)
  end)
end)

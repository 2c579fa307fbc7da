-- Cache rows: written, moved, measured. Pages are compared byte for byte.
local helper = require "spec.helper"
local ops = require "pyramid_specs"
local reference = require "spec.support.ops_reference"

local dtypes = helper.dtypes "rows"
local page_rows = ops.page_rows

--- The bytes of row j of a lane's pages: K (what = 0) or V (1).
local function row_of(pages, row_bytes, j, what)
  local at = (j // page_rows * 2 * page_rows + j % page_rows + what * page_rows) * row_bytes
  return pages:sub(at + 1, at + row_bytes)
end

local function each_shape(f)
  for _, dtype in ipairs(dtypes) do
    for _, d in ipairs { 16, 20, 32, 48, 64, 80, 128 } do
      if dtype ~= "q8_0" or d % 32 == 0 then
        local layout = { dtype = dtype, head_dim = d }
        f(layout, #ops.from_f32(dtype, ops.floats(reference.random(d))))
      end
    end
  end
end

describe("store", function()
  --- A call that appends n tokens to `heads` lanes of unequal length, all of whose bytes are
  --- poisoned.
  local function append(layout, row_bytes, heads, n)
    local call, most = { lanes = {}, n = n }, 0
    for g = 1, heads do
      call.lanes[g] = { rows = math.random(0, 70) }
      most = math.max(most, call.lanes[g].rows + n)
    end
    call.room = (most + page_rows - 1) // page_rows * page_rows
    for _, lane in ipairs(call.lanes) do
      lane.pages = ("\xa5"):rep(2 * call.room * row_bytes)
      lane.positions = ("\xa5"):rep(4 * call.room)
      lane.history = ("\xa5"):rep(4 * call.room)
    end
    for _, name in ipairs { "k", "v" } do
      call[name] = select(2, reference.random(n * heads * layout.head_dim, 4))
    end
    call.positions = ops.ints(reference.ascending(n, math.random(0, 9), 5))
    if math.random(2) == 1 then call.learned = select(2, reference.random(n * heads)) end
    return call
  end

  local function check(layout, row_bytes, call, lanes, fail)
    local d, heads = layout.head_dim, layout.kv_heads
    for g, lane in ipairs(call.lanes) do
      for j = 0, call.room - 1 do
        local i = j - lane.rows  -- the token that belongs there, if it is one
        local new = i >= 0 and i < call.n
        local position = new and call.positions:sub(4 * i + 1, 4 * i + 4) or ("\xa5"):rep(4)
        if lanes[g].positions:sub(4 * j + 1, 4 * j + 4) ~= position then
          fail("%s, d %d: the position of row %d of lane %d", layout.dtype, d, j, g)
        end
        local learned = ("\xa5"):rep(4)
        if new and call.learned then
          local at = (i * heads + g - 1) * 4
          learned = call.learned:sub(at + 1, at + 4)
        end
        if lanes[g].history:sub(4 * j + 1, 4 * j + 4) ~= learned then
          fail("%s, d %d: the history of row %d of lane %d", layout.dtype, d, j, g)
        end
        for what, from in pairs { [0] = call.k, call.v } do
          local wanted = ("\xa5"):rep(row_bytes)
          if new then
            local first = (i * heads + g - 1) * d * 4
            wanted = ops.from_f32(layout.dtype, from:sub(first + 1, first + d * 4))
          end
          if row_of(lanes[g].pages, row_bytes, j, what) ~= wanted then
            fail("%s, d %d: row %d (%d) of lane %d, which has %d", layout.dtype, d, j, what, g,
              lane.rows)
          end
        end
      end
    end
  end

  it("appends rows to lanes, and writes nothing else", function()
    each_shape(function(layout, row_bytes)
      for _, n in ipairs { 1, 3, 70 } do
        layout.kv_heads = math.random(1, 3)
        local call = append(layout, row_bytes, layout.kv_heads, n)
        reference.each(function(rt) return ops.store(rt, layout, { call }) end,
          function(result, fail)
          check(layout, row_bytes, call, result[1], fail)
        end)
      end
    end)
  end)

  it("takes several sequences in one call", function()
    for _, dtype in ipairs(dtypes) do
      local layout, calls = { dtype = dtype, head_dim = 64, kv_heads = 3 }, {}
      local row_bytes = #ops.from_f32(dtype, ops.floats(reference.random(64)))
      for i, n in ipairs { 1, 1, 40, 0, 1 } do calls[i] = append(layout, row_bytes, 3, n) end
      reference.each(function(rt) return ops.store(rt, layout, calls) end, function(result, fail)
        for i, call in ipairs(calls) do check(layout, row_bytes, call, result[i], fail) end
      end)
    end
  end)
end)

describe("gather", function()
  local function ascending(k, n)
    local chosen, idx = {}, {}
    while k > 0 do
      local j = math.random(0, n - 1)
      if not chosen[j] then chosen[j], k = true, k - 1 end
    end
    for j = 0, n - 1 do if chosen[j] then idx[#idx + 1] = j end end
    return idx
  end

  local function check_lane(layout, row_bytes, idx, lane, result, fail, what)
    for i, j in ipairs(idx) do
      local right = result.positions:sub(i * 4 - 3, i * 4) == lane.positions:sub(j * 4 + 1,
        j * 4 + 4)
        and (not lane.history or result.history:sub(i * 4 - 3,
          i * 4) == lane.history:sub(j * 4 + 1, j * 4 + 4))
      for part = 0, 1 do
        right = right and row_of(result.pages, row_bytes, i - 1, part) == row_of(lane.pages,
          row_bytes, j, part)
      end
      if not right then
        fail("%s, d %d, %s: row %d is not what row %d was", layout.dtype, layout.head_dim, what,
          i - 1, j)
      end
    end
  end

  local function check(layout, row_bytes, idx, rows, history)
    local lanes = {}
    for g = 1, math.random(1, 3) do
      lanes[g] = reference.lane(layout, (reference.ascending(rows, 5, 3)))
      if history then lanes[g].history = select(2, reference.random(rows)) end
    end
    local count = (#idx + page_rows - 1) // page_rows
    local empty = ("\xa5"):rep(count * 2 * page_rows * row_bytes)
    reference.each(function(rt)
      return { ops.gather(rt, layout, lanes, ops.ints(idx)),
        ops.gather(rt, layout, lanes, ops.ints(idx), empty) }
    end, function(results, fail)
      for g, lane in ipairs(lanes) do
        check_lane(layout, row_bytes, idx, lane, results[1][g], fail, "in place")
        check_lane(layout, row_bytes, idx, lane, results[2][g], fail, "apart")
      end
    end)
  end

  it("moves any rows of a lane to its front, in place or apart", function()
    each_shape(function(layout, row_bytes)
      local rows = math.random(1, 130)
      check(layout, row_bytes, ascending(math.random(1, rows), rows), rows, math.random() < 0.5)
    end)
  end)

  it("keeps all, none, the first, the last", function()
    local layout = { dtype = "f16", head_dim = 16 }
    check(layout, 32, ascending(70, 70), 70, true)
    check(layout, 32, {}, 70, true)
    check(layout, 32, { 0 }, 70)
    check(layout, 32, { 69 }, 70)
    local sinks_and_recent = { 0, 1, 2, 3 }
    for j = 40, 99 do sinks_and_recent[#sinks_and_recent + 1] = j end
    check(layout, 32, sinks_and_recent, 100, true)
  end)
end)

--- A lane's K (what = 0) or V (1) as rows of numbers.
local function rows_of(layout, row_bytes, pages, rows, what)
  local out = {}
  for j = 0, rows - 1 do
    out[j + 1] = ops.numbers(ops.to_f32(layout.dtype, row_of(pages, row_bytes, j, what)))
  end
  return out
end

-- What a dtype may lose when a row of values up to 1 is written.
local rounding = { f32 = 1e-6, f16 = 1e-3, bf16 = 8e-3, q8_0 = 8e-3, fp8_e4m3 = 0.13 }

describe("merge", function()
  local function check(layout, row_bytes, rows, idx, threshold, zero)
    local lane = reference.lane(layout, (reference.ascending(rows, 5, 3)))
    if zero then      -- a row of zeros is similar to none
      local at = (zero // page_rows * 2 * page_rows + zero % page_rows) * row_bytes
      lane.pages = lane.pages:sub(1, at) .. ("\0"):rep(row_bytes)
        .. lane.pages:sub(at + row_bytes + 1)
    end
    local k, v = rows_of(layout, row_bytes, lane.pages, rows, 0),
      rows_of(layout, row_bytes, lane.pages, rows, 1)
    local new_k, new_v, margin = reference.merge(k, v, idx, threshold)
    if margin < 1e-5 then return end       -- f32 may see another order
    reference.each(function(rt) return ops.merge(rt, layout, lane, ops.ints(idx), threshold) end,
      function(result, fail)
      local got_k, got_v = rows_of(layout, row_bytes, result.pages, rows, 0),
        rows_of(layout, row_bytes, result.pages, rows, 1)
      local stays = {}
      for at, j in ipairs(idx) do
        stays[j] = true
        for i = 1, layout.head_dim do
          local apart = math.max(math.abs(got_k[j + 1][i] - new_k[at][i]),
            math.abs(got_v[j + 1][i] - new_v[at][i]))
          if apart > rounding[layout.dtype] then
            fail("%s, d %d, %d of %d rows: row %d", layout.dtype, layout.head_dim, #idx, rows, j)
          end
        end
      end
      for j = 0, rows - 1 do
        for what = 0, 1 do
          if not stays[j] and row_of(result.pages, row_bytes, j, what) ~= row_of(lane.pages,
            row_bytes, j, what) then
            fail("row %d, which goes, was written", j)
          end
        end
      end
      if result.positions ~= lane.positions then fail("positions changed") end
    end)
  end

  local function some(n, share)
    local idx = {}
    for j = 0, n - 1 do if math.random() < share then idx[#idx + 1] = j end end
    return idx
  end

  it("averages each row that goes into the most similar that stays", function()
    each_shape(function(layout, row_bytes)
      local rows = math.random(1, 150)
      for _, threshold in ipairs { -1, 0, 0.3 } do
        check(layout, row_bytes, rows, some(rows, math.random()), threshold)
      end
    end)
  end)

  it("does with none that stay, none that go, one of either, rows of zeros", function()
    local layout = { dtype = "f32", head_dim = 16 }
    check(layout, 64, 70, {}, -1)
    check(layout, 64, 70, some(70, 1), -1)
    check(layout, 64, 70, { 33 }, -1)
    check(layout, 64, 2, { 1 }, -1)
    for j = 0, 3 do check(layout, 64, 70, some(70, 0.5), 0.1, j) end
    local long = { dtype = "f16", head_dim = 64 }
    check(long, 128, 700, some(700, 0.5), 0.2)      -- cut among threads
  end)
end)

describe("rotate", function()
  it("turns keys from one position to another, and leaves the rest", function()
    each_shape(function(layout, row_bytes)
      local d, rows = layout.head_dim, math.random(1, 90)
      local lane = reference.lane(layout, (reference.ascending(rows, 0, 2)), 0.7)
      local pairs_of, freq = math.random(1, d // 2), {}
      for i = 1, pairs_of do freq[i] = 100.0 ^ (-(i - 1) / pairs_of) end
      for _, style in ipairs { "half", "interleaved" } do
        local ref = {}
        for j = 0, rows - 1 do
          local row = table.move(lane.k, j * d + 1, (j + 1) * d, 1, {})
          for i = 1, pairs_of do
            local angle = (j - lane.at[j + 1]) * freq[i]
            local a, b = style == "half" and i or 2 * i - 1,
              style == "half" and i + pairs_of or 2 * i
            local co, si = math.cos(angle), math.sin(angle)
            row[a], row[b] = row[a] * co - row[b] * si, row[a] * si + row[b] * co
          end
          ref[j + 1] = row
        end
        reference.each(function(rt)
          return ops.rotate(rt, layout, lane, lane.positions, ops.floats(freq), style)
        end, function(result, fail)
          local got = rows_of(layout, row_bytes, result.pages, rows, 0)
          for j = 1, rows do
            for i = 1, d do
              if math.abs(got[j][i] - ref[j][i]) > 2 * rounding[layout.dtype] + 1e-5 then
                fail("%s, d %d, %s: value %d of row %d is %g, not %g", layout.dtype, d, style, i,
                  j, got[j][i], ref[j][i])
              end
            end
            local same = row_of(result.pages, row_bytes, j - 1, 1) == row_of(lane.pages, row_bytes,
              j - 1, 1)
            if lane.at[j] == j - 1 then
              same = same and row_of(result.pages, row_bytes, j - 1, 0) == row_of(lane.pages,
                row_bytes, j - 1, 0)
            end
            if not same then fail("row %d was written and should not be", j) end
          end
        end)
      end
    end)
  end)

  --- A lane of wide pages: its keys as they lie, its values, and its keys as they came, which are
  --- other numbers.
  local function wide_lane(layout, row_bytes, rows)
    local lies = reference.lane(layout, (reference.ascending(rows, 0, 2)), 0.7)
    local came = reference.lane(layout, lies.at, 0.7)
    local plane, pages = page_rows * row_bytes, {}
    for at = 1, #lies.pages, 2 * plane do
      pages[#pages + 1] = lies.pages:sub(at, at + 2 * plane - 1)
        .. came.pages:sub(at, at + plane - 1)
    end
    lies.pages = table.concat(pages)
    lies.came = came.k
    return lies
  end

  local function wide_row(pages, row_bytes, j, what)
    local at = (j // page_rows * 3 * page_rows + j % page_rows + what * page_rows) * row_bytes
    return pages:sub(at + 1, at + row_bytes)
  end

  it("turns keys from how they came, which it keeps, however often they were turned", function()
    each_shape(function(layout, row_bytes)
      local d, rows = layout.head_dim, math.random(1, 90)
      local lane = wide_lane(layout, row_bytes, rows)
      local from, stood = {}, {}
      for j = 1, rows do
        stood[j] = j - 1 + (math.random() < 0.3 and 0 or math.random(1, 5))
        from[j] = stood[j] + (math.random() < 0.4 and 0 or math.random(1, 900))
      end
      lane.born = ops.ints(from)
      local freq, pairs_of = {}, d // 2
      for i = 1, pairs_of do freq[i] = 100.0 ^ (-(i - 1) / pairs_of) end
      reference.each(function(rt)
        return ops.rotate(rt, layout, lane, lane.born, ops.floats(freq), "half", ops.ints(stood))
      end, function(result, fail)
        for j = 1, rows do
          local first = stood[j] == from[j]
          local still = stood[j] == j - 1
          local k, came = wide_row(result.pages, row_bytes, j - 1, 0),
            wide_row(result.pages, row_bytes, j - 1, 2)
          local had = wide_row(lane.pages, row_bytes, j - 1, first and not still and 0 or 2)
          if came ~= had then
            fail("%s, d %d: row %d as it came is not kept", layout.dtype, d, j)
          end
          local same = wide_row(result.pages, row_bytes, j - 1, 1) == wide_row(lane.pages,
            row_bytes, j - 1, 1)
          same = same and (not still or k == wide_row(lane.pages, row_bytes, j - 1, 0))
          if not same then fail("row %d was written and should not be", j) end
          local numbers = table.move(first and lane.k or lane.came, (j - 1) * d + 1, j * d, 1, {})
          local got = ops.numbers(ops.to_f32(layout.dtype, k))
          for i = 1, still and 0 or pairs_of do
            local angle = (j - 1 - from[j]) * freq[i]
            local co, si, a, b = math.cos(angle), math.sin(angle), numbers[i], numbers[i + pairs_of]
            local apart = math.max(math.abs(got[i] - (a * co - b * si)),
              math.abs(got[i + pairs_of] - (a * si + b * co)))
            if apart > 2 * rounding[layout.dtype] + 1e-4 then
              fail("%s, d %d: row %d is off by %g", layout.dtype, d, j, apart)
            end
          end
        end
      end)
    end)
  end)

  it("is of rows that were gathered with how they came, and where to", function()
    each_shape(function(layout, row_bytes)
      local rows = math.random(1, 90)
      local lane, idx, born = wide_lane(layout, row_bytes, rows), {}, {}
      for j = 0, rows - 1 do
        born[j + 1] = math.random(0, 999)
        if math.random() < 0.6 then idx[#idx + 1] = j end
      end
      lane.born = ops.ints(born)
      reference.each(function(rt) return ops.gather(rt, layout, { lane }, ops.ints(idx))[1] end,
        function(result, fail)
        local got = ops.numbers(result.born, "ints")
        for at, j in ipairs(idx) do
          if got[at] ~= born[j + 1] then
            fail("row %d came to %s, not %d", at, got[at], born[j + 1])
          end
          for what = 0, 2 do
            if wide_row(result.pages, row_bytes, at - 1, what) ~= wide_row(lane.pages, row_bytes,
              j, what) then
              fail("%s: plane %d of row %d is not that of row %d", layout.dtype, what, at, j)
            end
          end
        end
      end)
    end)
  end)
end)

describe("row norms", function()
  it("are the roots of sums of squares", function()
    each_shape(function(layout)
      local rows = math.random(1, 90)
      local lane = reference.lane(layout, (reference.ascending(rows, 0)))
      local from = math.random(0, rows - 1)
      local to = math.random(from, rows)
      for what, values in pairs { [0] = lane.k, lane.v } do
        local ref, sums = {}, {}
        for j = from, to - 1 do
          local sum = 0.0
          for c = 1, layout.head_dim do sum = sum + values[j * layout.head_dim + c] ^ 2 end
          ref[#ref + 1] = sum ^ 0.5
          local absolute = 0.0
          for c = 1, layout.head_dim do
            absolute = absolute + math.abs(values[j * layout.head_dim + c])
          end
          sums[#sums + 1] = absolute
        end
        reference.each(function(rt)
          return { ops.row_norms(rt, layout, lane, from, to, what),
            ops.row_norms(rt, layout, lane, from, to, what, true) }
        end, function(result, fail)
          reference.near(result[1], ref, 1e-6, fail, "norms of " .. layout.dtype)
          reference.near(result[2], sums, 1e-6, fail, "absolute norms of " .. layout.dtype)
        end)
      end
    end)
  end)
end)

-- What the specs of single operations share: fresh random numbers, backends of every instruction
-- set and several thread counts, comparison, and the operations themselves in plain Lua. Nothing
-- here calls an operation under test; only the conversions of core/base/dtype.h, which have a spec
-- of their own, are used to make rows of a dtype.
local core = require "pyramid.core"
local ops = require "pyramid_specs"

local reference = { page_rows = ops.page_rows }

-- ---- numbers ------------------------------------------------------------------------------------

--- Seeds each run afresh; failures print it, and PYRAMID_SEED repeats it.
reference.seed = tonumber(os.getenv "PYRAMID_SEED") or os.time()
math.randomseed(reference.seed)

--- A sequence of numbers as f32, and as its packed bytes.
function reference.pack(values)
  local bytes = ops.floats(values)
  return ops.numbers(bytes), bytes
end

--- n numbers, uniform in [-size, size).
function reference.random(n, size)
  local values = {}
  for i = 1, n do values[i] = (math.random() * 2 - 1) * (size or 1) end
  return reference.pack(values)
end

--- n ascending integers from `first` with holes, as after pruning.
function reference.ascending(n, first, step)
  local values, at = {}, first
  for i = 1, n do
    values[i] = at
    at = at + 1 + (step and math.random(0, step) or 0)
  end
  return values, ops.ints(values)
end

-- ---- backends -----------------------------------------------------------------------------------

--- Runtimes of these instruction sets with one, two and three threads; of those that this machine
--- has.
function reference.teams(...)
  local teams = {}
  for _, isa in ipairs { ... } do
    local one = core.runtime { isa = isa, threads = 1 }
    if one then
      teams[#teams + 1] = { isa = isa, one, core.runtime { isa = isa, threads = 2 },
        core.runtime { isa = isa, threads = 3 } }
    end
  end
  return teams
end

local runtimes = reference.teams("base", "avx2", "avx512")

--- Those that round operands to bf16: none, where the processor does not multiply it.
reference.rounding = reference.teams("avx512bf16", "amxbf16")

--- The CUDA backend: on the device that is asked for (PYRAMID_DEVICE), else its kernels run by the
--- processor. There is one of them: it has no threads that could differ.
local asked = core.default_device()
local device = asked == "cpu" and "emulated" or asked
local kernels = { isa = device, (assert(core.runtime { device = device, threads = 1 })) }

--- The same, opened to round operands to 16 bits; and all that round the operands of attention.
reference.rounding_device = { isa = device .. ", bf16",
  (assert(core.runtime { device = device, isa = "bf16", threads = 1 })) }
reference.rounding_attention = { reference.rounding_device, table.unpack(reference.rounding) }

--- The instruction sets that this machine has, at least "base".
function reference.isas()
  local names = {}
  for i, team in ipairs(runtimes) do names[i] = team.isa end
  return names
end

--- A runtime of the device that is asked for; of the processor, with the best instruction set.
function reference.runtime()
  return asked == "cpu" and runtimes[#runtimes][1] or kernels[1]
end

local function same(a, b)
  if type(a) ~= "table" then return a == b end
  for key, value in pairs(a) do
    if not same(value, b[key]) then return false end
  end
  return true
end

local function check_team(team, call, check)
  local function fail(format, ...)
    error(("%s (isa %s, PYRAMID_SEED=%d)"):format(format:format(...), team.isa, reference.seed), 0)
  end
  local result = assert(call(team[1]))
  for threads = 2, #team do
    if not same(result, assert(call(team[threads]))) then
      fail("%d threads give another result than one", threads)
    end
  end
  check(result, fail)
end

--- Runs call(runtime) on every instruction set and on the emulated device (or on `teams`), with
--- one, two and three threads, which must agree bit for bit; hands the result to check(result,
--- fail), where fail(format, ...) raises with the seed and the instruction set. Where a device is
--- asked for, on that alone.
function reference.each(call, check, teams)
  for _, team in ipairs(teams or asked == "cpu" and runtimes or {}) do
    check_team(team, call, check)
  end
  if not teams then check_team(kernels, call, check) end
end

--- Fails unless packed floats are within `limit` of the values of `ref`, as a fraction of the
--- largest of those, or of `least` if that is larger (where terms cancel).
function reference.near(bytes, ref, limit, fail, what, least)
  local out, size, huge = ops.numbers(bytes), least or 0, math.huge
  if #out ~= #ref then fail("%s: %d values, not %d", what, #out, #ref) end
  for i = 1, #ref do
    local x = ref[i]
    if x < 0 then x = -x end
    if x > size and x < huge then size = x end
  end
  local most = limit * size
  for i = 1, #ref do
    local x, y = out[i], ref[i]
    if not (x == y or x - y <= most and y - x <= most) then
      fail("%s: value %d of %d is %.9g, not %.9g", what, i, #ref, x, y)
    end
  end
end

-- ---- rows and lanes -----------------------------------------------------------------------------

-- Where the f16 scales of a block lie, by dtype: of those that values do not become.
local scales_at = { iq4_nl = { 0 }, q4_k = { 0, 2 }, q5_k = { 0, 2 }, q6_k = { 208 },
  q3_k = { 108 }, q2_k = { 80, 82 } }
local infos = {}
for _, info in ipairs(core.dtypes()) do infos[info.name] = info end

--- A matrix of `rows` rows: its bytes and its values as f32. Blocks that values do not become are
--- random bits with small scales.
function reference.matrix(dtype, rows, cols)
  local info, bytes = infos[dtype]
  if info.writable then
    local _, floats = reference.random(rows * cols)
    bytes = ops.from_f32(dtype, floats)
  else
    local blocks = {}
    for i = 1, rows * cols // info.block do
      local bits = {}
      for j = 1, info.bytes do bits[j] = string.char(math.random(0, 255)) end
      for _, at in ipairs(assert(scales_at[dtype], dtype)) do
        local scale = ops.from_f32("f16", ops.floats { math.random() * 0.01 })
        bits[at + 1], bits[at + 2] = scale:sub(1, 1), scale:sub(2, 2)
      end
      blocks[i] = table.concat(bits)
    end
    bytes = table.concat(blocks)
  end
  return bytes, ops.numbers(ops.to_f32(dtype, bytes))
end

--- A lane of rows at `positions` (a sequence), random or of `values` (k and v): what ops wants, and
--- k and v as values. Rows beyond are all ones, which is NaN in every dtype but the blocks'.
function reference.lane(layout, positions, size, values)
  local d, rows = layout.head_dim, #positions
  local lane = { positions = ops.ints(positions), at = positions, rows = rows }
  local parts = {}
  for name in pairs { k = 1, v = 1 } do
    local floats = values and ops.floats(values[name])
      or select(2, reference.random(rows * d, size))
    parts[name] = ops.from_f32(layout.dtype, floats)
    lane[name] = ops.numbers(ops.to_f32(layout.dtype, parts[name]))
  end
  local row_bytes = #parts.k // math.max(rows, 1)
  local half, pages = row_bytes * reference.page_rows, {}
  for first = 0, #parts.k - 1, half do
    for _, name in ipairs { "k", "v" } do
      local some = parts[name]:sub(first + 1, first + half)
      pages[#pages + 1] = some .. ("\xff"):rep(half - #some)
    end
  end
  lane.pages = table.concat(pages)
  return lane
end

-- ---- operations ---------------------------------------------------------------------------------

--- out[n, rows] = x[n, cols] . w[rows, cols]^T (+ bias) (+ out)
function reference.linear(x, w, rows, cols, bias, out)
  local result, w_rows = {}, {}
  for r = 0, rows - 1 do w_rows[r] = table.move(w, r * cols + 1, (r + 1) * cols, 1, {}) end
  for t = 0, #x // cols - 1 do
    local x_row = table.move(x, t * cols + 1, (t + 1) * cols, 1, {})
    for r = 0, rows - 1 do
      local sum, w_row = 0.0, w_rows[r]
      for i = 1, cols do sum = sum + x_row[i] * w_row[i] end
      local at = t * rows + r + 1
      result[at] = sum + (bias and bias[r + 1] or 0) + (out and out[at] or 0)
    end
  end
  return result
end

function reference.visible(position, q_pos, window)
  return position <= q_pos and (window == 0 or q_pos - position < window)
end

--- w(q, j) of pyr_weighting; t holds its fields.
function reference.weight(t, q, j)
  if (t.queries or 0) == 0 then return 1 end
  local due = t.due or 0
  if (t.every or 0) > 0 and j >= (t.threshold or 0) then
    due = due + ((j - t.threshold) // t.every + 1) * t.every
  end
  local i = q - (due - t.queries + 1)
  if i < 0 or q > due then return 0 end
  return t.queries == 1 and 1 or 1 + (t.ramp - 1) * i / (t.queries - 1)
end

--- What a score becomes before it is masked, of a query `apart` positions after the row: capped,
--- if there is a cap, then sloped.
function reference.bent(s, cap, slope, apart)
  if cap and cap > 0 then
    local e = math.exp(-2 * math.abs(s / cap))
    s = cap * (1 - e) / (1 + e) * (s < 0 and -1 or 1)
  end
  return s - (slope or 0) * apart
end

--- Attention as it is defined. call: q (values), at (query positions), lanes, window, cap, slopes,
--- sinks. Gives out, lse and, per query head, p[i][j].
function reference.attention(layout, call)
  local d, heads, group = layout.head_dim, layout.heads, layout.heads // layout.kv_heads
  local out, lse, p, q, window = {}, {}, {}, call.q, call.window or 0
  local scale, cap, exp, none = layout.scale, call.cap, math.exp, -math.huge
  for h = 1, heads do p[h] = {} end
  for i, q_pos in ipairs(call.at) do
    for h = 0, heads - 1 do
      local sink = call.sinks and call.sinks[h + 1] or none
      local lane, scores, top = call.lanes[h // group + 1], {}, sink
      local rows, at, k, v = lane.rows, lane.at, lane.k, lane.v
      local slope = call.slopes and call.slopes[h + 1]
      local q0 = ((i - 1) * heads + h) * d
      for j = 1, rows do
        local s = none
        if reference.visible(at[j], q_pos, window) then
          local k0 = (j - 1) * d - q0
          s = 0.0
          for c = q0 + 1, q0 + d do s = s + q[c] * k[k0 + c] end
          s = s * scale
          if cap or slope then s = reference.bent(s, cap, slope, q_pos - at[j]) end
        end
        scores[j] = s
        if s > top then top = s end
      end
      local sum, mixed = sink > none and exp(sink - top) or 0.0, {}
      for c = 1, d do mixed[c] = 0.0 end
      for j = 1, rows do
        local s = scores[j]
        local e = s == none and 0 or exp(s - top)
        scores[j], sum = e, sum + e
      end
      for j = 1, rows do
        local e = sum > 0 and scores[j] / sum or 0
        scores[j] = e
        if e > 0 then
          local v0 = (j - 1) * d
          for c = 1, d do mixed[c] = mixed[c] + e * v[v0 + c] end
        end
      end
      p[h + 1][i] = scores
      table.move(mixed, 1, d, q0 + 1, out)
      lse[(i - 1) * heads + h + 1] = sum > 0 and top + math.log(sum) or none
    end
  end
  return out, lse, p
end

--- What a score counts in sums that are exact (pyr_choice): an integer, in units of 2^(e - 36),
--- where 2^e is the least power of two above the highest score.
local function weights_of(order)
  local largest, top, e = (2 - 2.0 ^ -23) * 2.0 ^ 127, 0, -200
  for _, row in ipairs(order) do
    if row.score > top then top = math.min(row.score, largest) end
  end
  while 2.0 ^ e <= top do e = e + 1 end
  for _, row in ipairs(order) do
    row.weight = row.score > 0 and math.floor(math.min(row.score, largest) * 2.0 ^ (36 - e)) or 0
  end
end

--- Which rows of several segments survive together, by sorting (pyr_choice): ascending rows from 0,
--- a sequence a segment. `above` is nil where scores are not bounded.
function reference.choose(segments, least, most, mass, above)
  local order, chosen, own, count, held, sum = {}, {}, {}, 0, 0, 0
  for s, scores in ipairs(segments) do
    chosen[s], own[s] = {}, 0
    for i, x in ipairs(scores) do order[#order + 1] = { segment = s, row = i - 1, score = x } end
  end
  table.sort(order, function(a, b)
    local x, y = a.score, b.score
    if (x == x) ~= (y == y) then return x == x end
    if x ~= y and x == x then return x > y end
    if a.segment ~= b.segment then return a.segment < b.segment end
    return a.row < b.row
  end)
  weights_of(order)
  local function take(row)
    row.taken, count, held = true, count + 1, held + row.weight
    table.insert(chosen[row.segment], row.row)
  end
  for _, row in ipairs(order) do
    sum = sum + row.weight
    if own[row.segment] < least[row.segment] then
      own[row.segment] = own[row.segment] + 1
      take(row)
    end
  end
  local target = mass == 0 and math.huge or mass == 1 and sum
    or math.min(sum, math.ceil(mass * (sum + 0.0)))
  for _, row in ipairs(order) do
    local passes = above == nil or row.score >= above
    if not row.taken and passes and count < most and held < target then take(row) end
  end
  for _, rows in ipairs(chosen) do table.sort(rows) end
  return chosen
end

--- The rows of a lane (k and v: sequences of rows) once those not among idx (ascending, from 0) are
--- merged into their most similar row that is, where the cosine of keys is at least `threshold`;
--- and how far any choice was from another.
function reference.merge(k, v, idx, threshold)
  local stays, sums, margin = {}, {}, math.huge
  local function cosine(a, b)
    local ab, aa, bb = 0.0, 0.0, 0.0
    for i = 1, #a do ab, aa, bb = ab + a[i] * b[i], aa + a[i] ^ 2, bb + b[i] ^ 2 end
    return aa > 0 and bb > 0 and ab / (aa * bb) ^ 0.5 or 0
  end
  for _, j in ipairs(idx) do
    stays[j] = true
    sums[j] = { count = 1, k = table.move(k[j + 1], 1, #k[j + 1], 1, {}),
      v = table.move(v[j + 1], 1, #v[j + 1], 1, {}) }
  end
  for l = 0, #k - 1 do
    local best, second, target = -math.huge, -math.huge, nil
    for _, j in ipairs(not stays[l] and idx or {}) do
      local x = cosine(k[l + 1], k[j + 1])
      if x > best then best, second, target = x, best, j else second = math.max(second, x) end
    end
    if target then margin = math.min(margin, best - second, math.abs(best - threshold)) end
    if target and best >= threshold then
      local s = sums[target]
      s.count = s.count + 1
      for i = 1, #s.k do s.k[i], s.v[i] = s.k[i] + k[l + 1][i], s.v[i] + v[l + 1][i] end
    end
  end
  local new_k, new_v = {}, {}
  for at, j in ipairs(idx) do
    new_k[at], new_v[at] = {}, {}
    for i = 1, #sums[j].k do
      new_k[at][i], new_v[at][i] = sums[j].k[i] / sums[j].count, sums[j].v[i] / sums[j].count
    end
  end
  return new_k, new_v, margin
end

--- What `values` have of the ids of positions; 0 where there is no such position, id or value.
function reference.look_up(positions, ids, values)
  local out = {}
  for i, at in ipairs(positions) do
    local id = at >= 0 and ids[at + 1] or -1
    out[i] = id >= 0 and values[id + 1] or 0.0
  end
  return out
end

-- ---- signals of rows; `values` is a lane's k or v, rows from <= j < to --------------------------

local function norm(x)
  local sum = 0.0
  for _, y in ipairs(x) do sum = sum + y * y end
  return sum ^ 0.5
end

local function row_of(values, d, j) return table.move(values, j * d + 1, j * d + d, 1, {}) end

--- KeyDiff's cosine, before it is negated.
function reference.key_similarity(k, d, from, to)
  local anchor, out = {}, {}
  for c = 1, d do anchor[c] = 0.0 end
  for j = from, to - 1 do
    local row = row_of(k, d, j)
    local size = norm(row)
    for c = 1, d do anchor[c] = anchor[c] + (size > 0 and row[c] / size or 0) end
  end
  for j = from, to - 1 do
    local row, dot = row_of(k, d, j), 0.0
    for c = 1, d do dot = dot + row[c] * anchor[c] end
    local size = norm(row) * norm(anchor)
    out[#out + 1] = size > 0 and dot / size or 0
  end
  return out
end

--- R-KV's redundancy before its softmax, of all rows; and how near a cosine came to the threshold.
function reference.redundancy(k, d, rows, threshold)
  local units, out, margin = {}, {}, math.huge
  for i = 1, rows do
    units[i], out[i] = row_of(k, d, i - 1), 0.0
    local size = norm(units[i])
    for c = 1, d do units[i][c] = size > 0 and units[i][c] / size or 0.0 end
  end
  for i = 1, rows do
    local last, alike
    for j = 1, rows do
      local dot = 0.0
      for c = 1, d do dot = dot + units[i][c] * units[j][c] end
      if i ~= j then
        out[i] = out[i] + dot / rows
        margin = math.min(margin, math.abs(dot - threshold))
        if dot > threshold then last, alike = j, dot end
      end
    end
    if last then out[last] = out[last] - alike / rows end
  end
  return out, margin
end

function reference.total(x, highest)
  local sum, out = highest and -math.huge or 0.0, {}
  for _, y in ipairs(x) do sum = highest and math.max(sum, y) or not highest and sum + y or sum end
  for i = 1, #x do out[i] = sum end
  return out
end

-- "log", "power" or "above" of each number.
function reference.map(x, how, value)
  local out = {}
  for i, y in ipairs(x) do
    out[i] = how == "log" and math.log(math.max(y, 2.0 ^ -126))
      or how == "power" and (y > 0 and y ^ value or 0.0)
      or how == "above" and (y > value and 1.0 or 0.0)
  end
  return out
end

function reference.softmax(x)
  local top, sum, out = -math.huge, 0.0, {}
  for _, y in ipairs(x) do top = math.max(top, y) end
  for i, y in ipairs(x) do
    out[i] = math.exp(y - top)
    sum = sum + out[i]
  end
  for i, y in ipairs(out) do out[i] = y / sum end
  return out
end

-- Of one run of K or V: the softmax of the spreads.
local function lag_run(values, d, at, lag)
  local spreads = {}
  for j = at, at + lag - 1 do
    local x, mean, squares = {}, 0.0, 0.0
    for c = 1, d do
      local low, high = math.huge, -math.huge
      for r = at + lag, at + 2 * lag - 1 do
        low, high = math.min(low, values[r * d + c]), math.max(high, values[r * d + c])
      end
      x[c] = high > low and (values[j * d + c] - low) / (high - low) or 0
      mean = mean + x[c] / d
    end
    for c = 1, d do squares = squares + (x[c] - mean) ^ 2 end
    spreads[#spreads + 1] = (squares / (d - 1)) ^ 0.5
  end
  return reference.softmax(spreads)
end

--- LagKV before it is ranked.
function reference.lag(lane, d, from, to, lag)
  local out = {}
  for at = from, to - 1, lag do
    local whole = at + 2 * lag <= lane.rows
    local k, v = whole and lag_run(lane.k, d, at, lag), whole and lag_run(lane.v, d, at, lag)
    for j = at, math.min(at + lag, to) - 1 do
      out[#out + 1] = whole and (k[j - at + 1] + v[j - at + 1]) / 2 or 1
    end
  end
  return out
end

--- CriticalKV's |W_o v| of one query head; o [width, heads * d].
function reference.output_norm(v, d, from, to, o, width, heads, head)
  local out = {}
  for j = from, to - 1 do
    local sum = 0.0
    for w = 0, width - 1 do
      local dot = 0.0
      for c = 1, d do dot = dot + o[w * heads * d + head * d + c] * v[j * d + c] end
      sum = sum + math.abs(dot)
    end
    out[#out + 1] = sum
  end
  return out
end

--- x [d] turned by RoPE to a position, or by the mean of its rotations to several.
local function turned(x, at, count, freq, style, gain)
  local out, pairs_count = table.move(x, 1, #x, 1, {}), #freq
  for p = 1, pairs_count do
    local co, si = 0.0, 0.0
    for t = 0, count - 1 do
      co, si = co + math.cos((at + t) * freq[p]) / count, si + math.sin((at + t) * freq[p]) / count
    end
    local i = style == 0 and p or 2 * p - 1
    local j = style == 0 and p + pairs_count or 2 * p
    out[i], out[j] = gain * (co * x[i] - si * x[j]), gain * (si * x[i] + co * x[j])
  end
  return out
end
reference.turned = turned

--- Expected Attention's exponent of one head, from its queries before RoPE (sequences).
function reference.expected(queries, k, d, from, to, how)
  local mean, outer, out = {}, {}, {}
  for c = 1, d do
    mean[c] = 0.0
    for _, q in ipairs(queries) do mean[c] = mean[c] + q[c] / #queries end
  end
  local mean_then = turned(mean, how.next, how.future, how.freq, how.style, how.gain)
  for i, q in ipairs(queries) do
    local centred = {}
    for c = 1, d do centred[c] = q[c] - mean[c] end
    outer[i] = turned(centred, how.next, how.future, how.freq, how.style, how.gain)
  end
  for j = from, to - 1 do
    local sum, squares = 0.0, 0.0
    for c = 1, d do sum = sum + mean_then[c] * k[j * d + c] end
    for _, x in ipairs(how.covariance and outer or {}) do
      local dot = 0.0
      for c = 1, d do dot = dot + x[c] * k[j * d + c] end
      squares = squares + dot * dot / #queries
    end
    out[#out + 1] = sum * how.scale + squares * how.scale ^ 2 / 2
  end
  return out
end

return reference

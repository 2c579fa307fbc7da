-- Mixtures of experts: who is chosen, and the chosen experts' products, against plain sums.
local helper = require "spec.helper"
local ops = require "pyramid_specs"
local reference = require "spec.support.ops_reference"

local huge = math.huge

-- ---- who is chosen ------------------------------------------------------------------------------

local function scores_of(logits, o)
  local scores, top, total = {}, -huge, 0.0
  for _, x in ipairs(logits) do top = math.max(top, x) end
  for i, x in ipairs(logits) do
    scores[i] = o.sigmoid == 1 and 1 / (1 + math.exp(-x)) or math.exp(x - top)
    total = total + scores[i]
  end
  for i, s in ipairs(scores) do scores[i] = o.sigmoid == 1 and s or s / total end
  return scores
end

-- The highest of keys that are not out, from `first` to `last`; what differs by less than rounding
-- does is a tie, and goes to the lower.
local function best_of(keys, out, first, last)
  local best
  for i = first, last do
    if not out[i] and (not best or keys[i] > keys[best] + 1e-6) then best = i end
  end
  return best
end

local function unused(keys, o)
  local each, worth, used, out = o.experts // o.groups, {}, {}, {}
  for g = 1, o.groups do
    local first = best_of(keys, {}, (g - 1) * each + 1, g * each)
    local second = best_of(keys, { [first] = true }, (g - 1) * each + 1, g * each)
    worth[g] = keys[first] + keys[second]
  end
  for _ = 1, o.groups_used do used[best_of(worth, used, 1, o.groups)] = true end
  for i = 1, o.experts do out[i] = not used[(i - 1) // each + 1] or nil end
  return out
end

-- ids (from 0) and weights of one token.
local function route(logits, o, correction)
  local scores, keys, out, ids, weights, sum = scores_of(logits, o), {}, {}, {}, {}, 0.0
  for i, x in ipairs(logits) do
    keys[i] = not (correction or o.groups) and x or scores[i] + (correction and correction[i] or 0)
  end
  if o.groups then out = unused(keys, o) end
  for i = 1, o.used do
    local best = best_of(keys, out, 1, o.experts)
    out[best], ids[i], weights[i], sum = true, best - 1, scores[best], sum + scores[best]
  end
  for i, w in ipairs(weights) do
    weights[i] = w * (o.scale or 1) / (o.renormalise == 1 and sum or 1)
  end
  return ids, weights
end

-- n logits of thirteen values: most tokens have ties, and what is no tie is far apart.
local function steps(n)
  local values = {}
  for i = 1, n do values[i] = math.random(0, 12) * 0.37 end
  return values
end

local function compare_route(logits, o, correction)
  local packed, ids, weights = ops.floats(logits), {}, {}
  for token = 0, #logits // o.experts - 1 do
    local some = table.move(logits, token * o.experts + 1, (token + 1) * o.experts, 1, {})
    local its, theirs = route(some, o, correction)
    table.move(its, 1, o.used, #ids + 1, ids)
    table.move(theirs, 1, o.used, #weights + 1, weights)
  end
  reference.each(function(rt)
    return { ops.route(rt, packed, o, correction and ops.floats(correction)) }
  end, function(result, fail)
    for i, got in ipairs(ops.numbers(result[1], "ints")) do
      if got ~= ids[i] then fail("choice %d is expert %d, not %d", i, got, ids[i]) end
    end
    reference.near(result[2], weights, 1e-5, fail, "weights")
  end)
end

describe("route", function()
  it("takes the highest, ties to the lower expert", function()
    for _, shape in ipairs { { 1, 1 }, { 2, 2 }, { 8, 2 }, { 33, 3 }, { 64, 8 }, { 130, 32 },
      { 1024, 10 } } do
      local experts, used = shape[1], shape[2]
      local count = experts * (experts > 200 and 2 or math.random(1, 9))
      for sigmoid = 0, 1 do
        local o = { experts = experts, used = used, sigmoid = sigmoid,
          renormalise = math.random(0, 1), scale = math.random(1, 2) * 0.9 }
        compare_route(steps(count), o)
        compare_route((reference.random(count, 4)), o)
      end
    end
  end)

  it("chooses by corrected scores, and weighs by plain ones", function()
    for _, shape in ipairs { { 5, 2 }, { 40, 6 }, { 128, 8 } } do
      local experts, correction = shape[1], {}
      for i = 1, experts do correction[i] = math.random(0, 1) * 2 end
      for sigmoid = 0, 1 do
        compare_route(steps(experts * 7), { experts = experts, used = shape[2], sigmoid = sigmoid,
          renormalise = math.random(0, 1) }, correction)
      end
    end
  end)

  it("leaves groups out", function()
    for _, shape in ipairs { { 4, 2, 2, 1 }, { 12, 4, 3, 2 }, { 64, 6, 32, 5 }, { 66, 8, 6, 4 } } do
      local experts, groups, correction = shape[1], shape[3], {}
      for i = 1, experts do correction[i] = (i - 1) // (experts // groups) % 2 * 2 end
      local o = { experts = experts, used = shape[2], groups = groups, groups_used = shape[4],
        sigmoid = 1, renormalise = 1, scale = 2.5 }
      compare_route(steps(experts * 9), o)
      compare_route(steps(experts * 9), o, correction)
    end
  end)

  it("takes what is no number last, and each expert once", function()
    local nan = 0 / 0
    local logits = ops.floats { nan, -huge, nan, 1, nan, nan, nan, nan, 0, huge, -huge, huge }
    reference.each(function(rt)
      return (ops.route(rt, logits, { experts = 4, used = 4 }))
    end, function(result, fail)
      local got = table.concat(ops.numbers(result, "ints"), " ")
      if got ~= "3 1 0 2 0 1 2 3 1 3 0 2" then fail("chosen are %s", got) end
    end)
  end)
end)

-- ---- what they make -----------------------------------------------------------------------------

local activations = {
  silu = function(g, u) return g / (1 + math.exp(-g)) * u end,
  relu = function(g, u) return math.max(g, 0) * u end,
  swiglu_clamped = function(g, u)
    g, u = math.min(g, 0.5), math.max(-0.5, math.min(u, 0.5))
    return g / (1 + math.exp(-1.702 * g)) * (u + 1)
  end,
}

-- Random experts: what ops wants, and their values.
local function mixture(o)
  local m, values = { limit = 0.5 }, {}
  for key, value in pairs(o) do m[key] = value end
  for name, shape in pairs { gate = { o.ff, o.width }, up = { o.ff, o.width },
    down = { o.width, o.ff } } do
    if not (o.plain and name == "gate") then
      m[name], values[name] = reference.matrix(o.dtype, o.experts * shape[1], shape[2])
    end
    if o.biases then
      values[name .. "_bias"], m[name .. "_bias"] = reference.random(o.experts * shape[1])
    end
  end
  return m, values
end

local function part(values, i, n)
  return values and table.move(values, i * n + 1, (i + 1) * n, 1, {})
end

local function expert(m, v, i, x)
  local size, act = m.width * m.ff, activations[m.activation or "silu"]
  local up = reference.linear(x, part(v.up, i, size), m.ff, m.width, part(v.up_bias, i, m.ff))
  local gate = not m.plain
    and reference.linear(x, part(v.gate, i, size), m.ff, m.width, part(v.gate_bias, i, m.ff))
  for j, u in ipairs(up) do up[j] = gate and act(gate[j], u) or act(u, 1) end
  return reference.linear(up, part(v.down, i, size), m.width, m.ff, part(v.down_bias, i, m.width))
end

local function plain(m, v, x, ids, weights, out)
  local sums = out or {}
  for token = 0, #x // m.width - 1 do
    for j = 1, m.width do sums[token * m.width + j] = sums[token * m.width + j] or 0.0 end
    for rank = 1, m.used do
      local at = token * m.used + rank
      for j, y in ipairs(expert(m, v, ids[at], part(x, token, m.width))) do
        sums[token * m.width + j] = sums[token * m.width + j] + weights[at] * y
      end
    end
  end
  return sums
end

-- n tokens' choices: of all experts, or of the first `only`.
local function choices(n, m, only)
  local ids = {}
  for _ = 1, n do
    local left = {}
    for i = 1, only or m.experts do left[i] = i - 1 end
    for _ = 1, m.used do ids[#ids + 1] = table.remove(left, math.random(#left)) end
  end
  return ids
end

local function compare(n, o, limit, teams)
  local m, v = mixture(o)
  local ids, x, x_bytes = choices(n, m, o.only), reference.random(n * m.width)
  local weights, weights_bytes = reference.random(n * m.used)
  local out, out_bytes
  if o.accumulate then out, out_bytes = reference.random(n * m.width) end
  local ref = plain(m, v, x, ids, weights, out)
  reference.each(function(rt)
    return ops.experts(rt, x_bytes, ops.ints(ids), weights_bytes, m, out_bytes)
  end, function(result, fail)
    reference.near(result, ref, limit or 1e-5, fail, ("%s, %d tokens"):format(o.dtype, n))
  end, teams)
end

describe("experts", function()
  it("add up, weighted", function()
    compare(1, { dtype = "f32", experts = 1, used = 1, width = 1, ff = 1 })
    compare(7, { dtype = "f32", experts = 5, used = 3, width = 37, ff = 19, biases = true })
    compare(3, { dtype = "f32", experts = 40, used = 4, width = 9, ff = 33, accumulate = true })
    compare(19, { dtype = "f32", experts = 6, used = 2, width = 16, ff = 5, plain = true,
      activation = "relu" })
    compare(4, { dtype = "f32", experts = 3, used = 3, width = 12, ff = 8, biases = true,
      accumulate = true, activation = "swiglu_clamped" })
  end)

  it("that nobody takes, or that all take", function()
    compare(9, { dtype = "f32", experts = 300, used = 2, width = 5, ff = 3, only = 2 })
    compare(ops.small_n + 7, { dtype = "f32", experts = 4, used = 1, width = 21, ff = 13,
      only = 1 })
    compare(ops.small_n + 70, { dtype = "f16", experts = 3, used = 2, width = 16, ff = 8 })
  end)

  it("of any dtype", function()
    local _, blocks = helper.dtypes "weights"
    for _, dtype in ipairs { "f16", "bf16", "q8_0", "q4_0", "q6_k" } do
      local block = math.max(blocks[dtype], 32)
      compare(block > 32 and 3 or 11, { dtype = dtype, experts = 3, used = 2, width = block,
        ff = block, biases = block == 32 })
    end
  end)

  it("are rounded where a runtime rounds", function()
    local rounding = reference.teams("avx512bf16", "amxbf16", "avx512int8", "amxint8")
    for _, dtype in ipairs { "bf16", "q8_0" } do
      for _, n in ipairs { 1, 40 } do
        compare(n, { dtype = dtype, experts = 2, used = 2, width = 64, ff = 32 }, 3e-2, rounding)
      end
    end
  end)

  it("give a token the same in any company", function()
    local m = mixture { dtype = "f32", experts = 6, used = 2, width = 24, ff = 20 }
    local n, ids = 12, {}
    for i, id in ipairs(choices(12, m)) do ids[i] = id end
    local _, x = reference.random(n * m.width)
    local _, weights = reference.random(n * m.used)
    reference.each(function(rt)
      local alone = {}
      for token = 0, n - 1 do
        alone[#alone + 1] = ops.experts(rt,
          x:sub(token * m.width * 4 + 1, (token + 1) * m.width * 4),
          ops.ints { ids[2 * token + 1], ids[2 * token + 2] },
          weights:sub(token * 8 + 1, token * 8 + 8), m)
      end
      return { ops.experts(rt, x, ops.ints(ids), weights, m), table.concat(alone) }
    end, function(result, fail)
      if result[1] ~= result[2] then fail("tokens differ from them alone") end
    end)
  end)
end)

describe("gate_rows", function()
  it("multiplies rows by sigmoids", function()
    for _, shape in ipairs { { 1, 1 }, { 5, 3 }, { 70, 300 } } do
      local n, d = shape[1], shape[2]
      local x, x_bytes = reference.random(n * d)
      local logits, logits_bytes = reference.random(n, 5)
      local ref = {}
      for i, value in ipairs(x) do
        ref[i] = value / (1 + math.exp(-logits[(i - 1) // d + 1]))
      end
      reference.each(function(rt)
        return ops.gate_rows(rt, x_bytes, logits_bytes, d)
      end, function(result, fail) reference.near(result, ref, 1e-6, fail, "rows") end)
    end
  end)
end)

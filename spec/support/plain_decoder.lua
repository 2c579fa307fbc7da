--- A decoder with its switches (pyr_model_config) in plain Lua, in float64 and token by token: what
--- gives specs of policies attention, keys and values that no kernel has computed. It reads what
--- pyramid.loaders finds in a folder, and hands testing.run what a model sees under a policy.
local loaders = require "pyramid.loaders"
local reference = require "spec.support.ops_reference"
local transformer = require "spec.support.transformer"

local times, add = transformer.times, transformer.add

local plain = {}

local codes = { f32 = { "f", 4 }, bf16 = { "I2", 2 } }

local fp4 = { [0] = 0, 0.5, 1, 1.5, 2, 3, 4, 6, 0, -0.5, -1, -1.5, -2, -3, -4, -6 }

-- Values of a tensor: rows of a matrix, or a vector. Rows may lie in runs, columns in a wider
-- matrix that is held as [in, out] (pyr_tensor_spec); of packed ones mxfp4 is known.
local function read(files, t)
  files[t.path] = files[t.path] or require "spec.helper".read(t.path)
  local code = t.packed or assert(codes[t.dtype], t.dtype)
  local rows, cols = t.shape[1], t.shape[2] or 1
  local function value(at)
    if t.packed then
      local byte = files[t.path]:byte(t.offset + at // 2 + 1)
      return fp4[byte >> at % 2 * 4 & 15]
        * 2.0 ^ (files[t.path]:byte(t.packed.scales.offset + at // 32 + 1) - 127)
    end
    local x = string.unpack("<" .. code[1], files[t.path], t.offset + at * code[2] + 1)
    return code[2] == 2 and string.unpack("<f", string.pack("<I4", x << 16)) or x
  end
  local out = {}
  for r = 0, rows - 1 do
    local row, at = {}, (t.run and not t.transposed) and r // t.run * t.step + r % t.run or r
    for c = 0, cols - 1 do
      row[c + 1] = value(t.transposed and c * (t.step or rows) + r * (t.every or 1)
        or at * cols + c)
    end
    out[r + 1] = t.shape[2] and row or row[1]
  end
  return out
end

--- The model of a path.
---@param path string
---@return table
function plain.open(path)
  local source = assert(loaders.open(path))
  local config, files = source.config, {}
  local model = { config = config, layers = {} }
  for i = 1, config.layers do model.layers[i] = { experts = {} } end
  for _, w in ipairs(assert(loaders.weights(source))) do
    local into = w.layer and model.layers[w.layer] or model
    if w.expert then
      into.experts[w.expert] = into.experts[w.expert] or {}
      into = into.experts[w.expert]
    end
    into[w.role] = read(files, w.tensor)
  end
  model.output = model.output or model.embed
  return model
end

local activations = {
  silu = function(x) return x / (1 + math.exp(-x)) end,
  gelu_tanh = function(x)
    local e = math.exp(-2 * 0.7978845608028654 * (x + 0.044715 * x ^ 3))
    return x / (1 + e)
  end,
  -- erf by its series: |x| is a few units here
  gelu = function(x)
    local z = x / math.sqrt(2)
    local term, sum, n = z, z, 0
    repeat
      n = n + 1
      term = -term * z * z / n
      sum = sum + term / (2 * n + 1)
    until math.abs(term) < 1e-17
    return x / 2 * (1 + 2 / math.sqrt(math.pi) * sum)
  end,
  relu = function(x) return math.max(x, 0) end,
  relu2 = function(x) return math.max(x, 0) ^ 2 end,
}

local function normed(config, x, weight, bias)
  local n, mean, square, out = #x, 0.0, 0.0, {}
  if config.decoder.norm == "layer" then
    for i = 1, n do mean = mean + x[i] / n end
  end
  for i = 1, n do square = square + (x[i] - mean) ^ 2 / n end
  local scale = 1 / math.sqrt(square + config.norm_eps)
  for i = 1, n do
    out[i] = (x[i] - mean) * scale * (weight[i] + (config.decoder.norm_offset or 0))
      + (bias and bias[i] or 0)
  end
  return out
end

local function biased(x, bias) return bias and add(x, bias) or x end

local function scaled(x, by)
  if not by or by == 0 then return x end
  local out = {}
  for i, v in ipairs(x) do out[i] = v * by end
  return out
end

-- What turns a layer's heads: pyramid.Rope, or nil.
local function rope_of(config, layer)
  local turns = config.decoder.turns
  local which = turns and turns[layer] or "first"
  return which == "first" and config.rope or which == "second" and config.rope_second or nil
end

-- A head turned to a position (or on by so many); `gain` of the table, or 1.
local function turned(head, position, r, gain)
  if not r then return head end
  local out, half = table.move(head, 1, #head, 1, {}), r.dims // 2
  for p = 1, half do
    local i, j = p, p + half
    if r.style == "interleaved" then i, j = 2 * p - 1, 2 * p end
    local c, s = math.cos(position * r.freq[p]) * gain, math.sin(position * r.freq[p]) * gain
    out[i], out[j] = head[i] * c - head[j] * s, head[j] * c + head[i] * s
  end
  return out
end

-- Heads of a projection, normed where the model norms them.
local function heads_of(config, x, count, norm)
  local dim, how, heads = config.head_dim, config.decoder.qk_norm or "head", {}
  if norm and how == "width" then x = normed(config, x, norm) end
  for h = 1, count do
    local head = table.move(x, (h - 1) * dim + 1, h * dim, 1, {})
    if norm and how ~= "width" then
      head = normed(config, head, how == "each"
        and table.move(norm, (h - 1) * dim + 1, h * dim, 1, {}) or norm)
    end
    heads[h] = head
  end
  return heads
end

-- What queries are multiplied by where they are turned to a position.
local function tempered(config, position)
  local d = config.decoder
  if (d.temper or 0) == 0 then return 1 end
  return 1 + d.temper * math.log(1 + position // d.temper_length)
end

local function turn_all(heads, position, r)
  local out = {}
  for h, head in ipairs(heads) do out[h] = turned(head, position, r, r and r.gain or 1) end
  return out
end

local function plain_mlp(config, w, x)
  local act, up = activations[config.decoder.activation or "silu"],
    biased(times(w.up, x), w.up_bias)
  local gate, limit = w.gate and biased(times(w.gate, x), w.gate_bias),
    config.decoder.activation_limit
  for i, v in ipairs(act and {} or up) do
    local g = math.min(gate[i], limit)
    up[i] = g / (1 + math.exp(-1.702 * g)) * (math.max(-limit, math.min(v, limit)) + 1)
  end
  for i, v in ipairs(act and up or {}) do up[i] = gate and act(gate[i]) * v or act(v) end
  return biased(times(w.down, up), w.down_bias)
end

local function sigmoid(x) return 1 / (1 + math.exp(-x)) end

-- Ranks of experts, but for those of groups that a token does not take: of all groups it takes
-- those whose two highest experts are highest in sum.
local function in_groups(d, ranks)
  if (d.groups or 0) == 0 then return ranks end
  local each, groups, out = d.experts // d.groups, {}, {}
  for g = 1, d.groups do
    local own = table.move(ranks, (g - 1) * each + 1, g * each, 1, {})
    table.sort(own, function(a, b) return a > b end)
    groups[g] = { at = g, sum = own[1] + own[2] }
  end
  table.sort(groups, function(a, b) return a.sum > b.sum end)
  for e = 1, d.experts do out[e] = -math.huge end
  for i = 1, d.groups_used do
    local first = (groups[i].at - 1) * each + 1
    table.move(ranks, first, first + each - 1, first, out)
  end
  return out
end

-- The experts that a token takes, those of highest weight, and the shared one.
local function mixture(config, w, x)
  local d, weights, order, sum, out = config.decoder, times(w.router, x), {}, 0.0, {}
  weights = biased(weights, w.router_bias)
  for e, v in ipairs(weights) do
    weights[e] = d.router == "sigmoid" and sigmoid(v) or math.exp(v)
    order[e], sum = e, sum + weights[e]
  end
  if d.router ~= "sigmoid" then weights = scaled(weights, 1 / sum) end
  local ranks = in_groups(d, biased(weights, w.router_correction))
  table.sort(order, function(a, b) return ranks[a] > ranks[b] end)
  sum = 0.0
  for i = 1, d.experts_used do sum = sum + weights[order[i]] end
  for i = 1, #x do out[i] = 0.0 end
  for i = 1, d.experts_used do
    local weight = weights[order[i]] / (d.router_renormalise and sum or 1)
    out = add(out, scaled(plain_mlp(config, w.experts[order[i]], x),
      weight * (d.router_scale or 1)))
  end
  if not w.shared_up then return out end
  return add(out, scaled(plain_mlp(config, { gate = w.shared_gate, up = w.shared_up,
    down = w.shared_down }, x), w.shared_router and sigmoid(times(w.shared_router, x)[1]) or 1))
end

-- x behind a layer, from x before it and what its heads read.
local function behind(config, w, x, mixed)
  local d, joined = config.decoder, {}
  for _, head in ipairs(mixed) do table.move(head, 1, #head, #joined + 1, joined) end
  local function part(y, post)
    if post then y = normed(config, y, post) end
    return scaled(y, d.residual_scale)
  end
  local function before(y)
    if d.norm_place == "after" then return y end
    if d.residual == "shared" then return normed(config, y, w.attn_norm, w.attn_norm_bias) end
    return normed(config, y, w.ffn_norm, w.ffn_norm_bias)
  end
  local y = add(x, part(biased(times(w.o, joined), w.o_bias), w.attn_post_norm))
  local parallel = d.residual == "parallel" or d.residual == "shared"
  local mlp = w.router and mixture or plain_mlp
  return add(y, part(mlp(config, w, before(parallel and x or y)), w.ffn_post_norm))
end

--- What testing.run wants (attend, keys, values, outputs, expected) of a model that reads `ids`,
--- one after another; and `logits(position)` (from 1) of one whose rows all layers have.
---@param model table  plain.open's
---@param ids integer[]
function plain.source(model, ids)
  local config, layers = model.config, {}    -- [layer][position]: { x, raw, q, k, v, mixed }
  local d, group = config.decoder, config.heads // config.kv_heads
  local scale = d.score_scale and d.score_scale > 0 and d.score_scale or config.head_dim ^ -0.5
  for i = 1, config.layers do layers[i] = {} end

  local function state_of(layer, position)
    local state = layers[layer][position]
    if state then return state end
    local w, r = model.layers[layer], rope_of(config, layer)
    local x
    if layer > 1 then
      local below = layers[layer - 1][position]
      x = behind(config, model.layers[layer - 1], below.x, below.mixed)
    else
      x = scaled(model.embed[ids[position + 1] + 1], d.embed_scale)
      if model.embed_norm then x = normed(config, x, model.embed_norm, model.embed_norm_bias) end
      if d.positions then
        x = add(x, model.positions[position + (config.first_position or 0) + 1])
      end
    end
    local h = d.norm_place == "after" and x or normed(config, x, w.attn_norm, w.attn_norm_bias)
    local raw = heads_of(config, biased(times(w.q, h), w.q_bias), config.heads, w.q_norm)
    local keys = heads_of(config, biased(times(w.k, h), w.k_bias), config.kv_heads, w.k_norm)
    state = { x = x, mixed = {}, raw = raw, q = turn_all(raw, position, r),
      k = turn_all(keys, position, r),
      v = heads_of(config, biased(times(w.v, h), w.v_bias), config.kv_heads) }
    layers[layer][position] = state
    return state
  end

  -- Queries turned as their rows are see keys as they were read: what counts is how far apart they
  -- are. A row outside of the window has no weight.
  local function attend(layer, head, query, positions, held)
    local state, kv_head, r = state_of(layer, query), (head - 1) // group + 1,
      rope_of(config, layer)
    local window = config.window and config.window[layer] or 0
    local sinks = model.layers[layer].sinks
    local sink = sinks and sinks[head] or -math.huge
    local q, weights, top, mixed = state.q[head], {}, sink, {}
    local compact = held.compact and window == 0       -- rows of a window stay where they were
    local sharp = scale * tempered(config, compact and #positions - 1 or query)
    for i, position in ipairs(positions) do
      local merged, dot = held.merged and held.merged[position], 0.0
      local k = merged and merged.key or state_of(layer, position).k[kv_head]
      if compact then k = turned(k, (query - #positions + 1) - (position - i + 1), r, 1) end
      for c = 1, #q do dot = dot + q[c] * k[c] end
      weights[i] = (window > 0 and position <= query - window) and -math.huge
        or reference.bent(dot * sharp, d.score_cap, d.slopes and d.slopes[head], query - position)
      top = math.max(top, weights[i])
    end
    local none = sink > -math.huge and math.exp(sink - top) or 0.0
    local sum = none
    for c = 1, #q do mixed[c] = 0.0 end
    for i, position in ipairs(positions) do
      local merged = held.merged and held.merged[position]
      local e, v = math.exp(weights[i] - top), merged and merged.value
        or state_of(layer, position).v[kv_head]
      weights[i], sum = e, sum + e
      for c = 1, #q do mixed[c] = mixed[c] + e * v[c] end
    end
    for c = 1, #q do mixed[c] = mixed[c] / sum end
    state.mixed[head] = mixed
    return weights, none
  end

  -- The L1 norm of what a value adds by way of a query head, before any norm behind it.
  local function outputs(layer, head, value)
    local sum, at = 0.0, (head - 1) * #value
    for _, row in ipairs(model.layers[layer].o) do
      local dot = 0.0
      for c, x in ipairs(value) do dot = dot + row[at + c] * x end
      sum = sum + math.abs(dot)
    end
    return sum
  end

  local function expected(layer, head, keys, how)
    local r, queries, flat, dim = rope_of(config, layer), {}, {}, config.head_dim
    for i, position in ipairs(how.queries) do
      queries[i] = scaled(state_of(layer, position).raw[head], tempered(config, position))
    end
    for _, key in ipairs(keys) do table.move(key, 1, dim, #flat + 1, flat) end
    if #queries == 0 then
      for i = 1, #keys do queries[i] = 0.0 end
      return queries
    end
    return reference.expected(queries, flat, dim, 0, #keys, { next = how.next,
      future = how.future, covariance = how.covariance, freq = r and r.freq or {},
      style = r and r.style == "interleaved" and 1 or 0, gain = r and r.gain or 1, scale = scale })
  end

  local function logits(position)
    local last = layers[config.layers][position]
    local x = behind(config, model.layers[config.layers], last.x, last.mixed)
    local out = scaled(biased(times(model.output,
      normed(config, x, model.out_norm, model.out_norm_bias)), model.output_bias), d.logit_scale)
    for i, v in ipairs(out) do out[i] = reference.bent(v, d.logit_cap, 0, 0) end
    return out
  end

  return { attend = attend, outputs = outputs, expected = expected, logits = logits,
    keys = function(layer, head, position) return layers[layer][position].k[head] end,
    values = function(layer, head, position) return layers[layer][position].v[head] end }
end

return plain

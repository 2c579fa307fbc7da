-- A Llama in plain Lua, in float64 and token by token: where specs get true attention, keys and
-- values from, apart from the core. It reads a Hugging Face folder of f32 weights, and hands
-- testing.run what a model would see under a policy.
local cjson = require "cjson"
local reference = require "spec.support.ops_reference"
local safetensors = require "pyramid.loaders.safetensors"

local transformer = {}

local function read_bytes(path)
  local file <close> = assert(io.open(path, "rb"))
  return file:read "a"
end

-- Rows of an f32 matrix, or the one row of a vector.
local function rows_of(bytes, tensor)
  local rows, cols = tensor.shape[2] and tensor.shape[1] or 1, tensor.shape[2] or tensor.shape[1]
  local matrix = {}
  for r = 1, rows do
    local row = { string.unpack("<" .. ("f"):rep(cols), bytes,
      tensor.offset + (r - 1) * cols * 4 + 1) }
    row[cols + 1] = nil
    matrix[r] = row
  end
  return matrix
end

--- matrix . x
function transformer.times(matrix, x)
  local out, n = {}, #x
  for r, row in ipairs(matrix) do
    local sum = 0.0
    for i = 1, n do sum = sum + row[i] * x[i] end
    out[r] = sum
  end
  return out
end

function transformer.normed(x, weight, eps)
  local sum, out = 0.0, {}
  for _, v in ipairs(x) do sum = sum + v * v end
  local scale = 1 / math.sqrt(sum / #x + eps)
  for i, v in ipairs(x) do out[i] = v * scale * weight[i] end
  return out
end

function transformer.add(x, y)
  local out = {}
  for i, v in ipairs(x) do out[i] = v + y[i] end
  return out
end

--- Heads of a vector, each turned by its position (if given): the first half of a head against the
--- second.
function transformer.heads_of(x, count, position, base)
  local dim, heads = #x // count, {}
  for h = 1, count do
    local head = table.move(x, (h - 1) * dim + 1, h * dim, 1, {})
    for i = 1, position and dim // 2 or 0 do
      local angle = position * base ^ (-2 * (i - 1) / dim)
      local a, b, c, s = head[i], head[i + dim // 2], math.cos(angle), math.sin(angle)
      head[i], head[i + dim // 2] = a * c - b * s, b * c + a * s
    end
    heads[h] = head
  end
  return heads
end

--- What the feed-forward part of a layer adds.
function transformer.feed_forward(w, x, eps)
  local normal = transformer.normed(x, w.ffn_norm, eps)
  local gate, up = transformer.times(w.gate, normal), transformer.times(w.up, normal)
  for i, g in ipairs(gate) do gate[i] = g / (1 + math.exp(-g)) * up[i] end
  return transformer.times(w.down, gate)
end

local times, normed, add, heads_of = transformer.times, transformer.normed, transformer.add,
  transformer.heads_of

--- The weights of a folder.
function transformer.load(folder)
  local config = cjson.decode(read_bytes(folder .. "/config.json"))
  local bytes, found = read_bytes(folder .. "/model.safetensors"), {}
  for _, tensor in ipairs(assert(safetensors.read(folder .. "/model.safetensors")).tensors) do
    found[tensor.name] = rows_of(bytes, tensor)
  end
  local layers = {}
  for i = 1, config.num_hidden_layers do
    local function of(name) return found[("model.layers.%d.%s.weight"):format(i - 1, name)] end
    layers[i] = { attn_norm = of "input_layernorm"[1], ffn_norm = of "post_attention_layernorm"[1],
      q = of "self_attn.q_proj", k = of "self_attn.k_proj", v = of "self_attn.v_proj",
        o = of "self_attn.o_proj", gate = of "mlp.gate_proj", up = of "mlp.up_proj",
          down = of "mlp.down_proj" }
  end
  return { embed = found["model.embed_tokens.weight"], norm = found["model.norm.weight"][1],
    output = found["lm_head.weight"], layers = layers, heads = config.num_attention_heads,
      kv_heads = config.num_key_value_heads, eps = config.rms_norm_eps, base = config.rope_theta }
end

--- What testing.run wants (attend, keys, values, outputs, expected) of a model that reads `ids`,
--- one after another.
function transformer.source(model, ids)
  local layers = {}                     -- [layer][position]: { x, q, k, v, mixed }
  for i = 1, #model.layers do layers[i] = {} end
  local group = model.heads // model.kv_heads

  local function state_of(layer, position)
    local state = layers[layer][position]
    if state then return state end
    local w, x = model.layers[layer], model.embed[ids[position + 1] + 1]
    if layer > 1 then
      local below, v = layers[layer - 1][position], model.layers[layer - 1]
      local joined = {}
      for h = 1, model.heads do
        table.move(below.mixed[h], 1, #below.mixed[h], #joined + 1, joined)
      end
      local y = add(below.x, times(v.o, joined))
      x = add(y, transformer.feed_forward(v, y, model.eps))
    end
    local normal = normed(x, w.attn_norm, model.eps)
    state = { x = x, mixed = {}, q = heads_of(times(w.q, normal), model.heads, position,
      model.base), k = heads_of(times(w.k, normal), model.kv_heads, position, model.base),
        v = heads_of(times(w.v, normal), model.kv_heads) }
    layers[layer][position] = state
    return state
  end

  -- A vector turned on by so many positions.
  local function turned(x, by) return heads_of(x, 1, by, model.base)[1] end

  -- Queries turned as their rows are see keys as they were read: what counts is how far apart they
  -- are.
  local function attend(layer, head, query, positions, held)
    local state, kv_head = state_of(layer, query), (head - 1) // group + 1
    local q, weights, top, sum, mixed = state.q[head], {}, -math.huge, 0.0, {}
    for i, position in ipairs(positions) do
      local merged, dot = held.merged and held.merged[position], 0.0
      local k = merged and merged.key or state_of(layer, position).k[kv_head]
      if held.compact then k = turned(k, (query - #positions + 1) - (position - i + 1)) end
      for d = 1, #q do dot = dot + q[d] * k[d] end
      weights[i] = dot / math.sqrt(#q)
      top = math.max(top, weights[i])
    end
    for d = 1, #q do mixed[d] = 0.0 end
    for i, position in ipairs(positions) do
      local merged = held.merged and held.merged[position]
      local e, v = math.exp(weights[i] - top), merged and merged.value
        or layers[layer][position].v[kv_head]
      weights[i], sum = e, sum + e
      for d = 1, #q do mixed[d] = mixed[d] + e * v[d] end
    end
    for d = 1, #q do mixed[d] = mixed[d] / sum end
    state.mixed[head] = mixed
    return weights
  end

  -- The L1 norm of what a value adds to the residual stream by way of a query head.
  local function outputs(layer, head, value)
    local sum, at = 0.0, (head - 1) * #value
    for _, row in ipairs(model.layers[layer].o) do
      local dot = 0.0
      for d, x in ipairs(value) do dot = dot + row[at + d] * x end
      sum = sum + math.abs(dot)
    end
    return sum
  end

  local function expected(layer, head, keys, how)
    local dim, freq, queries, flat, zeros = #keys[1], {}, {}, {}, {}
    for d = 1, dim do zeros[d] = 0.0 end
    for p = 1, dim // 2 do freq[p] = model.base ^ (-2 * (p - 1) / dim) end
    for i, position in ipairs(how.queries) do
      queries[i] = turned(state_of(layer, position).q[head], -position)
    end
    for _, key in ipairs(keys) do table.move(key, 1, dim, #flat + 1, flat) end
    if #queries == 0 then return times(keys, zeros) end
    return reference.expected(queries, flat, dim, 0, #keys,
      { next = how.next, future = how.future, covariance = how.covariance, freq = freq, style = 0,
        gain = 1, scale = dim ^ -0.5 })
  end

  return { attend = attend, outputs = outputs, expected = expected,
    keys = function(layer, head, position) return layers[layer][position].k[head] end,
    values = function(layer, head, position) return layers[layer][position].v[head] end }
end

return transformer

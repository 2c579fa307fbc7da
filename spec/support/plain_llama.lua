--- A Llama in plain Lua and double precision, one token at a time, over rows that a spec may drop and change: what the
--- engine is held against where lanes differ in length. Reads folders of pyramid.random_model (f32, no biases).
local cjson = require "cjson"

local plain = {}
plain.__index = plain

local function floats(bytes, offset, count)
  local out = {}
  for at = 0, count - 1, 128 do
    local n = math.min(128, count - at)
    table.move({ string.unpack("<" .. ("f"):rep(n), bytes, offset + 4 * at + 1) }, 1, n, at + 1, out)
  end
  return out
end

local function read(path)
  local file <close> = assert(io.open(path, "rb"))
  return file:read "a"
end

function plain.open(folder)
  local config, bytes = cjson.decode(read(folder .. "/config.json")), read(folder .. "/model.safetensors")
  local head = ("<s8"):unpack(bytes)
  local weights = {}
  for name, entry in pairs(cjson.decode(head)) do
    local from, to = table.unpack(entry.data_offsets)
    weights[name] = floats(bytes, math.tointeger(8 + #head + from), math.tointeger((to - from) // 4))
  end
  local function int(name) return math.tointeger(config[name]) end
  return setmetatable({ weights = weights, layers = int "num_hidden_layers", heads = int "num_attention_heads",
    kv_heads = int "num_key_value_heads", width = int "hidden_size", vocab = int "vocab_size", base = config.rope_theta,
    eps = config.rms_norm_eps, head_dim = int "hidden_size" // int "num_attention_heads" }, plain)
end

--- Lanes without rows: lanes[layer][head] is a sequence of { position, k (before rotation), turned (rotated), v,
--- history (attention so far), seen = { [position of a query] = attention } }.
function plain:lanes()
  local lanes = { tokens = 0 }
  for layer = 1, self.layers do
    lanes[layer] = {}
    for head = 1, self.kv_heads do lanes[layer][head] = {} end
  end
  return lanes
end

local function times(w, x)
  local out, cols = {}, #x
  for r = 0, #w // cols - 1 do
    local sum, at = 0.0, r * cols
    for i = 1, cols do sum = sum + w[at + i] * x[i] end
    out[r + 1] = sum
  end
  return out
end

local function add(x, y)
  for i = 1, #x do x[i] = x[i] + y[i] end
end

function plain:norm(x, weight)
  local sum, out = 0.0, {}
  for i = 1, #x do sum = sum + x[i] ^ 2 end
  local scale = (sum / #x + self.eps) ^ -0.5
  for i = 1, #x do out[i] = x[i] * scale * weight[i] end
  return out
end

--- Head `head` (from 0) of x, rotated to `position`.
function plain:rotated(x, head, position)
  local d, out = self.head_dim, {}
  for i = 0, d // 2 - 1 do
    local angle = position * self.base ^ (-2 * i / d)
    local a, b = x[head * d + i + 1], x[head * d + i + d // 2 + 1]
    out[i + 1] = a * math.cos(angle) - b * math.sin(angle)
    out[i + d // 2 + 1] = a * math.sin(angle) + b * math.cos(angle)
  end
  return out
end

local function attend(q, lane, scale, position, share)
  local p, top, sum, out = {}, -math.huge, 0.0, {}
  for j, row in ipairs(lane) do
    local s = 0.0
    for i = 1, #q do s = s + q[i] * row.turned[i] end
    p[j], top = s * scale, math.max(top, s * scale)
  end
  for j = 1, #p do
    p[j] = math.exp(p[j] - top)
    sum = sum + p[j]
  end
  for i = 1, #q do out[i] = 0.0 end
  for j, row in ipairs(lane) do
    local weight = p[j] / sum
    row.history = row.history + weight * share
    row.seen[position] = (row.seen[position] or 0) + weight * share
    for i = 1, #q do out[i] = out[i] + weight * row.v[i] end
  end
  return out
end

--- Reads one token; returns its logits (from 1). turned(lane): what its q and k are rotated to in a layer; its position
--- unless given.
function plain:step(lanes, id, turned)
  local w, d, position = self.weights, self.head_dim, lanes.tokens
  local x = table.move(w["model.embed_tokens.weight"], id * self.width + 1, (id + 1) * self.width, 1, {})
  for layer = 1, self.layers do
    local name = ("model.layers.%d."):format(layer - 1)
    local h = self:norm(x, w[name .. "input_layernorm.weight"])
    local q, k, v = times(w[name .. "self_attn.q_proj.weight"], h), times(w[name .. "self_attn.k_proj.weight"], h),
      times(w[name .. "self_attn.v_proj.weight"], h)
    local to, mixed, group = turned and turned(lanes[layer][1]) or position, {}, self.heads // self.kv_heads
    for head = 0, self.kv_heads - 1 do
      local lane = lanes[layer][head + 1]
      lane[#lane + 1] = { position = position, history = 0, seen = {}, k = table.move(k, head * d + 1, (head + 1) * d, 1, {}),
        turned = self:rotated(k, head, to), v = table.move(v, head * d + 1, (head + 1) * d, 1, {}) }
    end
    for head = 0, self.heads - 1 do
      local out = attend(self:rotated(q, head, to), lanes[layer][head // group + 1], d ^ -0.5, position, 1 / group)
      table.move(out, 1, d, head * d + 1, mixed)
    end
    add(x, times(w[name .. "self_attn.o_proj.weight"], mixed))
    h = self:norm(x, w[name .. "post_attention_layernorm.weight"])
    local gate, up = times(w[name .. "mlp.gate_proj.weight"], h), times(w[name .. "mlp.up_proj.weight"], h)
    for i = 1, #gate do gate[i] = gate[i] / (1 + math.exp(-gate[i])) * up[i] end
    add(x, times(w[name .. "mlp.down_proj.weight"], gate))
  end
  lanes.tokens = position + 1
  return times(w["lm_head.weight"], self:norm(x, w["model.norm.weight"]))
end

--- Drops the rows of one lane whose positions are not listed; returns the indices (from 0) of those that stay.
function plain.keep(lane, positions)
  local listed, kept, idx = {}, {}, {}
  for _, position in ipairs(positions) do listed[position] = true end
  for j, row in ipairs(lane) do
    if listed[row.position] then
      kept[#kept + 1] = row
      idx[#idx + 1] = j - 1
    end
  end
  assert(#kept == #positions, "a row that was dropped before is held")
  for j = 1, #lane do lane[j] = kept[j] end
  return idx
end

return plain

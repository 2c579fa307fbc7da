--- What a Hugging Face configuration says, as GGUF's metadata: general.* and, under the name of the
--- architecture, the model's shape, its RoPE, its windows and its experts; families put what is
--- their files' alone (the field `to_gguf`). Source of the keys:
--- https://github.com/ggml-org/ggml/blob/master/docs/gguf.md, and the `gguf` package's constants.
---
--- Files say less than configurations. What their readers take for granted is not known here, but
--- asked: metadata.check holds what the new file's header would be read as against the model that
--- it is made of, and refuses by name what does not come back.
local fault = require "pyramid.loaders.fault"

local metadata = {}

--- One width for all layers that slide, and which do where files of the family list them.
local function add_window(add, source)
  local window, width, listed = source.config.window or {}, 0, {}
  for i, w in ipairs(window) do
    if w > 0 and width > 0 and w ~= width then
      fault.raise("unsupported", "%s/config.json: windows of %d and of %d, where a GGUF file has "
        .. "one for all layers", source.path, width, w)
    end
    width, listed[i] = math.max(width, w), w > 0
  end
  if width == 0 then return end
  add("attention.sliding_window", "u32", width)
  if source.family.gguf_pattern then
    add("attention.sliding_window_pattern", "array:bool", listed)
  end
end

local function add_experts(add, c)
  local d = c.decoder
  if (d.experts or 0) == 0 then return end
  add("expert_count", "u32", d.experts)
  add("expert_used_count", "u32", d.experts_used)
  add("expert_feed_forward_length", "u32", d.expert_ff)
  if (d.shared_ff or 0) > 0 then add("expert_shared_feed_forward_length", "u32", d.shared_ff) end
  if (d.router_scale or 1) ~= 1 then add("expert_weights_scale", "f32", d.router_scale) end
end

--- Divisors of the frequencies for RoPE scaling of Llama 3.1: long waves by the factor, short ones
--- by 1, those between by a mix. GGUF has them as a tensor.
local function llama3_factors(r)
  local out = {}
  for i = 0, r.dims // 2 - 1 do
    local length = 2 * math.pi * r.base ^ (2 * i / r.dims)
    local smooth = (r.original / length - r.low) / (r.high - r.low)
    if length < r.original / r.high then out[i + 1] = 1.0
    elseif length > r.original / r.low then out[i + 1] = r.factor + 0.0
    else out[i + 1] = 1 / ((1 - smooth) / r.factor + smooth) end
  end
  return out
end

-- Returns tensors of divisors: { name, values }.
local function add_rope(add, source)
  local r, second = source.config.rope, source.config.rope_second
  if r.dims == 0 then return {} end
  add("rope.dimension_count", "u32", r.dims)
  add("rope.freq_base", "f32", r.base)
  if second then add("rope.freq_base_swa", "f32", second.base) end
  if r.type == "none" then return {} end
  if r.type == "llama3" then return { { "rope_freqs.weight", llama3_factors(r) } } end
  if r.type == "longrope" then
    add("rope.scaling.original_context_length", "u32", math.floor(r.original))
    add("rope.scaling.attn_factor", "f32", r.gain)
    return { { "rope_factors_long.weight", r.long }, { "rope_factors_short.weight", r.short } }
  end
  if r.type == "dynamic" then
    fault.raise("unsupported", "%s/config.json: RoPE scaling dynamic, which GGUF cannot say",
      source.path)
  end
  add("rope.scaling.type", "string", r.type)
  add("rope.scaling.factor", "f32", r.factor)
  if r.type == "linear" then return {} end
  if r.truncate == false then
    fault.raise("unsupported", "%s/config.json: RoPE scaling yarn with truncate = false, which "
      .. "GGUF cannot say", source.path)
  end
  add("rope.scaling.original_context_length", "u32", math.floor(r.original))
  add("rope.scaling.yarn_beta_fast", "f32", r.beta_fast)
  add("rope.scaling.yarn_beta_slow", "f32", r.beta_slow)
  -- readers multiply by 0.1 ln(factor) + 1 themselves
  local gain = r.factor > 1 and r.gain / (0.1 * math.log(r.factor) + 1) or 1
  if math.abs(gain - 1) > 1e-6 then add("rope.scaling.attn_factor", "f32", gain) end
  return {}
end

---What GGUF files of a family call it. Raises a fault where there are none.
---@param source pyramid.Source
---@return string
function metadata.architecture(source)
  local arch = source.family.gguf_as or source.family.gguf
  if not arch then
    fault.raise("unsupported", "%s/config.json: model_type: a folder of a %s cannot be written: "
      .. "there are no GGUF files of its kind", source.path, source.family.name)
  end
  return arch
end

---The entries for a Hugging Face model's configuration; divisors of its frequencies where GGUF has
---them as tensors, { name, values } each; names of tensors that this model's file has otherwise
---than its family. Raises faults.
---@param source pyramid.Source
---@return pyramid.GgufEntry[]
---@return { [1]: string, [2]: number[] }[] divisors
---@return table<string, string> names
function metadata.entries(source)
  local c, d, out = source.config, source.config.decoder, {}
  local arch = metadata.architecture(source)
  local function add(key, kind, value)
    if key:find "^general" == nil then key = arch .. "." .. key end
    out[#out + 1] = { key = key, kind = kind, value = value }
  end
  add("general.architecture", "string", arch)
  add("general.type", "string", "model")
  add("general.name", "string", source.path:match "([^/]+)/*$")
  add("general.quantization_version", "u32", 2)
  add("block_count", "u32", c.layers)
  add("context_length", "u32", c.context)
  add("embedding_length", "u32", c.width)
  add("feed_forward_length", "u32", c.ff > 0 and c.ff or d.expert_ff)
  add("vocab_size", "u32", c.vocab)
  add("attention.head_count", "u32", c.heads)
  add("attention.head_count_kv", "u32", c.kv_heads)
  add("attention.key_length", "u32", c.head_dim)
  add("attention.value_length", "u32", c.head_dim)
  add(d.norm == "layer" and "attention.layer_norm_epsilon" or "attention.layer_norm_rms_epsilon",
    "f32", c.norm_eps)
  add_window(add, source)
  add_experts(add, c)
  local divisors = add_rope(add, source)
  return out, divisors, source.family.to_gguf and source.family.to_gguf(add, c) or {}
end

-- What a switch that is not there means.
local silent = { activation = "silu", norm = "rms", norm_place = "before", qk_norm = "head",
  residual = "sequential", router = "softmax", embed_scale = 1, residual_scale = 1,
  logit_scale = 1, router_scale = 1 }

local function alike(a, b)
  if type(a) == "table" and type(b) == "table" then
    for i = 1, math.max(#a, #b) do
      if not alike(a[i], b[i]) then return false end
    end
    return true
  end
  -- as f32 holds them
  if type(a) == "number" and type(b) == "number" then
    return math.abs(a - b) <= 1e-6 * math.max(math.abs(a), math.abs(b))
  end
  return a == b
end

local function switch(config, key)
  local value = config.decoder[key]
  if value == false then value = nil end
  if key == "score_scale" and (value or 0) == 0 then return config.head_dim ^ -0.5 end
  if value == nil or value == 0 and silent[key] then return silent[key] or 0 end
  return value
end

---Raises a fault where a file's header is read as another model than the one it is made of.
---@param source pyramid.Source  the model
---@param made pyramid.Source    what its file would be
function metadata.check(source, made)
  local one, other = source.config, made.config
  local function hold(key, a, b)
    if alike(a, b) then return end
    if type(a) == "table" or type(b) == "table" then
      fault.raise("unsupported", "%s/config.json: a GGUF file of a %s cannot say its %s",
        source.path, source.family.name, key)
    end
    fault.raise("unsupported", "%s/config.json: a GGUF file of a %s cannot say that %s is %s (it "
      .. "is read as %s)", source.path, source.family.name, key, fault.quote(a), fault.quote(b))
  end
  for _, key in ipairs { "layers", "heads", "kv_heads", "head_dim", "width", "ff", "vocab",
    "context", "norm_eps", "tied" } do
    hold(key, one[key], other[key])
  end
  local none = {}
  for i = 1, one.layers do none[i] = 0 end
  hold("window", one.window or none, other.window or none)
  for _, key in ipairs { "rope", "rope_second" } do
    local r, its = one[key] or { dims = 0 }, other[key] or { dims = 0 }
    hold(key .. ".dims", r.dims, its.dims)
    hold(key .. ".freq", r.freq, its.freq)
    hold(key .. ".gain", r.gain or 1, its.gain or 1)
  end
  local keys = {}
  for _, config in ipairs { one, other } do
    for key in pairs(config.decoder) do keys[key] = true end
  end
  for i = 1, one.layers do none[i] = one.rope.dims == 0 and "none" or "first" end
  hold("turns", one.decoder.turns or none, other.decoder.turns or none)
  keys.norm_offset, keys.turns = nil, nil             -- the file has it added
  for key in pairs(keys) do hold(key, switch(one, key), switch(other, key)) end
end

return metadata

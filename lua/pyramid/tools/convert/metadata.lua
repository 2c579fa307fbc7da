--- What a Hugging Face configuration says, as GGUF's metadata: general.* and, under the name of the
--- architecture, the model's shape, its RoPE and its window. What GGUF's readers take for granted
--- and the configuration does not is refused by name. Source of the keys:
--- https://github.com/ggml-org/ggml/blob/master/docs/gguf.md, and the `gguf` package's constants.
local fault = require "pyramid.loaders.fault"

local metadata = {}

-- What GGUF files call the families whose folders can be written; others need keys of their own.
local architectures = { llama = "llama", mistral = "llama", qwen2 = "qwen2", qwen3 = "qwen3" }

--- The one window of all layers, 0 for none: GGUF files of these families cannot say which slide.
local function window_of(source)
  local window = source.config.window or {}
  for i = 2, #window do
    if window[i] ~= window[1] then
      fault.raise("unsupported", "%s/config.json: sliding_window: only some layers slide, which a "
        .. "GGUF file of a %s cannot say", source.path, source.family.name)
    end
  end
  local width = window[1] or 0
  if width > 0 and source.family.gguf_rope ~= "interleaved" then
    fault.raise("unsupported", "%s/config.json: sliding_window: a GGUF file of a %s cannot say it",
      source.path, source.family.name)
  end
  return width
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

local function add_rope(add, source)
  local r = source.config.rope
  add("rope.dimension_count", "u32", r.dims)
  add("rope.freq_base", "f32", r.base)
  if r.type == "none" then return nil end
  if r.type == "llama3" then return llama3_factors(r) end
  add("rope.scaling.type", "string", r.type)
  add("rope.scaling.factor", "f32", r.factor)
  if r.type == "linear" then return nil end
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
  return nil
end

---The entries for a Hugging Face model's configuration, and the divisors of its frequencies where
---GGUF has them as the tensor rope_freqs.weight. Raises faults.
---@param source pyramid.Source
---@return pyramid.GgufEntry[]
---@return number[]? factors
function metadata.entries(source)
  local c, out = source.config, {}
  local arch = architectures[source.family.name]
  if not arch then
    local names = {}
    for name in pairs(architectures) do names[#names + 1] = name end
    table.sort(names)
    fault.raise("unsupported", "%s/config.json: model_type: a folder of a %s cannot be written as "
      .. "a GGUF file yet (known: %s)", source.path, source.family.name, table.concat(names, ", "))
  end
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
  add("feed_forward_length", "u32", c.ff)
  add("vocab_size", "u32", c.vocab)
  add("attention.head_count", "u32", c.heads)
  add("attention.head_count_kv", "u32", c.kv_heads)
  add("attention.key_length", "u32", c.head_dim)
  add("attention.value_length", "u32", c.head_dim)
  add("attention.layer_norm_rms_epsilon", "f32", c.norm_eps)
  local window = window_of(source)
  if window > 0 then add("attention.sliding_window", "u32", window) end
  return out, add_rope(add, source)
end

return metadata

-- Models in GGUF files: what metadata and tensors say of the configuration. The file's header is
-- read by loaders/gguf.lua, its weights are bound by loaders/init.lua. What a file asks for and
-- Pyramid lacks is refused by name. Source of keys and names:
-- https://github.com/ggml-org/ggml/blob/master/docs/gguf.md, and the `gguf` package's constants.

local families = require "pyramid.families"
local experts = require "pyramid.loaders.experts"
local fault = require "pyramid.loaders.fault"
local files = require "pyramid.files"
local gguf_split = require "pyramid.loaders.gguf_split"
local parts = require "pyramid.loaders.parts"
local refused = require "pyramid.loaders.refused"
local rope = require "pyramid.loaders.rope"
local switches = require "pyramid.loaders.switches"

local gguf_model = {}

---@class pyramid.GgufKeys
---@field path string
---@field prefix string    "llama."
---@field metadata table
local Keys = {}
Keys.__index = Keys

--- A value under the architecture's prefix, checked; `default` where it is absent, a fault where
--- there is none.
function Keys:get(key, kind, default)
  local name = self.prefix .. key
  local value = self.metadata[name]
  if value == nil then
    if default == nil then fault.raise("format", "%s: metadata %s is missing", self.path, name) end
    return default
  end
  -- one for each layer: all must be equal
  if kind == "integer" and type(value) == "table" and value[1] ~= nil then
    for _, v in ipairs(value) do
      if v ~= value[1] then
        fault.raise("unsupported", "%s: metadata %s differs from layer to layer", self.path, name)
      end
    end
    value = value[1]
  end
  local is = kind == "integer" and math.type(value) or type(value)
  if is ~= kind then fault.raise("format", "%s: metadata %s is not a %s", self.path, name, kind) end
  return value
end

function Keys:count(key, limit, default)
  local n = self:get(key, "integer", default)
  if n < 1 or n > limit then
    fault.raise("format", "%s: metadata %s%s is %d, outside 1..%d", self.path, self.prefix, key, n,
      limit)
  end
  return n
end

--- Kinds of files that Pyramid does not have.
local function refuse(keys, family)
  if not family.experts and keys:get("expert_count", "integer", 0) > 0 then
    fault.raise("unsupported", "%s: metadata %sexpert_count: a mixture of experts, of the family %s",
      keys.path, keys.prefix, family.name)
  end
end

--- Switches that would change the arithmetic (loaders/switches.lua).
local function refuse_switches(keys, facts, read)
  switches.refuse("gguf", function(key, kind)
    if read[key] or keys.metadata[keys.prefix .. key] == nil then return nil end
    local value = keys:get(key, kind)
    if value == 0 then return nil end              -- a number that is not set
    return value
  end, facts, function(key) return ("%s: metadata %s%s"):format(keys.path, keys.prefix, key) end)
end

--- The divisors that rope_freqs.weight holds (Llama 3.1's scaling, worked out by the converter), or
--- nil.
local function read_factors(t)
  if not t then return nil end
  if t.dtype ~= "f32" or #t.shape ~= 1 or t.shape[1] > 256 then
    fault.raise("unsupported", "%s: tensor %s is not a vector of f32", t.path, t.name)
  end
  local data = t.data
  if not data then
    local file <close> = fault.check(files.open(t.path))
    file:seek("set", t.offset)
    data = file:read(t.bytes)
  end
  if not data or #data ~= t.bytes then fault.raise("io", "%s: cannot be read", t.path) end
  local values = { ("<" .. ("f"):rep(t.shape[1])):unpack(data) }
  values[#values] = nil                                   -- unpack's position
  return values
end

-- What the metadata calls the fields of the rotary part.
local function rope_names(prefix)
  local names = {}
  for key, name in pairs {
    type = "scaling.type", base = "freq_base", dims = "dimension_count", factor = "scaling.factor",
    original = "scaling.original_context_length", beta_fast = "scaling.yarn_beta_fast",
      beta_slow = "scaling.yarn_beta_slow",
  } do
    names[key] = "metadata " .. prefix .. "rope." .. name
  end
  return names
end

local function read_rope(keys, family, head_dim, context, tensors)
  local kind, factor = keys:get("rope.scaling.type", "string", "none"),
    keys:get("rope.scaling.factor", "number", 0)
  if factor == 0 then factor = keys:get("rope.scale_linear", "number", 0) end     -- files of 2023
  if keys.metadata[keys.prefix .. "rope.scaling.type"] == nil and factor ~= 0 then
    kind = "linear"
  end
  local r = {
    type = kind, style = family.gguf_rope, dims = keys:count("rope.dimension_count", head_dim,
      head_dim),
    base = keys:get("rope.freq_base", "number", 10000), factor = factor ~= 0 and factor or nil,
    original = keys:get("rope.scaling.original_context_length", "integer", context),
    beta_fast = keys:get("rope.scaling.yarn_beta_fast", "number", 32),
    beta_slow = keys:get("rope.scaling.yarn_beta_slow", "number", 1), truncate = true,
    factors = read_factors(tensors["rope_freqs.weight"]), names = rope_names(keys.prefix),
    short = read_factors(tensors["rope_factors_short.weight"]),
    long = read_factors(tensors["rope_factors_long.weight"]), context = context,
  }
  if r.short and r.long then
    r.type, r.factor = "longrope", r.original > 0 and context / r.original or nil
    r.gain = keys:get("rope.scaling.attn_factor", "number", 0)
    if r.gain == 0 then r.gain = nil end
    return r
  end
  if kind ~= "yarn" then return r end
  local mix, log = keys:get("rope.scaling.yarn_ext_factor", "number", 1),
    keys:get("rope.scaling.yarn_log_multiplier", "number", 0)
  if mix ~= 1 then
    fault.raise("unsupported", "%s: metadata %srope.scaling.yarn_ext_factor is %s (known: 1)",
      keys.path, keys.prefix, fault.quote(mix))
  end
  local scale = keys:get("rope.scaling.yarn_attn_factor", "number",
    1) * keys:get("rope.scaling.attn_factor", "number", 1)
  if (scale ~= 1 or log ~= 0) and r.factor and r.factor > 1 then
    local grown = math.log(r.factor)
    r.gain = scale * (0.1 * grown + 1) / (0.1 * log * grown + 1)
  end
  return r
end

--- The sliding window of each layer, or nil. Files say which layers slide in a list of booleans, or
--- by a number n, for all but each n-th.
local function read_window(keys, family, layers)
  local width = keys:get("attention.sliding_window", "integer", 0)
  if width == 0 then return nil end
  local key = "attention.sliding_window_pattern"
  local pattern = keys.metadata[keys.prefix .. key]
  if type(pattern) == "table" and width > 0 then
    local window = {}
    for i = 1, layers do
      if type(pattern[i]) ~= "boolean" then
        fault.raise("format", "%s: metadata %s%s is no list of a boolean for each layer",
          keys.path, keys.prefix, key)
      end
      window[i] = pattern[i] and width or 0
    end
    return window
  end
  -- "llama" are Mistrals, too, of which all layers slide; of others the family knows which
  local window = width > 0 and family.window({
    sliding_window = width, sliding_window_pattern = pattern and keys:count(key, 1 << 20)
      or family.defaults.sliding_window_pattern,
  }, layers)
  if width > 0 and not window and family.gguf == "llama" then
    window = {}
    for i = 1, layers do window[i] = width end
  end
  if not window then
    fault.raise("unsupported", "%s: metadata %sattention.sliding_window of a %s", keys.path,
      keys.prefix, family.name)
  end
  return window
end

local function find_family(metadata, path)
  local name = metadata["general.architecture"]
  if type(name) ~= "string" then
    fault.raise("format", "%s: metadata general.architecture is missing", path)
  end
  local count = metadata[name .. ".expert_count"]
  local family = families.of_gguf(name, math.type(count) == "integer" and count > 0,
    function(key) return metadata[name .. "." .. key] ~= nil end)
  if not family then
    fault.raise("unsupported", "%s: architecture %s%s (known: %s)", path, fault.quote(name),
      refused.why(name), table.concat(families.gguf_list(), ", "))
  end
  return family
end

--- Ids that end a text: end of sequence, and of a turn where the file names one.
local function read_eos(metadata)
  local out, seen = {}, {}
  for _, key in ipairs { "eos_token_id", "eot_token_id", "eom_token_id" } do
    local id = metadata["tokenizer.ggml." .. key]
    if math.type(id) == "integer" and not seen[id] then
      seen[id] = true
      out[#out + 1] = id
    end
  end
  return out
end

--- Files of models that take ids alone say "none", as llama.cpp has it, or nothing.
local function has_tokenizer(metadata)
  local model = metadata["tokenizer.ggml.model"]
  return model ~= nil and model ~= "none" and model ~= "no_vocab"
end

--- A number above 0; `default` for 0, which ggml has for one that is not set.
local function positive(keys, key, default)
  local value = keys:get(key, "number")
  if value == 0 then return default end
  if not (value > 0 and value < 1e12) then
    fault.raise("format", "%s: metadata %s%s is %s, where a positive number is wanted", keys.path,
      keys.prefix, key, fault.quote(value))
  end
  return value
end

local function has(tensors, name) return tensors[name] ~= nil end

--- What a GGUF file holds whose header was read, or is still to be written (then a tensor whose
--- values are looked at has them as `data`); raises faults.
---@param file { metadata: table, tensors: pyramid.Tensor[] }
---@param path string
---@return pyramid.Source
function gguf_model.of(file, path)
  local metadata = file.metadata
  local family = find_family(metadata, path)
  local keys = setmetatable({ path = path, prefix = family.gguf .. ".", metadata = metadata }, Keys)
  refuse(keys, family)
  if #file.tensors == 0 then
    fault.raise("unsupported", "%s: holds a vocabulary only, no weights", path)
  end
  local tensors = {}
  for _, t in ipairs(file.tensors) do tensors[t.name] = t end

  local names, optional = family.names.gguf, {}
  for _, role in ipairs { "q_bias", "k_bias", "v_bias", "o_bias", "gate_bias", "up_bias",
    "down_bias" } do
    -- Llamas with attention_bias or mlp_bias
    if has(tensors, names[role]:format(0)) then optional[role] = true end
  end
  local layers, heads = keys:count("block_count", 1024), keys:count("attention.head_count", 1024)
  local width = keys:count("embedding_length", 1 << 18)
  local head_dim = keys:count("attention.key_length", 512, width // heads)
  if keys:get("attention.value_length", "integer", head_dim) ~= head_dim then
    fault.raise("unsupported", "%s: metadata %sattention.value_length differs from key_length",
      path, keys.prefix)
  end
  local kv_heads = keys:count("attention.head_count_kv", heads, heads)
  if heads % kv_heads ~= 0 then
    fault.raise("format",
      "%s: metadata %sattention.head_count (%d) is no multiple of %sattention.head_count_kv (%d)",
        path, keys.prefix, heads, keys.prefix, kv_heads)
  end
  local eps = family.decoder.norm == "layer" and "attention.layer_norm_epsilon"
    or "attention.layer_norm_rms_epsilon"
  local norm_eps = keys:get(eps, "number")
  if not (norm_eps > 0 and norm_eps <= 0.1) then               -- as core/model/model.c has it
    fault.raise("format", "%s: metadata %s%s is %s, outside (0, 0.1]", path, keys.prefix, eps,
      fault.quote(norm_eps))
  end
  local context = keys:count("context_length", 1 << 30)
  local embed = tensors[names.embed]
  if not embed then fault.raise("format", "%s: tensor %s is missing", path, names.embed) end
  local bos = metadata["tokenizer.ggml.bos_token_id"]
  local config = {
    family = family.name, layers = layers, heads = heads, kv_heads = kv_heads,
    head_dim = head_dim, width = width, ff = keys:count("feed_forward_length", 1 << 20),
    vocab = embed.shape[1], context = context, norm_eps = norm_eps,
    tied = not has(tensors, names.output), window = read_window(keys, family, layers),
    bos = math.type(bos) == "integer" and bos or nil, eos = read_eos(metadata), decoder = {},
  }
  for key, value in pairs(family.decoder) do config.decoder[key] = value end
  if family.gguf_rope == "none" then
    rope.none(config)
  else
    config.rope = read_rope(keys, family, head_dim, context, tensors)
  end
  local read = {}
  local function get(key, kind, default)
    read[key] = true
    if keys.metadata[keys.prefix .. key] == nil then return default end
    if kind == "positive" then return positive(keys, key, default) end
    return keys:get(key, kind)
  end
  if family.experts then experts.from_gguf(get, family, config, tensors, path) end
  if family.from_gguf then
    family.from_gguf(get, config, function(name) return has(tensors, name) end)
  end
  for _, role in ipairs(config.weights or family.weights) do optional[role] = true end
  config.weights = nil
  refuse_switches(keys, { head_dim = head_dim, layers = layers, width = width, family = family },
    read)
  rope.finish(config, path)
  local source = {
    format = "gguf", path = path, family = family, tensors = tensors, optional = optional,
    names = families.names(family, "gguf", config), fused = family.fused.gguf, config = config,
    ignored = { "^rope_freqs%.weight$", "^rope_factors_long%.weight$",
      "^rope_factors_short%.weight$" },
    tokenizer = has_tokenizer(metadata) and file or nil,
  }
  parts.split(source)
  experts.split(source)
  parts.flatten(source, "q_norm")
  parts.flatten(source, "k_norm")
  return source
end

--- What a GGUF file holds, or all parts of a split one, given the first; raises faults.
---@param path string
---@return pyramid.Source
function gguf_model.open(path) return gguf_model.of(fault.check(gguf_split.open(path)), path) end

return gguf_model

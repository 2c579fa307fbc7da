-- Hugging Face model directories: config.json, and model.safetensors or shards with an index. Tells
-- what the model is and where its tensors lie; loaders/init.lua binds them. What a configuration
-- asks for and Pyramid lacks is refused by name.

local families = require "pyramid.families"
local experts = require "pyramid.loaders.experts"
local fault = require "pyramid.loaders.fault"
local files = require "pyramid.files"
local json = require "pyramid.loaders.json"
local packed = require "pyramid.loaders.packed"
local parts = require "pyramid.loaders.parts"
local refused = require "pyramid.loaders.refused"
local rope = require "pyramid.loaders.rope"
local safetensors = require "pyramid.loaders.safetensors"
local switches = require "pyramid.loaders.switches"
local wrapper = require "pyramid.loaders.wrapper"

local exists = files.exists
local hf = {}

-- Bytes of config.json and of an index; files that an index may name. The largest checkpoints have
-- a few hundred.
local CONFIG_MAX, INDEX_MAX, SHARDS_MAX = 1 << 20, 1 << 26, 4096

-- ---- config.json --------------------------------------------------------------------------------

local function find_family(c, what)
  local kind = json.required(c, "model_type", "string", what)
  local family = families.find(kind)
  local architectures = json.field(c, "architectures", "table", what)
  local architecture = architectures and architectures[1]
  local right = family and architecture == nil
  for _, name in ipairs(family and family.architectures or {}) do
    right = right or name == architecture
  end
  if not right then
    fault.raise("unsupported", "%s: model_type %s%s%s (known families: %s)", what,
      fault.quote(kind), architecture and ", architectures " .. fault.quote(architecture) or "",
        refused.why(kind, not family and c), table.concat(families.list(), ", "))
  end
  return family
end

--- Kinds of checkpoints that Pyramid does not have.
local function refuse(c, family, what)
  for _, key in ipairs { "num_local_experts", "num_experts", "n_routed_experts" } do
    if not family.experts and json.field(c, key, "integer", what, 0) > 1 then
      fault.raise("unsupported", "%s: %s: a mixture of experts, of the family %s", what, key,
        family.name)
    end
  end
end

--- Switches that would change the arithmetic (loaders/switches.lua) and that nobody has read.
local function refuse_switches(c, facts, what, read)
  switches.refuse("hf", function(key, kind)
    if read[key] or (c[key] == false and kind ~= "boolean") then return nil end
    return json.field(c, key, kind, what)
  end, facts, function(key) return what .. ": " .. key end)
end

--- What config.json calls activations, and what pyramid.core does.
local activations = {
  silu = "silu", swish = "silu", gelu = "gelu", gelu_new = "gelu_tanh", gelu_fast = "gelu_tanh",
  gelu_pytorch_tanh = "gelu_tanh", gelu_accurate = "gelu_tanh", relu = "relu", relu2 = "relu2",
}

--- The activation of the MLP: the field that is there, or the family's own.
local function read_activation(c, family, what)
  if family.decoder.activation then return family.decoder.activation end
  for _, key in ipairs { "hidden_activation", family.fields.hidden_act or "hidden_act",
    "activation_function" } do
    local name = json.field(c, key, "string", what)
    if name and activations[name] then return activations[name] end
    if name then
      local known = {}
      for known_name in pairs(activations) do known[#known + 1] = known_name end
      table.sort(known)
      fault.raise("unsupported", "%s: %s is %s (known: %s)", what, key, fault.quote(name),
        table.concat(known, ", "))
    end
  end
  return "silu"
end

-- What config.json calls the fields of the rotary part.
local rope_names = {
  type = "rope_type", base = "rope_theta", dims = "head_dim",
    original = "original_max_position_embeddings",
  low = "low_freq_factor", high = "high_freq_factor",
}

--- Which parameters the rotary part has: the classic form (rope_theta, rope_scaling), the new one
--- (rope_parameters), or that by kinds of layers. A second table where windowed layers turn by one
--- of their own.
local function rope_tables(c, what)
  local p = json.field(c, "rope_parameters", "table", what)
    or json.field(c, "rope_scaling", "table", what) or {}
  local where = what .. ": RoPE parameters"
  local full, sliding = p.full_attention, p.sliding_attention
  for key, value in pairs(p) do
    if type(value) == "table" and value ~= full and value ~= sliding and key ~= "short_factor"
      and key ~= "long_factor" then
      fault.raise("unsupported", "%s differ from layer to layer (%s)", where, fault.quote(key))
    end
  end
  if type(full) == "table" then
    return full, type(sliding) == "table" and sliding or nil, where
  end
  local base = json.field(c, "rope_local_base_freq", "number", what)
  return p, base and { rope_theta = base } or nil, where, "rope_local_base_freq"
end

--- How many dimensions of a head turn: a number of their own, a share of the head, or all.
local function rope_dims(c, p, head_dim, what, where)
  local key, from, dims = "rotary_dim", what, json.field(c, "rotary_dim", "integer", what)
  for _, place in ipairs(dims and {} or { { p, "partial_rotary_factor", where },
    { c, "partial_rotary_factor", what }, { c, "rotary_pct", what } }) do
    local part = json.field(place[1], place[2], "number", place[3])
    if part then
      key, from = place[2], place[3]
      if not (part > 0 and part <= 1) then
        fault.raise("format", "%s: %s is %s, outside (0, 1]", from, key, fault.quote(part))
      end
      dims = math.floor(head_dim * part)
      break
    end
  end
  if dims and (dims < 2 or dims > head_dim or dims % 2 ~= 0) then
    fault.raise("format", "%s: %s: %d of a head's %d dimensions turn, where an even number of them "
      .. "is wanted", from, key, dims, head_dim)
  end
  return dims or head_dim
end

--- A table of the rotary part. `p`: its parameters; `base`: what messages call rope_theta.
local function read_rope(c, family, p, head_dim, context, what, where, base)
  local number = function(key, default) return json.field(p, key, "number", where, default) end
  local list = function(key) return json.field(p, key, "table", where) end
  local kind = json.field(p, "rope_type", "string", where)
    or json.field(p, "type", "string", where, "default")
  local r = {
    type = kind == "default" and "none" or kind == "su" and "longrope" or kind,
    style = family.rope, dims = rope_dims(c, p, head_dim, what, where),
    names = setmetatable({ base = base }, { __index = rope_names }),
    base = number("rope_theta") or json.field(c, family.fields.rope_theta or "rope_theta", "number",
      what, family.defaults.rope_theta) or json.required(c, "rope_theta", "number", what),
    factor = number("factor"),
    original = json.field(c, "original_max_position_embeddings", "number", what)
      or number("original_max_position_embeddings", context),
    low = number("low_freq_factor"), high = number("high_freq_factor"),
    beta_fast = number("beta_fast", 32), beta_slow = number("beta_slow", 1),
    truncate = json.field(p, "truncate", "boolean", where, true),
    gain = number("attention_factor"),
    short = list "short_factor", long = list "long_factor", context = context,
  }
  if r.type == "yarn" then
    if not r.factor and r.original > 0 then r.factor = context / r.original end
    local scale, all = number("mscale", 0), number("mscale_all_dim", 0)
    if not r.gain and scale ~= 0 and all ~= 0 and r.factor and r.factor > 1 then
      r.gain = (0.1 * scale * math.log(r.factor) + 1) / (0.1 * all * math.log(r.factor) + 1)
    end
  elseif r.type == "longrope" and r.original > 0 then
    r.factor = number("factor", context / r.original)
  end
  r.temper = number("llama_4_scaling_beta", 0)
  return r
end

--- The sliding window of each layer, or nil. Kinds of layers that Pyramid does not have are
--- refused.
local function read_window(c, family, layers, what)
  local types = json.field(c, "layer_types", "table", what)
  local width = json.field(c, "sliding_window", "integer", what)
  if width == 0 and c.use_sliding_window == false then width = nil end   -- as transformers saves it
  if width and (width < 1 or width > 1 << 30) then
    fault.raise("format", "%s: sliding_window is %d", what, width)
  end
  local window = family.window({
    sliding_window = width, max_window_layers = json.field(c, "max_window_layers", "integer", what),
    use_sliding_window = json.field(c, "use_sliding_window", "boolean", what, false),
    sliding_window_pattern = not types and (
      json.field(c, "sliding_window_pattern", "integer", what)
        or json.field(c, "_sliding_window_pattern", "integer", what)) or nil,
    layer_types = types,
  }, layers)
  for i = 1, types and layers or 0 do
    local slides = types[i] == "sliding_attention"
    if not slides and types[i] ~= "full_attention" or slides and not (window and window[i] > 0) then
      fault.raise("unsupported", "%s: layer_types: a %s with layer %d of type %s", what,
        family.name, i, fault.quote(types[i]))
    end
  end
  return window
end

--- Token ids that end a text: all that generation_config.json and config.json name, each once;
--- `c` is the latter, `text` its part about text, or all of it.
local function read_eos(c, text, dir, what)
  local path = dir .. "/generation_config.json"
  local generation = exists(path) and json.decode(json.read(path, CONFIG_MAX), path) or {}
  local out, seen = {}, {}
  for _, file in ipairs { { path, generation }, { what, c }, { what, text } } do
    local eos = file[2].eos_token_id
    if eos == json.null then eos = nil end
    for _, id in ipairs(type(eos) == "table" and eos or { eos }) do
      id = math.type(id) and math.tointeger(id)
        or fault.raise("format", "%s: eos_token_id is not an id", file[1])
      if not seen[id] then out[#out + 1] = id end
      seen[id] = true
    end
  end
  return out
end

--- A number above 0; the core takes 0 for "as it is".
local function positive(c, key, what, default)
  local value = json.field(c, key, "number", what)
  if value == nil then return default end
  if not (value > 0 and value < 1e12) then
    fault.raise("format", "%s: %s is %s, where a positive number is wanted", what, key,
      fault.quote(value))
  end
  return value
end

--- From config.json to what pyramid.core and users are told.
local function read_config(dir)
  local path = dir .. "/config.json"
  local outer = json.decode(json.read(path, CONFIG_MAX), path)
  local c, what, note = wrapper.text_of(outer, path)
  local family = find_family(c, what)
  refuse(c, family, what)
  for key, value in pairs(family.defaults) do
    if c[key] == nil then c[key] = value end
  end
  local function called(key) return family.fields[key] or key end
  local count = function(key, limit)
    local n = json.required(c, called(key), "integer", what)
    if n < 1 or n > limit then
      fault.raise("format", "%s: %s is %d, outside 1..%d", what, called(key), n, limit)
    end
    return n
  end
  local layers, heads, width = count("num_hidden_layers", 1024),
    count("num_attention_heads", 1024), count("hidden_size", 1 << 18)
  local kv_heads = json.field(c, called "num_key_value_heads", "integer", what)
    and count("num_key_value_heads", heads) or heads
  if heads % kv_heads ~= 0 then
    fault.raise("format",
      "%s: num_attention_heads (%d) is no multiple of num_key_value_heads (%d)", what, heads,
        kv_heads)
  end
  local head_dim = json.field(c, "head_dim", "integer", what) and count("head_dim", 512)
  if not head_dim then
    if width % heads ~= 0 then
      fault.raise("format", "%s: hidden_size is no multiple of num_attention_heads", what)
    end
    head_dim = width // heads
  end
  local eps = called "rms_norm_eps"
  local norm_eps = json.required(c, eps, "number", what)
  if not (norm_eps > 0 and norm_eps <= 0.1) then               -- as core/model/model.c has it
    fault.raise("format", "%s: %s is %s, outside (0, 0.1]", what, eps, fault.quote(norm_eps))
  end
  local tied = json.field(c, "tie_word_embeddings", "boolean", what)
  if tied == nil and not note then tied = false end            -- else settle_tied finds it out
  local context = count("max_position_embeddings", 1 << 30)
  local config = {
    family = family.name, layers = layers, heads = heads, kv_heads = kv_heads, head_dim = head_dim,
    width = width, ff = json.field(c, called "intermediate_size", "integer", what)
      and count("intermediate_size", 1 << 20) or family.decoder.plain_mlp and 4 * width
      or count("intermediate_size", 1 << 20),
    vocab = count("vocab_size", 1 << 22), context = context, norm_eps = norm_eps, tied = tied,
    window = read_window(c, family, layers, what),
    bos = json.field(c, "bos_token_id", "integer", what) or json.field(outer, "bos_token_id",
      "integer", path),
    eos = read_eos(outer, c, dir, path), decoder = {},
  }
  for key, value in pairs(family.decoder) do config.decoder[key] = value end
  config.decoder.activation = read_activation(c, family, what)
  if family.rope == "none" then
    rope.none(config)
  else
    local first, second, where, base = rope_tables(c, what)
    local r = read_rope(c, family, first, head_dim, context, what, where)
    -- what scaling reaches: yarn says so, Vicuna names it
    local reach = r.type == "yarn" and r.original * (r.factor or 1)
      or json.field(c, "max_sequence_length", "integer", what, 0)
    config.context = math.max(context, math.floor(math.min(reach, 1 << 30)))
    config.rope = r
    if second and config.window then
      rope.turn(config, "second", "first")
      config.rope_second = read_rope(c, family, second, head_dim, context, what, where, base)
    end
  end
  local read = {}
  local function get(key, kind, default)
    read[key] = true
    if c[key] == false and kind ~= "boolean" then return default end
    if kind == "positive" then return positive(c, key, what, default) end
    return json.field(c, key, kind, what, default)
  end
  if family.experts then experts.from_hf(get, family, config, what) end
  if family.from_hf then family.from_hf(get, config) end
  if (config.rope.temper or 0) ~= 0 then
    fault.raise("unsupported", "%s: RoPE parameters: llama_4_scaling_beta of a %s: queries that "
      .. "grow with their position", what, family.name)
  end
  config.rope.temper = nil
  refuse_switches(c, { head_dim = head_dim, layers = layers, width = width, family = family },
    what, read)
  local biases = {}
  if json.field(c, "attention_bias", "boolean", what, false) and not read.attention_bias then
    for _, role in ipairs { "q_bias", "k_bias", "v_bias", "o_bias" } do biases[role] = true end
  end
  if json.field(c, "mlp_bias", "boolean", what, false) and not read.mlp_bias then
    for _, role in ipairs { "up_bias", "down_bias" } do biases[role] = true end
    biases.gate_bias = not family.decoder.plain_mlp or nil
  end
  return family, config, what, note, biases,
    json.field(c, "num_nextn_predict_layers", "integer", what, 0),
    json.field(c, "quantization_config", "table", what)
end

-- ---- weights ------------------------------------------------------------------------------------

local function index_tensors(list, into, wanted)
  for _, t in ipairs(list) do
    if not wanted or wanted[t.name] then into[t.name] = t end
  end
end

--- Tensors by name, from one file or from the shards that an index names.
local function read_weights(dir)
  local single, index = dir .. "/model.safetensors", dir .. "/model.safetensors.index.json"
  local tensors = {}
  if exists(single) then
    index_tensors(fault.check(safetensors.read(single)).tensors, tensors)
    return tensors
  end
  if not exists(index) then
    local other = exists(dir .. "/pytorch_model.bin")
      or exists(dir .. "/pytorch_model.bin.index.json")
    fault.raise(other and "unsupported" or "io",
      "%s: no model.safetensors and no model.safetensors.index.json%s", dir,
        other and "; pytorch_model.bin cannot be read" or "")
  end
  local map = json.required(json.decode(json.read(index, INDEX_MAX), index), "weight_map", "table",
    index)
  local shards, order = {}, {}
  for name, file in pairs(map) do
    if type(name) ~= "string" or type(file) ~= "string" or not file:find("^[%w_][%w%._-]*$") then
      fault.raise("format", "%s: weight_map: %s is mapped to something that is no file name",
        index, fault.quote(name))
    end
    if not shards[file] then
      shards[file] = {}
      order[#order + 1] = file
      if #order > SHARDS_MAX then
        fault.raise("format", "%s: weight_map: more than %d files (the limit)", index, SHARDS_MAX)
      end
    end
    shards[file][name] = true
  end
  table.sort(order)
  for _, file in ipairs(order) do
    index_tensors(fault.check(safetensors.read(dir .. "/" .. file)).tensors, tensors, shards[file])
  end
  for name, file in pairs(map) do
    if not tensors[name] then
      fault.raise("format", "%s: tensor %s is not in %s", index, fault.quote(name), file)
    end
  end
  return tensors
end

local COMPARE_AT_ONCE = 1 << 20

--- Whether two tensors are the same bytes. Files hold both where they were saved without the
--- knowledge that they are one.
local function same(one, other)
  if one.dtype ~= other.dtype or one.bytes ~= other.bytes then return false end
  local a <close>, why = files.open(one.path)
  if not a then fault.raise("io", "%s", why) end
  local b <close>, reason = files.open(other.path)
  if not b then fault.raise("io", "%s", reason) end
  a:seek("set", one.offset)
  b:seek("set", other.offset)
  for at = 0, one.bytes - 1, COMPARE_AT_ONCE do
    local count = math.min(COMPARE_AT_ONCE, one.bytes - at)
    local x, y = a:read(count), b:read(count)
    if not x or not y or #x ~= count or #y ~= count then
      fault.raise("io", "%s: cannot be read", one.path)
    end
    if x ~= y then return false end
  end
  return true
end

--- A checkpoint that calls its output matrix the embedding's twin, and holds both: as transformers
--- does, they are one only if they are equal. If it holds only the output matrix, that is both.
local function settle_tied(config, tensors, names, what)
  local embed, output = tensors[names.embed], tensors[names.output]
  if config.tied == nil then config.tied = not output end    -- a wrapper that leaves it out
  if not config.tied or not output then return nil end
  if not embed then
    tensors[names.embed] = output
    return nil
  end
  if same(embed, output) then return nil end
  config.tied = false
  return ("%s: says tie_word_embeddings, but %s differs from %s; each is used for itself"):format(
    what, names.output, names.embed)
end

--- What a model directory holds; raises faults.
---@param dir string
---@return pyramid.Source
function hf.open(dir)
  local family, config, what, note, optional, further, quantization = read_config(dir)
  for _, role in ipairs(config.weights or family.weights) do optional[role] = true end
  config.weights = nil
  rope.finish(config, what)
  local tensors, warnings = read_weights(dir), {}
  if quantization then
    packed.collect(tensors, quantization, what .. ": quantization_config", dir)
  end
  local names, own, placed = wrapper.names_of(tensors, families.names(family, "hf", config), dir)
  local fused = {}
  for kind, whole in pairs(family.fused.hf) do
    fused[kind] = setmetatable({ name = placed(whole.name) }, { __index = whole })
  end
  warnings[1] = note
  warnings[#warnings + 1] = settle_tied(config, tensors, names, what)
  local source = {
    format = "hf", path = dir, family = family, config = config, tensors = tensors,
    optional = optional, names = names, warnings = warnings, fused = fused,
    ignored = config.tied and { "^" .. names.output:gsub("%p", "%%%0") .. "$" } or {},
    may_ignore = function(name)
      return wrapper.may_ignore(name, own, config.layers, further)
        or quantization ~= nil and packed.may_ignore(tensors, name)
    end,
    tokenizer = (exists(dir .. "/tokenizer.json") or exists(dir .. "/tokenizer.model")) and dir
      or nil,
  }
  parts.split(source)
  experts.split(source)
  parts.transpose(source, family.transposed)
  parts.flatten(source, "q_norm")
  parts.flatten(source, "k_norm")
  return source
end

return hf

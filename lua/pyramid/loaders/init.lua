-- Opens models: finds out what a path holds, reads its headers, and binds its weights to a core
-- model. Which tensor is which weight is said by pyramid.families; that a tensor lies where its
-- header says is checked once more by the core.
--
-- A model that loads is the model that was saved: a weight that is missing is an error, and so is a
-- tensor left over, but for those of which the format's loader knows that text does not go through
-- them; a line says so.

local core = require "pyramid.core"
local families = require "pyramid.families"
local dtypes = require "pyramid.loaders.dtypes"
local fault = require "pyramid.loaders.fault"
local files = require "pyramid.files"
local packed = require "pyramid.loaders.packed"
local parts = require "pyramid.loaders.parts"
local rope = require "pyramid.loaders.rope"
local wrapper = require "pyramid.loaders.wrapper"
local formats = { hf = require "pyramid.loaders.hf", gguf = require "pyramid.loaders.gguf_model" }

local loaders = {}

---@class pyramid.Config what users see of a model; layers and heads count from 1, ids from 0
---@field family string
---@field layers integer
---@field heads integer
---@field kv_heads integer
---@field head_dim integer
---@field width integer
---@field ff integer
---@field vocab integer
---@field context integer    positions the model was made for
---@field norm_eps number
---@field tied boolean       the output matrix is the embedding
---@field window integer[]?  sliding window of each layer, 0 for none
---@field rope pyramid.Rope  with freq and gain computed
---@field rope_second pyramid.Rope?  of the layers whose decoder.turns is "second"
---@field decoder table      switches in which it differs from a Llama (pyr_model_config)
---@field bos integer?
---@field eos integer[]

---@class pyramid.Source     what a path holds, before anything is bound
---@field format string      "hf" or "gguf"
---@field path string
---@field family pyramid.Family
---@field config pyramid.Config
---@field tensors table<string, pyramid.Tensor>
---@field optional table<string, boolean> roles beyond the base that the model has
---@field names table<string, string>     role to name
---@field fused table<string, pyramid.Fused>  matrices of several weights that it may have
---@field ignored string[]                patterns of names that may be left over
---@field may_ignore (fun(name: string): boolean)?  others that may be, with a note
---@field leftover string[]?              those, once the weights were listed
---@field tokenizer string|pyramid.Gguf|nil
---  what pyramid.tokenizer needs: a directory, or a file's header
---@field warnings string[]?              what its user should know, a line each
---@field weights { role: string, layer: integer?, expert: integer?, tensor: pyramid.Tensor }[]?
---  in the order in which they are bound; of loaders.prepare, as the next
---@field quantised boolean?              more of their values are of a dtype of blocks than not

---@class pyramid.Loaded
---@field config pyramid.Config
---@field handle userdata                 the core model
---@field tokenizer string|pyramid.Gguf|nil
---@field family pyramid.Family
---@field format string
---@field path string
---@field description string              one line
---@field warnings string[]               what its user should know, a line each

--- "hf", "gguf", or raises a fault.
local function detect(path)
  if files.kind(path) == "folder" then
    if not files.exists(path .. "/config.json") then
      fault.raise("io", "%s: a directory without config.json, so no Hugging Face model; a .gguf "
        .. "file is given by its own path", path)
    end
    return "hf"
  end
  local file <close> = fault.check(files.open(path))
  local magic, message = file:read(4)
  if magic == "GGUF" then return "gguf" end
  if not magic and message then fault.raise("io", "%s: %s", path, message) end
  fault.raise("format", "%s: neither a model directory nor a GGUF file", path)
end

local function open(path)
  if type(path) ~= "string" or path == "" then fault.raise("argument", "model: no path") end
  if path:find("\0", 1, true) then fault.raise("io", "model: a path with a zero byte") end
  path = #path > 1 and path:gsub("/+$", "") or path
  return formats[detect(path)].open(path)
end

--- Reads the headers of a model: nothing is mapped, and no runtime is needed.
---@param path string a Hugging Face directory, or a GGUF file
---@return pyramid.Source?
---@return string? message
---@return string? code
function loaders.open(path)
  return fault.catch(open, path)
end

--- Every weight that a source must have, in order: role, layer and expert (from 1, or nil), tensor.
--- Raises faults for those that are missing or of a dtype that a model cannot use, and for tensors
--- that nothing asks for.
local function list_weights(source)
  local config, out, used = source.config, {}, {}
  local function add(role, layer, expert)
    local name = source.names[expert and "expert_" .. role or role]
    if not name then
      fault.raise("unsupported", "%s: the family %s has no name for its %s in %s files",
        source.path, config.family, role, source.format)
    end
    name = name:format(layer and layer - 1, expert and expert - 1)
    local t = source.tensors[name]
    if not t then fault.raise("format", "%s: tensor %s is missing", source.path, name) end
    if not (t.native or t.packed or dtypes.converted[t.dtype]) then
      fault.raise("unsupported", "%s: tensor %s is %s, which models cannot use (they can: %s)",
        t.path, name, t.dtype, table.concat(dtypes.loadable(), ", "))
    end
    used[name] = true
    out[#out + 1] = { role = role, layer = layer, expert = expert, tensor = t }
  end
  local function add_those(roles, layer)
    for _, role in ipairs(roles) do
      if families.has(role, config.decoder, source.optional, layer)
        and not (role == "output" and config.tied) then add(role, layer) end
    end
  end
  add_those(families.global_roles)
  for layer = 1, config.layers do
    add_those(families.layer_roles, layer)
    for expert = 1, families.mixes(config.decoder, layer) and config.decoder.experts or 0 do
      for _, role in ipairs(families.expert_roles) do
        if role ~= "gate" or not config.decoder.plain_mlp then
          add(role, layer, expert)
          if source.optional.expert_bias then add(role .. "_bias", layer, expert) end
        end
      end
    end
  end
  local left = {}
  source.leftover = {}
  for name in pairs(source.tensors) do
    local ignore = used[name]
    for _, pattern in ipairs(source.ignored) do ignore = ignore or name:find(pattern) end
    if not ignore then
      local list = source.may_ignore and source.may_ignore(name) and source.leftover or left
      list[#list + 1] = name
    end
  end
  if #left > 0 then
    table.sort(left)
    fault.raise("unsupported", "%s: %d tensors that a %s does not have, such as %s", source.path,
      #left, config.family, fault.quote(left[1]))
  end
  return out
end

--- The weights of a source, in the order in which they are bound.
---@param source pyramid.Source
---@return { role: string, layer: integer?, expert: integer?, tensor: pyramid.Tensor }[]? weights
---@return string? message
---@return string? code
function loaders.weights(source)
  return fault.catch(list_weights, source)
end

--- One line about a model.
---@param config pyramid.Config
---@param weights { tensor: pyramid.Tensor }[]
---@return string
function loaders.describe(config, weights)
  local values, by = 0, {}
  for _, w in ipairs(weights) do
    local n = 1
    for _, d in ipairs(w.tensor.shape) do n = n * d end
    values = values + n
    by[w.tensor.dtype] = (by[w.tensor.dtype] or 0) + n
  end
  local main = next(by)
  for dtype, n in pairs(by) do
    if n > by[main] or (n == by[main] and dtype < main) then main = dtype end
  end
  local unit, size = "", values
  for _, u in ipairs { " K", " M", " B" } do
    if size >= 1000 then size, unit = size / 1000, u end
  end
  local d = config.decoder
  local mixture = (d.experts or 0) > 0 and (", %d of %d experts"):format(d.experts_used, d.experts)
  return ("%s, %d layers%s, %d heads over %d of %d, width %d, vocabulary %d, %.3g%s parameters in "
    .. "%s"):format(config.family, config.layers, mixture or "", config.heads, config.kv_heads,
      config.head_dim, config.width, config.vocab, size, unit, main)
end

local known_options = { weights = true, context = true, scaling = true, map = true }
local scalings = { none = true, linear = true, yarn = true }

local function check_options(options)
  for key in pairs(options) do
    if not known_options[key] then
      error(("loaders.load: unknown option '%s' (known: context, map, scaling, weights)"):format(
        tostring(key)), 3)
    end
  end
  if options.map ~= nil and type(options.map) ~= "boolean" then
    error(("map = %s (a boolean is wanted)"):format(tostring(options.map)), 3)
  end
  if options.context ~= nil and (math.type(options.context) ~= "integer"
    or options.context < 1) then
    error(("context = %s (a positive integer is wanted)"):format(tostring(options.context)), 3)
  end
  if options.scaling ~= nil and not scalings[options.scaling] then
    error(("scaling = '%s' (known: linear, none, yarn)"):format(tostring(options.scaling)), 3)
  end
  local as = options.weights
  if as == nil then return end
  for _, name in ipairs(dtypes.writable) do
    if name == as then return end
  end
  error(("weights = '%s' (known: %s)"):format(tostring(as), table.concat(dtypes.writable, ", ")), 3)
end

-- Another context than the model's own; positions beyond it are squeezed into what it knows, if so
-- asked.
local function change_context(source, context, scaling)
  local config, r = source.config, source.config.rope
  local trained = config.context
  config.context = context or trained
  if config.decoder.positions and config.context > trained then
    fault.raise("unsupported", "%s: context = %d, where positions are learned for %d", source.path,
      config.context, trained)
  end
  if r.context and r.context ~= config.context then
    r.context = config.context
    r.freq, r.gain = rope.compute(r, source.path)       -- the gain stays what it was
  end
  if not scaling or scaling == "none" or config.context <= trained then return end
  if r.type ~= "none" then
    fault.raise("unsupported",
      "%s: its RoPE is scaled already (%s), so that %s scaling cannot be asked for", source.path,
        r.type, scaling)
  end
  r.type, r.factor, r.original = scaling, config.context / trained, trained
  r.beta_fast, r.beta_slow, r.truncate, r.gain = 32, 1, true, nil
  r.freq, r.gain = rope.compute(r, source.path)
end

--- Files that are open while weights are bound; a bound model keeps what it needs.
local function open_files(runtime, map)
  local opened, how = {}, map == false and core.file_read or core.file_open
  return setmetatable({}, {
    __index = function(_, path)
      opened[path] = opened[path] or fault.check(how(runtime, path))
      return opened[path]
    end,
    __close = function()
      for _, file in pairs(opened) do file:close() end
    end,
  })
end

--- What a matrix becomes while it is loaded, unless the option `weights` says; nil: what it is.
local function target_of(t) return t.packed and t.packed.target or dtypes.converted[t.dtype] end

-- A line for each dtype that matrices become which no kernel reads as they are.
local function add_conversions(out, source, weights, as)
  local counts, kinds, targets = {}, {}, {}
  for _, w in ipairs(weights) do
    local dtype = w.tensor.dtype
    local target = target_of(w.tensor)
    if target and #w.tensor.shape > 1 then
      target = as or target
      if not kinds[target] then
        kinds[target] = {}
        targets[#targets + 1] = target
      end
      if not counts[dtype] then table.insert(kinds[target], dtype) end
      counts[dtype] = (counts[dtype] or 0) + 1
    end
  end
  table.sort(targets)
  for _, target in ipairs(targets) do
    table.sort(kinds[target])
    for i, dtype in ipairs(kinds[target]) do
      kinds[target][i] = ("%d %s of %s"):format(counts[dtype],
        counts[dtype] == 1 and "tensor" or "tensors", dtype)
    end
    out[#out + 1] = ("%s: %s converted to %s (the option 'weights' chooses another dtype)"):format(
      source.path, table.concat(kinds[target], ", "), target)
  end
end

--- What a model's user should know of its file, a line each.
---@param source pyramid.Source
---@param weights { tensor: pyramid.Tensor }[]
---@param as? string  the option `weights`
---@return string[]
function loaders.warnings(source, weights, as)
  local out = {}
  for _, message in ipairs(source.warnings or {}) do out[#out + 1] = message end
  out[#out + 1] = rope.advice(source.config.rope, source.path)
  out[#out + 1] = wrapper.describe(source.leftover or {}, source.path)
  add_conversions(out, source, weights, as)
  return out
end

-- Whether more of the weights' values are of a dtype of blocks than not, once they are loaded.
local function quantised(weights, as)
  local balance = 0
  for _, w in ipairs(weights) do
    if #w.tensor.shape > 1 then
      local n = 1
      for _, d in ipairs(w.tensor.shape) do n = n * d end
      local info = dtypes.by_name[as or target_of(w.tensor) or w.tensor.dtype]
      balance = balance + (info.block > 1 and n or -n)
    end
  end
  return balance > 0
end

-- The most columns that lie in one block of matrices of these roles, in the file or once they are
-- loaded: ranks cut between blocks.
local function longest_block(weights, as, roles)
  local most = 1
  for _, w in ipairs(weights) do
    local t = w.tensor
    if roles[w.role] and not w.expert then
      local target = as or target_of(t)
      if target then most = math.max(most, dtypes.by_name[target].block) end
      if not t.packed then most = math.max(most, dtypes.by_name[t.dtype].block) end
    end
  end
  return most
end

-- What core.model_new is told (lua/lmodel.c).
local function core_config(config, weights, as)
  local out = {
    o_block = longest_block(weights, as, { o = true }),
    down_block = longest_block(weights, as, { down = true, shared_down = true }),
    layers = config.layers, heads = config.heads, kv_heads = config.kv_heads,
    head_dim = config.head_dim, width = config.width, ff = config.ff, vocab = config.vocab,
    context = config.context, norm_eps = config.norm_eps, rope_style = config.rope.style,
    rope_dims = config.rope.dims, rope_freq = config.rope.freq, rope_gain = config.rope.gain,
    rope_second = config.rope_second and config.rope_second.freq,
    rope_second_gain = config.rope_second and config.rope_second.gain, window = config.window,
  }
  for key, value in pairs(config.decoder) do out[key] = value end
  return out
end

---What a model of these weights is made of, for whoever lays one out without reading it: what
---core.model_new is told, and each weight's place and dtype.
---@param config pyramid.Config
---@param weights { role: string, layer: integer?, expert: integer?, tensor: pyramid.Tensor }[]
---@param as? string  the option `weights`
---@return table config
---@return { role: string, layer: integer?, expert: integer?, dtype: string }[] weights
function loaders.outline(config, weights, as)
  local list = {}
  for i, w in ipairs(weights) do
    list[i] = { role = w.role, layer = w.layer, expert = w.expert,
      dtype = as or target_of(w.tensor) or w.tensor.dtype }
  end
  return core_config(config, weights, as), list
end

local function prepare(path, options)
  local source = open(path)
  change_context(source, options.context, options.scaling)
  if source.config.decoder.positions then
    parts.rows(source, "positions", source.config.first_position or 0, source.config.context)
  end
  source.weights = list_weights(source)
  source.quantised = quantised(source.weights, options.weights)
  return source
end

--- Reads the headers of a model, and lists the weights that are to be bound. That needs no runtime,
--- and says which one suits.
---@param path string       a Hugging Face directory, or a GGUF file
---@param options { weights: string?, context: integer?, scaling: string?, map: boolean? }?
---  weights: dtype to convert matrices to
--- (default: as in the file); context: positions, instead of the model's own; scaling: of RoPE
--- beyond those
---@return pyramid.Source?
---@return string? message
---@return string? code
function loaders.prepare(path, options)
  options = options or {}
  check_options(options)
  return fault.catch(prepare, path, options)
end

local function load(runtime, source, options)
  if type(source) == "string" then source = prepare(source, options) end
  local config, weights = source.config, source.weights
  local handle = fault.check_of(source.path, core.model_new(runtime,
    core_config(config, weights, options.weights)))
  local ok <close> = setmetatable({},
    { __close = function(state) if not state.done then handle:close() end end })
  local opened <close> = open_files(runtime, options.map)
  for _, w in ipairs(weights) do
    local t = w.tensor
    fault.check_of(t.path, handle:bind(w.role, w.layer, {
      name = t.name, file = opened[t.path], offset = t.offset, bytes = t.bytes,
        dtype = t.packed and "f32" or t.dtype, shape = t.shape,
        run = t.run, step = t.step, transposed = t.transposed, every = t.every,
      packing = packed.describe(t, opened),
    }, options.weights or target_of(t), w.expert))
  end
  fault.check_of(source.path, handle:ready())
  ok.done = true
  return {
    config = config, handle = handle, tokenizer = source.tokenizer, family = source.family,
      format = source.format,
    path = source.path, description = loaders.describe(config, weights),
    warnings = loaders.warnings(source, weights, options.weights),
  }
end

--- Loads a model.
---@param runtime userdata               pyramid.core.runtime
---@param source pyramid.Source|string   of loaders.prepare; or the path
---@param options? table                 the same as there
---@return pyramid.Loaded?
---@return string? message
---@return string? code
function loaders.load(runtime, source, options)
  options = options or {}
  check_options(options)
  return fault.catch(load, runtime, source, options)
end

return loaders

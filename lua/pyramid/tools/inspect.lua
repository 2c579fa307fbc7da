--- What a model file holds, and what a policy would keep of a prompt: read from headers and plans,
--- nothing is run.
local core = require "pyramid.core"
local caches = require "pyramid.cache"
local fault = require "pyramid.loaders.fault"
local files = require "pyramid.files"
local gguf = require "pyramid.loaders.gguf"
local hf = require "pyramid.tokenizer.hf"
local json = require "pyramid.loaders.json"
local loaders = require "pyramid.loaders"
local options = require "pyramid.options"
local policy = require "pyramid.policy"
local safetensors = require "pyramid.loaders.safetensors"
local target = require "pyramid.tools.target"
local tokenizer = require "pyramid.tokenizer"

local inspect = {}

---@class pyramid.InspectedTensor
---@field name string
---@field dtype string
---@field shape integer[]
---@field bytes integer
---@field path string
---@field offset integer
---@field role string?    if the model uses it
---@field layer integer?
---@field expert integer?

---@class pyramid.Inspection
---@field path string
---@field format string             "hf", "gguf" or "safetensors" (a file alone)
---@field problem string?           why the model cannot be loaded, if so
---@field description string?       one line, if it can
---@field config pyramid.Config?    likewise
---@field tensors pyramid.InspectedTensor[] in the order of the files
---@field tensor_count integer
---@field totals { dtype: string, tensors: integer, values: integer, bytes: integer }[]
---  by falling bytes
---@field bytes integer
---@field values integer
---@field tokenizer { kind: string, tokens: integer }?
---@field metadata table<string, any>? of a GGUF file: its scalars; arrays as { count = n }
---@field warnings string[]         what its user should know, a line each

local TOKENIZER_MAX = 1 << 28

local function values_of(shape)
  local n = 1
  for _, d in ipairs(shape) do n = n * d end
  return n
end

local function list_tensors(tensors, weights)
  local place, out = {}, {}
  for _, w in ipairs(weights or {}) do place[w.tensor.name] = w end
  for _, t in pairs(tensors) do
    local w = place[t.name] or {}
    out[#out + 1] = {
      name = t.name, dtype = t.dtype, shape = t.shape, bytes = t.bytes, path = t.path,
        offset = t.offset, role = w.role,
      layer = w.layer, expert = w.expert,
    }
  end
  table.sort(out, function(a, b)
    if a.path ~= b.path then return a.path < b.path end
    if a.offset ~= b.offset then return a.offset < b.offset end
    return a.name < b.name
  end)
  return out
end

local function total(tensors)
  local by, totals, bytes, values = {}, {}, 0, 0
  for _, t in ipairs(tensors) do
    local sum = by[t.dtype]
    if not sum then
      sum = { dtype = t.dtype, tensors = 0, values = 0, bytes = 0 }
      by[t.dtype] = sum
      totals[#totals + 1] = sum
    end
    local n = values_of(t.shape)
    sum.tensors, sum.values, sum.bytes = sum.tensors + 1, sum.values + n, sum.bytes + t.bytes
    bytes, values = bytes + t.bytes, values + n
  end
  table.sort(totals, function(a, b)
    if a.bytes ~= b.bytes then return a.bytes > b.bytes end
    return a.dtype < b.dtype
  end)
  return totals, bytes, values
end

local function length(value) return type(value) == "table" and #value or 0 end

local function gguf_tokenizer(metadata)
  local kind = metadata["tokenizer.ggml.model"]
  if type(kind) ~= "string" then return nil end
  local pre = metadata["tokenizer.ggml.pre"]
  return { kind = kind .. (type(pre) == "string" and ", " .. pre or ""),
    tokens = length(metadata["tokenizer.ggml.tokens"]) }
end

--- Where there is a SentencePiece model alone; one that cannot be read is told of when it is used.
local function model_tokenizer(dir)
  if not files.exists(dir .. "/tokenizer.model") then return nil end
  local recipe = fault.catch(hf.read, dir, true)
  return { kind = "BPE, tokenizer.model", tokens = recipe and recipe.options.vocab or 0 }
end

local function hf_tokenizer(dir)
  local path = dir .. "/tokenizer.json"
  if not files.exists(path) then return model_tokenizer(dir) end
  local t = json.decode(json.read(path, TOKENIZER_MAX), path)
  local model = json.field(t, "model", "table", path, {})
  local tokens = 0
  for _ in pairs(json.field(model, "vocab", "table", path, {})) do tokens = tokens + 1 end
  return { kind = json.field(model, "type", "string", path, "BPE") .. ", tokenizer.json",
    tokens = tokens }
end

local function scalars(metadata)
  local out = {}
  for key, value in pairs(metadata) do
    out[key] = type(value) == "table" and { count = #value } or value
  end
  return out
end

--- A file whose header can be read although no model can be made of it.
local function inspect_file(path, problem, code)
  local file = gguf.read(path)
  local format = "gguf"
  if not file then
    file, format = safetensors.read(path), "safetensors"
    if not file then fault.raise(code, "%s", problem) end
    problem = path .. ": a file of tensors alone; a model is a directory with a config.json"
  end
  local metadata = format == "gguf" and file.metadata or nil
  local out = { path = path, format = format, problem = problem,
    tensors = list_tensors(file.tensors) }
  out.metadata = metadata and scalars(metadata)
  out.tokenizer = metadata and gguf_tokenizer(metadata)
  return out
end

-- What would be said of the tokenizer when the model is opened; why it could not be, if so.
local function add_tokenizer_warnings(warnings, source)
  local loaded <close>, message = tokenizer.load(source.tokenizer, { ids = source.config.vocab })
  for _, warning in ipairs(loaded and loaded.warnings or {}) do
    warnings[#warnings + 1] = warning
  end
  return message
end

local function inspect_model(path)
  local source, problem, code = loaders.open(path)
  local out
  if not source then out = inspect_file(path, problem, code)
  else
    local weights
    weights, problem = loaders.weights(source)
    out = {
      path = path, format = source.format, problem = problem, config = source.config,
      tensors = list_tensors(source.tensors, weights),
        description = weights and loaders.describe(source.config, weights),
      warnings = weights and loaders.warnings(source, weights),
    }
    if weights and source.tokenizer then
      out.problem = add_tokenizer_warnings(out.warnings, source)
    end
    if source.format == "gguf" then
      local metadata = fault.check(gguf.read(path)).metadata
      out.metadata, out.tokenizer = scalars(metadata), gguf_tokenizer(metadata)
    else
      out.tokenizer = hf_tokenizer(source.path)
    end
  end
  out.totals, out.bytes, out.values = total(out.tensors)
  out.tensor_count, out.warnings = #out.tensors, out.warnings or {}
  return out
end

--- What a model directory, a GGUF file or a safetensors file holds. A file that can be read but not
--- loaded is described all the same; `problem` says why it cannot be.
---@param path string
---@return pyramid.Inspection?
---@return string? message
---@return string? code
function inspect.model(path)
  local _ <close> = core.plain_locale()
  return fault.catch(inspect_model, path)
end

---@class pyramid.Forecast
---@field policy string
---@field length integer
---@field dtype string
---@field layers { rows: number, computed: integer, most: boolean }[]
---  rows a lane holds on average, tokens computed; most: what the text says decides, and these are
---  the most it can be
---@field at_most boolean  some layer is such: bytes, fraction and computed are the most they can be
---@field target number?         the share of the rows that was asked for
---@field target_missed boolean? there is a target, and it cannot be met
---@field bytes integer          K and V rows of all lanes
---@field full_bytes integer     the same without a policy
---@field fraction number        rows / (layers * length)
---@field computed number        token-layers computed / (layers * length)

--- What a policy would keep of a prompt of `tokens`, layer by layer. Raises if the policy does.
---@param config pyramid.Config
---@param which pyramid.Policy
---@param tokens integer
---@param dtype string?  of the cache: "f32", "f16" (default), "bf16", "q8_0", "fp8_e4m3", "q4", …
---@return pyramid.Forecast
function inspect.policy(config, which, tokens, dtype)
  local _ <close> = core.plain_locale()
  dtype = dtype or "f16"
  local unit, unknown = caches.bytes_of_value(dtype)
  if not unit then error("inspect.policy: " .. unknown, 2) end
  tokens = options.whole(tokens)
  if math.type(tokens) ~= "integer" or tokens < 1 then
    error("inspect.policy: length must be a positive integer", 2)
  end
  local layers = policy.forecast(which, config, tokens)
  local rows, computed, at_most = 0, 0, false
  for _, layer in ipairs(layers) do
    rows, computed, at_most = rows + layer.rows, computed + layer.computed, at_most or layer.most
  end
  local wanted, fraction = target.of(which), rows / (config.layers * tokens)
  local row_bytes = 2 * config.kv_heads * config.head_dim * unit
  return {
    policy = tostring(which), length = tokens, dtype = dtype, layers = layers,
      bytes = math.floor(rows * row_bytes),
    full_bytes = math.floor(config.layers * tokens * row_bytes), fraction = fraction,
    computed = computed / (config.layers * tokens), at_most = at_most, target = wanted,
    target_missed = wanted and target.missed(wanted, fraction, tokens) or nil,
  }
end

---The same, measured: what the policy kept of a text that the model has read.
---@param model pyramid.Model
---@param which pyramid.Policy
---@param ids integer[]
---@param dtype string?
---@return pyramid.Forecast?
---@return string? message
---@return string? code
function inspect.measured(model, which, ids, dtype)
  local _ <close> = core.plain_locale()
  local cache <close>, why, what = model:cache { policy = which, dtype = dtype }
  if not cache then return nil, why, what end
  local logits, message, code = cache:prefill(ids)
  if not logits then return nil, message, code end
  local made = inspect.policy(model.config, which, #ids, dtype)
  local config, rows = model.config, 0
  for index, layer in ipairs(made.layers) do
    local sum = 0
    for head = 1, config.kv_heads do sum = sum + cache:rows(index, head) end
    made.layers[index] = { rows = sum / config.kv_heads,
      computed = not layer.most and layer.computed or nil, most = false }
    rows = rows + sum / config.kv_heads
  end
  made.at_most, made.fraction = false, rows / (config.layers * #ids)
  made.bytes = math.floor(made.full_bytes * made.fraction)
  made.computed = cache:computed() / (#ids * config.layers)
  made.target_missed = made.target and target.missed(made.target, made.fraction, #ids) or nil
  return made
end

return inspect

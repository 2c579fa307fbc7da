--- Models as GGUF files: a Hugging Face folder or a GGUF file in, one GGUF file out, its matrices
--- in any number format that values become. What is written loads in llama.cpp, too.
---
---   local convert = require "pyramid.tools.convert"
---   local done = assert(convert.write("SmolLM2", "smollm2-q8_0.gguf", { weights = "q8_0" }))
---
--- Tensors go from the mapped source to the file in pieces of a mebibyte or so, by
--- core/model/convert.c; memory does not grow with the model. The file is seen under its name only
--- when it is whole. Vectors (norms, biases) become f32, as ggml wants them. Rows that are no whole
--- blocks of the format asked for are kept in q8_0, or f16, with a line that says so.
local core = require "pyramid.core"
local convert_tokenizer = require "pyramid.tools.convert.tokenizer"
local dtypes = require "pyramid.loaders.dtypes"
local fault = require "pyramid.loaders.fault"
local files = require "pyramid.files"
local gguf_model = require "pyramid.loaders.gguf_model"
local gguf_split = require "pyramid.loaders.gguf_split"
local gguf_writer = require "pyramid.tools.gguf_writer"
local loaders = require "pyramid.loaders"
local metadata = require "pyramid.tools.convert.metadata"
local options = require "pyramid.options"
local packed = require "pyramid.loaders.packed"
local wrapper = require "pyramid.loaders.wrapper"

local convert = {}

-- Values of a piece: 1 MiB of q8_0, 4 MiB of f32.
local PIECE_VALUES = 1 << 20

--- Names of the formats that matrices can be written in.
---@type string[]
convert.dtypes = {}

local known = {}
for _, info in ipairs(dtypes.all) do
  known[info.name] = info
  if info.writable and info.gguf then table.insert(convert.dtypes, info.name) end
end

---@class pyramid.ConvertOptions
---@field weights? string          one of convert.dtypes; nil: each matrix as it is
---@field force? boolean           an existing file is replaced
---@field threads? integer         0 or nil: all processors
---@field memory? integer|string   the most bytes that it may hold, mapped files excluded
---@field progress? fun(done: integer, total: integer)

---@class pyramid.Converted
---@field path string
---@field description string       one line
---@field tensors integer
---@field bytes integer            of the file
---@field warnings string[]        what its user should know, a line each

---@class pyramid.ConvertTask: pyramid.GgufTensor  a tensor of the new file
---@field from? pyramid.Tensor[]   where its rows come from, one after another; nil: `data` has all
---@field data? string
---@field as string                dtype
---@field vector? boolean          values stay f32, though they are a matrix's
---@field heads integer            of which it gets rows in GGUF's order; 0: as they lie
---@field plus number              what is added to a vector's values

-- ---- what a file holds --------------------------------------------------------------------------

-- Matrices that stay as they are, as llama.cpp's own tools leave them: few values on which much
-- depends.
local kept_names = { "^position_embd%.", "%.ffn_gate_inp%." }

--- The dtype that a tensor becomes, and whether it is another one than asked for.
local function dtype_of(task, wanted)
  local t, shape = task.from[1], task.shape
  if #shape == 1 or task.vector then return "f32", false end
  for _, pattern in ipairs(kept_names) do
    if task.name:find(pattern) then wanted = nil end
  end
  if wanted == nil and t.packed then wanted = t.packed.target end
  if wanted == nil then
    if known[t.dtype].gguf then return t.dtype, false end
    wanted = dtypes.converted[t.dtype] or "f32"
  end
  for _, as in ipairs { wanted, "q8_0", "f16" } do
    if shape[#shape] % known[as].block == 0 then return as, as ~= wanted end
  end
end

--- Settles what each tensor becomes; a line for each dtype that is not the one asked for.
local function settle(tasks, wanted, warnings)
  local kept, order = {}, {}
  for _, task in ipairs(tasks) do
    if task.from then
      local other
      task.as, other = dtype_of(task, wanted)
      if other then
        local key = ("rows of %d values, in %s"):format(task.shape[#task.shape], task.as)
        if not kept[key] then order[#order + 1] = key end
        kept[key] = (kept[key] or 0) + 1
      end
    end
    task.type, task.bytes = known[task.as].gguf, dtypes.bytes(known[task.as], task.shape)
  end
  for _, key in ipairs(order) do
    warnings[#warnings + 1] = ("%d matrices of %s: these are no multiple of %s's block of %d")
      :format(kept[key], key, wanted, known[wanted].block)
  end
end

-- Roles of weights of norms, to which what checkpoints hold them less is added.
local norms = {}
for role in ([[out_norm attn_norm ffn_norm q_norm k_norm attn_post_norm
  ffn_post_norm]]):gmatch "%S+" do norms[role] = true end

-- Which matrix of several GGUF files of a family hold a role in, and its suffix there; or nil.
local function fused_of(family, role)
  local which = role:match "^(%l+)_bias$" or role
  local suffix = role == which and ".weight" or ".bias"
  local qkv, gate_up = family.fused.hf.qkv, family.fused.gguf.gate_up
  if qkv and not qkv.apart and (which == "q" or which == "k" or which == "v") then
    return family.fused.gguf.qkv.name .. suffix
  elseif gate_up and (which == "gate" or which == "up") then return gate_up.name .. suffix end
end

--- Tensors of a file of Hugging Face's weights: by the family's names, q and k as GGUF has them,
--- those of several weights with the rows of each behind another's, experts' on top of each other.
local function tensors_of(source, weights, own)
  local family, c, tasks, by = source.family, source.config, {}, {}
  local names = setmetatable(own, { __index = family.names.gguf })
  local permuted = family.gguf_rope == "interleaved" and family.rope ~= "interleaved"
  local heads = permuted and { q = c.heads, q_bias = c.heads, k = c.kv_heads, k_bias = c.kv_heads }
    or {}
  for _, w in ipairs(weights) do
    local pattern = w.expert and names["experts_" .. w.role] or fused_of(family, w.role)
      or names[w.role]
    if not pattern then
      fault.raise("unsupported", "%s: GGUF files of a %s have no name for its %s", source.path,
        family.name, w.role)
    end
    local name, t = pattern:format(w.layer and w.layer - 1), w.tensor
    local task = by[name]
    if not task then
      task = { name = name, from = {}, heads = heads[w.role] or 0, rows = 0,
        shape = table.move(t.shape, 1, #t.shape, 1, {}),
        plus = norms[w.role] and c.decoder.norm_offset or 0 }
      by[name] = task
      tasks[#tasks + 1] = task
    end
    table.insert(task.from, t)
    task.rows = task.rows + t.shape[1]
    if w.expert then
      task.shape = { #task.from, table.unpack(t.shape) }
      task.vector = #t.shape == 1
    else task.shape[1] = task.rows end
    if w.role == "shared_router" then task.shape, task.vector = { c.width }, true end
    if c.decoder.qk_norm == "each" and (w.role == "q_norm" or w.role == "k_norm") then
      task.shape, task.vector = { t.shape[1] // c.head_dim, c.head_dim }, true
    end
  end
  return tasks
end

-- What a file of these tensors and entries would be read as.
local function foreseen(tasks, entries, path)
  local file = { metadata = {}, tensors = {} }
  for _, e in ipairs(entries) do file.metadata[e.key] = e.value end
  for i, t in ipairs(tasks) do
    file.tensors[i] = { name = t.name, path = path, shape = t.shape, dtype = t.as, offset = 0,
      bytes = t.bytes, native = known[t.as].weights, data = t.data }
  end
  return gguf_model.of(file, path)
end

--- What a Hugging Face model becomes.
local function from_hf(source, weights, wanted, to)
  local entries, divisors, own = metadata.entries(source)
  local tasks = tensors_of(source, weights, own)
  for i, t in ipairs(divisors) do
    table.insert(tasks, i, { name = t[1], as = "f32", shape = { #t[2] },
      data = ("<" .. ("f"):rep(#t[2])):pack(table.unpack(t[2])) })
  end
  local warnings = {}
  settle(tasks, wanted, warnings)
  local made = foreseen(tasks, entries, to)
  metadata.check(source, made)
  fault.check(loaders.weights(made))
  local words = { { key = "tokenizer.ggml.model", kind = "string", value = "none" } }
  if source.tokenizer then
    local more
    words, more = convert_tokenizer.entries(source.path, source.config.vocab)
    table.move(more, 1, #more, #warnings + 1, warnings)
  end
  table.move(words, 1, #words, #entries + 1, entries)
  for i, e in ipairs(entries) do entries[i] = gguf_writer.pack(e) end
  return tasks, entries, 32, warnings
end

-- Keys that are not copied: what is said anew, and what a file in one piece does not have.
local function is_own(key, wanted)
  return key == "general.file_type" and wanted ~= nil or key:find "^split%." ~= nil
end

--- What a GGUF file becomes: its tensors and its metadata, in its order.
local function from_gguf(source, _, wanted)
  local file, tasks, entries = fault.check(gguf_split.open(source.path)), {}, {}
  for i, t in ipairs(file.tensors) do
    tasks[i] = { name = t.name, from = { t }, heads = 0, plus = 0, shape = t.shape }
  end
  local warnings = {}
  settle(tasks, wanted, warnings)
  local header <close> = fault.check(files.open(file.path))
  for _, e in ipairs(file.entries) do
    if not is_own(e.key, wanted) then
      header:seek("set", e.offset)
      local bytes = header:read(e.bytes)
      if not bytes or #bytes ~= e.bytes then fault.raise("io", "%s: cannot be read", file.path) end
      entries[#entries + 1] = bytes
    end
  end
  if file.metadata["general.quantization_version"] == nil then
    entries[#entries + 1] = gguf_writer.pack { key = "general.quantization_version", kind = "u32",
      value = 2 }
  end
  return tasks, entries, file.alignment, warnings
end

--- GGUF's number for a file whose matrices are mostly of one dtype, or nil.
local function file_type(tasks)
  local by, main = {}, nil
  for _, task in ipairs(tasks) do
    if #task.shape > 1 then
      by[task.as] = (by[task.as] or 0) + task.bytes / known[task.as].bytes * known[task.as].block
      if not main or by[task.as] > by[main] then main = task.as end
    end
  end
  return gguf_writer.file_types[main]
end

-- ---- writing ------------------------------------------------------------------------------------

local function count(shape)
  local n = 1
  for _, d in ipairs(shape) do n = n * d end
  return n
end

--- The rows of a part of a tensor, piece by piece; `tell` hears of the values of each.
local function write_rows(runtime, opened, task, from, out, tell)
  local cols = from.shape[#from.shape]
  local rows = count(from.shape) // cols
  local spec = {}
  for _, key in ipairs { "name", "offset", "bytes", "dtype", "run", "step", "transposed",
    "every" } do spec[key] = from[key] end
  spec.file, spec.packing = opened[from.path], packed.describe(from, opened)
  if from.packed then spec.dtype = "f32" end       -- what unpacked rows are
  -- experts' matrices, one below another
  spec.shape = #from.shape > 1 and { rows, cols } or from.shape
  local step = math.max(1, PIECE_VALUES // cols)
  for first = 0, rows - 1, step do
    local n = math.min(step, rows - first)
    fault.check_of(from.path,
      core.convert_rows(runtime, out, spec, task.as, task.heads, task.plus, first, n))
    tell(n * cols)
  end
end

local function write_all(runtime, path, head, tasks, progress)
  local done, total, opened = 0, 0, {}
  for _, task in ipairs(tasks) do total = total + count(task.shape) end
  local function tell(values)
    done = done + values
    if progress then progress(done, total) end
  end
  fault.check(files.write(path, function(write, out)
    write(head)
    for _, task in ipairs(tasks) do
      if task.data then
        write(task.data)
        tell(count(task.shape))
      else
        for _, from in ipairs(task.from) do
          for name in pairs(packed.paths(from)) do
            opened[name] = opened[name] or fault.check(core.file_open(runtime, name))
          end
          write_rows(runtime, opened, task, from, out, tell)
        end
      end
      write(("\0"):rep(task.padding))
    end
  end))
end

local function run(from, to, given)
  if files.kind(to) and not given.force then
    fault.raise("argument", "%s: is there already", to)
  end
  local source = fault.check(loaders.open(from))
  local weights = fault.check(loaders.weights(source))
  local how = source.format == "hf" and from_hf or from_gguf
  local tasks, entries, alignment, warnings = how(source, weights, given.weights, to)
  for i, message in ipairs(source.warnings or {}) do table.insert(warnings, i, message) end
  warnings[#warnings + 1] = wrapper.describe(source.leftover or {}, source.path)
  local number = file_type(tasks)
  if number and (given.weights or source.format == "hf") then
    entries[#entries + 1] = gguf_writer.pack { key = "general.file_type", kind = "u32",
      value = number }
  end
  local head = gguf_writer.head(entries, tasks, alignment)
  local runtime <close> = fault.check(core.runtime { device = "cpu", threads = given.threads,
    memory = options.bytes("convert", given.memory) })
  write_all(runtime, to, head, tasks, given.progress)
  local last = tasks[#tasks]
  local made = fault.check(loaders.open(to))
  local description = loaders.describe(made.config, fault.check(loaders.weights(made)))
  return { path = to, description = description, tensors = #tasks,
    bytes = #head + last.offset + last.bytes + last.padding, warnings = warnings }
end

local option_kinds = { weights = "string", force = "boolean", threads = "integer",
  memory = "integer|string", progress = "function" }

---Writes a model as a GGUF file. A failure leaves whatever is there under that name.
---@param from string   a Hugging Face folder, or a GGUF file (of a split one, the first part)
---@param to string
---@param given? pyramid.ConvertOptions
---@return pyramid.Converted?
---@return string? message
---@return string? code
function convert.write(from, to, given)
  local _ <close> = core.plain_locale()
  given = options.check("convert", given, option_kinds)
  if type(to) ~= "string" or to == "" or to:find("\0", 1, true) then
    error("convert: a path to write to is wanted", 2)
  end
  if given.weights then
    local right = false
    for _, name in ipairs(convert.dtypes) do right = right or name == given.weights end
    if not right then
      error(("convert: weights = '%s' (known: %s)"):format(given.weights,
        table.concat(convert.dtypes, ", ")), 2)
    end
  end
  return fault.catch(run, from, to, given)
end

return convert

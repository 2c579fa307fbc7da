-- Quantised Hugging Face checkpoints: which tensors make up a matrix, by what config.json says of
-- the method. Their layouts stand in core/model/packed.h, which unpacks them.
--
--     q_proj.qweight  q_proj.qzeros  q_proj.scales  q_proj.g_idx      GPTQ; AWQ without g_idx
--     q_proj.weight  q_proj.weight_scale_inv                          fp8, blocks of 128 x 128
--     q_proj.weight  q_proj.weight_scale                              one scale a matrix, or a row
--     gate_up_proj_blocks  gate_up_proj_scales                        mxfp4, of all experts
--
-- become one tensor q_proj.weight (gate_up_proj) with a field `packed`. What it is to become in
-- memory:
--
--     q4_0   GPTQ of 4 bits whose zeros are all 8 and whose columns are in order: nothing is lost
--     q8_0   other GPTQ and AWQ: nothing is lost either, as a block's scale is its group's; but
--            with act order neighbours have different scales, and are rounded to 8 bits
--     q8_0   mxfp4: nothing is lost where its scales are halves (2^-23 to 2^16)
--     q8_0   fp8: rounded, at half the size of bf16
--     f16    rows of no whole blocks of 32
--
-- Of normal weights' norm (scripts/maker/oracle/packed.py --errors): fp8 has lost 2.65 %, q8_0 adds
-- 0.55 %, together 2.71 %; int4 in groups of 128 has lost 10.07 %, with act order in q8_0 10.08 %.

local fault = require "pyramid.loaders.fault"
local files = require "pyramid.files"
local json = require "pyramid.loaders.json"

local packed = {}

---@class pyramid.Packed     what a tensor of several is made of
---@field kind "scaled"|"gptq"|"awq"|"mxfp4"
---@field bits integer
---@field group integer[]    rows and columns that share a scale
---@field zeros_less_one boolean?
---@field scales pyramid.Tensor
---@field zeros pyramid.Tensor?
---@field order pyramid.Tensor?
---@field target string      what it becomes, unless the option `weights` says

-- Values of a block; rows or columns that a matrix may have, as the core has them.
local BLOCK, DIM_MAX = 32, 1 << 22

-- ---- data that is looked at ---------------------------------------------------------------------

local AT_ONCE = 1 << 20

--- Whether a tensor's bytes are those of a text, over and over.
local function repeats(t, text)
  local file <close>, why = files.open(t.path)
  if not file then fault.raise("io", "%s", why) end
  file:seek("set", t.offset)
  local whole = text:rep(math.max(1, AT_ONCE // #text))
  for at = 0, t.bytes - 1, #whole do
    local wanted = math.min(#whole, t.bytes - at)
    local got = file:read(wanted)
    if not got or #got ~= wanted then fault.raise("io", "%s: cannot be read", t.path) end
    if got ~= (wanted == #whole and whole or whole:sub(1, wanted)) then return false end
  end
  return true
end

--- The groups of columns that follow each other, as g_idx would hold them.
local function in_order(cols, group)
  local parts = {}
  for g = 0, (cols - 1) // group do
    parts[g + 1] = ("<I4"):pack(g):rep(math.min(group, cols - g * group))
  end
  return table.concat(parts)
end

-- ---- parts --------------------------------------------------------------------------------------

--- State of one checkpoint.
local Reader = {}
Reader.__index = Reader

function Reader:bad(name, format, ...)
  fault.raise("format", "%s: tensor %s: " .. format, self.what, fault.quote(name), ...)
end

--- Takes a part out of the tensors; a fault if it is missing, or of another dtype or shape.
function Reader:take(name, dtypes, shape, optional)
  local t = self.tensors[name]
  if not t then
    if optional then return nil end
    self:bad(name, "is missing")
  end
  if not dtypes[t.dtype] then self:bad(name, "is of %s", t.dtype) end
  local right = not shape or #t.shape == #shape
  for i, n in ipairs(right and shape or {}) do right = right and t.shape[i] == n end
  if not right then
    self:bad(name, "of shape [%s], where [%s] is wanted", table.concat(t.shape, ", "),
      table.concat(shape, ", "))
  end
  self.tensors[name] = nil
  return t
end

local INTS, SCALES = { i32 = true }, { f32 = true, f16 = true, bf16 = true }

--- A matrix of numbers that are packed: its words, down and across.
function Reader:words(name)
  local t = self:take(name, INTS)
  if #t.shape ~= 2 then self:bad(name, "is no matrix") end
  for _, n in ipairs(t.shape) do
    if n < 1 or n > DIM_MAX then self:bad(name, "has a dimension of %d", n) end
  end
  return t, t.shape[1], t.shape[2]
end

--- Puts a matrix made of parts in the place of its weight.
function Reader:put(name, label, numbers, shape, parts)
  if self.tensors[name] then self:bad(name, "comes twice, packed and not") end
  local blocks = shape[2] % BLOCK == 0
  parts.target = blocks and (parts.target or "q8_0") or "f16"
  self.tensors[name] = {
    name = name, path = numbers.path, dtype = label, native = false, shape = shape,
    offset = numbers.offset, bytes = numbers.bytes, packed = parts,
  }
end

-- ---- methods ------------------------------------------------------------------------------------

local function count(q, key, what, least)
  local n = json.required(q, key, "integer", what)
  if n < least or n > 1 << 20 then fault.raise("format", "%s: %s is %d", what, key, n) end
  return n
end

local function refuse_value(what, key, value, known)
  fault.raise("unsupported", "%s: %s is %s (known: %s)", what, key, fault.quote(value), known)
end

--- Names of tensors that end so, sorted, without that end.
function Reader:stems(ending)
  local out = {}
  for name in pairs(self.tensors) do
    if name:sub(-#ending) == ending then out[#out + 1] = name:sub(1, -#ending - 1) end
  end
  table.sort(out)
  return out
end

local methods = {}

function methods.gptq(self, q, where)
  local bits = count(q, "bits", where, 1)
  if bits ~= 4 and bits ~= 8 then refuse_value(where, "bits", bits, "4, 8") end
  local format = json.field(q, "checkpoint_format", "string", where)
    or json.field(q, "format", "string", where, "gptq")
  if format ~= "gptq" and format ~= "gptq_v2" then
    refuse_value(where, "checkpoint_format", format, "gptq, gptq_v2")
  end
  local word = json.field(q, "pack_dtype", "string", where, "int32")
  if word ~= "int32" then refuse_value(where, "pack_dtype", word, "int32") end
  local dynamic = json.field(q, "dynamic", "table", where)
  if dynamic and next(dynamic) then
    fault.raise("unsupported", "%s: dynamic: bits that differ from layer to layer", where)
  end
  local group, each = count(q, "group_size", where, -1), 32 // bits
  local first, zero = format == "gptq", 1 << bits - 1
  local middle = ("<I4"):pack((zero - (first and 1 or 0)) * (bits == 4 and 0x11111111
    or 0x01010101))
  for _, stem in ipairs(self:stems ".qweight") do
    local numbers, down, rows = self:words(stem .. ".qweight")
    local cols = down * each
    local size = group > 0 and group or cols
    local groups = (cols - 1) // size + 1
    local zeros = self:take(stem .. ".qzeros", INTS, { groups, rows // each })
    local scales = self:take(stem .. ".scales", SCALES, { groups, rows })
    local order = self:take(stem .. ".g_idx", INTS, { cols }, true)
    if order and repeats(order, in_order(cols, size)) then order = nil end
    local small = bits == 4 and not order and size % BLOCK == 0 and scales.dtype == "f16"
      and repeats(zeros, middle)
    self:put(stem .. ".weight", "gptq_int" .. bits, numbers, { rows, cols }, { kind = "gptq",
      bits = bits, group = { 1, size }, zeros_less_one = first, scales = scales, zeros = zeros,
      order = order, target = small and "q4_0" or nil })
  end
end

function methods.awq(self, q, where)
  local bits = q.bits ~= nil and count(q, "bits", where, 1) or count(q, "w_bit", where, 1)
  if bits ~= 4 then refuse_value(where, "bits", bits, "4") end
  local version = json.field(q, "version", "string", where)
    or json.field(q, "format", "string", where, "gemm")
  if version:lower() ~= "gemm" then refuse_value(where, "version", version, "gemm") end
  if not json.field(q, "zero_point", "boolean", where, true) then
    refuse_value(where, "zero_point", false, "true")
  end
  local group = q.group_size ~= nil and count(q, "group_size", where, -1)
    or count(q, "q_group_size", where, -1)
  for _, stem in ipairs(self:stems ".qweight") do
    local numbers, cols, across = self:words(stem .. ".qweight")
    local rows = across * 8
    local size = group > 0 and group or cols
    local groups = (cols - 1) // size + 1
    self:put(stem .. ".weight", "awq_int4", numbers, { rows, cols }, { kind = "awq", bits = 4,
      group = { 1, size }, scales = self:take(stem .. ".scales", SCALES, { groups, rows }),
      zeros = self:take(stem .. ".qzeros", INTS, { groups, rows // 8 }) })
  end
end

--- fp8 numbers with scales called `ending`; a block: rows and columns that have a scale where it is
--- no vector.
local function scaled(self, ending, block)
  for _, stem in ipairs(self:stems(ending)) do
    local name = stem .. ".weight"
    local weight = self.tensors[name]
    if weight and weight.dtype == "f8_e4m3" and #weight.shape == 2 then
      local rows, cols = weight.shape[1], weight.shape[2]
      local scales = self:take(stem .. ending, SCALES)
      local s, group = scales.shape, nil
      local values = (s[1] or 1) * (s[2] or 1)
      if #s > 2 or rows < 1 or cols < 1 then self:bad(scales.name, "is no scale") end
      if values == 1 then group = { rows, cols }
      elseif values == rows and (#s == 1 or s[2] == 1) then group = { 1, cols }
      elseif block and s[1] == (rows - 1) // block[1] + 1
        and s[2] == (cols - 1) // block[2] + 1 then
        group = block
      else
        self:bad(scales.name, "of shape [%s] for a matrix of [%d, %d]", table.concat(s, ", "), rows,
          cols)
      end
      self.tensors[name] = nil
      self:put(name, "fp8_e4m3", weight, weight.shape, { kind = "scaled", bits = 8, group = group,
        scales = scales })
    end
  end
end

local function read_block(o, key, where)
  local block = json.field(o, key, "table", where)
  if not block then return nil end
  local rows, cols = block[1], block[2]
  if math.type(rows) ~= "integer" or math.type(cols) ~= "integer" or block[3] ~= nil or rows < 1
    or cols < 1 then
    fault.raise("format", "%s: %s is no pair of counts", where, key)
  end
  return { rows, cols }
end

function methods.fp8(self, q, where)
  local format = json.field(q, "fmt", "string", where, "e4m3")
  if format ~= "e4m3" then refuse_value(where, "fmt", format, "e4m3") end
  scaled(self, ".weight_scale_inv", read_block(q, "weight_block_size", where))
end

function methods.fbgemm_fp8(self) scaled(self, ".weight_scale") end

methods["compressed-tensors"] = function(self, q, where)
  local format = json.required(q, "format", "string", where)
  if format ~= "float-quantized" and format ~= "naive-quantized" then
    refuse_value(where, "format", format, "float-quantized")
  end
  for _, key in ipairs { "sparsity_config", "transform_config" } do
    local more = json.field(q, key, "table", where)
    local kind = more and json.field(more, "format", "string", where .. ": " .. key)
    if more and next(more) and kind ~= "dense" then
      fault.raise("unsupported", "%s: %s", where, key)
    end
  end
  local block
  for name, group in pairs(json.required(q, "config_groups", "table", where)) do
    local place = ("%s: config_groups: %s"):format(where, fault.quote(name))
    if type(group) ~= "table" then fault.raise("format", "%s is not an object", place) end
    local weights = json.field(group, "weights", "table", place)
    if weights then
      place = place .. ": weights"
      local kind = json.field(weights, "type", "string", place, "int")
      local bits = json.field(weights, "num_bits", "integer", place, 8)
      if kind ~= "float" or bits ~= 8 then
        fault.raise("unsupported", "%s: %s of %d bits (known: float of 8)", place,
          fault.quote(kind), bits)
      end
      block = read_block(weights, "block_structure", place) or block
    end
  end
  scaled(self, ".weight_scale", block)
end

--- Numbers of four bits, two a byte, [experts, rows, blocks, 16], with an exponent for each block
--- of 32 columns.
function methods.mxfp4(self)
  for _, stem in ipairs(self:stems "_blocks") do
    local name = stem .. "_blocks"
    local numbers = self:take(name, { u8 = true })
    local s = numbers.shape
    if #s ~= 4 or s[4] ~= 16 then
      self:bad(name, "of shape [%s], where [experts, rows, blocks, 16] is wanted",
        table.concat(s, ", "))
    end
    for _, n in ipairs(s) do
      if n < 1 or n > DIM_MAX then self:bad(name, "has a dimension of %d", n) end
    end
    local scales = self:take(stem .. "_scales", { u8 = true }, { s[1], s[2], s[3] })
    self:put(stem, "mxfp4", numbers, { s[1], s[2], s[3] * BLOCK }, { kind = "mxfp4", bits = 4,
      group = { 1, BLOCK }, scales = scales })
  end
end

--- What activations are quantised with where they are: ours are not.
local activation_scales = { "%.input_scale$", "%.output_scale$", "%.activation_scale$",
  "%.[qkv]_scale$", "%.input_scale_ub$" }

--- Whether a tensor that nobody asked for changes nothing: scales of activations, and the biases
--- that AutoGPTQ gave every projection, of zeros where the model has none.
---@param tensors table<string, pyramid.Tensor>  after packed.collect
---@param name string
---@return boolean
function packed.may_ignore(tensors, name)
  for _, pattern in ipairs(activation_scales) do
    if name:find(pattern) then return true end
  end
  local stem = name:match "^(.*%.)bias$"
  local matrix = stem and tensors[stem .. "weight"]
  return matrix ~= nil and matrix.packed ~= nil and repeats(tensors[name], "\0")
end

--- Puts matrices in the place of what they are packed in. Raises faults.
---@param tensors table<string, pyramid.Tensor>  of the checkpoint; changed
---@param q table          quantization_config
---@param where string     the file and field that is
---@param what string      the checkpoint
function packed.collect(tensors, q, where, what)
  local name = json.field(q, "quant_method", "string", where)
  local method = name and methods[name]
  if not method then
    local known = {}
    for key in pairs(methods) do known[#known + 1] = key end
    table.sort(known)
    fault.raise("unsupported", "%s: quant_method %s (known: %s; and GGUF files)", where,
      fault.quote(name or "is missing"), table.concat(known, ", "))
  end
  method(setmetatable({ tensors = tensors, what = what }, Reader), q, where)
end

--- Rows [first, first + n) of a packed matrix, or as many that lie `every` apart; numbers of
--- mxfp4, which lie row by row, alone.
---@param whole pyramid.Tensor
---@param role string         for messages
---@param first integer
---@param n integer
---@param every integer
---@return pyramid.Tensor
function packed.rows(whole, role, first, n, every)
  local p, cols = whole.packed, whole.shape[2]
  if p.kind ~= "mxfp4" then
    fault.raise("unsupported", "%s: tensor %s: parts of it are wanted, which %s does not allow",
      whole.path, whole.name, whole.dtype)
  end
  local held = (n - 1) * every + 1
  local function lines(t, row)
    return setmetatable({ offset = t.offset + first * row, bytes = held * row }, { __index = t })
  end
  local part = lines(whole, cols // 2)
  part.name, part.shape = ("%s (%s)"):format(whole.name, role), { n, cols }
  part.packed = setmetatable({ scales = lines(p.scales, cols // BLOCK) }, { __index = p })
  if every > 1 then part.run, part.step = 1, every end
  return part
end

--- The files that a tensor lies in.
---@param t pyramid.Tensor
---@return table<string, boolean>
function packed.paths(t)
  local out = { [t.path] = true }
  for _, part in ipairs { "scales", "zeros", "order" } do
    local of = t.packed and t.packed[part]
    if of then out[of.path] = true end
  end
  return out
end

--- What the core is told of a tensor of several (lua/lmodel.c), or nil.
---@param t pyramid.Tensor
---@param opened table<string, userdata>  open files, by path
---@return table?
function packed.describe(t, opened)
  local p = t.packed
  if not p then return nil end
  local function part(of)
    return of and { file = opened[of.path], offset = of.offset, bytes = of.bytes }
  end
  return { kind = p.kind, bits = p.bits, group = p.group, zeros_less_one = p.zeros_less_one,
    scale_dtype = p.kind == "mxfp4" and "f32" or p.scales.dtype, scales = part(p.scales),
    zeros = part(p.zeros), order = part(p.order) }
end

return packed

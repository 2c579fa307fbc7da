-- Parts of tensors: where a checkpoint holds several weights in one matrix, each becomes a tensor
-- of its own, which says where its rows lie in the whole (pyr_tensor_spec in core/pyramid.h).
-- Nothing is read here, and nothing copied: rows that follow each other stay in their mapping.
--
--     Phi-3   qkv_proj [q | k | v, width]          three runs of rows, one after the other
--     NeoX    query_key_value [heads of (q k v), width]    groups: each head's rows in turn
--     GPT-2   c_attn [width, q | k | v]            transposed: columns of the file
--     GPT-OSS gate_up_proj [width, (gate, up)]     transposed, every second column

local dtypes = require "pyramid.loaders.dtypes"
local fault = require "pyramid.loaders.fault"
local packed = require "pyramid.loaders.packed"

local parts = {}

--- The dtype of a tensor that is to be taken apart; `single`: value by value.
local function dtype_of(whole, single)
  local dtype = dtypes.by_name[whole.dtype]
  if not dtype or (single and dtype.block ~= 1) then
    fault.raise("unsupported", "%s: tensor %s: parts of it are wanted, which %s does not allow",
      whole.path, whole.name, whole.dtype)
  end
  return dtype
end

--- Rows [first, first + count) of a tensor, or those and as many of each further group of `step`
--- rows, `groups` times; a matrix or a vector.
local function rows_of(whole, role, first, count, groups, step)
  local matrix = #whole.shape == 2
  local row_values = matrix and whole.shape[2] or 1
  local dtype = dtype_of(whole, groups > 1)
  local row = row_values // dtype.block * dtype.bytes
  local part = setmetatable({
    name = ("%s (%s)"):format(whole.name, role), offset = whole.offset + first * row,
    shape = { count * groups, whole.shape[2] },
  }, { __index = whole })
  if groups > 1 then part.run, part.step = count, step end
  part.bytes = ((groups - 1) * (groups > 1 and step or 0) + count) * row
  return part
end

--- The same values in another shape.
---@param whole pyramid.Tensor
---@param shape integer[]
---@return pyramid.Tensor
function parts.reshape(whole, shape) return setmetatable({ shape = shape }, { __index = whole }) end

--- Rows [first, first + count) of a matrix or values of a vector, as a tensor of their own, or as
--- many that lie `every` apart; `role` is for messages.
---@param whole pyramid.Tensor
---@param role string
---@param first integer
---@param count integer
---@param every? integer
---@return pyramid.Tensor
function parts.take_rows(whole, role, first, count, every)
  if whole.packed then return packed.rows(whole, role, first, count, every or 1) end
  if (every or 1) == 1 then return rows_of(whole, role, first, count, 1) end
  return rows_of(whole, role, first, 1, count, every)
end

--- Columns [first, first + count) of a matrix that is held transposed: [in, out]; or as many that
--- lie `every` apart.
---@param whole pyramid.Tensor
---@param role string
---@param first integer
---@param count integer
---@param every? integer
---@return pyramid.Tensor
function parts.take_columns(whole, role, first, count, every)
  local dtype = dtype_of(whole, true)
  local ins, outs = whole.shape[1], whole.shape[2]
  every = every or 1
  return setmetatable({
    name = ("%s (%s)"):format(whole.name, role), offset = whole.offset + first * dtype.bytes,
    shape = { count, ins }, transposed = true, step = outs, run = count,
    every = every > 1 and every or nil,
    bytes = ((ins - 1) * outs + (count - 1) * every + 1) * dtype.bytes,
  }, { __index = whole })
end

--- What a fused matrix holds, role by role: { role, rows }.
local contents = {
  qkv = function(c)
    local q, kv = c.heads * c.head_dim, c.kv_heads * c.head_dim
    return { { "q", q }, { "k", kv }, { "v", kv } }
  end,
  gate_up = function(c) return { { "gate", c.ff }, { "up", c.ff } } end,
}

local function take(source, fused, list, name, role_of)
  local whole = source.tensors[name]
  if not whole then return false end
  local c, rows = source.config, 0
  for _, item in ipairs(list) do rows = rows + item[2] end
  local matrix = #whole.shape == 2
  local held = fused.transposed and matrix and whole.shape[2] or whole.shape[1]
  if held ~= rows or #whole.shape > 2 then
    fault.raise("format", "%s: tensor %s: %d rows, where its parts have %d", whole.path, name, held,
      rows)
  end
  source.tensors[name] = nil       -- before: GGUF files of Phi-3 call gate and up "ffn_up"
  local at, group = 0, rows // c.kv_heads
  for _, item in ipairs(list) do
    local role, count = item[1], item[2]
    local part
    if fused.groups then
      local each = count // c.kv_heads
      part = rows_of(whole, role, at // c.kv_heads, each, c.kv_heads, group)
    elseif fused.transposed and matrix then part = parts.take_columns(whole, role, at, count)
    else part = rows_of(whole, role, at, count, 1) end
    source.tensors[role_of(role)] = part
    at = at + count
  end
  return true
end

--- Replaces fused tensors of a source by their parts, under the names that those have alone. A bias
--- beside a fused matrix is split alike, and its roles become the source's.
---@param source pyramid.Source
function parts.split(source)
  for kind, content in pairs(contents) do
    local fused = source.fused[kind]
    for layer = 0, fused and source.config.layers - 1 or -1 do
      local name, list = fused.name:format(layer), content(source.config)
      local function alone(suffix)
        return function(role) return source.names[role .. suffix]:format(layer) end
      end
      take(source, fused, list, name .. ".weight", alone "")
      if take(source, fused, list, name .. ".bias", alone "_bias") then
        for _, item in ipairs(list) do source.optional[item[1] .. "_bias"] = true end
      end
    end
  end
end

--- Matrices that a family's checkpoints hold as [in, out], seen as [out, in].
---@param source pyramid.Source
---@param roles table<string, boolean>
function parts.transpose(source, roles)
  for role in pairs(roles) do
    for layer = 0, source.config.layers - 1 do
      local name = source.names[role]:format(layer)
      local whole = source.tensors[name]
      if whole and #whole.shape == 2 and not whole.transposed then
        source.tensors[name] = parts.take_columns(whole, role, 0, whole.shape[2])
      end
    end
  end
end

--- Vectors of each layer that a checkpoint holds as [heads, head_dim], as one.
---@param source pyramid.Source
---@param role string
function parts.flatten(source, role)
  local pattern = source.names[role]
  for layer = 0, pattern and source.config.layers - 1 or -1 do
    local whole = source.tensors[pattern:format(layer)]
    if whole and #whole.shape == 2 then
      source.tensors[whole.name] = parts.reshape(whole, { whole.shape[1] * whole.shape[2] })
    end
  end
end

--- Rows [first, first + count) of a table, such as of learned positions that do not begin with
--- position 0; raises a fault where it has fewer.
---@param source pyramid.Source
---@param role string
---@param first integer
---@param count integer
function parts.rows(source, role, first, count)
  local name = source.names[role]
  local whole = source.tensors[name]
  if not whole then return end
  if #whole.shape ~= 2 or whole.shape[1] < first + count then
    fault.raise("format", "%s: tensor %s: %d rows, where %d are wanted", whole.path, name,
      whole.shape[1], first + count)
  end
  source.tensors[name] = rows_of(whole, role, first, count, 1)
end

return parts

-- Number formats of files: what a format calls them, their block and its bytes. Those that pyramid
-- knows come from its table of dtypes (core/base/dtype.h); the others are here, known well enough
-- to be listed and to be refused by name. Sources of these: ggml's type table as the `gguf` package
-- states it; the safetensors format's list.
local core = require "pyramid.core"

local dtypes = {}

---@class pyramid.Dtype
---@field name string        pyramid's name, or the format's own where pyramid has none
---@field block integer      values a block
---@field bytes integer      bytes a block
---@field native boolean     models can hold it as it is

---@class pyramid.DtypeInfo      of pyramid's own
---@field name string
---@field block integer
---@field bytes integer          of a block
---@field gguf? integer          its number in GGUF
---@field safetensors? string    its name in safetensors
---@field weights boolean        models can hold it as it is
---@field rows boolean           caches can
---@field writable boolean       values can be converted to it
---@field at_load string         what it becomes while a model is loaded; itself, where it stays
---@field cpu table<string, true>     kernels that the processor has for it: weights, rows, …
---@field device table<string, true>  kernels that devices have

--- The table of dtypes, in its order.
---@type pyramid.DtypeInfo[]
dtypes.all = core.dtypes()

--- Pyramid's own, by name.
---@type table<string, pyramid.DtypeInfo>
dtypes.by_name = {}

--- Bytes of a value, by name.
---@type table<string, number>
dtypes.value_bytes = {}

--- What no kernel reads, but models can have: what it is converted to while it is loaded, unless
--- the option `weights` says.
---@type table<string, string>
dtypes.converted = {}

--- Names that a load option may ask for, and those of what caches can hold.
---@type string[]
dtypes.writable, dtypes.rows = {}, {}

--- What else GGUF has, by its type numbers, and safetensors, by its names.
local foreign_gguf = {
  [9] = { "q8_1", 32, 40 }, [15] = { "q8_k", 256, 292 }, [16] = { "iq2_xxs", 256, 66 },
  [17] = { "iq2_xs", 256, 74 }, [18] = { "iq3_xxs", 256, 98 }, [19] = { "iq1_s", 256, 50 },
  [21] = { "iq3_s", 256, 110 }, [22] = { "iq2_s", 256, 82 }, [24] = { "i8", 1, 1 },
  [25] = { "i16", 1, 2 }, [26] = { "i32", 1, 4 }, [27] = { "i64", 1, 8 },
  [29] = { "iq1_m", 256, 56 }, [34] = { "tq1_0", 256, 54 }, [35] = { "tq2_0", 256, 66 },
  [41] = { "q1_0", 128, 18 },
}
local foreign_safetensors = {
  I64 = { "i64", 1, 8 }, I32 = { "i32", 1, 4 }, I16 = { "i16", 1, 2 }, I8 = { "i8", 1, 1 },
  U64 = { "u64", 1, 8 }, U32 = { "u32", 1, 4 }, U16 = { "u16", 1, 2 }, U8 = { "u8", 1, 1 },
  BOOL = { "bool", 1, 1 }, F8_E4M3 = { "f8_e4m3", 1, 1 }, F8_E5M2 = { "f8_e5m2", 1, 1 },
  F8_E8M0 = { "f8_e8m0", 1, 1 }, C64 = { "c64", 1, 8 },
}

local function make(list)
  local out = {}
  for key, entry in pairs(list) do
    out[key] = { name = entry[1], block = entry[2], bytes = entry[3], native = false }
  end
  return out
end

--- By the type ids of GGUF.
---@type table<integer, pyramid.Dtype>
dtypes.gguf = make(foreign_gguf)

--- By the names of safetensors.
---@type table<string, pyramid.Dtype>
dtypes.safetensors = make(foreign_safetensors)

for _, info in ipairs(dtypes.all) do
  local converted = info.at_load ~= info.name and info.at_load or nil
  local own = { name = info.name, block = info.block, bytes = info.bytes, native = info.weights }
  dtypes.by_name[info.name] = info
  if info.gguf then dtypes.gguf[info.gguf] = own end
  if info.safetensors then dtypes.safetensors[info.safetensors] = own end
  if info.weights and info.writable then table.insert(dtypes.writable, info.name) end
  if info.rows then table.insert(dtypes.rows, info.name) end
  dtypes.value_bytes[info.name] = info.bytes / info.block
  dtypes.converted[info.name] = converted
end

--- Names of all dtypes that a model's weights may be of in its file, sorted.
---@param format? "gguf"|"safetensors"  only those that such files can have
---@return string[]
function dtypes.loadable(format)
  local out = {}
  for _, info in ipairs(dtypes.all) do
    local held = not format or info[format] ~= nil
    if held and (info.weights or dtypes.converted[info.name]) then out[#out + 1] = info.name end
  end
  table.sort(out)
  return out
end

--- Bytes of a tensor, or nil and why not: "overflow", or "block" if its rows are no whole blocks.
---@param dtype pyramid.Dtype
---@param shape integer[] row-major
---@return integer? bytes
---@return string? why
function dtypes.bytes(dtype, shape)
  local count = 1
  for _, n in ipairs(shape) do
    if n > 0 and count > math.maxinteger // n then return nil, "overflow" end
    count = count * n
  end
  local row = shape[#shape] or 1
  if row % dtype.block ~= 0 then return nil, "block" end
  local blocks = count // dtype.block
  if blocks > math.maxinteger // dtype.bytes then return nil, "overflow" end
  return blocks * dtype.bytes
end

return dtypes

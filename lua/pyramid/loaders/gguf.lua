-- Headers of GGUF files, versions 2 and 3, little-endian: metadata and the list of tensors, never
-- the data.
--
-- The header is read in pieces of at least a MiB, so that a vocabulary of 150 thousand strings
-- costs one unpack and one sub each. Nothing is believed: counts are compared with the bytes that
-- are left before anything is made of them, names and keys must not come twice, and a tensor's
-- bytes must lie inside the file and apart from the others'. Source:
-- https://github.com/ggml-org/ggml/blob/master/docs/gguf.md

local dtypes = require "pyramid.loaders.dtypes"
local fault = require "pyramid.loaders.fault"
local files = require "pyramid.files"

local gguf = {}

local PIECE = 1 << 20
local NAME_MAX, KEY_MAX, DEPTH_MAX, RANK_MAX = 1024, 65535, 4, 4
-- A file may be sparse: its size says nothing of what it cost. So the header has limits of its own,
-- ten times what the largest that are known ask for: 30 MB of metadata, 800 thousand elements in
-- all of its arrays, 3,000 tensors.
local HEADER_MAX, ELEMENTS_MAX, KEYS_MAX, TENSORS_MAX = 1 << 28, 1 << 23, 1 << 16, 1 << 16
local unpack = string.unpack

---@class pyramid.Gguf
---@field path string
---@field version integer
---@field alignment integer
---@field metadata table<string, any> arrays as sequences; 64-bit counts as Lua integers
---@field entries { key: string, offset: integer, bytes: integer }[]
---  where each key lies with its value, for who copies it as it is; as the file orders them
---@field tensors pyramid.Tensor[]   as the file orders them

-- A value type: its unpack format and size. Strings and arrays have none.
local scalars = {
  [0] = { "<B", 1 }, [1] = { "<b", 1 }, [2] = { "<I2", 2 }, [3] = { "<i2", 2 }, [4] = { "<I4", 4 },
    [5] = { "<i4", 4 },
  [6] = { "<f", 4 }, [7] = { "<B", 1 }, [10] = { "<i8", 8 }, [11] = { "<i8", 8 },
    [12] = { "<d", 8 },
}
local BOOL, STRING, ARRAY, U64 = 7, 8, 9, 10

-- ---- the reader: a window onto the file ---------------------------------------------------------

---@class pyramid.GgufReader
---@field path string
---@field file file*
---@field size integer  of the file
---@field start integer file offset of the window
---@field text string   the window
---@field at integer    position in the window, from 1
---@field elements integer  of all arrays so far
local Reader = {}
Reader.__index = Reader

function Reader:bad(format, ...)
  fault.raise("format", "%s: " .. format, self.path, ...)
end

--- File offset of the next byte.
function Reader:offset() return self.start + self.at - 1 end

function Reader:left() return self.size - self:offset() end

--- Makes sure that n bytes lie in the window from `at` on.
function Reader:need(n, what)
  if #self.text - self.at + 1 >= n then return end
  if n < 0 or n > self:left() then self:bad("%s: the file ends within it", what) end
  if n > HEADER_MAX - self:offset() then
    self:bad("%s: the header is longer than %d bytes (the limit of headers)", what, HEADER_MAX)
  end
  local rest = self.text:sub(self.at)
  local more = self.file:read(math.max(n - #rest, PIECE))
  self.start, self.text, self.at = self:offset(), rest .. (more or ""), 1
  if #self.text < n then fault.raise("io", "%s: cannot be read", self.path) end
end

--- The next value of an unpack format of n bytes.
function Reader:take(format, n, what)
  self:need(n, what)
  local value, at = unpack(format, self.text, self.at)
  self.at = at
  return value
end

--- A count or length: 64 bits, of which no file needs the highest.
function Reader:count(what)
  local n = self:take("<i8", 8, what)
  if n < 0 then self:bad("%s: %d is absurd", what, n) end
  return n
end

function Reader:string(what, limit)
  local n = self:count(what)
  if limit and n > limit then self:bad("%s: %d bytes long", what, n) end
  self:need(n, what)
  local at = self.at
  self.at = at + n
  return self.text:sub(at, at + n - 1)
end

-- ---- metadata -----------------------------------------------------------------------------------

local read_value

local function read_strings(reader, count, what)
  local out = {}
  for i = 1, count do
    local text, at = reader.text, reader.at
    local length = at + 7 <= #text and unpack("<i8", text, at)
    -- the usual case: all of it is in the window
    if length and length >= 0 and length <= #text - at - 7 then
      out[i] = text:sub(at + 8, at + 7 + length)
      reader.at = at + 8 + length
    else
      out[i] = reader:string(what)
    end
  end
  return out
end

local function read_scalars(reader, kind, count, what)
  local format, size = scalars[kind][1], scalars[kind][2]
  local out, batch = {}, 64
  local many = "<" .. format:sub(2):rep(batch)
  local i = 1
  while i <= count do
    if count - i + 1 >= batch then
      reader:need(batch * size, what)
      local values = { unpack(many, reader.text, reader.at) }
      reader.at = values[batch + 1]
      table.move(values, 1, batch, i, out)
      i = i + batch
    else
      out[i] = reader:take(format, size, what)
      i = i + 1
    end
  end
  if kind == BOOL then
    for j = 1, count do out[j] = out[j] ~= 0 end
  elseif kind == U64 then
    for j = 1, count do if out[j] < 0 then reader:bad("%s: a value of 2^63 or more", what) end end
  end
  return out
end

local function read_array(reader, what, depth)
  if depth > DEPTH_MAX then reader:bad("%s: arrays nested deeper than %d", what, DEPTH_MAX) end
  local kind = reader:take("<I4", 4, what)
  local count = reader:count(what)
  local least = kind == STRING and 8 or kind == ARRAY and 12 or scalars[kind] and scalars[kind][2]
  if not least then reader:bad("%s: unknown element type %d", what, kind) end
  if count > reader:left() // least then
    reader:bad("%s: %d elements are too many for the file", what, count)
  end
  reader.elements = reader.elements + count
  if reader.elements > ELEMENTS_MAX then
    reader:bad("%s: the arrays hold more than %d elements (the limit of headers)", what,
      ELEMENTS_MAX)
  end
  if kind == STRING then return read_strings(reader, count, what) end
  if kind ~= ARRAY then return read_scalars(reader, kind, count, what) end
  local out = {}
  for i = 1, count do out[i] = read_array(reader, what, depth + 1) end
  return out
end

function read_value(reader, kind, what)
  if kind == STRING then return reader:string(what) end
  if kind == ARRAY then return read_array(reader, what, 1) end
  local scalar = scalars[kind]
  if not scalar then reader:bad("%s: unknown value type %d", what, kind) end
  local value = reader:take(scalar[1], scalar[2], what)
  if kind == BOOL then
    if value > 1 then reader:bad("%s: %d is no boolean", what, value) end
    return value == 1
  end
  if kind == U64 and value < 0 then reader:bad("%s: a value of 2^63 or more", what) end
  return value
end

local function read_metadata(reader, count)
  local metadata, entries = {}, {}
  for i = 1, count do
    local offset = reader:offset()
    local key = reader:string(("metadata key %d"):format(i), KEY_MAX)
    local what = "metadata " .. fault.quote(key)
    if key == "" then reader:bad("metadata key %d is empty", i) end
    if metadata[key] ~= nil then reader:bad("%s comes twice", what) end
    metadata[key] = read_value(reader, reader:take("<I4", 4, what), what)
    entries[i] = { key = key, offset = offset, bytes = reader:offset() - offset }
  end
  return metadata, entries
end

-- ---- tensors ------------------------------------------------------------------------------------

--- One tensor's description. GGUF lists dimensions from the contiguous one on; ours are row-major.
local function read_tensor(reader, i)
  local name = reader:string(("name of tensor %d"):format(i), NAME_MAX)
  local what = "tensor " .. fault.quote(name)
  local rank = reader:take("<I4", 4, what)
  if rank < 1 or rank > RANK_MAX then reader:bad("%s: %d dimensions", what, rank) end
  local shape = {}
  for d = rank, 1, -1 do
    shape[d] = reader:count(what)
    if shape[d] < 1 then reader:bad("%s: a dimension of %d", what, shape[d]) end
  end
  while #shape > 2 and shape[1] == 1 do table.remove(shape, 1) end
  local kind = reader:take("<I4", 4, what)
  local dtype = dtypes.gguf[kind]
  if not dtype then
    fault.raise("unsupported", "%s: %s is of GGUF's type %d, which this build does not know "
      .. "(models can use: %s)", reader.path, what, kind,
        table.concat(dtypes.loadable "gguf", ", "))
  end
  local offset = reader:count(what)
  local bytes, why = dtypes.bytes(dtype, shape)
  if why == "block" then
    reader:bad("%s: rows of %d values are no multiple of %s's block of %d", what, shape[#shape],
      dtype.name, dtype.block)
  end
  if not bytes then reader:bad("%s: shape overflows", what) end
  return {
    name = name, path = reader.path, dtype = dtype.name, native = dtype.native, shape = shape,
      offset = offset, bytes = bytes,
  }
end

local function read_tensors(reader, count)
  local tensors, seen = {}, {}
  for i = 1, count do
    local t = read_tensor(reader, i)
    if seen[t.name] then reader:bad("tensor %s comes twice", fault.quote(t.name)) end
    seen[t.name] = true
    tensors[i] = t
  end
  return tensors
end

--- Turns offsets from the data's beginning into offsets from the file's, and checks that they lie
--- apart and inside.
local function place_tensors(reader, tensors, alignment)
  if #tensors == 0 then return end
  local base = (reader:offset() + alignment - 1) // alignment * alignment
  local room = reader.size - base
  for _, t in ipairs(tensors) do
    local what = "tensor " .. fault.quote(t.name)
    if t.offset % alignment ~= 0 then
      reader:bad("%s: offset %d is no multiple of the alignment %d", what, t.offset, alignment)
    end
    if t.offset > room or t.bytes > room - t.offset then
      reader:bad("%s: %d bytes at %d lie outside the data of %d bytes", what, t.bytes, t.offset,
        math.max(room, 0))
    end
    t.offset = base + t.offset
  end
  local sorted = table.move(tensors, 1, #tensors, 1, {})
  table.sort(sorted, function(a, b) return a.offset < b.offset end)
  for i = 2, #sorted do
    if sorted[i].offset < sorted[i - 1].offset + sorted[i - 1].bytes then
      reader:bad("tensors %s and %s overlap", fault.quote(sorted[i - 1].name),
        fault.quote(sorted[i].name))
    end
  end
end

local function read(file, path, size)
  local reader = setmetatable({ path = path, file = file, size = size, start = 0, text = "",
    at = 1, elements = 0 }, Reader)
  local probe, message = file:read(0)
  if not probe then
    fault.raise(message and "io" or "format", "%s: %s", path, message or "the file is empty")
  end
  if reader:take("c4", 4, "magic") ~= "GGUF" then reader:bad("magic: not a GGUF file") end
  local version = reader:take("<I4", 4, "version")
  if version ~= 2 and version ~= 3 then
    local swapped = version & 0xffff == 0 and version ~= 0
    fault.raise("unsupported", "%s: version %s of GGUF (2 and 3 are known)", path,
      swapped and "with big-endian numbers" or version)
  end
  local tensor_count, key_count = reader:count("tensor count"), reader:count("metadata count")
  if tensor_count > reader:left() // 32 then
    reader:bad("tensor count: %d do not fit the file", tensor_count)
  end
  if key_count > reader:left() // 13 then
    reader:bad("metadata count: %d do not fit the file", key_count)
  end
  if tensor_count > TENSORS_MAX then
    reader:bad("tensor count: %d (the limit is %d)", tensor_count, TENSORS_MAX)
  end
  if key_count > KEYS_MAX then
    reader:bad("metadata count: %d (the limit is %d)", key_count, KEYS_MAX)
  end

  local metadata, entries = read_metadata(reader, key_count)
  local alignment = metadata["general.alignment"]
  if alignment == nil then alignment = 32 end
  if math.type(alignment) ~= "integer" or alignment < 1 or alignment > 1 << 20
    or alignment & (alignment - 1) ~= 0 then
    reader:bad("general.alignment: %s is no power of two", fault.quote(alignment))
  end
  local tensors = read_tensors(reader, tensor_count)
  place_tensors(reader, tensors, alignment)
  return { path = path, version = version, alignment = alignment, metadata = metadata,
    entries = entries, tensors = tensors }
end

--- Reads metadata and tensor list of a GGUF file.
---@param path string
---@return pyramid.Gguf?
---@return string? message
---@return string? code
function gguf.read(path)
  return fault.catch(function()
    local file <close>, size = fault.check(files.open(path))
    return read(file, path, size)
  end)
end

return gguf

-- Headers of safetensors files. Reads the JSON header, never the data, and checks everything that
-- it says against the size of the file: dtypes, shapes, lengths, and that the tensors cover the
-- data without overlaps and holes (as the format demands; a key that came twice would leave a
-- hole).
-- Source: https://github.com/huggingface/safetensors#format

local dtypes = require "pyramid.loaders.dtypes"
local fault = require "pyramid.loaders.fault"
local files = require "pyramid.files"
local json = require "pyramid.loaders.json"

local safetensors = {}

local HEADER_MAX = 100000000   -- the format's own limit

---@class pyramid.Tensor
---@field name string
---@field path string     the file it lies in
---@field dtype string    pyramid's name of the dtype
---@field native boolean  whether a model can use that dtype
---@field shape integer[] row-major: { out, in }
---@field offset integer  from the file's beginning
---@field bytes integer
---@field packed pyramid.Packed?  it is one part of several: its numbers (loaders/packed.lua)

---@class pyramid.Safetensors
---@field path string
---@field metadata table<string, string>
---@field tensors pyramid.Tensor[]   as their data lie

local function read_shape(entry, what)
  local shape = {}
  for i, n in ipairs(entry) do
    shape[i] = math.type(n) and math.tointeger(n)
    if not shape[i] or shape[i] < 0 then
      fault.raise("format", "%s: shape has a dimension that is no count", what)
    end
  end
  local count = 0
  for _ in pairs(entry) do count = count + 1 end
  if count ~= #shape or count > 8 then
    fault.raise("format", "%s: shape is not a list of up to 8 counts", what)
  end
  return shape
end

local function read_tensor(path, name, entry, base, limit)
  local what = ("%s: tensor %s"):format(path, fault.quote(name))
  if type(entry) ~= "table" then fault.raise("format", "%s is not an object", what) end
  local dtype_name = json.required(entry, "dtype", "string", what)
  local dtype = dtypes.safetensors[dtype_name]
  if not dtype then
    fault.raise("unsupported", "%s is of dtype %s, which this build does not know "
      .. "(models can use: %s)", what, fault.quote(dtype_name),
        table.concat(dtypes.loadable "safetensors", ", "))
  end
  local shape = read_shape(json.required(entry, "shape", "table", what), what)
  local span = json.required(entry, "data_offsets", "table", what)
  local first, last = math.type(span[1]) and math.tointeger(span[1]),
    math.type(span[2]) and math.tointeger(span[2])
  if not first or not last or span[3] ~= nil then
    fault.raise("format", "%s: data_offsets are not two integers", what)
  end
  if first < 0 or last < first or last > limit then
    fault.raise("format", "%s: data_offsets %d..%d lie outside the data of %d bytes", what, first,
      last, limit)
  end
  local bytes = dtypes.bytes(dtype, shape)
  if not bytes then fault.raise("format", "%s: shape overflows", what) end
  if bytes ~= last - first then
    fault.raise("format", "%s: data_offsets span %d bytes, where shape and dtype need %d", what,
      last - first, bytes)
  end
  return {
    name = name, path = path, dtype = dtype.name, native = dtype.native, shape = shape,
      offset = base + first, bytes = bytes,
  }
end

local function check_cover(path, tensors, base, size)
  local at = base
  for _, t in ipairs(tensors) do
    if t.offset ~= at then
      fault.raise("format", "%s: tensor %s %s", path, fault.quote(t.name),
        t.offset < at and "overlaps the one before it" or "leaves a hole in the data before it")
    end
    at = at + t.bytes
  end
  if at ~= size then
    fault.raise("format", "%s: %d bytes after the last tensor's data", path, size - at)
  end
end

local function read(file, path, size)
  if size < 8 then
    fault.raise("format", "%s: %d bytes are too few for a safetensors file", path, size)
  end
  local start, message = file:read(8)
  if not start then fault.raise("io", "%s: %s", path, message or "cannot be read") end
  local length = string.unpack("<i8", start)
  if length < 2 or length > HEADER_MAX or length > size - 8 then
    fault.raise("format", "%s: header length %d does not fit the file of %d bytes", path, length,
      size)
  end
  local text = file:read(length)
  if not text or #text ~= length then fault.raise("io", "%s: the header cannot be read", path) end
  if text:byte() ~= 0x7b then
    fault.raise("format", "%s: the header does not begin with '{'", path)
  end
  local header = json.decode(text, path .. ": header", true)

  local out = { path = path, metadata = {}, tensors = {} }
  for name, entry in pairs(header) do
    if name ~= "__metadata__" then
      out.tensors[#out.tensors + 1] = read_tensor(path, name, entry, 8 + length, size - 8 - length)
    elseif type(entry) ~= "table" then
      fault.raise("format", "%s: __metadata__ is not an object", path)
    else
      for key, value in pairs(entry) do
        if type(key) ~= "string" or type(value) ~= "string" then
          fault.raise("format", "%s: __metadata__ holds something else than strings", path)
        end
        out.metadata[key] = value
      end
    end
  end
  table.sort(out.tensors, function(a, b)
    if a.offset ~= b.offset then return a.offset < b.offset end
    -- empty tensors before the one that follows them
    if a.bytes ~= b.bytes then return a.bytes < b.bytes end
    return a.name < b.name
  end)
  check_cover(path, out.tensors, 8 + length, size)
  return out
end

--- Reads the header of a safetensors file.
---@param path string
---@return pyramid.Safetensors?
---@return string? message
---@return string? code
function safetensors.read(path)
  return fault.catch(function()
    local file <close>, size = fault.check(files.open(path))
    return read(file, path, size)
  end)
end

return safetensors

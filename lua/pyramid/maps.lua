--- Files of learned maps: what `pyramid calibrate --learn` writes and the policy "kvzap" reads. Of
--- each layer and KV head of one model they hold
---
---   map       w and b of score.learned, which guesses from a token's hidden state how much its row
---             will be looked at
---   budgets   the share of its rows that stay when so many of all rows are to: of `levels` shares
---             of all, evenly from 1 / levels to 1. Heads that are looked at much have more than
---             their part
---
--- The format is safetensors: two f32 tensors, map [layers * KV heads, width + 1] and budgets
--- [layers * KV heads, levels], and in the metadata what they were learned from.
local core = require "pyramid.core"
local fault = require "pyramid.loaders.fault"
local json = require "pyramid.json"
local safetensors = require "pyramid.loaders.safetensors"

local maps = {}

---@class pyramid.LearnedMap
---@field path string
---@field map pyramid.Vector          (layers * KV heads) x (width + 1)
---@field budgets pyramid.Vector      (layers * KV heads) x levels
---@field levels integer
---@field metadata table<string, string>

local most_bytes = 1 << 30
local RUN = 128                       -- numbers that are unpacked at once

local function numbers(bytes, count)
  local list, at = {}, 1
  for done = 0, count - 1, RUN do
    local some = math.min(RUN, count - done)
    local values = { string.unpack("<" .. ("f"):rep(some), bytes, at) }
    at = values[some + 1]
    table.move(values, 1, some, done + 1, list)
  end
  return list
end

-- A tensor of the file as a matrix; what is no number is refused here, where the file is named.
local function matrix(file, path, tensor, name)
  if not tensor or #tensor.shape ~= 2 or tensor.dtype ~= "f32" then
    fault.raise("format", "%s: %s is no matrix of f32: this is no file of learned maps", path, name)
  end
  local rows, cols = tensor.shape[1], tensor.shape[2]
  if rows < 1 or cols < 2 or tensor.bytes > most_bytes then
    fault.raise("format", "%s: %s has no possible size: %d x %d", path, name, rows, cols)
  end
  file:seek("set", tensor.offset)
  local bytes = file:read(tensor.bytes)
  if not bytes or #bytes ~= tensor.bytes then
    fault.raise("io", "%s: %s cannot be read", path, name)
  end
  local flat, list = numbers(bytes, rows * cols), {}
  for i, value in ipairs(flat) do
    if value ~= value or math.abs(value) == math.huge then
      fault.raise("format", "%s: %s is not finite at number %d", path, name, i)
    end
  end
  for row = 1, rows do list[row] = table.move(flat, (row - 1) * cols + 1, row * cols, 1, {}) end
  return core.vector(list)
end

local function check(read, path)
  if #read.budgets ~= #read.map then
    fault.raise("format", "%s: budgets are of %d heads, map of %d", path, #read.budgets, #read.map)
  end
  for head = 1, #read.budgets do
    local before = 0
    for _, share in ipairs(read.budgets[head]:totable()) do
      if share < before or share > 1 then
        fault.raise("format", "%s: budgets of head %d are no rising shares", path, head)
      end
      before = share
    end
  end
  return read
end

---Reads a file of learned maps.
---@param path string
---@return pyramid.LearnedMap?
---@return string? message
---@return string? code
function maps.read(path)
  return fault.catch(function()
    local header = fault.check(safetensors.read(path))
    local tensors = {}
    for _, tensor in ipairs(header.tensors) do tensors[tensor.name] = tensor end
    local file <close> = io.open(path, "rb")
    if not file then fault.raise("io", "%s: cannot be read", path) end
    local read = { path = path, metadata = header.metadata,
      map = matrix(file, path, tensors.map, "map"),
      budgets = matrix(file, path, tensors.budgets, "budgets") }
    read.levels = read.budgets:columns()
    return check(read, path)
  end)
end

---The share of a head's rows that stays where `share` of all are to.
---@param read pyramid.LearnedMap
---@param head integer                (layer - 1) * KV heads + head
---@param share number                0 to 1
---@return number
function maps.budget(read, head, share)
  local place = math.max(0, math.min(share, 1)) * read.levels
  local low = math.min(math.floor(place), read.levels - 1)
  local row = read.budgets[head]
  local from = low == 0 and 0 or row[low]
  return from + (row[low + 1] - from) * (place - low)
end

local function tensor_bytes(m)
  local parts = {}
  for row = 1, #m do
    local list = m[row]:totable()
    for at = 1, #list, RUN do
      local some = math.min(RUN, #list - at + 1)
      parts[#parts + 1] = string.pack("<" .. ("f"):rep(some), table.unpack(list, at, at + some - 1))
    end
  end
  return table.concat(parts)
end

---The bytes of such a file.
---@param read { map: pyramid.Vector, budgets: pyramid.Vector, metadata: table<string, string> }
---@return string
function maps.bytes(read)
  local map, budgets = tensor_bytes(read.map), tensor_bytes(read.budgets)
  local header = json.encode { __metadata__ = read.metadata,
    map = { dtype = "F32", shape = { #read.map, read.map:columns() }, data_offsets = { 0, #map } },
    budgets = { dtype = "F32", shape = { #read.budgets, read.budgets:columns() },
      data_offsets = { #map, #map + #budgets } } }
  header = header .. (" "):rep(-#header % 8)
  return string.pack("<I8", #header) .. header .. map .. budgets
end

return maps

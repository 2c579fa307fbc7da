--- Files of learned maps: what `pyramid calibrate --learn` writes and the policies "pyramid_plus",
--- "kvzap", "dms" and "narrow" read. Of each layer and KV head of one model they hold
---
---   map       w and b of score.learned, which guesses from a token's hidden state how much its row
---             will be looked at
---   budgets   the share of its rows that stay when so many of all rows are to: of `levels` shares
---             of all, evenly from 1 / levels to 1. Heads that are looked at much have more than
---             their part
---
--- and of all together, by the same levels,
---
---   thresholds  what a row's number must not be below for so many of all rows to pass
---
--- and of each layer
---
---   tokens    w and b likewise, which guess how much the token's rows in deeper layers together
---             will be looked at: what the token is worth to them
---
--- The format is safetensors: four f32 tensors, map [layers * KV heads, width + 1], budgets
--- [layers * KV heads, levels], thresholds [1, levels] and tokens [layers, width + 1], and in the
--- metadata what they were learned from.
---
--- And files of query centres, which `pyramid calibrate --centres` writes and the policies
--- "qfilter" and "triattention" read: two matrices of f32, centres and filters.
local core = require "pyramid.core"
local fault = require "pyramid.loaders.fault"
local json = require "pyramid.json"
local safetensors = require "pyramid.loaders.safetensors"
local score = require "pyramid.score"

local maps = {}

---@class pyramid.LearnedMap
---@field path string
---@field map pyramid.Vector          (layers * KV heads) x (width + 1)
---@field budgets pyramid.Vector      (layers * KV heads) x levels
---@field thresholds pyramid.Vector   1 x levels
---@field tokens pyramid.Vector       layers x (width + 1)
---@field levels integer
---@field score pyramid.Score         score.learned of the map
---@field deeper pyramid.Score        score.learned of tokens
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
  if #read.thresholds ~= 1 or read.thresholds:columns() ~= read.levels then
    fault.raise("format", "%s: thresholds are not of as many levels as budgets", path)
  end
  if #read.map % #read.tokens ~= 0 or read.tokens:columns() ~= read.map:columns() then
    fault.raise("format", "%s: tokens are %d x %d, which does not go with a map of %d x %d", path,
      #read.tokens, read.tokens:columns(), #read.map, read.map:columns())
  end
  return read
end

-- A layer's row once for each of its KV heads, as score.learned wants them.
local function for_each_head(tokens, heads)
  local rows = {}
  for layer = 1, #tokens do
    local row = tokens[layer]:totable()
    for _ = 1, heads do rows[#rows + 1] = row end
  end
  return core.vector(rows)
end

-- Matrices of a safetensors file, by name, with its metadata; raises.
local function read_matrices(path, names)
  local header = fault.check(safetensors.read(path))
  local tensors, read = {}, { path = path, metadata = header.metadata }
  for _, tensor in ipairs(header.tensors) do tensors[tensor.name] = tensor end
  local file <close> = io.open(path, "rb")
  if not file then fault.raise("io", "%s: cannot be read", path) end
  for _, name in ipairs(names) do read[name] = matrix(file, path, tensors[name], name) end
  return read
end

---Reads a file of learned maps.
---@param path string
---@return pyramid.LearnedMap?
---@return string? message
---@return string? code
function maps.read(path)
  return fault.catch(function()
    local read = read_matrices(path, { "map", "budgets", "thresholds", "tokens" })
    read.levels = read.budgets:columns()
    check(read, path)
    read.score = score.learned(read.map)
    read.deeper = score.learned(for_each_head(read.tokens, #read.map // #read.tokens))
    return read
  end)
end

-- For policies, whose functions ask again and again: what a path gives is made once, so that its
-- score is always the same one; raises what `make` says.
local function once(known, path, make)
  if not known[path] then
    local made, message = make(path)
    if not made then error(message, 0) end
    known[path] = made
  end
  return known[path]
end

local learned, filters, centres = {}, {}, {}                                   -- by path

---The same for policies: a file is read once; raises.
---@param path string
---@return pyramid.LearnedMap
function maps.learned(path) return once(learned, path, maps.read) end

-- Between two levels along a line; below the first one, from `from`.
local function between(row, levels, share, from)
  local place = math.max(0, math.min(share, 1)) * levels
  local low = math.min(math.floor(place), levels - 1)
  local at = low == 0 and from or row[low]
  return at + (row[low + 1] - at) * (place - low)
end

---The share of a head's rows that stays where `share` of all are to.
---@param read pyramid.LearnedMap
---@param head integer                (layer - 1) * KV heads + head
---@param share number                0 to 1
---@return number
function maps.budget(read, head, share)
  return between(read.budgets[head], read.levels, share, 0)
end

---What a row's number must not be below for about `share` of the rows of plain text to pass.
---@param read pyramid.LearnedMap
---@param share number                0 to 1; less than a level is taken for one
---@return number
function maps.threshold(read, share)
  local row = read.thresholds[1]
  return between(row, read.levels, share, row[1])
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

-- A safetensors file of matrices: { name, matrix }, …
local function encode(metadata, matrices)
  local header, parts, at = { __metadata__ = metadata }, {}, 0
  for i, pair in ipairs(matrices) do
    parts[i] = tensor_bytes(pair[2])
    header[pair[1]] = { dtype = "F32", shape = { #pair[2], pair[2]:columns() },
      data_offsets = { at, at + #parts[i] } }
    at = at + #parts[i]
  end
  local text = json.encode(header)
  text = text .. (" "):rep(-#text % 8)
  return string.pack("<I8", #text) .. text .. table.concat(parts)
end

---The bytes of such a file.
---@param read { map: pyramid.Vector, budgets: pyramid.Vector, thresholds: pyramid.Vector, tokens: pyramid.Vector, metadata: table<string, string> }
---@return string
function maps.bytes(read)
  return encode(read.metadata, { { "map", read.map }, { "budgets", read.budgets },
    { "thresholds", read.thresholds }, { "tokens", read.tokens } })
end

---What is known of a model's queries: see pyramid.tools.centres.
---@class pyramid.QueryCentres
---@field centres pyramid.Vector      (layers * heads) x (1.5 head_dim), for score.centres
---@field filters pyramid.Vector      (layers * KV heads) x head_dim, for score.along
---@field metadata table<string, string>

---Reads a file of query centres.
---@param path string
---@return pyramid.QueryCentres?
---@return string? message
---@return string? code
function maps.centres(path)
  return fault.catch(function() return read_matrices(path, { "centres", "filters" }) end)
end

-- A score of one matrix of such a file.
local function score_of(name, make)
  return function(path)
    local read, message = maps.centres(path)
    return read and make(read[name]), message
  end
end
local filter_score, centre_score = score_of("filters", score.along),
  score_of("centres", score.centres)

---score.along of a file's filters, for policies; raises.
---@param path string
---@return pyramid.Score
function maps.along(path) return once(filters, path, filter_score) end

---score.centres of a file's centres, for policies; raises.
---@param path string
---@return pyramid.Score
function maps.around(path) return once(centres, path, centre_score) end

-- ---- how much heads retrieve --------------------------------------------------------------------

-- "0.2, 0.5": numbers of 0 and more, by layer, then by head.
local function numbers_of(text)
  local list, sum = {}, 0.0
  for word in text:gmatch "[^,%s]+" do
    local x = tonumber(word)
    if not (x and x >= 0 and x < math.huge) then
      return nil, ("option 'scores': '%s' is no number of 0 or more"):format(word)
    end
    list[#list + 1], sum = x, sum + x
  end
  if sum == 0 then return nil, "option 'scores': all are 0" end
  return list
end

-- A file as HeadKV's authors publish it: { "0-0": [0.1, …], "0-1": … }, layer and head from 0; the
-- mean of each head's numbers counts.
local function read_heads(path)
  local file <close>, why = io.open(path, "rb")
  if not file then return nil, why end
  local value, message = json.decode(file:read "a" or "")
  if type(value) ~= "table" then
    return nil, ("%s: %s"):format(path, message or "is no object of scores by head")
  end
  local list, layers, heads = {}, 0, 0
  local function of(key, each)
    each = type(each) == "table" and each or { each }
    local sum = 0.0
    for _, x in ipairs(each) do
      if type(x) ~= "number" or not (x >= 0 and x < math.huge) then return nil end
      sum = sum + x
    end
    local layer, head = key:match "^(%d+)%-(%d+)$"
    layer, head = math.tointeger(layer), math.tointeger(head)
    if not layer or layer > 4095 or head > 4095 or #each == 0 then return nil end
    layers, heads = math.max(layers, layer + 1), math.max(heads, head + 1)
    return layer, head, sum / #each
  end
  local by = {}
  for key, each in pairs(value) do
    local layer, head, mean = of(tostring(key), each)
    if not layer then
      return nil, ("%s: \"%s\" is no head with numbers of 0 or more"):format(path, tostring(key))
    end
    by[layer << 12 | head] = mean
  end
  for layer = 0, layers - 1 do
    for head = 0, heads - 1 do
      local x = by[layer << 12 | head]
      if not x then return nil, ("%s: \"%d-%d\" is missing"):format(path, layer, head) end
      list[#list + 1] = x
    end
  end
  if #list == 0 then return nil, path .. ": names no head" end
  return list
end

-- By text, until nobody has looked for a while, as texts come from clients, too; by path.
local said, filed = setmetatable({}, { __mode = "v" }), {}

---The part that each KV head of a layer has of what all heads of a model retrieve together, which
---is 1: for policies; raises what is wrong. Numbers may be of query heads: their mean counts.
---@param text string                 numbers, layer after layer; "": the file's
---@param path string                 a file; "": all heads are alike
---@param l pyramid.Layer
---@param temperature number          the power of each number
---@return number[]
function maps.head_shares(text, path, l, temperature)
  local lanes = l.layers * l.kv_heads
  local from = text ~= "" and once(said, text, numbers_of)
    or path ~= "" and once(filed, path, read_heads)
  local parts, sum = {}, 0.0
  local group = from and #from == l.layers * l.heads and l.heads // l.kv_heads or 1
  if from and #from ~= lanes * group then
    error(("%d scores are not those of %d layers of %d KV heads"):format(#from, l.layers,
      l.kv_heads), 0)
  end
  for lane = 1, lanes do
    local own = from and 0.0 or 1.0
    for i = 1, from and group or 0 do own = own + from[(lane - 1) * group + i] / group end
    own = own ^ temperature
    sum = sum + own
    if (lane - 1) // l.kv_heads + 1 == l.index then parts[#parts + 1] = own end
  end
  for head, own in ipairs(parts) do parts[head] = sum > 0 and own / sum or 1 / lanes end
  return parts
end

---The bytes of such a file.
---@param read pyramid.QueryCentres
---@return string
function maps.centres_bytes(read)
  return encode(read.metadata, { { "centres", read.centres }, { "filters", read.filters } })
end

return maps

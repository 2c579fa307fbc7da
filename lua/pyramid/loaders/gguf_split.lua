-- Models split over several GGUF files, as gguf-split and Hugging Face's converters leave them:
--
--     big-00001-of-00003.gguf    metadata, tokenizer, split.no 0; some tensors, or none
--     big-00002-of-00003.gguf    split.no 1, more tensors
--     big-00003-of-00003.gguf    split.no 2, the rest
--
-- Each has split.count (3) and split.tensors.count (of all). The first one's path opens the model:
-- the others lie beside it under the names above. The result is a header as gguf.read makes it,
-- with the first's metadata and the tensors of all, each with its own path. Nothing ties shards
-- together but these numbers, so all of them are held against each other; a shard of another model
-- shows by metadata that differs, by tensors that are there twice, or by their sum.
-- Source: https://github.com/ggml-org/llama.cpp (tools/gguf-split, src/llama.cpp).

local fault = require "pyramid.loaders.fault"
local files = require "pyramid.files"
local gguf = require "pyramid.loaders.gguf"

local gguf_split = {}

-- Shards are of gigabytes: the largest models that are published have some dozen. Tensors: as many
-- as one file may have.
local SHARDS_MAX, TENSORS_MAX = 1024, 1 << 16

--- An integer of a shard's metadata, or a fault that names it.
local function count_of(shard, key, low, high)
  local value = shard.metadata[key]
  if value == nil then fault.raise("format", "%s: metadata %s is missing", shard.path, key) end
  if math.type(value) ~= "integer" or value < low or value > high then
    fault.raise("format", "%s: metadata %s is %s, no integer of %d..%d", shard.path, key,
      fault.quote(value), low, high)
  end
  return value
end

--- The paths of all parts and the number in this one's name; nil where it is not named as parts
--- are.
local function paths_of(path, count)
  local prefix, number, of = path:match "^(.*)%-(%d%d%d%d%d)%-of%-(%d%d%d%d%d)%.gguf$"
  if not prefix or tonumber(of) ~= count then return nil end
  local paths = {}
  for i = 1, count do paths[i] = ("%s-%05d-of-%05d.gguf"):format(prefix, i, count) end
  return paths, tonumber(number)
end

--- The paths of all, given the first; a fault that names the first where this is another.
local function find_paths(first, count)
  local paths, number = paths_of(first.path, count)
  local no = count_of(first, "split.no", 0, count - 1)
  if no ~= 0 then
    fault.raise("format", "%s: metadata split.no is %d: this is part %d of %d, and a model is "
      .. "opened by its first: %s", first.path, no, no + 1, count, paths and paths[1]
      or ("the file whose name ends in -00001-of-%05d.gguf"):format(count))
  end
  if number ~= 1 then
    fault.raise("format", "%s: metadata split.count is %d, but the name does not end in "
      .. "-00001-of-%05d.gguf, so that the other parts cannot be found: give it that name back",
      first.path, count, count)
  end
  return paths
end

--- What both a shard and the first say must be the same.
local function check_alike(first, shard)
  for key, value in pairs(shard.metadata) do
    local other = first.metadata[key]
    if key ~= "split.no" and key ~= "general.alignment" and other ~= nil
      and type(value) ~= "table" and value ~= other then
      fault.raise("format", "%s: metadata %s is %s, and in %s %s: they are not parts of one model",
        shard.path, key, fault.quote(value), first.path, fault.quote(other))
    end
  end
end

local function read_shard(first, path, i, count)
  if not files.exists(path) then
    fault.raise("io", "%s: there is no such file, which is part %d of %d of %s (metadata "
      .. "split.count)", path, i, count, first.path)
  end
  local shard = fault.check(gguf.read(path))
  count_of(shard, "split.count", 0, SHARDS_MAX)
  local no = count_of(shard, "split.no", 0, SHARDS_MAX)
  if no ~= i - 1 then
    fault.raise("format", "%s: metadata split.no is %d, where its name says %d", path, no, i - 1)
  end
  check_alike(first, shard)
  return shard
end

local function open(path)
  local first = fault.check(gguf.read(path))
  local count = first.metadata["split.count"]
  if count == nil or count == 0 or count == 1 then return first end   -- 0: as llama.cpp takes it
  count = count_of(first, "split.count", 1, SHARDS_MAX)
  local paths = find_paths(first, count)
  local tensors, where = {}, {}
  for i, shard_path in ipairs(paths) do
    local shard = i == 1 and first or read_shard(first, shard_path, i, count)
    if #tensors + #shard.tensors > TENSORS_MAX then
      fault.raise("format", "%s: the parts up to this one hold more than %d tensors (the limit)",
        shard_path, TENSORS_MAX)
    end
    for _, t in ipairs(shard.tensors) do
      if where[t.name] then
        fault.raise("format", "%s: tensor %s is in %s, too", shard_path, fault.quote(t.name),
          where[t.name])
      end
      where[t.name] = shard_path
      tensors[#tensors + 1] = t
    end
  end
  local wanted = first.metadata["split.tensors.count"]
  if wanted ~= nil and wanted ~= #tensors then
    fault.raise("format", "%s: metadata split.tensors.count is %s, but its %d parts hold %d "
      .. "tensors", path, fault.quote(wanted), count, #tensors)
  end
  return { path = path, version = first.version, alignment = first.alignment,
    metadata = first.metadata, entries = first.entries, tensors = tensors }
end

--- The header of a GGUF file; where it is the first of several parts, with the tensors of all.
---@param path string
---@return pyramid.Gguf?
---@return string? message
---@return string? code
function gguf_split.open(path)
  return fault.catch(open, path)
end

return gguf_split

--- Batches: many sequences of ragged lengths, one forward pass a step. Pages come from one pool under one budget.
---
---   local batch = model:batch { policy = "pyramidinfer" }
---   local a, b = batch:add(ids_a), batch:add(ids_b)       -- handles: caches, with rows, positions, bytes, …
---   for _, entry in ipairs(batch:step()) do local handle, logits = entry[1], entry[2] … batch:push(handle, id) end
---
--- The first step after `add` reads that sequence's prompt and returns its last logits. Every later step feeds, for
--- each sequence, the id that was pushed or, without one, the most probable of its last logits.
local cache = require "pyramid.cache"
local core = require "pyramid.core"

local batch = {}

---@class pyramid.Batch
local Batch = {}
Batch.__index = Batch
Batch.__name = "pyramid.batch"

---@param model pyramid.Model
---@param given? pyramid.CacheOptions
---@return pyramid.Batch|nil
---@return string? message
---@return string? code
function batch.new(model, given)
  local pool, bound, code = cache.prepare("model:batch", model, given)
  if not pool then return nil, bound, code end
  return setmetatable({ model = model, pool = pool, bound = bound, entries = {}, by_handle = {} }, Batch)
end

local function open(self)
  if not self.pool then error("the batch is closed", 3) end
end

local function entry_of(self, handle)
  return self.by_handle[handle] or error("the batch has no such sequence", 3)
end

---Adds a sequence; its prompt is read by the next step.
---@param ids integer[]
---@return pyramid.Cache|nil handle
---@return string? message
---@return string? code
function Batch:add(ids)
  open(self)
  if type(ids) ~= "table" then error("batch:add: a sequence of ids is wanted", 2) end
  local handle, message, code = cache.make(self.model, self.pool, self.bound)
  if not handle then return nil, message, code end
  local entry = { handle = handle, prompt = table.move(ids, 1, #ids, 1, {}) }
  self.entries[#self.entries + 1] = entry
  self.by_handle[handle] = entry
  return handle
end

---The id that the next step feeds to a sequence.
---@param handle pyramid.Cache
---@param id integer
function Batch:push(handle, id)
  open(self)
  entry_of(self, handle).next = id
end

---One step of every sequence. On failure of a prompt or of the step, the sequences are as before; `remove` the one that
---the message names, or make room, and step again.
---@return { [1]: pyramid.Cache, [2]: pyramid.Logits }[]|nil
---@return string? message
---@return string? code
function Batch:step()
  open(self)
  local stepping, caches, ids = {}, {}, {}
  for _, entry in ipairs(self.entries) do
    if entry.logits then
      stepping[#stepping + 1] = entry
      caches[#caches + 1] = entry.handle
      ids[#ids + 1] = entry.next or entry.logits:argmax()
    end
  end
  for index, entry in ipairs(self.entries) do
    if not entry.logits and not entry.fresh then
      local logits, message, code = entry.handle:prefill(entry.prompt)
      if not logits then return nil, ("sequence %d: %s"):format(index, message), code end
      entry.fresh = logits       -- stays for the next call if something later fails
    end
  end
  if #caches > 0 then
    local all, message, code = core.step(caches, ids)
    if not all then return nil, message, code end
    for i, entry in ipairs(stepping) do entry.logits, entry.next = all[i], nil end
  end
  local results = {}
  for i, entry in ipairs(self.entries) do
    if entry.fresh then entry.logits, entry.fresh, entry.prompt = entry.fresh, nil, nil end
    results[i] = { entry.handle, entry.logits }
  end
  return results
end

---Takes a sequence out and closes it.
---@param handle pyramid.Cache
function Batch:remove(handle)
  open(self)
  local entry = entry_of(self, handle)
  for i, other in ipairs(self.entries) do
    if other == entry then table.remove(self.entries, i) break end
  end
  self.by_handle[handle] = nil
  handle:close()
end

---Bytes that all its sequences hold, shared pages once.
---@return integer
function Batch:bytes()
  open(self)
  return self.pool:bytes()
end

function Batch:__len() return #self.entries end

function Batch:close()
  if not self.pool then return end
  for _, entry in ipairs(self.entries) do entry.handle:close() end
  self.entries, self.by_handle = {}, {}
  self.pool:close()
  self.pool = nil
end

Batch.__close = Batch.close
Batch.__gc = Batch.close

return batch

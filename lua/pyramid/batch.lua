--- Batches: many sequences of ragged lengths, one forward pass a step. Pages come from one pool
--- under one budget.
---
---   local batch = model:batch { policy = "pyramidinfer" }
---   local a, b = batch:add(ids_a), batch:add(ids_b)   -- handles: caches, with rows, bytes, …
---   for _, entry in ipairs(batch:step()) do
---     local handle, logits = entry[1], entry[2]
---     batch:push(handle, (logits:argmax()))
---   end
---
--- The first step after `add` reads that sequence's prompt and returns its last logits. Every later
--- step feeds, for each sequence, the id that was pushed or, without one, the most probable of its
--- last logits.
---
--- A sequence may pick for itself: `batch:add(ids, sampler)`. Its entries are { handle, id = … }
--- then, without logits, which after the prompt's stay on the device where they were computed, and
--- the next step feeds that id unless another is pushed. The sampler remembers what it picked,
--- whatever is pushed.
local cache = require "pyramid.cache"
local core = require "pyramid.core"

local batch = {}

---What a step says of one sequence: { handle, logits }, or { handle, id = … } where it samples.
---@class pyramid.BatchEntry
---@field [1] pyramid.Cache    the sequence's handle
---@field [2] pyramid.Logits?  without a sampler
---@field id integer|false|nil   with a sampler: what it picked; false where no logit was finite
---@field over boolean?          by the sampler's grammar, nothing may follow that id

---Many sequences of any lengths, each a cache, under one policy and one budget. #batch counts them.
---@class pyramid.Batch
local Batch = {}
Batch.__index = Batch
Batch.__name = "pyramid.batch"

---A batch without sequences: model:batch.
---@param model pyramid.Model
---@param given? pyramid.CacheOptions
---@return pyramid.Batch?
---@return string? message
---@return string? code
function batch.new(model, given)
  local pool, bound, telling = cache.prepare("model:batch", model, given)
  if not pool then return nil, bound, telling end
  return setmetatable({ model = model, pool = pool, bound = bound, telling = telling, entries = {},
    by_handle = {} }, Batch)
end

-- The id as an integer; raises on other types. False if it is outside the vocabulary.
local function checked_id(self, what, id)
  local exact = type(id) == "number" and math.tointeger(id)
  if not exact then
    error(("%s: an id must be an integer, not %s"):format(what, tostring(id)), 3)
  end
  return exact >= 0 and exact < self.model.config.vocab and exact
end

local function open(self)
  if not self.pool then error("the batch is closed", 3) end
end

local function entry_of(self, handle)
  return self.by_handle[handle] or error("the batch has no such sequence", 3)
end

---Adds a sequence of at least one id; its prompt is read by the next step. With a sampler, which
---may be that of other sequences too, entries hold what it picked instead of logits.
---@param ids integer[]
---@param sampler? pyramid.Sampler
---@return pyramid.Cache? handle
---@return string? message
---@return string? code
function Batch:add(ids, sampler)
  open(self)
  if type(ids) ~= "table" then error("batch:add: a sequence of ids is wanted", 2) end
  local class = getmetatable(sampler)
  if sampler ~= nil and not (class and class.__name == "pyramid.sampler") then
    error("batch:add: a sampler is wanted", 2)
  end
  if sampler and sampler:guided() then
    if not self.model.tokenizer then
      return nil, "batch:add: a sampler with a grammar, and the model has no tokenizer",
        "unsupported"
    end
    for _, entry in ipairs(self.entries) do
      if entry.sampler == sampler then
        error("batch:add: a sampler with a grammar serves one sequence; sampler:clone() is another",
          2)
      end
    end
  end
  local prompt = {}
  for i = 1, #ids do
    prompt[i] = checked_id(self, "batch:add", ids[i])
    if not prompt[i] then
      return nil, ("batch:add: id %d at %d is outside the vocabulary of %d"):format(ids[i], i,
        self.model.config.vocab), "argument"
    end
  end
  if #prompt == 0 then return nil, "batch:add: the sequence is empty", "argument" end
  local handle, message, code = cache.make(self.model, self.pool, self.bound, self.telling)
  if not handle then return nil, message, code end
  local entry = { handle = handle, prompt = prompt, sampler = sampler }
  self.entries[#self.entries + 1] = entry
  self.by_handle[handle] = entry
  return handle
end

---The id that the next step feeds to a sequence.
---@param handle pyramid.Cache
---@param id integer
---@return true?
---@return string? message
---@return string? code
function Batch:push(handle, id)
  open(self)
  local entry, exact = entry_of(self, handle), checked_id(self, "batch:push", id)
  if not exact then
    return nil, ("batch:push: id %d is outside the vocabulary of %d"):format(id,
      self.model.config.vocab), "argument"
  end
  entry.next = exact
  return true
end

-- What a sequence's sampler makes of its prompt, which it sees once.
local function first_pick(self, entry)
  if entry.prompt then
    local lexicon, why, kind
    if entry.sampler:guided() then
      lexicon, why, kind = self.model.tokenizer:lexicon()
      if lexicon then lexicon, why, kind = entry.sampler:begin(lexicon) end
      if not lexicon then return nil, why, kind end
    end
    local ok, message, code = entry.sampler:accept(entry.prompt)
    if not ok then return nil, message, code end
    entry.prompt = nil
  end
  local id, message, code = entry.sampler:pick(entry.fresh)
  if not id and message:find("no logit is finite", 1, true) then return false end
  return id, message, code
end

-- Prompts that stages of a pipeline read at the same time. What fails is read again by itself,
-- which says why; but where the link is broken, or somebody has cancelled, nothing is.
local function read_together(self)
  local waiting, handles, prompts = {}, {}, {}
  for _, entry in ipairs(self.entries) do
    if not entry.read and not entry.fresh then
      waiting[#waiting + 1], handles[#handles + 1] = entry, entry.handle
      prompts[#prompts + 1] = entry.prompt
    end
  end
  if #waiting < 2 or self.model:ranks().size == 1 then return true end
  local read, message, code = core.read_together(handles, prompts)
  for i, logits in ipairs(read) do waiting[i].fresh = logits end
  if code == "cancelled" or code == "device" then return nil, message, code end
  return true
end

---One step of every sequence. On failure of a prompt or of the step, the sequences are as before;
---`remove` the one that the message names, or make room, and step again. An id is false where no
---logit was finite.
---@return pyramid.BatchEntry[]?
---@return string? message
---@return string? code
function Batch:step()
  open(self)
  local stepping, caches, ids, samplers = {}, {}, {}, {}
  for index, entry in ipairs(self.entries) do
    if not pcall(entry.handle.tokens, entry.handle) then
      error(("batch:step: sequence %d: its handle was closed; remove it"):format(index), 2)
    end
    if entry.sampler and not pcall(entry.sampler.accept, entry.sampler, {}) then
      error(("batch:step: sequence %d: its sampler was closed; remove it"):format(index), 2)
    end
    if entry.read then
      local id = entry.next or entry.id or entry.logits and entry.logits:argmax()
      if not id then
        return nil, ("batch:step: sequence %d: no logit was finite; push an id"):format(index),
          "argument"
      end
      stepping[#stepping + 1] = { entry = entry, index = index }
      caches[#caches + 1], ids[#ids + 1], samplers[#samplers + 1] = entry.handle, id,
        entry.sampler or false
    end
  end
  if not self.telling.store then
    local read, message, code = read_together(self)
    if not read then return nil, message, code end
  end
  for index, entry in ipairs(self.entries) do
    if not entry.read and not entry.fresh then
      local logits, message, code = entry.handle:prefill(entry.prompt)
      if not logits then return nil, ("sequence %d: %s"):format(index, message), code end
      entry.fresh = logits       -- stays for the next call if something later fails
    end
    if entry.sampler and entry.fresh and entry.id == nil then
      local id, message, code = first_pick(self, entry)
      if id == nil then return nil, ("sequence %d: %s"):format(index, message), code end
      entry.id = id
    end
  end
  if #caches > 0 then
    local all, message, code = core.step(caches, ids, samplers)
    if not all then      -- the core counts those that step; callers count all
      message = message:gsub("^token (%d+)", function(n)
        local one = stepping[tonumber(n)]
        return one and ("sequence %d"):format(one.index)
      end)
      return nil, "batch:step: " .. message, code
    end
    for i, one in ipairs(stepping) do
      one.entry.next = nil
      one.entry[one.entry.sampler and "id" or "logits"] = all[i]
    end
  end
  local results = {}
  for i, entry in ipairs(self.entries) do
    if entry.fresh then
      if not entry.sampler then entry.logits = entry.fresh end
      entry.read, entry.fresh, entry.prompt = true, nil, nil
    end
    results[i] = { entry.handle, entry.logits, id = entry.id,
      over = entry.sampler and entry.sampler:guided() and entry.sampler:over() or nil }
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

---Closes the batch and its sequences.
function Batch:close()
  if not self.pool then return end
  for _, entry in ipairs(self.entries) do entry.handle:close() end
  self.entries, self.by_handle = {}, {}
  self.pool:close()
  self.pool = nil
end

-- No __gc: handles close themselves when nobody has them any more, and one that somebody has
-- outlives its batch.
Batch.__close = Batch.close

return batch

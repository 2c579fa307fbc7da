--- Those who are measured, with the same methods each, so that they can take turns: Pyramid under a
--- policy, and a peer.
---
---   begin(tokens, sequences)        makes ready for cases of so many tokens in each of so many
---                                   sequences
---   prefill(n)                      reads n tokens into an empty sequence
---   decode(depth, steps)            steps after `depth` tokens; what prefill left is used again if
---                                   it is that long
---   batch(count, prompt, generated) many prompts, then steps of all of them, one token each
---   reset_peak(), peak(others)      most bytes resident in between, without what other baselines
---                                   hold
---   finish()                        lets go of what `begin` and the measurements made
---
--- A measurement returns { seconds=, … } or nil and what went wrong. Prompts and continuations are
--- random ids, so that nobody can guess, and the same for all. Logits are asked for wherever a
--- generator would need them; in steps, Pyramid picks the highest of them, as a greedy generator
--- does, though what is fed next is another.
local core = require "pyramid.core"
local probe = require "pyramid.probe"
local machine = require "pyramid.tools.bench.machine"
local neighbour = require "pyramid.tools.bench.neighbour"
local sampler = require "pyramid.sampler"

local baselines = {}

local WARM_STEPS = 2              -- of a decode measurement, not timed
local SPARE = 16                  -- tokens of room beyond what is asked for

---@class pyramid.Sample
---@field seconds number
---@field first? number           batch: until every sequence had its first token
---@field kv_bytes? integer       what the cache holds at the end; for decode at the given depth
---@field kept? number            share of the rows that a full cache would hold
---@field computed? number        share of a full prefill's token-layers that was computed
---@field profile? pyramid.ProfileEntry[]

-- ---- Pyramid ------------------------------------------------------------------------------------

---@class pyramid.Ours
---@field engine string
---@field label string            the policy, as the user wrote it
---@field dtype string            of cache rows
local Ours = {}
Ours.__index = Ours

---@param model pyramid.Model
---@param given { policy: pyramid.Policy, label: string, dtype: string, ids: fun(first: integer, count: integer): integer[] }
---@return pyramid.Ours
function baselines.ours(model, given)
  return setmetatable({ engine = "pyramid", model = model, policy = given.policy,
    label = given.label, dtype = given.dtype, ids = given.ids, greedy = sampler() }, Ours)
end

function Ours.begin() return true end

local function options_of(self) return { policy = self.policy, dtype = self.dtype } end

local function drop_state(self)
  if self.state then self.state.cache:close() end
  self.state = nil
end

-- Times f(); with `profiled`, also where the time went.
local function timed(self, profiled, f)
  if profiled then assert(self.model:profile(true)) end
  local began = core.clock()
  local ok, message, code = f(began)
  local seconds = core.clock() - began
  local profile = profiled and self.model:profile(false) or nil
  if not ok then return nil, message, code end
  return { seconds = seconds, profile = profile }
end

---@return pyramid.Sample?
---@return string? message
function Ours:prefill(n, profiled)
  drop_state(self)
  local ids = self.ids(0, n)
  local cache, message = self.model:cache(options_of(self))
  if not cache then return nil, message end
  local sample
  sample, message = timed(self, profiled, function() return cache:prefill(ids) end)
  if not sample then
    cache:close()
    return nil, message
  end
  self.state = { n = n, cache = cache }
  sample.kv_bytes, sample.kept = cache:bytes(), cache:fraction()
  sample.computed = cache:computed() / (n * self.model.config.layers)
  return sample
end

---@return pyramid.Sample?
---@return string? message
function Ours:decode(depth, steps, profiled)
  local n = math.max(1, depth)
  if not (self.state and self.state.n == n) then
    local made, message = self:prefill(n)
    if not made then return nil, message end
  end
  local ids = self.ids(n, steps + WARM_STEPS)
  local cache, message = self.state.cache:fork()
  if not cache then return nil, message end
  for i = 1, WARM_STEPS do
    local ok
    ok, message = core.step({ cache }, { ids[i] }, { self.greedy })
    if not ok then return nil, message end
  end
  local sample
  sample, message = timed(self, profiled, function()
    for i = WARM_STEPS + 1, #ids do
      local ok, why = core.step({ cache }, { ids[i] }, { self.greedy })
      if not ok then return nil, why end
    end
    return true
  end)
  cache:close()
  if not sample then return nil, message end
  sample.kv_bytes, sample.kept = self.state.cache:bytes(), self.state.cache:fraction()
  return sample
end

---@return pyramid.Sample?
---@return string? message
---@return string? code
function Ours:batch(count, prompt, generated, profiled)
  drop_state(self)
  local batch <close>, message, code = self.model:batch(options_of(self))
  if not batch then return nil, message, code end
  local handles, first = {}, nil
  for i = 1, count do
    handles[i], message, code = batch:add(self.ids(i * prompt, prompt), self.greedy)
    if not handles[i] then return nil, message, code end
  end
  local sample
  sample, message, code = timed(self, profiled, function(began)
    local ok, why, kind = batch:step()
    if not ok then return nil, why, kind end
    first = core.clock() - began
    for step = 1, generated - 1 do                       -- the prompts gave the first
      local ids = self.ids(step * count, count)
      for i, handle in ipairs(handles) do batch:push(handle, ids[i]) end
      ok, why, kind = batch:step()
      if not ok then return nil, why, kind end
    end
    return true
  end)
  if not sample then return nil, message, code end
  sample.first, sample.kv_bytes = first, batch:bytes()
  local kept, computed = 0, 0
  for _, handle in ipairs(handles) do
    kept = kept + handle:fraction() / count
    computed = computed + handle:computed() / (handle:tokens() * self.model.config.layers * count)
  end
  sample.kept, sample.computed = kept, computed
  batch:close()
  assert(probe.trim(self.model:runtime()))        -- others need the device's memory, too
  return sample
end

-- On a device, what the runtime counts: weights, rows, scratch.
function Ours:reset_peak()
  local runtime = self.model:runtime()
  if probe.device(runtime) then probe.reset_peak(runtime) else machine.reset_peak() end
end

-- The process holds what other baselines wait with: that is not this one's.
function Ours:peak(others)
  local runtime = self.model:runtime()
  local peak = probe.device(runtime) and runtime:memory_peak() or machine.peak()
  for _, other in ipairs(others) do
    if other ~= self and not other.quiet and other.state then
      peak = peak and peak - other.state.cache:bytes()
    end
  end
  return peak
end

function Ours:finish()
  drop_state(self)
  collectgarbage()
end

-- ---- the peer -----------------------------------------------------------------------------------

---@class pyramid.Theirs
---@field engine string
---@field label string
---@field dtype string            of cache rows
---@field flash? boolean
local Theirs = {}
Theirs.__index = Theirs

---@param peer pyramid.Peer   its model is open
---@param way { engine: string, label: string, dtype: string, flash?: boolean, context: table }
---  context: what its context is asked for
---@param context integer     positions that the model has
---@return pyramid.Theirs
function baselines.theirs(peer, way, context)
  return setmetatable({ engine = way.engine, label = way.label, peer = peer, flash = way.flash,
    dtype = way.dtype, fields = way.context, name = way.label .. way.dtype, context = context },
      Theirs)
end

function Theirs:begin(tokens, sequences)
  local fields = { name = self.name, tokens = math.min(tokens + SPARE, self.context),
    sequences = sequences }
  for key, value in pairs(self.fields) do fields[key] = value end
  return self.peer:ask("context", fields)
end

function Theirs:prefill(n) return self.peer:ask("prefill", { name = self.name, tokens = n }) end

function Theirs:decode(depth, steps)
  return self.peer:ask("decode", { name = self.name, depth = depth, steps = steps })
end

function Theirs:batch(count, prompt, generated)
  return self.peer:ask("batch", { name = self.name, count = count, prompt = prompt,
    generated = generated })
end

function Theirs:reset_peak() self.peer:ask("memory", { reset = true }) end

-- Nothing says how much of the peer's process each of several contexts holds.
function Theirs:peak(others)
  for _, other in ipairs(others) do
    if other ~= self and other.peer == self.peer then return nil end
  end
  local reply = self.peer:ask("memory", { reset = false })
  return reply and reply.peak
end

function Theirs:finish() self.peer:ask("drop", { name = self.name }) end

-- ---- beside a busy neighbour --------------------------------------------------------------------

---@class pyramid.Beside
---@field quiet pyramid.Ours     the same without the neighbour
local Beside = {}

-- What is not of its own is the quiet one's.
function Beside.__index(self, key) return Beside[key] or rawget(self, "quiet")[key] end

---The same baseline while another program keeps one processor busy.
---@param quiet pyramid.Ours
---@return pyramid.Beside
function baselines.beside(quiet)
  return setmetatable({ quiet = quiet, label = quiet.label .. ", busy neighbour" }, Beside)
end

for _, name in ipairs { "prefill", "decode", "batch" } do
  Beside[name] = function(self, ...)
    local busy <close>, message = neighbour.start()
    if not busy then return nil, message end
    return self.quiet[name](self.quiet, ...)
  end
end

function Beside:reset_peak() self.quiet:reset_peak() end
function Beside.peak() return nil end                    -- the quiet one says it
function Beside.begin() return true end
function Beside.finish() end

-- ---- ids ----------------------------------------------------------------------------------------

---Random ids of a vocabulary: ids(first, count) are always the same for the same seed.
---@param vocab integer
---@param seed integer
---@return fun(first: integer, count: integer): integer[]
---@return integer[]   all of them, before they begin anew
function baselines.ids(vocab, seed)
  local known = {}
  math.randomseed(seed)
  for i = 1, 1 << 15 do known[i] = math.random(math.min(3, vocab - 1), vocab - 1) end
  return function(first, count)
    local out = {}
    for i = 1, count do out[i] = known[(first + i - 1) % #known + 1] end
    return out
  end, known
end

baselines.WARM_STEPS = WARM_STEPS

return baselines

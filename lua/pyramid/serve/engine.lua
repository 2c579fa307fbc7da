--- The engine behind `pyramid serve`, without HTTP: any number of requests, each with its own
--- policy, row format, budget and sampler, that read their prompts and write in one loop.
---
---   local engine = engine.new(model, { memory = "1 GiB" })
---   local request = assert(engine:submit { ids = ids, on_event = function(choice, event) … end })
---   while engine:tick() do end
---
--- A request waits, is admitted, reads its prompt in turns with others, and writes:
---
---   submit ─► waiting ─admit─► reading ─logits─► running ─► done
---              bounded         pieces, in turns   one step for all, of each row format
---
--- Admission is by a forecast of bytes: what a request can come to hold at most, by its policy's
--- plans for a prompt so long and by what it may write. Requests are admitted in the order in which
--- they came; one that fits may pass those that do not yet, but none is passed more than 8 times.
--- What the shelf keeps (shelf.lua) goes where room is needed.
---
--- Nothing here blocks or yields: tick does a piece of work, at most one piece of a prompt and a
--- step. Where a prompt must be read at once, steps are taken in between (reading.lua), and `pump`,
--- if there is one, is called, so that whoever serves the requests can go on.
local caches = require "pyramid.cache"
local choices = require "pyramid.serve.choice"
local core = require "pyramid.core"
local embeddings = require "pyramid.serve.embedding"
local options = require "pyramid.options"
local policies = require "pyramid.policy"
local reading = require "pyramid.serve.reading"
local sessions = require "pyramid.sessions"
local shelf = require "pyramid.serve.shelf"

local engine = {}

local PASSED_MOST <const> = 8
local PUMP_EVERY <const> = 0.002      -- seconds between two calls of `pump` within one call

---@class pyramid.ServeEngineOptions
---@field memory? integer|string   the most bytes that rows may take ("2 GiB"; 0: any)
---@field queue? integer           requests that may wait (256)
---@field parallel? integer        texts that are written at once (64)
---@field kept? integer            caches that are kept after their requests (16)
---@field share? boolean           prompts of one user may begin with what was read for another
---@field policy? pyramid.Policy   of requests that name none
---@field dtype? string|table      likewise
---@field policy_seconds? number   as of caches
---@field sessions? string|pyramid.Sessions  a folder where beginnings stay, beyond this process
---@field clock? fun(): number

---@class pyramid.ServeEngine
---@field model pyramid.Model
---@field shelf pyramid.ServeShelf
---@field pump? fun()
---@field counts table<string, number>   what happened so far, for metrics
local Engine = {}
Engine.__index = Engine

local option_keys = { memory = "integer|string", queue = "integer", parallel = "integer",
  kept = "integer", share = "boolean", policy = "any", dtype = "string|table",
  policy_seconds = "number", clock = "function", sessions = "string|table" }

---@class pyramid.ServeRequest
---@field id string
---@field ids integer[]            the prompt
---@field status "waiting"|"reading"|"running"|"done"
---@field choices (pyramid.ServeChoice|pyramid.ServeEmbedding)[]
---@field at integer               tokens of the prompt that are read
---@field reused integer           … and of them those that were read for others
---@field whole? string            why the prompt is read at once
---@field forecast integer         bytes
---@field echoed? table[]          with echo: by position from 2, what the logits said of the id there
---@field submitted number
---@field first? number            when the first text came
local Request = {}
Request.__index = Request

-- What happens to a choice, for whoever asked.
function Request:tell(which, event)
  self.first = self.first or self.engine.clock()
  if self.on_event then self.on_event(which, event) end
end

---@param model pyramid.Model
---@param given? pyramid.ServeEngineOptions
---@return pyramid.ServeEngine?
---@return string? message
---@return string? code
function engine.new(model, given)
  given = options.check("engine", given, option_keys)
  local store, message, code
  if given.sessions then
    store, message, code = sessions.of(given.sessions)
    if not store then return nil, message, code end
  end
  local self = setmetatable({ model = model,
    memory = options.bytes("engine", given.memory or "2 GiB"), queue = given.queue or 256,
    parallel = given.parallel or 64, share = given.share or false, policy = given.policy,
    dtype = given.dtype, sessions = store, policy_seconds = given.policy_seconds,
    clock = given.clock or core.clock,
    shelf = shelf.new(given.kept or 16), pools = {}, waiting = {}, reading = {}, running = {},
    by_id = {}, stack = {}, step_seconds = 0, last_step = 0, stepped = 0, looked = 0, pumped = 0,
    counts = { requests = 0, refused = 0, finished = 0, failed = 0, cancelled = 0,
      prompt_tokens = 0, reused_tokens = 0, generated_tokens = 0, steps = 0, step_seconds = 0,
      read_seconds = 0, evicted_rows = 0, first_seconds = 0, first_count = 0 } }, Engine)
  self.windowed = false
  for _, window in ipairs(model.config.window or {}) do
    self.windowed = self.windowed or window > 0
  end
  self.ends = {}
  for _, id in ipairs(model.tokenizer and model.tokenizer.eos or {}) do self.ends[id] = true end
  model:runtime():on_progress(function() return self:between() end)
  return self
end

-- ---- memory -------------------------------------------------------------------------------------

-- The most bytes that a request can come to hold.
local function forecast(self, request)
  local config = self.model.config
  local function bytes(rows)
    return config.kv_heads * caches.bytes_of_lane(request.dtype, config.head_dim, rows, true)
  end
  local n, layers = #request.ids, config.layers
  local room = math.min(request.max_tokens, math.max(config.context - n, 0))
  local kept, most = 0, 0
  if request.policy then
    for _, layer in ipairs(policies.forecast(request.policy, config, n)) do
      kept, most = kept + bytes(layer.rows + room), kept + bytes(n)
    end
  else
    kept = layers * bytes(n + room)
  end
  -- in pieces all rows are there until the last one is read
  if request.needed then most = layers * bytes(n) end
  local copies = #request.choices
  return math.ceil(math.max(most, kept + (copies - 1)
    * (request.plain and layers * bytes(room) or kept)))
end

---Bytes that all pools hold, shared pages once.
---@return integer
function Engine:bytes()
  local sum = 0
  for _, pool in pairs(self.pools) do sum = sum + pool:bytes() end
  for _, request in pairs(self.by_id) do
    if request.own then sum = sum + request.own:bytes() end
  end
  return sum
end

-- What those who read and write may still take, beyond what they hold.
local function outstanding(self)
  local reserved, more = 0, 0
  for _, request in pairs(self.by_id) do
    if request.status ~= "waiting" then
      local held = request.cache and request.cache:bytes() or 0
      for _, choice in ipairs(request.choices) do
        if choice.cache and not choice.finish then held = held + choice.cache:bytes() end
      end
      reserved, more = reserved + request.forecast, more + math.max(request.forecast - held, 0)
    end
  end
  return reserved, more
end

-- Makes room for so many bytes beside what may still come; false: those who are there take it all.
local function make_room(self, bytes)
  if self.memory == 0 then return true end
  local reserved, more = outstanding(self)
  if reserved > 0 and reserved + bytes > self.memory then return false end
  while self:bytes() + more + bytes > self.memory and self.shelf:let_go() do end
  return true
end

---A cache for a request: in the pool of its row format, or, with a budget, in one of its own.
---@param request pyramid.ServeRequest
---@return pyramid.Cache?
---@return string? message
---@return string? code
function Engine:new_cache(request)
  local pool, bound, with = caches.prepare("serve", self.model, { policy = request.policy,
    dtype = request.dtype, budget = request.budget or self.memory, tiers = request.tiers,
    pressure = request.pressure, policy_seconds = self.policy_seconds })
  if not pool then return nil, bound, with end
  if request.budget then request.own = pool
  elseif self.pools[request.format] then pool:close()
  else self.pools[request.format] = pool
  end
  return caches.make(self.model, request.own or self.pools[request.format], bound, with)
end

-- ---- requests -----------------------------------------------------------------------------------

local submit_keys = { id = "string", ids = "table", policy = "any", dtype = "string|table",
  budget = "integer|string", samplers = "table", stop = "table", max_tokens = "integer",
  logprobs = "integer", echo = "boolean", ignore_eos = "boolean", owner = "string",
  embed = "string", tiers = "table", pressure = "string",
  boundaries = "table", on_event = "function" }

---@class pyramid.ServeSubmit
---@field id? string
---@field ids integer[]              the prompt
---@field policy? pyramid.Policy     the engine's unless said
---@field dtype? string|table        likewise
---@field budget? integer|string     of all its rows; they then lie apart, and share nothing
---@field tiers? table               of these rows, as of caches …
---@field pressure? "fail"|"demote"  … and what becomes of them where the budget is full
---@field samplers? pyramid.Sampler[] one for each text that is written; the request closes them
---@field embed? "mean"|"last"       nothing is written: the prompt's vector is wanted, pooled so
---@field stop? string[]             texts to end before
---@field max_tokens? integer        of each (16)
---@field logprobs? integer          so many alternatives; 0: of what is picked alone
---@field echo? boolean              with logprobs: what the model says of the prompt's ids, too
---@field ignore_eos? boolean
---@field owner? string              who may begin with what is read here
---@field boundaries? integer[]      tokens after which others may part, for windowed models
---@field on_event? fun(choice: pyramid.ServeChoice, event: pyramid.ServeEvent)

---Takes a request in; it is worked on by `tick`. Codes beside the usual: "busy", as too many wait.
---@param given pyramid.ServeSubmit
---@return pyramid.ServeRequest?
---@return string? message
---@return string? code
function Engine:submit(given)
  given = options.check("engine:submit", given, submit_keys)
  local function refuse(message, code)
    self.counts.refused = self.counts.refused + 1
    return nil, message, code
  end
  if #self.waiting >= self.queue then self:admit() end
  if #self.waiting >= self.queue then
    return refuse(("%d requests are waiting, which is the most"):format(#self.waiting), "busy")
  end
  local n, config = #given.ids, self.model.config
  if n == 0 then return refuse("the prompt is empty", "argument") end
  if n > config.context then
    return refuse(("the prompt has %d tokens, and the model's context is %d"):format(n,
      config.context), "context")
  end
  self.serial = (self.serial or 0) + 1
  local dtype = given.dtype or self.dtype or "f16"
  local format, fault = caches.row_format(dtype)
  if not format then return refuse(fault, "argument") end
  local request = setmetatable({ engine = self, model = self.model,
    id = given.id or ("request-%d"):format(self.serial), ids = given.ids,
    policy = given.policy or self.policy, dtype = dtype, format = caches.format_name(format),
    budget = given.budget, tiers = given.tiers, pressure = given.pressure,
    stop = given.stop or {}, max_tokens = given.max_tokens or 16, logprobs = given.logprobs,
    echo = given.echo, states = given.embed ~= nil, every = given.echo or given.embed == "mean",
    owner = self.share and "" or given.owner or "",
    boundaries = given.boundaries, on_event = given.on_event, status = "waiting", at = 0,
    reused = 0, passed = 0, windowed = self.windowed, submitted = self.clock(),
    ends = given.ignore_eos and {} or self.ends, choices = {} }, Request)
  if self.by_id[request.id] then return refuse("two requests of one id", "argument") end
  request.shares = request.format .. " " .. tostring(request.policy or "full")
  for i, sampler in ipairs(given.samplers or {}) do
    request.choices[i] = choices.new(request, i, sampler)
  end
  if given.embed then
    request.choices, request.max_tokens = { embeddings.new(request, given.embed) }, 0
  end
  if #request.choices == 0 then error("engine:submit: a sampler is wanted", 2) end
  local ok, why = pcall(reading.look, request)
  if ok and given.echo and given.logprobs and not (request.plain and request.needed) then
    return refuse("log-probabilities of a prompt are those of a prompt that is read whole, and "
      .. ("policy %s cuts it while it is read"):format(request.policy.name), "unsupported")
  end
  if given.echo and given.logprobs then request.echoed = {} end
  if ok then ok, request.forecast = pcall(forecast, self, request) end
  if not ok then
    return refuse(tostring(request.forecast or why):gsub("^.-:%d+: ", ""), "policy")
  end
  if request.budget then
    request.budget = options.bytes("engine:submit", request.budget)
    request.forecast = math.min(request.forecast, request.budget)
  end
  if self.memory > 0 and request.forecast > self.memory then
    return refuse(("the request may take %d bytes of rows, and there are %d for all"):format(
      request.forecast, self.memory), "budget")
  end
  self.counts.requests = self.counts.requests + 1
  self.by_id[request.id] = request
  self.waiting[#self.waiting + 1] = request
  return request
end

---Ends a request before its time; its choices that still write end with "cancelled".
---@param request pyramid.ServeRequest
function Engine.cancel(_, request) request.cancelled = true end

---Ends all requests so.
function Engine:cancel_all()
  for _, request in pairs(self.by_id) do request.cancelled = true end
end

local function remove(list, item)
  for i, other in ipairs(list) do
    if other == item then return table.remove(list, i) end
  end
end

-- Whether a cache's rows are those of its ids, uncut.
local function uncut(request, cache)
  return request.plain and not request.own and not request.echo and cache:evicted() == 0
end

-- A request's tokens: the prompt, and what a choice wrote.
local function tokens_of(request, choice)
  return table.move(choice.ids, 1, choice.count, #request.ids + 1,
    table.move(request.ids, 1, #request.ids, 1, {}))
end

-- What is said of a request beside its cache.
local function about(request)
  return { policy = request.policy and request.policy.name or "full", prompt = #request.ids }
end

-- What a choice left, for who looks at it later, and for prompts that go on with it.
local function keep(self, request, choice, cache)
  local ids = tokens_of(request, choice)
  local entry = { cache = cache, id = request.id, ids = ids, about = about(request) }
  if uncut(request, cache) then
    entry.owner, entry.shares = request.owner, request.shares
    entry.packed = sessions.pack(ids):sub(1, 4 * cache:tokens())
  end
  self.shelf:keep(entry, not self.windowed)
end

-- Gives a request's things back.
local function close(self, request)
  for i, choice in ipairs(request.choices) do
    local cache = choice.cache
    self.counts.generated_tokens = self.counts.generated_tokens + choice.count
    choice:close()
    choice.cache = nil
    if cache then
      self.counts.evicted_rows = self.counts.evicted_rows + cache:evicted()
      if i == 1 and not request.own and not request.states then keep(self, request, choice, cache)
      else cache:close()
      end
    end
  end
  if request.cache then request.cache:close() end
  request.cache = nil
  if request.own then request.own:close() end
  request.own = nil
end

-- A request is over: all its choices have ended.
local function done(self, request)
  if request.status == "done" then return end
  local status = request.status
  request.status = "done"
  self.by_id[request.id] = nil
  if status == "waiting" then remove(self.waiting, request) end
  if status == "reading" then remove(self.reading, request) end
  for i = #self.running, 1, -1 do
    if self.running[i].request == request then table.remove(self.running, i) end
  end
  local last = request.choices[1].finish
  local which = last == "error" and "failed" or last == "cancelled" and "cancelled" or "finished"
  self.counts[which] = self.counts[which] + 1
  if request.first then
    self.counts.first_seconds = self.counts.first_seconds + request.first - request.submitted
    self.counts.first_count = self.counts.first_count + 1
  end
  close(self, request)
end

-- Ends whatever of a request still goes on.
local function fail(self, request, reason, message, code)
  for _, choice in ipairs(request.choices) do choice:ends(reason, nil, message, code) end
  done(self, request)
end

-- Requests that were cancelled, but for those whose caches are being read right now.
local function sweep(self)
  for _, request in pairs(self.by_id) do
    if request.cancelled and not request.busy then
      fail(self, request, "cancelled", "cancelled", "cancelled")
      return sweep(self)            -- by_id has changed
    end
  end
end

-- ---- admission ----------------------------------------------------------------------------------

-- Whether somebody is reading what this prompt begins with: then it waits for that instead of
-- reading it, too, where that is soon.
local function waits_for_prefix(self, request)
  local most = reading.may_take(request)
  if most < 128 then return false end
  local there = self.shelf:shares(request.owner, request.shares, request.packed, most)
  for _, other in ipairs(self.reading) do
    if other.owner == request.owner and other.shares == request.shares
      and reading.may_take(other) > 0 then
      local shared = math.min(sessions.shared(other.packed, request.packed), most)
      if shared - there >= 128 and 2 * (shared - there) >= #request.ids - there
        and #other.ids - other.at <= 2 * (shared - there) then
        return true
      end
    end
  end
  return false
end

local function texts(self)
  local count = #self.running
  for _, request in ipairs(self.reading) do count = count + #request.choices end
  return count
end

---Lets those read who may.
---@package
function Engine:admit()
  local at = 1
  while at <= #self.waiting do
    local request = self.waiting[at]
    local busy = texts(self)
    local fits = busy == 0 or busy + #request.choices <= self.parallel
    if fits and waits_for_prefix(self, request) then
      at = at + 1                                     -- it will be cheaper in a moment
    elseif fits and make_room(self, request.forecast) then
      table.remove(self.waiting, at)
      request.status = "reading"
      self.reading[#self.reading + 1] = request
      for i = 1, at - 1 do self.waiting[i].passed = self.waiting[i].passed + 1 end
    elseif request.passed >= PASSED_MOST or busy >= self.parallel then
      return
    else
      at = at + 1
    end
  end
end

-- ---- work ---------------------------------------------------------------------------------------

-- One prompt's turn.
local function read(self, request)
  local began = self.clock()
  if not request.cache then
    local ok, message, code = reading.begin(self, request)
    if not ok then return fail(self, request, "error", message, code) end
  end
  request.busy, self.looked = true, self.clock()
  self.stack[#self.stack + 1] = request
  local got, message, code = reading.next(self, request)
  if not got and code == "budget" and not request.own then
    while not got and code == "budget" and self.shelf:let_go() do
      got, message, code = reading.next(self, request)
    end
  end
  self.stack[#self.stack], request.busy = nil, false
  if #self.stack == 0 then
    self.counts.read_seconds = self.counts.read_seconds + self.clock() - began
  end
  if not got then
    return fail(self, request, request.cancelled and "cancelled" or "error", message, code)
  end
  if got == true then return end
  -- all is read: the choices part here
  remove(self.reading, request)
  request.status = "running"
  self.counts.prompt_tokens = self.counts.prompt_tokens + #request.ids
  self.counts.reused_tokens = self.counts.reused_tokens + request.reused
  for i, choice in ipairs(request.choices) do
    local cache = request.cache
    if i < #request.choices then cache, message, code = request.cache:fork()
    else request.cache = nil
    end
    if cache then choice:first(cache, got)
    else choice:ends("error", nil, message, code)
    end
    if not choice.finish then self.running[#self.running + 1] = choice end
  end
  for _, choice in ipairs(request.choices) do
    if not choice.finish then return end
  end
  done(self, request)
end

-- The next prompt in turn; only one that is read in pieces, where another is being read right now.
local function read_next(self, in_pieces)
  for at, request in ipairs(self.reading) do
    if not request.busy and not request.cancelled and (request.needed or not in_pieces) then
      table.remove(self.reading, at)
      self.reading[#self.reading + 1] = request
      read(self, request)
      return true
    end
  end
  return false
end

local function step_of(list)
  local handles, ids, samplers = {}, {}, {}
  for i, choice in ipairs(list) do
    handles[i], ids[i] = choice.cache, choice.last
    samplers[i] = not choice:looks() and choice.sampler or false
  end
  return core.step(handles, ids, samplers)
end

-- One choice alone, to find out whom a step fails for.
local function step_alone(choice)
  local got, message, code = step_of { choice }
  if got then return choice:take(got[1]) end
  if code == "context" then return choice:ends("context") end
  if code == "budget" and choice.request.own then
    return choice:ends("budget", nil, message, code)
  end
  choice:ends("error", nil, message, code)
end

-- One step of all choices whose rows lie alike.
local function step_group(self, list)
  local got, _, code = step_of(list)
  while not got and (code == "budget" or code == "memory") and self.shelf:let_go() do
    got, _, code = step_of(list)
  end
  for i, choice in ipairs(list) do
    if got then choice:take(got[i]) else step_alone(choice) end
  end
end

-- One step of all that write.
local function step(self)
  if #self.running == 0 then return false end
  local began, groups, order = self.clock(), {}, {}
  self.stepping = true
  for _, choice in ipairs(self.running) do
    -- rows of several tiers are read by calls of their own anyway
    local key = choice.request.tiers and choice.request or choice.request.format
    if not groups[key] then
      groups[key] = {}
      order[#order + 1] = key
    end
    table.insert(groups[key], choice)
  end
  for _, key in ipairs(order) do step_group(self, groups[key]) end
  self.stepping = false
  local over = {}
  for i = #self.running, 1, -1 do
    local choice = self.running[i]
    if choice.finish then
      table.remove(self.running, i)
      over[choice.request] = true
    end
  end
  for request in pairs(over) do
    local all = true
    for _, choice in ipairs(request.choices) do all = all and choice.finish end
    if all then done(self, request) end
  end
  self.stepped = self.clock()
  local seconds = self.stepped - began
  -- of the last two: a step that took long for want of a processor delays no other
  self.step_seconds, self.last_step = math.min(seconds, self.last_step), seconds
  self.counts.steps = self.counts.steps + 1
  self.counts.step_seconds = self.counts.step_seconds + seconds
  return true
end

-- Called by the core while a prompt is read. Those who write get every other stretch of time; true
-- ends the reading. Of steps of 8 ms and layers of 5 there is one after each second layer, of
-- layers of 7 after each: whatever comes closer.
function Engine:between()
  if self.stepping then return false end          -- a policy's code that takes long
  local now = self.clock()
  if self.pump and now - self.pumped >= PUMP_EVERY then
    self.pumped = now
    self.pump()
  end
  local layer = now - self.looked
  if self.clock() - self.stepped + layer / 2 >= self.step_seconds then step(self) end
  self.looked = self.clock()
  local request = self.stack[#self.stack]
  if #self.stack == 1 and not request.needed then
    self:admit()
    read_next(self, true)
  end
  return request ~= nil and request.cancelled or false
end

---A piece of work: cancels, admits, reads a piece of a prompt, makes a step. False: there is
---nothing to do.
---@return boolean
function Engine:tick()
  sweep(self)
  self:admit()
  local read_some = read_next(self, false)
  local stepped = step(self)
  return read_some or stepped or #self.waiting > 0
end

-- ---- questions ----------------------------------------------------------------------------------

---A request's cache and its tokens, while it goes on and for a while after.
---@param id string
---@return pyramid.Cache?
---@return integer[]? ids
---@return { policy: string, prompt: integer }? about   the policy's name, tokens of the prompt
function Engine:find(id)
  local request = self.by_id[id]
  if not request then
    local entry = self.shelf:recall(id)
    if entry then return entry.cache, entry.ids, entry.about end
    return nil
  end
  local choice = request.choices[1]
  return choice.cache or request.cache, tokens_of(request, choice), about(request)
end

---What a choice holds now: rows over all layers and heads, rows that left, bytes.
---@param choice pyramid.ServeChoice
---@return { rows: integer, evicted: integer, bytes: integer }
function Engine:held(choice)
  local cache, rows, config = choice.cache or choice.request.cache, 0, self.model.config
  if not cache then return { rows = 0, evicted = 0, bytes = 0 } end
  for layer = 1, config.layers do
    for head = 1, config.kv_heads do rows = rows + cache:rows(layer, head) end
  end
  return { rows = rows, evicted = cache:evicted(), bytes = cache:bytes() }
end

---After an error in `tick` that is nobody's but ours: all requests end with it, and others may
---come.
---@param message string
function Engine:recover(message)
  self.stack, self.stepping = {}, false
  for _, request in pairs(self.by_id) do request.busy = false end
  repeat
    local _, request = next(self.by_id)
    if request then fail(self, request, "error", message) end
  until not request
end

---Ends all requests, and gives everything back.
function Engine:close()
  self:cancel_all()
  sweep(self)
  self.shelf:close()
  for _, pool in pairs(self.pools) do pool:close() end
  self.pools = {}
  if self.model.root then self.model.root:on_progress(nil) end
end

Engine.__close = Engine.close

return engine

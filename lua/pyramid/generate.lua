--- Generation: a loop over sampler and cache that yields text as it becomes whole.
---
---   for piece, id in model:generate("Once", { max_tokens = 100 }) do io.write(piece) end
---
--- The value before the loop knows more: local run = model:generate(…); run.stats, run.cache,
--- run.finish.
local core = require "pyramid.core"
local follow = require "pyramid.follow"
local options = require "pyramid.options"
local sampler = require "pyramid.sampler"
local speculate = require "pyramid.speculate"
local stops = require "pyramid.stops"

local generate = {}

local keys = { policy = "any", sampler = "any", max_tokens = "integer", stop = "string|table",
  dtype = "string", budget = "integer|string", cache = "userdata", special = "boolean",
    progress = "function", clock = "function", ignore_eos = "boolean", prune = "boolean",
      policy_seconds = "number", trace = "function", logprobs = "boolean|integer",
        speculate = "boolean|table", sessions = "string|table", boundaries = "table",
          tiers = "table", pressure = "string" }

generate.keys = keys

---@class pyramid.GenerateOptions
---@field policy? pyramid.PolicyLike   with dtype and budget: of the cache that is made
---@field dtype? string
---@field budget? integer|string
---@field tiers? table<pyramid.TierName, string|pyramid.Tier>   as in pyramid.CacheOptions
---@field pressure? "fail"|"demote"                            likewise
---@field policy_seconds? number
---@field trace? fun(record: pyramid.Trace)   told of each plan, see pyramid.CacheOptions
---@field sessions? string|pyramid.Sessions   of the cache that is made, see pyramid.CacheOptions
---@field boundaries? integer[]     as in pyramid.PrefillOptions; of messages they are found
---@field cache? pyramid.Cache      goes on in this one instead
---@field sampler? pyramid.Sampler|pyramid.SamplerOptions   greedy by default
---@field max_tokens? integer       256 by default
---@field stop? string|string[]     texts to stop before
---@field ignore_eos? boolean      with a grammar, which says where a text ends, it means nothing
---@field special? boolean
---  false: nothing is added to a text prompt, and special texts are ordinary text
---@field logprobs? boolean|integer  true: run.logprobs; an integer: run.top, too, of so many ids
---@field speculate? boolean|pyramid.SpeculateOptions
---  true: guesses ids from the text so far, and verifies several in one pass: the same text,
---  sooner. Between pieces the cache then holds ids that are not accepted yet, at the end not
---@field prune? boolean            false: the prompt is appended without asking the policy
---@field progress? fun(done: integer, total: integer): boolean?
---  while the prompt is read; true cancels. Asked again, with the last figures, where a policy's
---  code takes long between two tokens
---@field clock? fun(): number      seconds, for the statistics

--- The loop of a generic `for` ends the same way whatever happened: `finish` tells what did, and
--- with "error" `message` and `code` tell why. "context": the context is full; "grammar": by the
--- sampler's grammar nothing may follow.
---@class pyramid.Generation
---@field cache pyramid.Cache
---@field stats pyramid.GenerationStats
---@field finish? "eos"|"stop"|"grammar"|"length"|"context"|"error"|"closed"
---@field message? string   with finish "error"
---@field code? string
---@field logprobs? number[]
---  natural logarithms of the tokens' probabilities, as the model gives them before sampling
---@field top? integer[]  the most probable ids where the last token was picked, the first most, …
---@field top_logprobs? number[]  … and theirs
local Generation = {}
Generation.__index = Generation
Generation.__name = "pyramid.generation"

---@class pyramid.GenerationStats
---@field prompt_tokens integer
---@field reused_tokens integer     of these, those that came from `sessions`
---@field generated_tokens integer
---@field prefill_seconds number
---@field decode_seconds number
---@field cache_bytes integer
---@field cache_fraction number
---@field cache_reading number   of the rows held, the share that a step reads, at most
---@field drafted? integer     with speculate: ids that were guessed, …
---@field accepted? integer    … and those of them that the sampler picked
---@field pruned boolean
---  false: the policy has dropped nothing, and, where cache_reading is 1, this is what a full cache
---  would have written

-- Raises, for the caller of `start`, on values that no type tells apart; returns the stop texts.
local function check_values(given)
  local function wrong(text) error("model:generate: " .. text, 4) end
  local texts = type(given.stop) == "string" and { given.stop } or given.stop or {}
  for key in pairs(texts) do
    if not texts[1] or math.type(key) ~= "integer" or key < 1 or key > #texts then
      wrong("stop must be a sequence of texts")
    end
  end
  for _, stop in ipairs(texts) do
    if type(stop) ~= "string" or stop == "" then
      wrong("stop must be a non-empty text or a sequence of those")
    end
  end
  if given.max_tokens and given.max_tokens < 0 then wrong("max_tokens must not be negative") end
  if math.type(given.logprobs) == "integer" and given.logprobs < 0 then
    wrong("logprobs must not be negative")
  end
  local class = getmetatable(given.sampler)
  if given.sampler ~= nil and type(given.sampler) ~= "table"
    and not (class and class.__name == "pyramid.sampler") then
    wrong("sampler must be a sampler or a table of its options")
  end
  class = given.cache and getmetatable(given.cache)
  if given.cache and not (class and class.__name == "pyramid.cache") then
    wrong("cache must be a cache of this model")
  end
  return texts
end

local function set(list)
  local result = {}
  for _, id in ipairs(list or {}) do result[id] = true end
  return result
end

---Starts a generation: reads the prompt at once (so that `nil, message, code` comes from here),
---then yields pieces.
---@param model pyramid.Model
---@param prompt string|integer[]|pyramid.EmbeddedPrompt
---@param given? pyramid.GenerateOptions
---@return pyramid.Generation?
---@return string? message
---@return string? code
---@return pyramid.Generation? closing  the generic `for` closes it
function generate.start(model, prompt, given)
  given = options.check("model:generate", given, keys)
  local tokenizer = model.tokenizer
  if not tokenizer then return nil, "model:generate: the model has no tokenizer", "unsupported" end
  local ids, message, code = prompt
  if type(prompt) == "string" then
    -- a text that goes on in a cache is no beginning: nothing is put around it
    local class, add = given.cache and getmetatable(given.cache), nil
    if class and class.__name == "pyramid.cache" and given.cache:tokens() > 0 then add = false end
    ids, message, code = model:encode(prompt, { special = given.special ~= false, add = add })
    if not ids then return nil, message, code end
  elseif type(prompt) ~= "table" then
    error("model:generate: the prompt is a text, a sequence of ids or { embeddings = rows }", 2)
  end
  local cache, own = given.cache, false
  if cache and (given.policy or given.dtype or given.budget or given.policy_seconds
    or given.tiers or given.pressure or given.trace or given.sessions) then
    error("model:generate: a cache that is given has its own policy, dtype, budget, "
      .. "policy_seconds, tiers, pressure, trace and sessions", 2)
  end
  if not cache then
    cache, message, code = model:cache { policy = given.policy, dtype = given.dtype,
      budget = given.budget, policy_seconds = given.policy_seconds, trace = given.trace,
        sessions = given.sessions, tiers = given.tiers, pressure = given.pressure }
    if not cache then return nil, message, code end
    own = true
  end
  local texts = check_values(given)
  local clock = given.clock or core.clock
  local picker, decoder, logits, accepted = given.sampler or {}, nil, nil, nil
  if type(picker) == "table" then picker, message, code = sampler(picker) end
  if not picker then
    if own then cache:close() end
    return nil, message, code
  end
  local guided, lexicon, begun = picker:guided(), nil, nil
  if guided then lexicon, message, code = tokenizer:lexicon() end
  if lexicon or not guided then begun, message, code = picker:begin(lexicon) end
  if begun then decoder, message, code = tokenizer:decoder { continues = true } end
  local began, before = clock(), cache:tokens()
  if decoder then
    if given.prune == false then
      logits, message, code = follow(cache, ids, { progress = given.progress })
    else
      logits, message, code = cache:prefill(ids, { progress = given.progress,
        boundaries = given.boundaries })
    end
  end
  -- rows that stand for no ids are nothing that a penalty could know again
  local known = ids.embeddings and {} or ids
  local drafter
  if logits and given.speculate then
    drafter, message, code = speculate.new("model:generate", model, given.speculate, known, clock)
    if not drafter then logits = nil end
  end
  if logits then accepted, message, code = picker:accept(known) end
  if not accepted then
    if drafter then drafter:close() end
    if own then cache:close() end
    return nil, message, code
  end
  local self = setmetatable({
    model = model, cache = cache, own = own, sampler = picker, logits = logits, clock = clock,
      stops = texts,
    left = given.max_tokens or 256, guided = guided,
    ends = given.ignore_eos and not guided and {} or set(tokenizer.eos),
    decoder = decoder, progress = given.progress,
    logprobs = given.logprobs and {} or nil, alternatives = math.type(given.logprobs) == "integer"
      and given.logprobs or 0,
    pending = "",   -- decoded text that may be the beginning of a stop text
    stats = { prompt_tokens = cache:tokens() - before,
      reused_tokens = before == 0 and cache:reused() or 0, generated_tokens = 0,
      prefill_seconds = clock() - began, decode_seconds = 0, cache_bytes = cache:bytes(),
        cache_fraction = cache:fraction(), cache_reading = cache:reading(),
        pruned = cache:evicted() > 0 },
    drafter = drafter,
  }, Generation)
  if drafter then self.stats.drafted, self.stats.accepted = 0, 0 end
  return self, nil, nil, self
end

-- All that still waits.
local function rest(self) return self.pending .. (self.decoder:finish() or "") end

-- The cache goes back to the verified ids that have been accepted: what stands before the logits
-- that were used.
local function settle(self)
  local trial = self.trial
  self.trial = nil
  if not trial or trial.used == #trial.logits then return true end
  self.drafter:learn(trial.used - (trial.missed and 1 or 0), trial.used)
  return self.cache:truncate(trial.base + trial.used)
end

-- The last piece, if there is one, comes with the id that completed it, or with none.
local function finish(self, reason, text, id)
  self.finish = reason
  local settled, message, code = settle(self)
  if not settled then self.finish, self.message, self.code = "error", message, code end
  if self.drafter then self.drafter:close() end
  self.decoder:close()
  if text and text ~= "" then return text, id end
end

local function fail(self, message, code)
  finish(self, "error")
  self.message, self.code = message, code
  return nil, message, code
end

-- A step reports no progress, but a policy that does not return asks whether it is to be cancelled.
local function step(self)
  if not self.progress then return core.step({ self.cache }, { self.last }, { self.sampler }) end
  local runtime = self.model:runtime()
  runtime:on_progress(self.progress)
  local _ <close> = setmetatable({}, { __close = function() runtime:on_progress(nil) end })
  return core.step({ self.cache }, { self.last }, { self.sampler })
end

-- Reads what was picked last with guesses of what follows; false where there are none, or no room.
local function try_guesses(self)
  local guess = self.drafter:draft(math.min(self.left - 1, self.cache:verifiable() - 1))
  if #guess == 0 then return false end
  local began, base = self.clock(), self.cache:tokens()
  local logits = self.cache:verify { self.last, table.unpack(guess) }
  if not logits then return false end
  self.drafter:took(#logits, self.clock() - began)
  self.stats.drafted = self.stats.drafted + #guess
  self.trial = { guess = guess, logits = logits, base = base, used = 0 }
  return true
end

-- The logits of the next verified id, as long as guesses hold.
local function next_verified(self)
  local trial = self.trial
  trial.used = trial.used + 1
  return trial.logits[trial.used]
end

-- A pick settles whether the guess held that was read behind these logits.
local function judge(self, id)
  local trial = self.trial
  local guess = trial.guess[trial.used]
  if guess == id then
    self.stats.accepted = self.stats.accepted + 1
    return true
  end
  if guess then
    trial.missed = true
    return settle(self)
  end
  self.drafter:learn(#trial.guess, #trial.guess)   -- the last logits: all have held
  self.trial = nil
  return true
end

---The next piece of text and the id that completed it; nil at the end. A piece may be empty while a
---character or a stop text is incomplete.
---@return string? piece
---@return integer|string|nil id
---@return string? code
function Generation:next()
  if self.finish then return nil end
  local began = self.clock()
  if self.left <= 0 then return finish(self, "length", rest(self)) end
  local id, message, code
  local trying = self.trial or self.last and self.drafter and try_guesses(self)
  if trying then
    self.logits = next_verified(self)
  elseif self.last and self.logprobs then
    self.logits, message, code = self.cache:step(self.last)
    if not self.logits and code == "context" then return finish(self, code, rest(self)) end
    if not self.logits then return fail(self, message, code) end
  end
  -- feed what was picked before; logits stay where they are
  if self.last and not self.logits then
    local started, picks = self.drafter and self.clock()
    picks, message, code = step(self)
    if not picks and code == "context" then return finish(self, code, rest(self)) end
    if not picks then return fail(self, message, code) end
    id = picks[1]
    if not id then
      return fail(self, "sampler: no logit is finite" .. (self.guided
        and " of a token that may follow" or ""), "argument")
    end
    if self.drafter then self.drafter:took(1, self.clock() - started) end
  else
    id, message, code = self.sampler:pick(self.logits)
    if not id then return fail(self, message, code) end
    if self.logprobs then
      self.logprob = self.logits:logprob(id)
      if self.alternatives > 0 then
        self.top, self.top_logprobs = self.logits:top(self.alternatives)
      end
    end
    self.logits = nil
  end
  if trying then
    local judged
    judged, message, code = judge(self, id)
    if not judged then return fail(self, message, code) end
  end
  if self.drafter then self.drafter:add(id) end
  local stats = self.stats
  self.last, self.left = id, self.left - 1
  stats.decode_seconds = stats.decode_seconds + self.clock() - began
  stats.cache_bytes, stats.cache_fraction, stats.pruned = self.cache:bytes(),
    self.cache:fraction(), self.cache:evicted() > 0
  stats.cache_reading = self.cache:reading()
  if self.ends[id] then return finish(self, "eos", rest(self)) end
  stats.generated_tokens = stats.generated_tokens + 1
  if self.logprobs then self.logprobs[stats.generated_tokens] = self.logprob end
  local piece
  piece, message, code = self.decoder:push(id)
  if not piece then return fail(self, message, code) end
  local text = self.pending .. piece
  if #self.stops > 0 then
    local at = stops.first(text, self.stops)
    if at then return finish(self, "stop", text:sub(1, at - 1), id) end
    local held = stops.held_back(text, self.stops)
    self.pending = text:sub(#text - held + 1)
    text = text:sub(1, #text - held)
  end
  if self.guided and self.sampler:over() then
    return finish(self, "grammar", text .. rest(self), id)
  end
  return text, id
end

Generation.__call = Generation.next

---Ends it early and closes the cache if it was made here.
function Generation:close()
  if not self.finish then finish(self, "closed") end
  if self.own and self.cache then self.cache:close() end
end

Generation.__close = Generation.close

return generate

--- Guessing what comes next, so that several tokens cost one pass over the weights.
---
---   model:generate(prompt, { speculate = true })                 looks in the text so far
---   model:generate(prompt, { speculate = { draft = smaller } })  lets a smaller model guess
---
--- Guesses are verified together (cache:verify) and those stay that the sampler picks anyway, from
--- the same logits that single steps would give: the text is, id by id, the same with and without,
--- greedy or sampled, under every policy. What changes is the time, so how many to guess is decided
--- by the clock: as many as promise the most tokens a second, by how often guesses like these held
--- so far and by what passes of this length took, and none where a plain step is better.
---
--- Sources: speculative decoding, arXiv 2211.17192 and 2302.01318; prompt lookup, Saxena 2023.
local options = require "pyramid.options"

local speculate = {}

---@class pyramid.SpeculateOptions
---@field draft? pyramid.Model   guesses; of the same vocabulary. Left out: the text so far does
---@field most? integer          ids that are guessed at once, at most (15; 1 to 46)
---@field before? integer[]      what the prompt goes on from, where guesses may be found, too

local keys = { draft = "any", most = "integer", before = "table" }

-- Evidence fades, so that a change of subject is noticed; beliefs before there is any: guesses that
-- a longer match found hold more often.
local FADE, WEIGHT = 0.9, 2
local GAIN = 1.05          -- what a guess must promise over a plain step
local TRIED, LONGEST = 32, 32   -- places that a match is looked for; ids that are compared
local beliefs = { [2] = 0.5, [3] = 0.6, [5] = 0.75, [9] = 0.85, draft = 0.7 }

local function bucket_of(length)
  return length >= 9 and 9 or length >= 5 and 5 or length >= 3 and 3 or 2
end

-- What passes of n ids took, about; of lengths that were not seen, from a line through the others.
local Clock = {}
Clock.__index = Clock

---A pass of so many ids took so long.
---@param n integer
---@param seconds number
function Clock:add(n, seconds)
  local known = self[n]
  self[n] = known and known + 0.3 * (seconds - known) or seconds
  if n > 1 and self[1] then
    local slope = math.max(0, (self[n] - self[1]) / (n - 1))
    self.slope = self.slope and self.slope + 0.3 * (slope - self.slope) or slope
  end
end

---What a pass of so many ids takes, about.
---@param n integer
---@return number seconds
function Clock:of(n)
  return self[n] or self[1] + (self.slope or 0.2 * self[1]) * (n - 1)
end

---@class pyramid.Drafter
local Drafter = {}
Drafter.__index = Drafter

-- How many guesses of a kind promise the most tokens a second; 0: none.
local function best_count(self, kind, most)
  local held = self.held[kind]
  local chance = (held.yes + WEIGHT * beliefs[kind]) / (held.yes + held.no + WEIGHT)
  local clock, expected, power = self.clock, 1, 1
  local best, rate = 0, GAIN / clock:of(1)
  for k = 1, most do
    power = power * chance
    expected = expected + power
    local own = expected / (clock:of(k + 1) + k * self.each)
    if own > rate then best, rate = k, own end
  end
  -- what was given up is tried again some time
  if best == 0 then held.yes, held.no = held.yes * 0.98, held.no * 0.98 end
  return best
end

-- Where the end of the text has stood before: the place behind it, and how many ids agree; the
-- longest of the last TRIED places, the latest of equals.
local function look_up(self)
  local ids, n = self.ids, #self.ids
  local at, tried, best, length = self.last[n], 0, nil, 1
  while at and tried < TRIED do
    local same = 2
    while same < LONGEST and at > same and ids[at - same] == ids[n - same] do same = same + 1 end
    if same > length then best, length = at, same end
    if same == LONGEST then break end
    at, tried = self.last[at], tried + 1
  end
  return best, length
end

local function from_text(self, most)
  local at, length = look_up(self)
  if not at then return {} end
  local kind, ids, guess = bucket_of(length), self.ids, {}
  for k = 1, best_count(self, kind, most) do
    -- behind the end the guess goes on with itself: what repeats goes on repeating
    guess[k] = ids[at + k] or guess[at + k - #ids]
  end
  self.kind = kind
  return guess
end

-- The draft model's cache holds `fed`, of which the first `sure` are the text's; what it guessed
-- wrong goes.
local function catch_up(self)
  local cache, fed, ids, same = self.cache, self.fed, self.ids, self.sure
  while same < #fed and fed[same + 1] == ids[same + 1] do same = same + 1 end
  same = math.min(same, #ids - 1)
  if same < #fed and not cache:truncate(same) then
    cache:clear()
    same = 0
  end
  for i = #fed, same + 1, -1 do fed[i] = nil end
  self.sure = same
  local rest = table.move(ids, same + 1, #ids, 1, {})
  table.move(rest, 1, #rest, #fed + 1, fed)
  if #rest == 1 and same > 0 then return cache:step(rest[1]) end
  return cache:prefill(rest)
end

local function from_draft(self, most)
  local guess, count = {}, best_count(self, "draft", most)
  if count == 0 then return guess end
  local began = self.now()
  local logits = catch_up(self)
  while logits do
    local id = logits:argmax()
    if id >= self.vocab then break end
    guess[#guess + 1] = id
    if #guess == count then break end
    self.fed[#self.fed + 1] = id
    logits = self.cache:step(id)
  end
  if not logits then
    self.cache:clear()
    self.fed, self.sure = {}, 0
  end
  if #guess > 0 then
    self.each = self.each + 0.3 * ((self.now() - began) / #guess - self.each)
  end
  self.kind = "draft"
  return guess
end

---Guesses for what follows the ids so far, at most so many; none where none would pay.
---@param most integer
---@return integer[]
function Drafter:draft(most)
  most = math.min(most, self.most)
  if most < 1 or not self.clock[1] or #self.ids < 2 then return {} end
  return self.cache and from_draft(self, most) or from_text(self, most)
end

---One more id of the text.
---@param id integer
function Drafter:add(id)
  local ids = self.ids
  ids[#ids + 1] = id
  if self.cache or #ids < 2 then return end
  -- `last` of a place: where the pair that ends there has ended before
  local pair, n = (ids[#ids - 1] << 32) | id, #ids
  self.last[n], self.pairs[pair] = self.pairs[pair], n
end

---What became of the last guesses: so many held of so many that were judged.
---@param held integer
---@param judged integer
function Drafter:learn(held, judged)
  local of = self.held[self.kind]
  of.yes, of.no = of.yes * FADE + held, of.no * FADE + (judged - held)
end

---A pass of n ids took so long.
---@param n integer
---@param seconds number
function Drafter:took(n, seconds) self.clock:add(n, seconds) end

---Closes the draft model's cache, if there is one.
function Drafter:close()
  if self.cache then self.cache:close() end
end

local function wrong(what, text) error(("%s: speculate: %s"):format(what, text), 5) end

---What guesses for a generation of `model` that goes on from `ids`.
---@param what string  how messages begin
---@param model pyramid.Model
---@param given true|pyramid.SpeculateOptions
---@param ids integer[]
---@param clock fun(): number
---@return pyramid.Drafter?
---@return string? message
---@return string? code
function speculate.new(what, model, given, ids, clock)
  given = options.check(what .. ": speculate", given ~= true and given or nil, keys, 4)
  local most = given.most or 15
  if most < 1 or most > 46 then wrong(what, "most must be 1 to 46") end
  local self = setmetatable({ ids = {}, last = {}, pairs = {}, held = {}, most = most, each = 0,
    now = clock, clock = setmetatable({}, Clock), kind = 2, vocab = model.config.vocab }, Drafter)
  for kind in pairs(beliefs) do self.held[kind] = { yes = 0, no = 0 } end
  local draft = given.draft
  if draft ~= nil then
    if type(draft) ~= "table" or not draft.tokenizer then
      wrong(what, "draft must be a model with a tokenizer")
    end
    if draft.tokenizer:fingerprint() ~= model.tokenizer:fingerprint() then
      return nil, ("%s: speculate: the draft model %s has another vocabulary"):format(what,
        draft.description), "argument"
    end
    local message, code
    self.cache, message, code = draft:cache()
    if not self.cache then return nil, message, code end
    self.fed, self.sure = {}, 0
  end
  for _, id in ipairs(given.before or {}) do self:add(id) end
  for _, id in ipairs(ids) do self:add(id) end
  return self
end

return speculate

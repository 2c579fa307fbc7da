--- One text that the engine writes: a cache, a sampler, and what its ids become on their way to
--- whoever asked. A request has as many as it asked for (n); they share the prompt until they part.
---
---   waiting for logits  ──first──►  last (the id that the next step feeds)  ──take──►  …  finish
---
--- The engine feeds `last` of all choices in one step, and hands each what came of it.
local stops = require "pyramid.stops"

local choice = {}

---@class pyramid.ServeEvent
---@field text string           new text, which may be empty while a character is incomplete
---@field id? integer           the id that completed it
---@field logprob? number       of that id; with logprobs
---@field ids? integer[]        the most probable ids there, the first most, …
---@field logprobs? number[]    … and their log-probabilities
---@field finish? string        the last event: eos, stop, grammar, length, context, budget, cancelled
---  or error, where message and code tell why
---@field message? string
---@field code? string

---@class pyramid.ServeChoice
---@field request pyramid.ServeRequest
---@field index integer         from 1
---@field sampler pyramid.Sampler
---@field cache? pyramid.Cache
---@field last? integer         the id that is fed next
---@field count integer         ids written, without one that ended the text
---@field ids integer[]         … which they are
---@field finish? string
---@field message? string
---@field code? string
local Choice = {}
Choice.__index = Choice

---@param request pyramid.ServeRequest
---@param index integer
---@param sampler pyramid.Sampler
---@return pyramid.ServeChoice
function choice.new(request, index, sampler)
  return setmetatable({ request = request, index = index, sampler = sampler, count = 0, ids = {},
    pending = "", guided = sampler:guided() }, Choice)
end

---Whether its logits have to come to the host.
---@return boolean
function Choice:looks() return self.request.logprobs ~= nil end

---Gives what it was made of back, once it has ended.
function Choice:close() self.sampler:close() end

-- What still waits to become text.
local function rest(self)
  return self.pending .. (self.decoder and self.decoder:finish() or "")
end

---Ends the text: what waited is its last event's.
---@param reason string
---@param event? pyramid.ServeEvent   of the id that ended it
---@param message? string
---@param code? string
function Choice:ends(reason, event, message, code)
  if self.finish then return end
  event = event or { text = rest(self) }
  self.finish, self.message, self.code = reason, message, code
  event.finish, event.message, event.code = reason, message, code
  if self.decoder then self.decoder:close() end
  self.decoder = nil
  self.request:tell(self, event)
end

-- What the logits say of an id, for whoever asked.
local function look(self, logits, id, event)
  event.logprob = logits:logprob(id)
  if self.request.logprobs > 0 then
    event.ids, event.logprobs = logits:top(self.request.logprobs)
  end
end

-- An id that was picked becomes text.
local function take(self, id, event)
  if self.request.ends[id] then
    event.text = rest(self)
    return self:ends("eos", event)
  end
  self.count, self.last = self.count + 1, id
  self.ids[self.count], event.id = id, id
  local piece, message, code = self.decoder:push(id)
  if not piece then return self:ends("error", nil, message, code) end
  local text = self.pending .. piece
  self.pending = ""
  local texts = self.request.stop
  local at = stops.first(text, texts)
  if at then
    event.text = text:sub(1, at - 1)
    return self:ends("stop", event)
  end
  local held = stops.held_back(text, texts)
  self.pending = text:sub(#text - held + 1)
  event.text = text:sub(1, #text - held)
  local reason = self.guided and self.sampler:over() and "grammar"
    or self.count >= self.request.max_tokens and "length"
  if reason then
    event.text = event.text .. rest(self)
    return self:ends(reason, event)
  end
  self.request:tell(self, event)
end

---What a step gave: logits where they were asked for, else the id that was picked; false: no logit
---was finite.
---@param got pyramid.Logits|integer|false
function Choice:take(got)
  local event, id = { text = "" }, got
  if got and math.type(got) ~= "integer" then
    local message, code
    id, message, code = self.sampler:pick(got)
    if not id then return self:ends("error", nil, message, code) end
    look(self, got, id, event)
  end
  if not id then
    return self:ends("error", nil, "no logit is finite" .. (self.guided
      and " of a token that may follow" or ""), "argument")
  end
  take(self, id, event)
end

---The prompt has been read: the first pick.
---@param cache pyramid.Cache
---@param logits pyramid.Logits
function Choice:first(cache, logits)
  local model, request = self.request.model, self.request
  self.cache = cache
  if request.max_tokens == 0 then return self:ends("length", { text = "" }) end
  local lexicon, message, code
  if self.guided then
    lexicon, message, code = model.tokenizer:lexicon()
    if not lexicon then return self:ends("error", nil, message, code) end
  end
  local ok
  ok, message, code = self.sampler:begin(lexicon)
  if ok then ok, message, code = self.sampler:accept(request.ids) end
  if ok then self.decoder, message, code = model.tokenizer:decoder { continues = true } end
  if not self.decoder then return self:ends("error", nil, message, code) end
  local event = { text = "" }
  local id
  id, message, code = self.sampler:pick(logits)
  if not id then return self:ends("error", nil, message, code) end
  if self:looks() then look(self, logits, id, event) end
  take(self, id, event)
end

return choice

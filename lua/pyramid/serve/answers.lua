--- From a request of HTTP to requests of the engine, and from their events to one answer: whole, or
--- as a stream. What is in the answer is said by whoever calls (completions.lua).
---
--- Events wait in a list until the connection's coroutine takes them: the engine never waits for a
--- client. A client that leaves, or takes too long, ends its requests.
local json = require "pyramid.json"

local answers = {}

local LOOK <const> = 0.25      -- seconds between two looks whether a client is still there

local statuses = { argument = 400, context = 400, policy = 400, unsupported = 400, format = 400,
  busy = 429, budget = 503, memory = 503, cancelled = 503, device = 500, io = 500 }
local codes = { context = "context_length_exceeded" }

---The status of HTTP for one of our codes.
---@param code? string
---@return integer
function answers.status(code) return statuses[code] or 500 end

---@param code? string
---@return string?
function answers.code(code) return codes[code] or code end

---@class pyramid.ServeAnswer
---@field parts table[]    one for each text: { request, choice, texts, said, … }, in their order
local Answer = {}
Answer.__index = Answer

---Submits one request for each prompt. The answer's parts are the texts of the first prompt, then
---those of the second, …
---@param server pyramid.ServeServer
---@param call pyramid.ServeCall
---@param submits pyramid.ServeSubmit[]
---@return pyramid.ServeAnswer?
---@return string? message
---@return string? code
function answers.begin(server, call, submits)
  local engine = server.engine
  local self = setmetatable({ server = server, call = call, requests = {}, parts = {},
    events = {}, first = 1, last = 0, left = 0, condition = server.modules.condition.new(),
    until_then = engine.clock() + server.seconds }, Answer)
  for i, submit in ipairs(submits) do
    local offset = #self.parts
    submit.owner = call.owner .. "\0" .. (submit.owner or "")
    submit.on_event = function(choice, event)
      if event.finish then
        local part = self.parts[offset + choice.index]
        part.held = engine:held(choice)
        part.count, part.finish = choice.count, event.finish
        self.left = self.left - 1
      end
      self.last = self.last + 1
      self.events[self.last] = { part = offset + choice.index, event = event }
      self.condition:signal()
    end
    local request, message, code = engine:submit(submit)
    if not request then
      self:cancel()
      for j = i, #submits do
        for _, sampler in ipairs(submits[j].samplers or {}) do sampler:close() end
      end
      return nil, message, code
    end
    self.requests[i] = request
    for _, choice in ipairs(request.choices) do
      self.parts[#self.parts + 1] = { request = request, choice = choice, said = {} }
      self.left = self.left + 1
    end
  end
  return self
end

---Ends what still goes on.
function Answer:cancel()
  for _, request in ipairs(self.requests) do self.server.engine:cancel(request) end
end

---The next event and its part; nil at the end, or with why it ended early: "gone" or "late".
---@return table? part
---@return pyramid.ServeEvent? event
---@return string? why
function Answer:next()
  while true do
    local item = self.events[self.first]
    if item then
      self.events[self.first] = nil
      self.first = self.first + 1
      return self.parts[item.part], item.event
    end
    if self.left == 0 then return nil end
    if self.call:gone() then
      self:cancel()
      return nil, nil, "gone"
    end
    if self.server.engine.clock() > self.until_then then
      self:cancel()
      return nil, nil, "late"
    end
    self.call:wait(self.condition, LOOK)
  end
end

---What has been used: OpenAI's figures, and what of the cache was kept.
---@return table
function Answer:usage()
  local prompt, reused, written, rows, evicted, bytes = 0, 0, 0, 0, 0, 0
  for _, request in ipairs(self.requests) do
    prompt, reused = prompt + #request.ids, reused + request.reused
  end
  for _, part in ipairs(self.parts) do
    local held = part.held or { rows = 0, evicted = 0, bytes = 0 }
    written, rows = written + (part.count or 0), rows + held.rows
    evicted, bytes = evicted + held.evicted, bytes + held.bytes
  end
  return { prompt_tokens = prompt, completion_tokens = written, total_tokens = prompt + written,
    prompt_tokens_details = { cached_tokens = reused }, rows_kept = rows, rows_evicted = evicted,
    cache_bytes = bytes }
end

---Tells the client of an error, as far as that goes.
---@param message string
---@param code? string
---@param status? integer   nil: the code's
function Answer:fail(message, code, status)
  local call = self.call
  self:cancel()
  status = status or answers.status(code)
  if call.began then
    call:event(json.encode(call.fault(status, message, answers.code(code))))
    return call:over()
  end
  return call:fail(status, message, answers.code(code))
end

---Takes all events; `take(part, event)` may return false, as the client has gone. False, once the
---client has been told of an error or is no more.
---@param take fun(part: table, event: pyramid.ServeEvent): boolean?
---@return boolean
function Answer:each(take)
  for part, event, why in function() return self:next() end do
    local _ = why
    if event.finish == "error" or event.finish == "cancelled" then
      -- a budget of the request's own is its own fault
      self:fail(event.message or "the request was ended", event.code,
        event.code == "budget" and part.request.budget and 400 or nil)
      return false
    end
    if take(part, event) == false then
      self:cancel()
      return false
    end
  end
  if self.left > 0 then
    if not self.call:gone() then
      self:fail(("the request took more than %g seconds"):format(self.server.seconds), "cancelled")
    end
    return false
  end
  return true
end

local reasons = { eos = "stop", stop = "stop", grammar = "stop", length = "length",
  context = "length", budget = "length" }

---OpenAI's word for why a text ended; budgets and contexts that are full are "length" there.
---@param finish string
---@return string
function answers.reason(finish) return reasons[finish] or "stop" end

return answers

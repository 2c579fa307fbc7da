--- Answers, greedily, of several sequences in step: a pass over the weights writes a token of each.
--- A sequence's answer does not depend on which others are beside it.
local core = require "pyramid.core"
local follow = require "pyramid.follow"
local metrics = require "pyramid.tools.eval.metrics"
local sampler = require "pyramid.sampler"

local answer = {}

---@class pyramid.Ask
---@field cache pyramid.Cache       what was read under the policy
---@field rest integer[]            read now, the policy not asked
---@field question pyramid.EvalQuestion
---@field text? string              the answer, once it is there
---@field tokens? integer           of it

local function ends_of(model)
  local set = {}
  for _, id in ipairs(model.tokenizer.eos or {}) do set[id] = true end
  return set
end

-- The text before the first stop, and whether there is one.
local function stopped(text, stops)
  local at
  for _, stop in ipairs(stops or {}) do
    -- one that a text begins with ends nothing: "\n" before an answer's first line
    local found = text:find(stop, (text:match "^%s*()"), true)
    if found and (not at or found < at) then at = found end
  end
  return at and text:sub(1, at - 1) or text, at ~= nil
end

-- The option of the highest probability: by the first token in which they differ, each with a blank
-- before it, as an answer begins.
local function pick(model, ask, logits)
  local best, most
  for _, option in ipairs(ask.question.options) do
    local ids, message, code = model:encode(" " .. option, { special = false })
    if not ids then return nil, message, code end
    local probable = logits:logprob(ids[#ids])
    if not most or probable > most then best, most = option, probable end
  end
  ask.text, ask.tokens = best, 1
  return true
end

-- Takes an id in; whether the answer goes on.
local function take(ask, id, ends)
  if not id or ends[id] then return false end
  ask.tokens = ask.tokens + 1
  ask.text = ask.text .. assert(ask.decoder:push(id))
  local text, done = stopped(ask.text, ask.question.stop)
  if done then
    ask.text, ask.done = text, true
    return false
  end
  return ask.tokens < ask.question.most
    and not metrics.settled(ask.question.metric, ask.text, ask.question.answers)
end

local function finish(ask)
  if ask.decoder then
    if not ask.done then ask.text = stopped(ask.text .. (ask.decoder:finish() or ""),
      ask.question.stop) end
    ask.decoder:close()
    ask.decoder = nil
  end
end

---Reads what is left of each prompt and answers it.
---@param model pyramid.Model
---@param asks pyramid.Ask[]    their caches are of one pool: forks of one cache, or one alone
---@return true?
---@return string? message
---@return string? code
function answer.all(model, asks)
  local ends, live, ids, samplers = ends_of(model), {}, {}, {}
  local _ <close> = setmetatable({}, { __close = function()
    for _, ask in ipairs(asks) do finish(ask) end
  end })
  for _, ask in ipairs(asks) do
    local logits, message, code = follow(ask.cache, ask.rest)
    if not logits then return nil, message, code end
    if ask.question.options then
      local ok
      ok, message, code = pick(model, ask, logits)
      if not ok then return nil, message, code end
    else
      local greedy
      greedy, message, code = sampler {}
      if not greedy then return nil, message, code end
      ask.text, ask.tokens = "", 0
      ask.decoder, message, code = model.tokenizer:decoder { continues = true }
      if not ask.decoder then return nil, message, code end
      local id
      id, message, code = greedy:pick(logits)
      if id == nil then return nil, message, code end
      if take(ask, id, ends) then
        live[#live + 1], ids[#ids + 1], samplers[#samplers + 1] = ask, id, greedy
      end
    end
  end
  while #live > 0 do
    local caches = {}
    for i, ask in ipairs(live) do caches[i] = ask.cache end
    local picks, message, code = core.step(caches, ids, samplers)
    if not picks then return nil, message, code end
    local still, following, theirs = {}, {}, {}
    for i, ask in ipairs(live) do
      if take(ask, picks[i], ends) then
        still[#still + 1], following[#following + 1] = ask, picks[i]
        theirs[#theirs + 1] = samplers[i]
      end
    end
    live, ids, samplers = still, following, theirs
  end
  for _, ask in ipairs(asks) do finish(ask) end
  return true
end

return answer

--- How probable a model finds a given text after another: what multiple-choice tasks, rerankers and
--- perplexities of answers are made of.
---
---   local found = assert(model:score("The capital of France is", " Paris"))
---   print(found.logprob, found.greedy)
---
--- The prompt is read under the policy, as generation reads it, and the continuation is gone
--- through as generation would write it, plans that are due included: its log-probabilities are
--- those that `logprobs` of model:generate gives to the same ids.
local options = require "pyramid.options"

local likelihood = {}

---@class pyramid.ScoreOptions
---@field policy? pyramid.PolicyLike
---@field dtype? string
---@field budget? integer|string
---@field cache? pyramid.Cache     goes on in a fork of this one, which stays as it is
---@field progress? fun(done: integer, total: integer): boolean?   while the prompt is read

---@class pyramid.Likelihood
---@field logprob number      of the whole continuation: the sum, in nats
---@field logprobs number[]   of each id, given the prompt and the ids before it
---@field ids integer[]       the continuation's
---@field greedy boolean      whether each id was the most probable one
---@field bytes? integer      of a text: for bits per byte, -logprob / math.log(2) / bytes

local keys = { policy = "any", dtype = "string", budget = "integer|string", cache = "userdata",
  progress = "function" }
local BLOCK = 32   -- ids whose logits are held at once, at most

-- Texts are cut where the prompt alone ends: ids of both together, without those of the prompt. A
-- prompt's last blank belongs to the continuation's first word, as tokenizers cut.
local function ids_of(model, prompt, continuation, add)
  if type(continuation) ~= "string" then return prompt, continuation end
  local blank = prompt:match "%s*$"
  if blank ~= "" and blank ~= prompt then
    prompt, continuation = prompt:sub(1, -#blank - 1), blank .. continuation
  end
  local before, message, code = model:encode(prompt, { add = add })
  if not before then return nil, message, code end
  local whole
  whole, message, code = model:encode(prompt .. continuation, { add = add })
  if not whole then return nil, message, code end
  return table.move(whole, 1, math.min(#before, #whole - 1), 1, {}),
    table.move(whole, math.min(#before + 1, #whole), #whole, 1, {})
end

local function check_kinds(prompt, continuation)
  local kind = type(prompt)
  if kind ~= type(continuation) or kind ~= "string" and kind ~= "table" then
    error("model:score: prompt and continuation are two texts or two sequences of ids", 3)
  end
  if #continuation == 0 then error("model:score: the continuation is empty", 3) end
end

-- The logits before ids[at + 1], and those behind it as far as one pass goes: bit for bit what
-- single steps would give.
local function read_on(cache, ids, at)
  local count = math.min(cache:verifiable(), #ids - 1 - at, BLOCK)
  if count < 1 then
    local logits, message, code = cache:step(ids[at + 1])
    if not logits then return nil, message, code end
    return { logits }
  end
  return cache:verify(table.move(ids, at + 1, at + count, 1, {}))
end

---What `model:score` gives.
---@param model pyramid.Model
---@param prompt string|integer[]
---@param continuation string|integer[]
---@param given? pyramid.ScoreOptions
---@return pyramid.Likelihood?
---@return string? message
---@return string? code
function likelihood.score(model, prompt, continuation, given)
  given = options.check("model:score", given, keys)
  check_kinds(prompt, continuation)
  if given.cache and (given.policy or given.dtype or given.budget) then
    error("model:score: a cache that is given has its own policy, dtype and budget", 2)
  end
  if type(prompt) == "string" and not model.tokenizer then
    return nil, "model:score: the model has no tokenizer", "unsupported"
  end
  local add
  if given.cache and given.cache:tokens() > 0 then add = false end   -- a text that goes on
  local before, ids, code = ids_of(model, prompt, continuation, add)
  if not before then return nil, ids, code end
  if #before == 0 then
    return nil, "model:score: nothing stands before the continuation", "argument"
  end
  local cache, message
  if given.cache then cache, message, code = given.cache:fork()
  else
    cache, message, code = model:cache { policy = given.policy, dtype = given.dtype,
      budget = given.budget }
  end
  if not cache then return nil, message, code end
  local _ <close> = cache
  local logits
  logits, message, code = cache:prefill(before, { progress = given.progress })
  if not logits then return nil, message, code end
  local found = { logprob = 0, logprobs = {}, ids = ids, greedy = true,
    bytes = type(continuation) == "string" and #continuation or nil }
  local behind, at = { logits }, 0
  while true do
    for i, each in ipairs(behind) do
      local id = ids[at + i]
      local logprob = each:logprob(id)
      found.logprobs[at + i], found.logprob = logprob, found.logprob + logprob
      found.greedy = found.greedy and each:argmax() == id
    end
    at = at + #behind
    if at == #ids then return found end
    behind, message, code = read_on(cache, ids, at - 1)
    if not behind then return nil, message, code end
  end
end

return likelihood

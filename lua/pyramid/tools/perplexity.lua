--- How well a model foretells a text from what its cache has kept.
---
--- A window is a context, read under the cache's policy, and the tokens after it, each scored by
--- the logarithm of the probability that the model gave it after the policy's cut (pyramid.cut):
--- perplexity is exp(-mean). The true token is fed, whatever the model would have picked, one at a
--- time, so that the policy also acts as it does in generation; or all at once (`append`), which is
--- faster and leaves what the context left.
local core = require "pyramid.core"
local cut = require "pyramid.tools.cut"
local options = require "pyramid.options"

local perplexity = {}

---@class pyramid.PerplexityResult
---@field logprobs number[]         natural, of each target
---@field sum number                of them
---@field prefill_seconds number  of reading the context
---@field predict_seconds number
---@field context_fraction number   the share of the context's rows that the policy kept
---@field context_bytes integer     held then

local keys = { append = "boolean", progress = "function" }

---Scores `targets` after `context` of two tokens or more. The cache should be new; what it holds
---afterwards is the window's. `progress(done, total)` counts tokens; returning true cancels.
---@param cache pyramid.Cache
---@param context integer[]
---@param targets integer[]
---@param given? { append?: boolean, progress?: fun(done: integer, total: integer): boolean? }
---@return pyramid.PerplexityResult?
---@return string? message
---@return string? code
function perplexity.window(cache, context, targets, given)
  given = options.check("perplexity.window", given, keys)
  local total, progress = #context + #targets, given.progress
  local function reading(done, of)
    return progress(math.floor(#context * done / math.max(of, 1)), total)
  end
  local began = core.clock()
  local result = { logprobs = {}, sum = 0 }
  local function score(i, from)
    local logprob = from:logprob(targets[i])
    result.logprobs[i], result.sum = logprob, result.sum + logprob
  end
  local function held(made)
    result.context_fraction, result.context_bytes, result.prefill_seconds = made.share, made.bytes,
      made.seconds
  end
  if given.append and #targets > 0 then
    local all, made, code = cut.append(cache, context, targets, progress and reading)
    if not all then return nil, made, code end
    held(made)
    for i, logits in ipairs(all) do score(i, logits) end
  else
    local logits, made, code = cut.read(cache, context, progress and reading)
    if not logits then return nil, made, code end
    held(made)
    if #targets > 0 then score(1, logits) end
    for i = 2, #targets do
      local message
      logits, message, code = cache:step(targets[i - 1])
      if not logits then return nil, message, code end
      score(i, logits)
      if progress and progress(#context + i, total) then return nil, "cancelled", "cancelled" end
    end
  end
  result.predict_seconds = core.clock() - began - result.prefill_seconds
  return result
end

---Windows over a text's ids: each a context of `context` ids, which begin with `bos` if there is
---one, and the `predict` ids after it; each window begins `stride` ids after the one before.
---@param ids integer[]
---@param how { context: integer, predict: integer, stride?: integer, limit?: integer, bos?: integer }
---@return { context: integer[], targets: integer[], first: integer }[]
---  first: where the targets begin in ids
function perplexity.windows(ids, how)
  local windows, lead = {}, how.bos and 1 or 0
  local body = how.context - lead
  for start = 1, #ids - body - how.predict + 1, how.stride or how.predict do
    local first = start + body
    windows[#windows + 1] = {
      context = table.move(ids, start, first - 1, lead + 1, { how.bos }),
      targets = table.move(ids, first, first + how.predict - 1, 1, {}),
      first = first,
    }
    if #windows == how.limit then break end
  end
  return windows
end

return perplexity

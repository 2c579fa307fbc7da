--- Samplers: logits to a token id, seeded and reproducible.
---
--- The steps, in this order: logit bias; repetition, frequency and presence penalties; temperature;
--- top_k; top_p; min_p; one draw from what is left. Equal logits rank by id, the lower first.
local core = require "pyramid.core"

---@class pyramid.SamplerOptions
---@field temperature? number
---  0 (the default): always the most probable id; the rest but the penalties is then idle
---@field top_k? integer             the k most probable; 0: off
---@field top_p? number
---  the fewest most probable that hold this much probability; 0, or 1 and more: off
---@field min_p? number  those at least this many times as probable as the most probable; 0: off
---@field repeat_penalty? number
---  divides the positive logits of ids seen, multiplies their negative ones; 0 or 1: off
---@field frequency_penalty? number  is subtracted from an id's logit each time it was seen
---@field presence_penalty? number   is subtracted once from the logit of an id that was seen
---@field penalty_last? integer      how many last ids count as seen; 0: all
---@field seed? integer              0 by default: the same picks in each run
---@field logit_bias? table<integer, number>
---  is added to the logits of these ids; -math.huge bans them

---Picks ids, and remembers what it picked, for its penalties.
---@class pyramid.Sampler
---@field pick fun(self: pyramid.Sampler, logits: pyramid.Logits|number[]): integer?, string?, string?
---  the next id; fails where no logit is finite
---@field accept fun(self: pyramid.Sampler, ids: integer[]): pyramid.Sampler
---  counts ids as seen, such as the prompt's
---@field reset fun(self: pyramid.Sampler): pyramid.Sampler   as new: seed and history
---@field close fun(self: pyramid.Sampler)

---Makes a sampler; no options: a greedy one.
---@param options? pyramid.SamplerOptions
---@return pyramid.Sampler
return function(options)
  return core.sampler(nil, options)
end

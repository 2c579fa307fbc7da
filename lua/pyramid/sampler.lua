--- Samplers: logits to a token id, seeded and reproducible.
---
--- The steps, in this order: logit bias; repetition, frequency and presence penalties; temperature;
--- top_k; top_p; min_p; one draw from what is left. Equal logits rank by id, the lower first.
---
--- A grammar, a JSON Schema or a function of Lua's may say which tokens may follow: all steps then
--- see only those.
local core = require "pyramid.core"
local grammars = require "pyramid.grammar"

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
---@field grammar? string|pyramid.GrammarSource|pyramid.Grammar
---  what it writes is a text of this grammar (pyramid.grammar); a text ends where the grammar ends
---@field schema? table|string  … is JSON of this JSON Schema, a table or its text
---@field allow? fun(ids: integer[]): integer[]?
---  called before each pick with the ids picked since the text began, not to be changed: the ids
---  that may follow, or nil for any. With a grammar, those that both allow

---Picks ids, and remembers what it picked, for its penalties.
---@class pyramid.Sampler
---@field pick fun(self: pyramid.Sampler, logits: pyramid.Logits|number[]): integer?, string?, string?
---  the next id; fails where no logit is finite
---@field accept fun(self: pyramid.Sampler, ids: integer[]): pyramid.Sampler
---  counts ids as seen, such as the prompt's
---@field reset fun(self: pyramid.Sampler): pyramid.Sampler   as new: seed and history
---@field begin fun(self: pyramid.Sampler, lexicon?: userdata): true?, string?, string?
---  a new text begins, at the grammar's start; with a grammar it is told once whose vocabulary it
---  picks from, by `tokenizer:lexicon()`. Generations and batches do that
---@field guided fun(self: pyramid.Sampler): boolean   it has a grammar, and serves one text at a time
---@field over fun(self: pyramid.Sampler): boolean  by its grammar, nothing may follow what it picked
---@field clone fun(self: pyramid.Sampler): pyramid.Sampler?, string?, string?
---  another that goes on as this one would: seed, history, and where the text stands in a grammar
---@field close fun(self: pyramid.Sampler)

---Makes a sampler; no options: a greedy one. Fails only on a grammar or a schema that is none, that
---cannot be read, or asks for what is not supported.
---@param options? pyramid.SamplerOptions
---@return pyramid.Sampler?
---@return string? message
---@return string? code
return function(options)
  if type(options) ~= "table" or options.grammar == nil and options.schema == nil then
    return core.sampler(nil, options)
  end
  local copy = {}
  for key, value in pairs(options) do copy[key] = value end
  if copy.grammar ~= nil and copy.schema ~= nil then
    error("sampler: a grammar or a schema, not both", 2)
  end
  if copy.schema ~= nil and type(copy.schema) ~= "table" and type(copy.schema) ~= "string" then
    error("sampler: schema must be a table or a JSON text, not a " .. type(copy.schema), 2)
  end
  local message, code
  copy.grammar, message, code = grammars.share(copy.grammar or { schema = copy.schema })
  if not copy.grammar then return nil, message, code end
  copy.schema = nil
  return core.sampler(nil, copy)
end

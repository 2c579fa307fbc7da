--- What the C facade does (lua/host.c, the end of pyramid.h): one model, one policy, one text at a time.
local model = require "pyramid.model"
local policy = require "pyramid.policy"

local host = {}

---@class pyramid.Host
local Host = {}
Host.__index = Host

---@class pyramid.HostOptions
---@field threads? integer
---@field memory? integer
---@field weights? string
---@field precision? string
---@field policy? string          a name, or a path to a policy file
---@field policy_options? string  "ratio=0.8 recent=0.1"
---@field cache_dtype? string
---@field cache_budget? integer

local function load_policy(o)
  local chosen, message, code = policy.load(o.policy or "full")
  if not chosen then return nil, message, code end
  local words = {}
  for word in (o.policy_options or ""):gmatch "[^%s,]+" do words[#words + 1] = word end
  local given
  given, message, code = policy.parse_options(chosen, words)
  if not given then return nil, message, code end
  return policy.load(chosen, given)
end

---Opens a model. All that can be wrong with the options is found here, not by the first prompt.
---@param path string
---@param o pyramid.HostOptions
---@return pyramid.Host|nil
---@return string? message
---@return string? code
function host.open(path, o)
  local chosen, message, code = load_policy(o)
  if not chosen then return nil, message, code end
  local opened
  opened, message, code = model.open(path, { threads = o.threads, memory = o.memory, weights = o.weights,
    precision = o.precision })
  if not opened then return nil, message, code end
  local cache_options = { policy = chosen, dtype = o.cache_dtype, budget = o.cache_budget }
  local cache
  cache, message, code = opened:cache(cache_options)
  if not cache then
    opened:close()
    return nil, message, code
  end
  cache:close()
  return setmetatable({ model = opened, cache_options = cache_options }, Host)
end

---@class pyramid.HostGenerateOptions
---@field max_tokens? integer
---@field stop? string
---@field sampler pyramid.SamplerOptions
---@field on_piece fun(piece: string): boolean          true stops
---@field on_progress? fun(done: integer, total: integer): boolean  true cancels

---Generates text from a prompt, in a cache of its own.
---@param prompt string
---@param how pyramid.HostGenerateOptions
---@return pyramid.GenerationStats|nil
---@return string? message
---@return string? code
function Host:generate(prompt, how)
  local cache = self.cache_options
  local run <close>, message, code = self.model:generate(prompt, {
    policy = cache.policy, dtype = cache.dtype, budget = cache.budget,
    sampler = how.sampler, max_tokens = how.max_tokens, stop = how.stop, progress = how.on_progress,
  })
  if not run then return nil, message, code end
  for piece in run do
    if piece ~= "" and how.on_piece(piece) then break end
  end
  if run.finish == "error" then return nil, run.message, run.code end
  return run.stats
end

return host

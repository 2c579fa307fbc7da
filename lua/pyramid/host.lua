--- What the C facade does (lua/host.c, the end of pyramid.h): one model, one policy; a text at a
--- time, or conversations.
local model = require "pyramid.model"
local policy = require "pyramid.policy"

local host = {}

---@class pyramid.Host
local Host = {}
Host.__index = Host

---@class pyramid.HostOptions
---@field device? string
---@field threads? integer
---@field memory? integer
---@field map? boolean            false: weights are read, not mapped
---@field weights? string
---@field precision? string
---@field context? integer
---@field scaling? string
---@field policy? string          a name, or a path to a policy file
---@field policy_options? string  "ratio=0.8 recent=0.1"
---@field policy_seconds? number
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
---@return pyramid.Host?
---@return string? message
---@return string? code
function host.open(path, o)
  local chosen, message, code = load_policy(o)
  if not chosen then return nil, message, code end
  local opened
  opened, message, code = model.open(path, { device = o.device, threads = o.threads,
    memory = o.memory, map = o.map, weights = o.weights, precision = o.precision,
      context = o.context, scaling = o.scaling })
  if not opened then return nil, message, code end
  local cache_options = { policy = chosen, dtype = o.cache_dtype, budget = o.cache_budget,
    policy_seconds = o.policy_seconds }
  local cache
  cache, message, code = opened:cache(cache_options)
  if not cache then
    opened:close()
    return nil, message, code
  end
  cache:close()
  return setmetatable({ model = opened, cache_options = cache_options }, Host)
end

---How many tokens a text is, as `generate` would read it.
---@param text string
---@return integer?
---@return string? message
---@return string? code
function Host:count(text)
  local ids, message, code = self.model:encode(text)
  if not ids then return nil, message, code end
  return #ids
end

---@class pyramid.HostGenerateOptions
---@field max_tokens? integer
---@field plain? boolean
---@field stop? string[]
---@field sampler pyramid.SamplerOptions
---@field logprobs? integer
---@field on_token fun(piece: string, id?: integer, logprob?: number, ids?: integer[], logprobs?: number[]): boolean|string?
---@field on_progress fun(done: integer, total: integer): boolean  true cancels

-- What a piece comes with.
local function tell(how, run, piece, id)
  local logprob = id and run.logprobs and run.logprobs[run.stats.generated_tokens]
  return how.on_token(piece, id, logprob, run.top, run.top_logprobs)
end

local function statistics(stats, finish, cache, rereads)
  stats.finish, stats.context_tokens, stats.rereads = finish, cache and cache:tokens() or 0, rereads
  return stats
end

---Generates text from a prompt, in a cache of its own.
---@param prompt string
---@param how pyramid.HostGenerateOptions
---@return pyramid.GenerationStats?
---@return string? message
---@return string? code
function Host:generate(prompt, how)
  local cache = self.cache_options
  local run <close>, message, code = self.model:generate(prompt, {
    policy = cache.policy, dtype = cache.dtype, budget = cache.budget,
      policy_seconds = cache.policy_seconds,
    sampler = how.sampler, max_tokens = how.max_tokens, stop = how.stop, special = not how.plain,
      logprobs = how.logprobs,
    progress = how.on_progress,
  })
  if not run then return nil, message, code end
  for piece, id in run do
    local wish = tell(how, run, piece, id)
    if wish == "cancel" then return nil, "cancelled", "cancelled" end
    if wish then break end
  end
  if run.finish == "error" then return nil, run.message, run.code end
  return statistics(run.stats, run.finish or "closed", run.cache)
end

---@class pyramid.HostConversationOptions
---@field system? string
---@field format? string

local function with_cache(self, o)
  local cache = self.cache_options
  return { system = o.system, format = o.format, policy = cache.policy, dtype = cache.dtype,
    budget = cache.budget, policy_seconds = cache.policy_seconds }
end

---Begins a conversation.
---@param o pyramid.HostConversationOptions
---@return pyramid.Conversation?
---@return string? message
---@return string? code
function Host:converse(o) return self.model:conversation(with_cache(self, o)) end

---A conversation from the file that it was saved in.
---@param path string
---@param o pyramid.HostConversationOptions
---@return pyramid.Conversation?
---@return string? message
---@return string? code
function Host:load(path, o)
  o = with_cache(self, o)
  o.system = nil
  return self.model:load_conversation(path, o)
end

---A message, and the answer to it.
---@param talk pyramid.Conversation
---@param text? string
---@param how pyramid.HostGenerateOptions
---@return pyramid.GenerationStats?
---@return string? message
---@return string? code
function Host.say(_, talk, text, how)
  local stats, message, code = talk:say(text, { sampler = how.sampler, max_tokens = how.max_tokens,
    stop = how.stop,
    logprobs = how.logprobs, progress = how.on_progress,
    on_piece = function(piece, id, run) return tell(how, run, piece, id) end })
  if not stats then return nil, message, code end
  return statistics(stats, talk.finish, talk.cache, talk.rereads)
end

return host

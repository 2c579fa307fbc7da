--- Caches: one sequence's rows. The class is native (lua/lcache.c); this file makes caches from
--- options and adds the methods that take them.
local core = require "pyramid.core"
local options = require "pyramid.options"
local policy = require "pyramid.policy"
local score = require "pyramid.score"

local cache = {}

---@class pyramid.Cache: userdata
---@field step fun(self: pyramid.Cache, id: integer): pyramid.Logits?, string?, string?
---  one token on
---@field rows fun(self: pyramid.Cache, layer: integer, head?: integer): integer
---  from 1; head 1, unless said
---@field positions fun(self: pyramid.Cache, layer: integer, head?: integer): integer[]
---  original positions, from 0
---  (under share = "head" each KV head has its own rows, so ask head by head)
---@field evaluate fun(self: pyramid.Cache, program?: string, layer: integer, head: integer):
---  pyramid.vector? see scores
---@field bytes fun(self: pyramid.Cache): integer       pages and bookkeeping held
---@field fraction fun(self: pyramid.Cache): number     rows held of those a full cache would hold
---@field tokens fun(self: pyramid.Cache): integer      tokens seen
---@field computed fun(self: pyramid.Cache): integer
---  token-layers computed; a full prefill computes tokens * layers
---@field evicted fun(self: pyramid.Cache): integer
---  rows dropped or never stored, counted for each layer and KV head
---@field fork fun(self: pyramid.Cache): pyramid.Cache?, string?, string?
---  shares pages until written
---@field truncate fun(self: pyramid.Cache, n: integer): true?, string?, string?
---  drops the rows of tokens from n on, and goes on
---  from token n: what was evicted of the rows before stays so; refused (code "policy") where
---  attention is tracked
---@field cut fun(self: pyramid.Cache, bound?: table): true?, string?, string?   see evict
---@field save fun(self: pyramid.Cache, path: string, note?: string): true?, string?, string?
---  the file keeps the note
---@field note fun(self: pyramid.Cache): string?         of the file that it was loaded from
---@field clear fun(self: pyramid.Cache): true?, string?, string?
---@field close fun(self: pyramid.Cache)

---@class pyramid.Logits: userdata  logits[id] is indexed by ids, from 0; totable() is a Lua sequence, from 1
---@field argmax fun(self: pyramid.Logits): integer, number
---@field logprob fun(self: pyramid.Logits, id: integer): number
---@field top fun(self: pyramid.Logits, k: integer): integer[], number[]
---  the k most probable ids, and their log-probabilities
---@field kl fun(self: pyramid.Logits, other: pyramid.Logits): number
---  KL(self || other) of the two distributions, in nats
---@field totable fun(self: pyramid.Logits): number[]

local cache_keys = { policy = "any", dtype = "string", budget = "integer|string",
  policy_seconds = "number" }

--- How rows can be stored, and the bytes of a value then.
cache.dtypes = { "f16", "bf16", "f32", "q8_0", "fp8_e4m3" }
cache.value_bytes = { f16 = 2, bf16 = 2, f32 = 4, q8_0 = 34 / 32, fp8_e4m3 = 1 }

--- The same as messages say it.
function cache.known_dtypes()
  local names = table.move(cache.dtypes, 1, #cache.dtypes, 1, {})
  table.sort(names)
  return table.concat(names, ", ")
end

---@class pyramid.CacheOptions
---@field policy? pyramid.policy|string|table
---@field dtype? "f16"|"f32"|"bf16"|"q8_0"|"fp8_e4m3"
---@field budget? integer|string   bytes, or "512 MiB"
---@field policy_seconds? number
---  that one call of the policy's functions may take (10; 0: no limit). What takes longer is ended
---                                 by an error, as by progress functions that say so, and the rows
---                                 are as before

---A pool and a bound policy from cache options. The caller closes the pool once its caches are
---made.
---@param what string
---@param model pyramid.Model
---@param given? pyramid.CacheOptions
---@return userdata|nil pool
---@return table|string|nil bound policy, or a message
---@return string? code
function cache.prepare(what, model, given)
  given = options.check(what, given, cache_keys, 3)
  local bound
  if given.policy ~= nil then
    local found, message, code = policy.load(given.policy)
    if not found then return nil, message, code end
    bound = found:bind()
    bound.seconds = given.policy_seconds or model.policy_seconds or policy.SECONDS
  end
  if given.policy_seconds and (given.policy_seconds < 0
    or given.policy_seconds ~= given.policy_seconds) then
    error(what .. ": policy_seconds must be 0 or more", 3)
  end
  local dtype = given.dtype or "f16"
  if not cache.value_bytes[dtype] then
    error(("%s: unknown dtype '%s' (known: %s)"):format(what, dtype, cache.known_dtypes()), 3)
  end
  local pool, message, code = core.pool(model:native(), dtype, options.bytes(what, given.budget, 3))
  if not pool then return nil, message, code end
  return pool, bound
end

---@param model pyramid.Model
---@param pool userdata
---@param bound table?
---@param path? string   a saved cache
function cache.make(model, pool, bound, path)
  local made, message, code
  if path then made, message, code = core.load_cache(model:native(), pool, bound, path)
  else made, message, code = core.cache(model:native(), pool, bound) end
  if not made then return nil, message, code end
  core.set_owner(made, model)
  return made
end

local prefill_keys = { all = "boolean", prune = "boolean", progress = "function" }

---Reads tokens. Returns the last position's logits; with `all`, a sequence of every position's.
---`prune = false` appends without asking the policy. `progress(done, total)` is called between
---layers and chunks; returning true cancels. On any failure the rows are as before.
---@param ids integer[]
---@param given? { all?: boolean, prune?: boolean, progress?: fun(done: integer, total: integer): boolean? }
---@return pyramid.Logits|pyramid.Logits[]|nil
---@return string? message
---@return string? code
function core.cache_methods:prefill(ids, given)
  given = options.check("cache:prefill", given, prefill_keys)
  if not given.progress then return self:read(ids, given.all, given.prune) end
  local open, runtime = pcall(function(owner) return owner:runtime() end, self:owner())
  if not open then
    error("cache:prefill: progress needs the model, which is closed; read without it", 2)
  end
  runtime:on_progress(given.progress)
  local _ <close> = setmetatable({}, { __close = function() runtime:on_progress(nil) end })
  return self:read(ids, given.all, given.prune)
end

---Evicts at once: in each layer what the prefill plan of a policy (left out: the cache's own) says
---of the rows held now, as if they were a prompt just read (`l.prompt` and `l.rows` are the rows
---held, `l.past` is 0). The cache goes on under its own policy. Scores that only a running prefill
---knows are refused by name; on any failure the rows are as before.
---@param which? pyramid.policy|string|table
---@return true|nil
---@return string? message
---@return string? code
function core.cache_methods:evict(which)
  if which == nil then return self:cut() end
  local found, message, code = policy.load(which)
  if not found then return nil, message, code end
  return self:cut(found:bind())
end

---What a score says of the rows held now: a vector with a number for each token seen (vector[i] is
---of position i - 1), the mean over all layers and heads, or over one `layer` or `head`; rows not
---held count as 0. The expression may hold signals of rows; attention and history as the cache's
---policy tracks them (`trigger.track`); nothing that only a running prefill knows, and no tables.
---Left out, it is the signal that is tracked.
---@param expression? pyramid.score
---@param given? { layer?: integer, head?: integer }
---@return pyramid.vector|nil
---@return string? message
---@return string? code
function core.cache_methods:scores(expression, given)
  given = options.check("cache:scores", given, { layer = "integer", head = "integer" })
  if expression ~= nil and not score.is(expression) then
    error(("cache:scores: a score is wanted, not a %s"):format(type(expression)), 2)
  end
  for key, value in pairs(given) do
    if value < 1 or value > 0x7fffffff then
      error(("cache:scores: no such %s (%d)"):format(key, value), 2)
    end
  end
  return self:evaluate(expression and score.program(expression), given.layer or 0, given.head or 0)
end

return cache

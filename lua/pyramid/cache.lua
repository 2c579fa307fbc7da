--- Caches: one sequence's rows. The class is native (lua/lcache.c); this file makes caches from
--- options and adds the methods that take them.
local core = require "pyramid.core"
local dtypes = require "pyramid.loaders.dtypes"
local options = require "pyramid.options"
local policy = require "pyramid.policy"
local score = require "pyramid.score"
local sessions = require "pyramid.sessions"
local token_classes = require "pyramid.token_classes"
local stream = require "pyramid.stream"

local cache = {}

---One sequence's rows, under one policy. Layers and heads count from 1, positions from 0.
---@class pyramid.Cache: userdata
---@field step fun(self: pyramid.Cache, id: integer): pyramid.Logits?, string?, string?
---  reads one token, and gives the logits of the next; evicts where the policy's trigger fires. On
---  a failure the rows are as before
---@field verify fun(self: pyramid.Cache, ids: integer[]): pyramid.Logits[]?, string?, string?
---  reads ids that were guessed, in one pass over the weights: the logits after each are bit for
---  bit what a step each would give. cache:truncate then goes back to any of them, under every
---  policy. Code "policy": more ids than cache:verifiable() says
---@field verifiable fun(self: pyramid.Cache): integer
---  how many ids cache:verify takes now: fewer than the steps until the policy's next decode plan,
---  47 at most; 0: none, and the next id is one for cache:step
---@field rows fun(self: pyramid.Cache, layer: integer, head?: integer, tier?: pyramid.TierName): integer
---  rows that a lane holds in all tiers, or in one; of head 1, unless said. A layer with a sliding
---  window gives rows back by 512 once no later query sees them: it holds less than its window and
---  511
---@field positions fun(self: pyramid.Cache, layer: integer, head?: integer, tier?: pyramid.TierName): integer[]
---  the original positions of a lane's rows, from 0, ascending, of all tiers or of one. Under share
---  = "head" each KV head has its own rows, so ask head by head
---@field held fun(self: pyramid.Cache, layer?: integer, tier?: pyramid.TierName, bin?: integer): pyramid.Vector
---  for each token seen the share of the KV heads of a layer, or of all layers, that hold its row,
---  in all tiers or in one: vector[i] is of position i - 1, 0 where none does and 1 where all do.
---  With `bin`, the mean of each so many tokens, the last of what is left
---@field bytes fun(self: pyramid.Cache, tier?: pyramid.TierName): integer
---  pages and bookkeeping held in all tiers, those in files too, or in one. What the process holds
---  for it is a hundredth or two more, and, once it steps, its workspace; forks share pages, and
---  each counts them
---@field workspace fun(self: pyramid.Cache): integer
---  bytes that steps of the cache and its forks work in; kept between steps, and in no budget
---@field fraction fun(self: pyramid.Cache): number
---  rows held in all tiers of those a full cache would hold
---@field has_tier fun(self: pyramid.Cache, tier: pyramid.TierName): boolean   "hot" always
---@field reading fun(self: pyramid.Cache): number
---  the share of the rows held that the next step reads, at most (a plan's `read`); 1: all
---@field tokens fun(self: pyramid.Cache): integer     tokens seen
---@field computed fun(self: pyramid.Cache): integer
---  token-layers computed; a full prefill computes tokens * layers
---@field evicted fun(self: pyramid.Cache): integer
---  rows dropped or never stored, counted for each layer and KV head
---@field fork fun(self: pyramid.Cache): pyramid.Cache?, string?, string?
---  a second cache that goes on by itself from here; pages are shared until one of them writes
---@field truncate fun(self: pyramid.Cache, n: integer): true?, string?, string?
---  drops the rows of tokens from n on, and goes on from token n: what was evicted of the rows
---  before stays so. Refused (code "policy") where attention is tracked, but for ids that
---  cache:verify read last, and (code "argument")
---  below what a sliding window has left; the message names the first token that may be
---@field tell fun(self: pyramid.Cache, fn?: fun(record: pyramid.Trace), seconds?: number): true
---  tells another function than before of its plans (nil: none); forks made later tell it, too
---@field save fun(self: pyramid.Cache, path: string, note?: string): true?, string?, string?
---  writes all of it to a file, which keeps the note, too; model:load_cache reads it
---@field note fun(self: pyramid.Cache): string?       of the file that it was loaded from
---@field clear fun(self: pyramid.Cache): true?, string?, string?    forgets every token
---@field close fun(self: pyramid.Cache)               gives its pages back
---@field package read_ids fun(self: pyramid.Cache, ids: integer[], all?: boolean, prune?: boolean, whole?: boolean, states?: boolean): any
---@field package read_embeddings fun(self: pyramid.Cache, rows: pyramid.Embeddings, all?: boolean, prune?: boolean, whole?: boolean, states?: boolean): any
---@field package load_prefix fun(self: pyramid.Cache, path: string, n: integer): true?, string?, string?
---@field package identity fun(self: pyramid.Cache): string
---@field package evaluate fun(self: pyramid.Cache, program?: string, layer: integer, head: integer): any
---@field package see fun(self: pyramid.Cache, ids: integer[], program: string): true?, string?, string?
---@field package bring_up fun(self: pyramid.Cache, program: string, rows: integer): true?, string?, string?
---@field package cut fun(self: pyramid.Cache, bound?: table): true?, string?, string?
---@field package owner fun(self: pyramid.Cache): pyramid.Model
local Cache = core.cache_methods

---One position's logits. logits[id] is indexed by ids, from 0, and #logits is the vocabulary.
---@class pyramid.Logits: userdata
---@field argmax fun(self: pyramid.Logits): integer, number   the highest: its id, and its logit
---@field logprob fun(self: pyramid.Logits, id: integer): number
---  the natural logarithm of an id's probability
---@field top fun(self: pyramid.Logits, k: integer): integer[], number[]
---  the k most probable ids, and their log-probabilities
---@field kl fun(self: pyramid.Logits, other: pyramid.Logits): number
---  KL(self || other) of the two distributions, in nats
---@field totable fun(self: pyramid.Logits): number[]   a Lua sequence, from 1: id 0 is its first
---@field tostring fun(self: pyramid.Logits): string    packed f32, as the machine has them
---@field [integer] number

local cache_keys = { policy = "any", dtype = "string|table", budget = "integer|string",
  policy_seconds = "number", trace = "function", sessions = "string|table", tiers = "table",
  pressure = "string" }
local tier_keys = { dtype = "string|table", file = "string", bytes = "integer|string",
  rows = "integer" }
local tier_names = { "hot", "warm", "cold" }

-- What caches share with a store (pyramid.SessionUse), by cache.
local sharing = setmetatable({}, { __mode = "k" })

--- How rows can be stored.
cache.dtypes = table.move(dtypes.rows, 1, #dtypes.rows, 1, {})

-- Of pages that are packed: bits of a value. 8 go by the name of the dtype that has as many.
local packed_bits = { q8_0 = 8, q4 = 4, q3 = 3, q2 = 2 }
for _, name in ipairs { "q4", "q3", "q2" } do table.insert(cache.dtypes, name) end

---The names of the dtypes, as messages say them.
---@return string
function cache.known_dtypes()
  local names = table.move(cache.dtypes, 1, #cache.dtypes, 1, {})
  table.sort(names)
  return table.concat(names, ", ")
end

---How rows are stored: those of plain pages, and what K and V of packed pages are packed to; nil:
---as in plain ones.
---@class pyramid.RowFormat
---@field plain string
---@field k? "q8_0"|"q4"|"q3"|"q2"
---@field v? "q8_0"|"q4"|"q3"|"q2"

local function halves(text)
  local of = {}
  for key, name in text:gmatch "([kv])=([%w_]+)" do of[key] = name end
  return text:find "^[kv]=[%w_]+,[kv]=[%w_]+$" and of.k and of.v and of or nil
end

---What a cache's `dtype` asks for: a name, "k=NAME,v=NAME", or a table of both. "f16" is as plain
---as it says; "q4" is { k = "q4", v = "q4" } over f16. Of a pair one may be plain.
---@param dtype? string|table
---@return pyramid.RowFormat?
---@return string? message
function cache.row_format(dtype)
  dtype = dtype or "f16"
  if type(dtype) == "string" then
    dtype = dtype:find("=", 1, true) and halves(dtype) or { k = dtype, v = dtype, name = dtype }
  end
  for key, name in pairs(dtype) do
    if key ~= "k" and key ~= "v" and key ~= "name" then
      return nil, ("unknown key '%s' of dtype (known: k, v)"):format(tostring(key))
    end
    local known = false
    for _, one in ipairs(cache.dtypes) do known = known or one == name end
    if not known then
      return nil, ("unknown dtype '%s' (known: %s)"):format(tostring(name), cache.known_dtypes())
    end
  end
  local k, v = dtype.k, dtype.v
  if not (k and v) then return nil, "dtype: give both k and v" end
  if k == v and not (packed_bits[k] and k ~= "q8_0") then return { plain = k } end
  local plain = not packed_bits[k] and k or not packed_bits[v] and v or "f16"
  if not packed_bits[k] and not packed_bits[v] then
    return nil, ("dtype: one of k = %s and v = %s must be q8_0, q4, q3 or q2"):format(k, v)
  end
  return { plain = plain, k = packed_bits[k] and k or nil, v = packed_bits[v] and v or nil }
end

---A name for a format, the same for all ways to ask for it: "f16", or "f16,k=q4,v=q4".
---@param format pyramid.RowFormat
---@return string
function cache.format_name(format)
  if not (format.k or format.v) then return format.plain end
  return ("%s,k=%s,v=%s"):format(format.plain, format.k or format.plain, format.v or format.plain)
end

---Bytes that a value takes on average over keys and values, without a row's scale.
---@param dtype? string|table
---@return number? bytes
---@return string? message
function cache.bytes_of_value(dtype)
  local format, message = cache.row_format(dtype)
  if not format then return nil, message end
  local plain = dtypes.value_bytes[format.plain]
  local k, v = packed_bits[format.k], packed_bits[format.v]
  return ((k and k / 8 or plain) + (v and v / 8 or plain)) / 2
end

local PAGE_ROWS, PAGE_BESIDE = 32, 48                    -- core/cache/pages.h
local LANE_BESIDE, BLOCK_BESIDE = 256, 64                -- core/cache/cache.c

---Bytes of a lane of so many rows, in whole pages, with a position a row and, where attention is
---tracked, a number more, and with what describes pages and lane.
---@param dtype string
---@param head_dim integer
---@param rows number
---@param tracked? boolean
---@return number
function cache.bytes_of_lane(dtype, head_dim, rows, tracked)
  local row = 2 * head_dim * assert(cache.bytes_of_value(dtype)) + (tracked and 8 or 4)
  if rows <= 0 then return 0 end
  return math.ceil(rows / PAGE_ROWS) * (PAGE_ROWS * row + PAGE_BESIDE) + LANE_BESIDE
    + (tracked and BLOCK_BESIDE or 0)
end

---@class pyramid.CacheOptions
---@field policy? pyramid.PolicyLike
---@field dtype? "f16"|"f32"|"bf16"|"q8_0"|"fp8_e4m3"|"q4"|"q3"|"q2"|{ k: string, v: string }
---  q4, q3 and q2: pages are packed to so many bits a value once they are full, but for the first
---  and the newest of each head; k and v may differ, as in { k = "q8_0", v = "q4" }
---@field budget? integer|string   bytes, or "512 MiB"
---@field tiers? table<pyramid.TierName, string|pyramid.Tier>
---  where rows may lie: { hot = "f16", warm = "q4", cold = { dtype = "q2", file = PATH, bytes =
---  "1 GiB" } }. Rows are appended to the hot tier (dtype, unless said here); a plan's losers go
---  where it says (`losers`). The processor's alone
---@field pressure? "fail"|"demote"
---  where the budget is full: "fail" (the default), or "demote": the oldest rows, but for the first
---  4 and the last 64 of each lane, go down a tier, and the next where that does not help, before
---  the call is made. They stay there also if it fails for another reason
---@field policy_seconds? number
---  that one call of the policy's functions may take (10; 0: no limit). What takes longer is ended
---  by an error, as by progress functions that say so, and the rows are as before
---@field trace? fun(record: pyramid.Trace)
---  told what each plan was and came to, once it is carried out, layer by layer, also by what is
---  forked from the cache. What it raises, and what takes it longer than policy_seconds, ends the
---  call as a policy's error does: the rows are as before
---@field sessions? string|pyramid.Sessions
---  a folder, or a store in one (pyramid.sessions): prompts read into the empty cache begin with
---  what is stored of them, and what they add is stored

---A tier's name, from the one that plans judge down.
---@alias pyramid.TierName "hot"|"warm"|"cold"

---@class pyramid.Tier        of `tiers`; a text stands for { dtype = text }
---@field dtype? string|{ k: string, v: string }
---  the hot tier's unless said; rows are converted once, as they come down. Of few bits (q4, q3,
---  q2) a lane's rows are packed, all of them, once 64 have come
---@field file? string
---  pages lie in a file made at this path, where there must be none, and mapped: the system keeps
---  in memory what is read, and it is no part of the budget. It loses its name at once, and goes
---  with the cache. Needs `bytes`
---@field bytes? integer|string
---  the most that it may hold, of all caches of a batch together, or 16 pages of rows at a time in
---  a file; beyond that its oldest rows go on to the tier below, and without one the call fails
---  (code "budget")
---@field rows? integer       the most of a lane, likewise

---@class pyramid.Spread      over the K/V heads of a layer
---@field min integer
---@field mean number
---@field max integer

---@class pyramid.Trace       one plan in one layer
---@field model string        its description
---@field policy string       its name
---@field options table       and its options
---@field when "prefill"|"decode"|"evict"|"prepared"
---  "prepared": a prefill's plan that ran after preparing passes
---@field layer integer
---@field layers integer
---@field heads integer       K/V heads
---@field tokens integer      that the cache has seen, with those of this call
---@field rows pyramid.Spread         that a head had before
---@field candidates pyramid.Spread   of these, without the guarded ones: who was ranked
---@field kept pyramid.Spread         that it had afterwards
---@field evicted integer     rows, of all heads together
---@field hidden? integer     prefill: tokens that reached the layer
---@field hidden_kept? integer        of these, those that go on to the next
---@field asked table         keep (a number, or a list by head), first, last, share, prune; mass,
---  above, least, merge (the threshold) and rotate where the plan has them
---@field why string          "no plan", "fits", or the score by which rows were ranked
---@field seconds number      that looking, ranking and evicting took
---@field bytes integer       of the layer's rows afterwards

-- The tiers of a pool's caches, by name: dtype, bytes, rows, file. Raises on what is no tier.
local function tiers_of(what, given)
  options.check(what .. ": tiers", given.tiers, { hot = "any", warm = "any", cold = "any" }, 4)
  local made = {}
  for _, name in ipairs(tier_names) do
    local tier = (given.tiers or {})[name]
    if tier ~= nil then
      if type(tier) == "string" then tier = { dtype = tier } end
      tier = options.check(("%s: tier \"%s\""):format(what, name), tier, tier_keys, 4)
      if name == "hot" and (tier.file or tier.bytes or tier.rows) then
        error(what .. ": the hot tier has a dtype alone (its limits: `budget` and the policy)", 4)
      end
      made[name] = tier
    end
  end
  return made
end

-- How rows are to lie, and where the message is to point; raises on what is no dtype.
local function format_of(what, dtype, level)
  local format, fault = cache.row_format(dtype)
  return format or error(("%s: %s"):format(what, fault), level + 1)
end

-- The hot tier's format, which may be said in two places.
local function hot_format(what, given, tiers)
  local format = format_of(what, tiers.hot and tiers.hot.dtype or given.dtype, 4)
  if tiers.hot and tiers.hot.dtype and given.dtype then
    local name = cache.format_name(format)
    local other = cache.format_name(format_of(what, given.dtype, 4))
    if name ~= other then
      error(("%s: dtype is '%s', and that of the hot tier '%s'"):format(what, other, name), 4)
    end
  end
  return format
end

-- "f16", or "f16 > warm f16,k=q4,v=q4": how rows of all tiers lie.
local function name_of_tiers(format, tiers)
  local parts = { cache.format_name(format) }
  for _, name in ipairs { "warm", "cold" } do
    local dtype = tiers[name] and tiers[name].dtype
    parts[#parts + 1] = tiers[name]
      and name .. " " .. cache.format_name(dtype and cache.row_format(dtype) or format) or nil
  end
  return table.concat(parts, " > ")
end

-- Gives a pool its lower tiers, and says whether memory that is short moves rows down.
local function add_tiers(pool, what, given, tiers, hot)
  for _, name in ipairs { "warm", "cold" } do
    local tier = tiers[name]
    if tier then
      local format = tier.dtype and format_of(("%s: tier \"%s\""):format(what, name), tier.dtype, 4)
        or hot
      local ok, message, code = pool:add_tier(name, format.plain,
        options.bytes(what, tier.bytes, 4), tier.rows or 0, tier.file, format.k, format.v)
      if not ok then return nil, message, code end
    end
  end
  local pressure = given.pressure or "fail"
  if pressure ~= "fail" and pressure ~= "demote" then
    error(("%s: pressure is '%s', not one of demote, fail"):format(what, pressure), 4)
  end
  if pressure == "demote" then
    if not tiers.warm and not tiers.cold then
      error(what .. ': pressure = "demote" needs a tier to go to (tiers = { warm = "q8_0" })', 4)
    end
    pool:press()
  end
  return true
end

---A pool and a bound policy from cache options. The caller closes the pool once its caches are
---made.
---@param what string
---@param model pyramid.Model
---@param given? pyramid.CacheOptions
---@return userdata? pool
---@return table|string|nil bound policy, or a message
---@return table|string|nil with  who is told of plans, and what is shared, for `make`; or a code
function cache.prepare(what, model, given)
  given = options.check(what, given, cache_keys, 3)
  local bound, found, store, message, code
  local seconds = given.policy_seconds or model.policy_seconds or policy.SECONDS
  if given.policy ~= nil then
    found, message, code = policy.load(given.policy)
    if not found then return nil, message, code end
    bound = found:bind(model.tokenizer and function(text)
      return model:encode(text, { add = false })
    end, token_classes.reader(model.tokenizer))
    bound.seconds = seconds
  end
  if given.policy_seconds and (given.policy_seconds < 0
    or given.policy_seconds ~= given.policy_seconds) then
    error(what .. ": policy_seconds must be 0 or more", 3)
  end
  local tiers = tiers_of(what, given)
  local format = hot_format(what, given, tiers)
  if given.sessions then
    store, message, code = sessions.of(given.sessions)
    if not store then return nil, message, code end
  end
  local pool
  pool, message, code = core.pool(model:native(), format.plain,
    options.bytes(what, given.budget, 3), format.k, format.v)
  if not pool then return nil, message, code end
  local ok
  ok, message, code = add_tiers(pool, what, given, tiers, format)
  if not ok then
    pool:close()
    return nil, message, code
  end
  local described = model.description
  return pool, bound, { seconds = seconds, fn = given.trace and function(record)
    record.model = described
    given.trace(record)
  end, store = store, policy = found, dtype = name_of_tiers(format, tiers) }
end

---A cache in a pool, new or from a file.
---@param model pyramid.Model
---@param pool userdata
---@param bound? table
---@param with table  as from `prepare`
---@param path? string   a saved cache
---@return pyramid.Cache?
---@return string? message
---@return string? code
function cache.make(model, pool, bound, with, path)
  local made, message, code
  if path then made, message, code = core.load_cache(model:native(), pool, bound, path)
  else made, message, code = core.cache(model:native(), pool, bound) end
  if not made then return nil, message, code end
  core.set_owner(made, model)
  if with.fn then
    local told, why, kind = made:tell(with.fn, with.seconds)
    if not told then
      made:close()
      return nil, why, kind
    end
  end
  if with.store then
    sharing[made] = { store = with.store, policy = with.policy, dtype = with.dtype, reused = 0 }
  end
  return made
end

local prefill_keys = { all = "boolean", prune = "boolean", progress = "function",
  boundaries = "table" }

---@class pyramid.PrefillOptions
---@field all? boolean     logits of every position
---@field prune? boolean   false: appends without asking the policy
---@field progress? fun(done: integer, total: integer): boolean?
---  called between layers and chunks; returning true cancels
---@field boundaries? integer[]
---  with `sessions`: after how many tokens what others may share ends, such as a system prompt

---Rows of the model's width, one for what would be a token: packed f32 as the machine has them, a
---matrix, or a sequence of rows, each a sequence or a vector.
---@alias pyramid.Embeddings string|pyramid.Vector|(number[]|pyramid.Vector)[]

---@class pyramid.EmbeddedPrompt
---@field embeddings pyramid.Embeddings
---  as they enter the first layer: after a scale that the model gives its embeddings, where it has
---  one. model:embed(ids) gives those of ids

---Reads tokens, or rows that stand for tokens where something is no text: `{ embeddings = rows }`.
---The two may alternate over several calls; a row has a position, is judged by policies and counts
---in `tokens` as a token does. Returns the last position's logits; with `all`, a sequence of every
---position's. On any failure (a row that holds NaN or an infinity is one) the rows are as before.
---@param prompt integer[]|pyramid.EmbeddedPrompt
---@param given? pyramid.PrefillOptions
---@return pyramid.Logits|pyramid.Logits[]|nil logits
---@return string? message
---@return string? code
function Cache:prefill(prompt, given)
  given = options.check("cache:prefill", given, prefill_keys)
  local read, source, use = self.read_ids, prompt, sharing[self]
  if type(prompt) == "table" and rawget(prompt, "embeddings") ~= nil then
    options.check("cache:prefill", prompt, { embeddings = "any" })
    read, source, use = self.read_embeddings, prompt.embeddings, nil
  end
  local function reading(ids, prune, whole, progress)
    if not progress then return read(self, ids, given.all, prune, whole) end
    local open, runtime = pcall(function(owner) return owner:runtime() end, self:owner())
    if not open then
      error("cache:prefill: progress needs the model, which is closed; read without it", 0)
    end
    runtime:on_progress(progress)
    local _ <close> = setmetatable({}, { __close = function() runtime:on_progress(nil) end })
    return read(self, ids, given.all, prune, whole)
  end
  if use and type(source) == "table" and not given.all and self:tokens() == 0 then
    return sessions.prefill(self, use, source, given, reading)
  end
  return reading(source, given.prune, false, given.progress)
end

---How many tokens of the prompt that it began with came from its `sessions`.
---@return integer
function Cache:reused() return sharing[self] and sharing[self].reused or 0 end

local read_keys = { block = "integer", policy = "any", special = "boolean", progress = "function" }

---@class pyramid.ReadOptions
---@field block? integer         tokens that are read at a time (512)
---@field policy? pyramid.PolicyLike
---  evicts after each block, as cache:evict does, instead of the cache's own while it is read
---@field special? boolean       false: texts of special tokens are ordinary text
---@field progress? fun(tokens: integer, blocks: integer): boolean?
---  after each block: how many were read; returning true cancels

---What was read of a stream.
---@class pyramid.ReadStream
---@field tokens integer
---@field blocks integer

---A text of any length: a function that gives texts or sequences of ids, of any lengths, until it
---gives nil (nil and a message: it failed); a file of io's; a text; a sequence of ids.
---@alias pyramid.Stream (fun(): string|integer[]|nil, string?, string?)|file*|string|integer[]

---Reads a text of any length in bounded memory and time: block by block, and after each the
---policy's plan for prompts judges the rows held and the block's together, as those of one prompt.
---Under a policy with a budget in rows the cache stays as large as that; a plan with rotate =
---"compact" (as policy.endless makes it of another) goes on past the model's context. What ends the
---reading (the stream fails, or raises; it gives what is neither text nor ids; the context or a
---budget is full) leaves the blocks before it.
---@param from pyramid.Stream
---@param given? pyramid.ReadOptions
---@return pyramid.ReadStream?
---@return string? message
---@return string? code
function Cache:read(from, given)
  given = options.check("cache:read", given, read_keys)
  local owner, size, found = self:owner(), given.block or 512, nil
  if size < 1 then error("cache:read: a block is 1 token or more", 2) end
  if given.policy ~= nil then
    local chosen, message, code = policy.load(given.policy)
    if not chosen then return nil, message, code end
    found = chosen:bind(nil, token_classes.reader(owner.tokenizer))
  end
  local bos = owner.tokenizer and owner.tokenizer.adds_bos or nil
  local reader = stream.open(from, function(text, begins)
    return owner:encode(text, { special = given.special, add = false, bos = begins and bos or nil })
  end, self:tokens() == 0)
  if not reader then
    error(("cache:read: a function, a file, a text or ids are wanted, not a %s"):format(type(from)),
      2)
  end
  local done = { tokens = 0, blocks = 0 }
  while true do
    local read
    local ids, message, code = reader:block(size)
    if not ids then return nil, message, code end
    if #ids == 0 then return done end
    read, message, code = self:read_ids(ids, false, found == nil, true)
    if not read then return nil, message, code end
    done.tokens, done.blocks = done.tokens + #ids, done.blocks + 1
    if found then
      read, message, code = self:cut(found)
      if not read then return nil, message, code end
    end
    if given.progress and given.progress(done.tokens, done.blocks) then
      return nil, "cancelled", "cancelled"
    end
  end
end

---Evicts at once: in each layer what the prefill plan of a policy (left out: the cache's own) says
---of the rows held now, as if they were a prompt just read (`l.prompt` and `l.rows` are the rows
---held, `l.past` is 0). The cache goes on under its own policy. Scores that only a running prefill
---knows are refused by name; on any failure the rows are as before.
---@param which? pyramid.PolicyLike
---@return true?
---@return string? message
---@return string? code
function Cache:evict(which)
  if which == nil then return self:cut() end
  local found, message, code = policy.load(which)
  if not found then return nil, message, code end
  local model = self:owner()
  return self:cut(found:bind(nil, token_classes.reader(model and model.tokenizer)))
end

---Brings rows of lower tiers back to the hot one: of each lane the `rows` that the score ranks
---highest. The score may look at rows (norms, positions, keys) and at tables of the policy's; rows
---of lower tiers have no attention or probe of their own so far, and scores of those are refused.
---Values are not rounded again, and only the place of a row changes: what is computed does not, but
---for the dtype. On any failure nothing changes.
---@param given { by: pyramid.Score, rows: integer }
---@return true?
---@return string? message
---@return string? code
function Cache:promote(given)
  given = options.check("cache:promote", given, { by = "any", rows = "integer" })
  if not score.is(given.by) then
    error(("cache:promote: `by` is no score (%s)"):format(type(given.by)), 2)
  end
  if not given.rows or given.rows < 0 then
    error("cache:promote: `rows` of a lane are wanted", 2)
  end
  return self:bring_up(score.program(given.by), given.rows)
end

---Reads ids over the cache as a continuation of it, tracks what their queries give to each row that
---is there, and leaves no rows. score.probed() is then what was tracked:
---cache:scores(score.probed(), { layer =, head = }) gives it as vectors, and cache:evict may rank
---by it, until a call adds, moves or drops rows. Forks and saved caches do not have it. `track` is
---one score.attention: `queries` are the last of the ids, `reduce` is over them, `heads` over the
---query heads of a KV head. On any failure nothing changes.
---@param ids integer[]
---@param track pyramid.Score
---@return true?
---@return string? message
---@return string? code
function Cache:probe(ids, track)
  if not score.is(track) or not score.is_signal(track) then
    error(("cache:probe: one score.attention is wanted, not %s"):format(tostring(track)), 2)
  end
  return self:see(ids, score.program(track))
end

---What a score says of the rows held now: a vector with a number for each token seen (vector[i] is
---of position i - 1), the mean over all layers and heads, or over one `layer` or `head`; rows not
---held count as 0. The expression may hold signals of rows; attention and history as the cache's
---policy tracks them (`trigger.track`); nothing that only a running prefill knows, and no tables.
---Left out, it is the signal that is tracked.
---@param expression? pyramid.Score
---@param given? { layer?: integer, head?: integer }
---@return pyramid.Vector?
---@return string? message
---@return string? code
function Cache:scores(expression, given)
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

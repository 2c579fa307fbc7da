--- Policies: values that say what a cache keeps. A policy is a name, default options and up to
--- three pure functions from a layer's shape to a plan; the core asks them before the work they
--- belong to, and carries the plans out natively.
---
---   return policy {
---     name = "mine", defaults = { ratio = 0.5 },
---     prefill = function(o, l)
---       return { keep = …, guard = { first = 4, last = 32 }, score = …, prune = "cache" }
---     end,
---     trigger = function(o, l)
---       return { every = 16, window = 32, track = score.attention { … } }
---     end,
---     decode = function(o, l) return { keep = … } end,
---   }
---
--- What the functions are shown is pyramid.Layer, what they return pyramid.Plan, pyramid.Trigger
--- and pyramid.Preparation; what a policy is made of is pyramid.Definition. Returning nothing keeps
--- everything. Policies are made from policies by policy.compose, .layers, .from and .named: see
--- compose.lua; those that rank rows by a score within a budget by policy.scorer: see scorer.lua.
local core = require "pyramid.core"
local options = require "pyramid.options"
local score = require "pyramid.score"
local token_classes = require "pyramid.token_classes"

---Makes a policy from its definition, as `policy.define` does.
---@class pyramid.PolicyModule
---@overload fun(definition: pyramid.Definition): pyramid.Policy
---@field compose fun(parts: pyramid.ComposedParts): pyramid.Policy  compose.lua
---@field layers fun(p: pyramid.PolicyLike, overrides: table<integer|string, table>): pyramid.Policy
---@field from fun(p: pyramid.PolicyLike, k: integer): pyramid.Policy
---@field endless fun(p: pyramid.PolicyLike): pyramid.Policy
---@field demote fun(p: pyramid.PolicyLike, to?: "warm"|"cold"): pyramid.Policy
---@field named fun(name: string, p: pyramid.PolicyLike, doc?: string): pyramid.Policy
---@field scorer fun(d: pyramid.Scorer): pyramid.Policy   scorer.lua
local module = {}

---What names a policy: one that is made, a bundled one's name, the path of a policy file, or a
---definition.
---@alias pyramid.PolicyLike pyramid.Policy|string|pyramid.Definition

---A policy as it is used: immutable, and the same for all caches that it is given to.
---@class pyramid.Policy
---@field name string
---@field options table  a copy of the options in force: changing it changes nothing
---@field in_force table  the same, for Pyramid's own files
---@field package given table  those that are not defaults
---@field definition pyramid.Definition
local Policy = {}
Policy.__index = Policy
Policy.__name = "pyramid.policy"

---What a policy is made of. Its functions must be pure: the same arguments, the same plan. `o` are
---the options in force.
---@class pyramid.Definition
---@field name string
---@field doc? string                     one line
---@field defaults? table<string, any>    the options, each of the type that it keeps
---@field limits? table<string, table>
---  what options may be: { min, max, step } of a number, of which only min must be given, or a list
---  of texts
---@field presets? table<string, table>   options by the name of a set: preset = "45"
---@field fit? string
---  the option, a number, that `target = 0.45` turns until the prompt's rows, on average over
---  layers, are that share of a full cache's, or as near as the others allow
---@field prefill? fun(o: table, l: pyramid.Layer): pyramid.Plan?      before a layer reads a prompt
---@field trigger? fun(o: table, l: pyramid.Layer): pyramid.Trigger?   once a prompt
---@field decode? fun(o: table, l: pyramid.Layer): pyramid.Plan?       when the trigger fires
---@field prepare? fun(o: table, l: pyramid.Layer): pyramid.Preparation?
---  once a prompt: passes that read it once more before the plans of `prefill` run, of all layers
---  together, on the prompt's own rows. l is of the whole cache: it has no index and no depth

---The shape of a layer: what a policy's functions are told.
---@class pyramid.Layer
---@field index integer     from 1
---@field layers integer    how many the model has
---@field depth number      (index - 1) / layers
---@field prompt integer    tokens of the prefill
---@field past integer      rows held before it
---@field rows integer      when the plan runs
---@field waiting integer   rows that may be judged, in decode
---@field tokens integer    seen
---@field heads integer
---@field kv_heads integer
---@field head_dim integer

---What is to be done to one layer.
---@class pyramid.Plan
---@field keep? integer|integer[]
---  rows of a lane that survive, guards included; with share = "head" it may be a list, one number
---  a KV head. Each head is judged by its own rows, and left whole where it holds no more than
---  that. Must be given, unless `mass`, `above` or `read` is
---@field guard? { first?: integer, last?: integer }   rows at either end that always survive
---@field score? pyramid.Score
---  what ranks the others; nothing: what the trigger tracks, else the position
---@field share? "layer"|"head"|"pool"|"model"
---  "layer" (the default): one set for all heads; "head": one for each KV head; "pool": `keep` is
---  the average, and the rows of all KV heads compete for the budget (AdaKV, arXiv 2407.11550);
---  "model": likewise the rows of all layers that say so (KVzip, arXiv 2505.23416); while a prompt
---  is read, earlier layers are cut again after each later one (CAKE, arXiv 2503.12491), and
---  `mass`, `merge` and hidden states that are pruned are refused. Not in decode
---@field weight? pyramid.Score
---  while a prompt is read, under "head" or "pool": of the sum of the `keep` of all layers that
---  have a weight the layer's part is in proportion to this, the mean over its judged rows. It is
---  worked out over all lanes of the layer together: `:sum()` and `:normalize()` are the layer's,
---  all else of a lane. Earlier layers are cut again as under "model" (CAKE, arXiv 2503.12491;
---  LAVa, arXiv 2509.09754)
---@field mass? number
---  0 < p <= 1: only as many of the ranked rows as hold the share p of the sum of their scores
---  (top-p; scores below 0 count 0), at most `keep`, which is then all rows unless said
---@field above? number
---  ranked rows whose score is below this leave, so that how many stay follows the text (DMS, arXiv
---  2506.05345); at most `keep`, which is then all rows unless said. guard.last is the delay. As
---  `mass` it is refused under "model" while a prompt is read
---@field least? integer
---  rows of a lane that survive at least, under "pool", "model", `mass` or `above`
---@field merge? true|{ threshold: number }
---  a loser is not just dropped, but averaged, key and value, into the row of its head that
---  survives and whose key is most similar, if their cosine is at least the threshold; true: -1
---@field losers? "drop"|{ to: "warm"|"cold", or_drop: boolean? }
---  what becomes of rows that do not survive: "drop" (the default) or a tier of the cache's that
---  they go down to, where queries still find them (`tiers` of model:cache). Without such a tier
---  the plan is refused, or, with `or_drop`, they go to one below it, or leave. Not with `merge`,
---  nor where keys are turned
---@field prune? "cache"|"hidden"|"both"
---  "cache" (the default): this layer's rows; "hidden": the next layers never see the token
---@field rotate? "keep"|"compact"
---  "compact": keys are rotated to the positions 0 .. rows-1 after each cut, so that generation
---  goes on for ever (StreamingLLM's positions within the cache, arXiv 2309.17453); heads must keep
---  as many rows as each other: share = "layer", or "head" with one number. Each turn begins at the
---  key as it came, which such a layer keeps beside it: half as many bytes more. Layers with a
---  sliding window are left as they are, and bound nothing. Refused where all layers have one, and
---  where positions are learned or slopes (ALiBi). "keep" (the default): as they are

---@field read? pyramid.Read
---  what steps read of the rows that are held, from then on; nothing is evicted by it. A prefill
---  plan's holds from the first step on; a decode plan's from when it runs, or, of a policy without
---  a trigger, from the first step on, too: it is asked once a prompt then

---What a step reads of each lane: whole pages of 32 rows. Source: Quest, arXiv 2406.10774.
---@class pyramid.Read
---@field rows integer
---  so many rows, in whole pages; a lane that holds no more is read whole
---@field by pyramid.Digest
---  what ranks pages: score.bound(), ball(), mean() or signs()
---@field guard? { first?: integer, last?: integer }
---  pages that hold one of so many rows at either end are always read; 4 and 32. The newest page
---  always is

---When `decode` is asked for a plan.
---@class pyramid.Trigger
---@field every? integer           after this many steps
---@field over? integer            when a lane holds more rows than this
---@field window? integer          the last rows, which decode never judges
---@field once? boolean            a row is judged once; needs `every`
---@field track? pyramid.Score
---  one attention, history or learned signal, which decode ranks by
---@field recall? integer
---  of a cache with tiers: attention, or a history, is tracked of rows in lower tiers, too, and
---  when the trigger fires so many of each head, those with the most, come up to be ranked with the
---  others. Not with `once`. A step attends to lower tiers twice then

---Passes that read the prompt once more, over its rows and without leaving any, to see what a
---repetition looks at. Each reads its leading words and then a block of the prompt, and judges the
---rows of that block; score.probed() is what it tracked.
---@class pyramid.Preparation
---@field track pyramid.Score
---  one attention signal, over the queries of a pass (`queries`: its last ones)
---@field block integer
---  tokens of the prompt that a pass repeats; fewer where the context has no room for as many
---  behind the prompt. 0: one pass reads the leading words alone, and judges the whole prompt
---@field lead? pyramid.LeadPart[]    what each pass begins with
---@field first? pyramid.LeadPart[]   what the first one begins with, if that is another
---@field among? "all"|"block"
---  what attention is a share of: "all" (the default) rows; "block": the cache's first `sinks`
---  rows, the block's and the pass's own (KVzip)
---@field sinks? integer              of "block"; 4

---A text, which is encoded without what the model wants before a text, and left out where the model
---has no tokenizer; token ids; or how many of the prompt's tokens before the block stand here.
---@alias pyramid.LeadPart string|integer[]|integer

local definition_keys = { name = "string", doc = "string", defaults = "table", limits = "table",
  presets = "table", prefill = "function", trigger = "function", decode = "function",
    prepare = "function", fit = "string" }
local plan_keys = { keep = true, guard = true, score = true, share = true, mass = true,
  above = true, least = true, losers = true, merge = true, prune = true, rotate = true,
  weight = true, read = true }
local preparation_keys = { track = true, block = true, lead = true, first = true, among = true,
  sinks = true }
local trigger_keys = { every = true, over = true, window = true, once = true, track = true,
  recall = true }
local shares = { layer = 0, head = 1, pool = 2, model = 3 }
local prunes = { cache = 1, hidden = 2, both = 3 }
local amongs = { all = 0, block = 1 }
local rotates = { keep = 0, compact = 1 }
local tiers = { warm = 1, cold = 2 }

-- ---- from what a policy returns to what the core reads ------------------------------------------

local function list(set) return table.concat(options.sorted_keys(set), ", ") end

local function refuse(field, what) error(field .. " " .. what, 0) end

local function check_keys(what, value, known)
  for key in pairs(value) do
    if not known[key] then
      refuse(("%s.%s"):format(what, tostring(key)),
        ("is not a field (known: %s)"):format(list(known)))
    end
  end
end

local function integer(field, value, default)
  if value == nil then value = default end
  local exact = type(value) == "number" and math.tointeger(value)
  if not exact then refuse(field, ("is not an integer (%s)"):format(tostring(value))) end
  return exact
end

local function choice(field, value, set, default)
  if value == nil then value = default end
  if not set[value] then
    refuse(field, ("is '%s', not one of %s"):format(tostring(value), list(set)))
  end
  return set[value]
end

local function program(field, value)
  if value == nil then return nil end
  if score.digest(value) then
    refuse(field, ("ranks pages, not rows (%s): it goes into `read.by`"):format(tostring(value)))
  end
  if not score.is(value) then refuse(field, ("is not a score (%s)"):format(type(value))) end
  return score.program(value)
end

-- One number, or one for each KV head, packed.
local function keep_of(plan, l)
  local keep = plan.keep
  if keep == nil and (plan.mass ~= nil or plan.above ~= nil or plan.read ~= nil) then
    keep = l.rows
  end
  if type(keep) ~= "table" then return integer("keep", keep) end
  if #keep ~= l.kv_heads then
    refuse("keep", ("lists %d numbers for %d K/V heads"):format(#keep, l.kv_heads))
  end
  local packed = {}
  for head, rows in ipairs(keep) do
    rows = integer("keep", rows)
    if rows < 1 then refuse("keep", "is less than 1") end
    packed[head] = ("<i4"):pack(math.min(rows, 0x7fffffff))
  end
  return table.concat(packed)
end

local function mass_of(mass)
  if mass == nil then return 0 end
  if type(mass) ~= "number" or not (mass > 0 and mass <= 1) then
    refuse("mass", ("is no number above 0 and up to 1 (%s)"):format(tostring(mass)))
  end
  return mass
end

local function above_of(above)
  if above == nil then return nil end
  if type(above) ~= "number" or above ~= above or math.abs(above) > 3.4e38 then
    refuse("above", ("is no finite number (%s)"):format(tostring(above)))
  end
  return above
end

local function threshold_of(merge)
  if not merge then return nil end
  if merge == true then return -1 end
  if type(merge) ~= "table" then refuse("merge", "is neither a table nor true") end
  check_keys("merge", merge, { threshold = true })
  local threshold = merge.threshold
  if type(threshold) ~= "number" or not (threshold >= -1 and threshold <= 1) then
    refuse("merge.threshold", ("is no number from -1 to 1 (%s)"):format(tostring(threshold)))
  end
  return threshold
end

-- A pyr_read, packed; by default what attention needs most: the first page, and the newest rows.
local function read_of(read)
  if read == nil then return nil end
  if type(read) ~= "table" then refuse("read", "is not a table (" .. type(read) .. ")") end
  check_keys("read", read, { rows = true, by = true, guard = true })
  local guard = read.guard or {}
  if type(guard) ~= "table" then refuse("read.guard", "is not a table") end
  check_keys("read.guard", guard, { first = true, last = true })
  local rows, by = integer("read.rows", read.rows), score.digest(read.by)
  if rows < 1 then refuse("read.rows", "is less than 1") end
  if not by then
    refuse("read.by", ("ranks no pages (%s): score.ball(), bound(), mean() or signs() does"):format(
      score.is(read.by) and tostring(read.by) or type(read.by)))
  end
  return ("<i8i8i8i8"):pack(rows, integer("read.guard.first", guard.first, 4),
    integer("read.guard.last", guard.last, 32), by)
end

local function losers_of(losers)
  if losers == nil or losers == "drop" then return 0 end
  if type(losers) ~= "table" then
    refuse("losers", ("is neither \"drop\" nor a table (%s)"):format(tostring(losers)))
  end
  check_keys("losers", losers, { to = true, or_drop = true })
  local tier = choice("losers.to", losers.to, tiers)
  return losers.or_drop and -tier or tier
end

-- Fourteen values, as lplan.c reads them, and the scores that refer to objects.
local function flat_plan(plan, l)
  if plan == nil then return nil end
  if type(plan) ~= "table" then refuse("the plan", "is not a table (" .. type(plan) .. ")") end
  check_keys("plan", plan, plan_keys)
  local guard = plan.guard or {}
  if type(guard) ~= "table" then refuse("guard", "is not a table") end
  check_keys("guard", guard, { first = true, last = true })
  return keep_of(plan, l), integer("guard.first", guard.first, 0),
    integer("guard.last", guard.last, 0), choice("share", plan.share, shares, "layer"),
      choice("prune", plan.prune, prunes, "cache"), program("score", plan.score),
        integer("least", plan.least, 0), mass_of(plan.mass), threshold_of(plan.merge),
          choice("rotate", plan.rotate, rotates, "keep"), above_of(plan.above),
            program("weight", plan.weight), read_of(plan.read), losers_of(plan.losers), plan.score,
              plan.weight
end

local function flat_trigger(trigger)
  if trigger == nil then return nil end
  if type(trigger) ~= "table" then
    refuse("the trigger", "is not a table (" .. type(trigger) .. ")")
  end
  check_keys("trigger", trigger, trigger_keys)
  local track = program("track", trigger.track)
  if track and not score.is_signal(trigger.track) then
    refuse("track", "must be a single attention, history or learned signal: "
      .. tostring(trigger.track))
  end
  return integer("every", trigger.every, 0), integer("over", trigger.over, 0),
    integer("window", trigger.window, 0), trigger.once and true or false, track,
    integer("recall", trigger.recall, 0), trigger.track
end

-- The parts of a lead as packed ids; -k stands for k tokens of the prompt. encode(text) gives ids.
local function lead_of(field, parts, encode)
  if type(parts) ~= "table" then refuse(field, "is not a table of parts") end
  local packed = {}
  local function add(id, least)
    local exact = type(id) == "number" and math.tointeger(id)
    if not exact or exact < least or exact > 0x7fffffff then
      refuse(field, ("has a part that is no id (%s)"):format(tostring(id)))
    end
    packed[#packed + 1] = ("<i4"):pack(exact)
  end
  for i = 1, #parts do
    local part = parts[i]
    if type(part) == "number" then
      if part < 0 then refuse(field, "takes a negative number of the prompt's tokens") end
      if part > 0 then add(-part, -0x7fffffff) end
    else
      local ids = type(part) == "string" and encode(field, part) or part
      if type(ids) ~= "table" then
        refuse(field, ("has a part that is no text, ids or number (%s)"):format(type(part)))
      end
      for at = 1, #ids do add(ids[at], 0) end
    end
  end
  return table.concat(packed)
end

-- Six values, as lplan.c reads them.
local function flat_preparation(how, encode)
  if how == nil then return nil end
  if type(how) ~= "table" then
    refuse("what it returned", "is not a table (" .. type(how) .. ")")
  end
  check_keys("prepare", how, preparation_keys)
  local track = program("track", how.track)
  if not track or not score.is_signal(how.track) then
    refuse("track", "must be a single attention signal: " .. tostring(how.track))
  end
  local lead = how.lead or {}
  return track, integer("block", how.block), lead_of("first", how.first or lead, encode),
    lead_of("lead", lead, encode), choice("among", how.among, amongs, "all"),
      integer("sinks", how.sinks, 4)
end

---The layer shape that policies see.
---@param index integer
---@param layers integer
---@param prompt integer
---@param past integer
---@param rows integer
---@param waiting integer
---@param tokens integer
---@param heads integer
---@param kv_heads integer
---@param head_dim integer
---@return pyramid.Layer
function module.shape(index, layers, prompt, past, rows, waiting, tokens, heads, kv_heads, head_dim)
  return { index = index, layers = layers, depth = (index - 1) / layers, prompt = prompt,
    past = past, rows = rows, waiting = waiting, tokens = tokens, heads = heads,
      kv_heads = kv_heads, head_dim = head_dim }
end

-- ---- policies -----------------------------------------------------------------------------------

local function copy(t)
  local result = {}
  for key, value in pairs(t or {}) do result[key] = value end
  return result
end

-- What the limits of an option allow, in words; nil if the value is among it.
local function outside(value, limit)
  if type(value) == "string" then
    for _, allowed in ipairs(limit) do if value == allowed then return nil end end
    return "one of " .. table.concat(limit, ", ")
  end
  local low, high, step = limit[1], limit[2], limit[3]
  if value >= low and value <= (high or math.huge) and (not step or (value - low) % step == 0) then
    return nil
  end
  return (high and ("from %s to %s"):format(low, high) or ("at least %s"):format(low))
    .. (step and (" in steps of %s"):format(step) or "")
end

local function checked(definition, key, value)
  local default, limit = definition.defaults[key], definition.limits[key]
  local function wrong(...)
    error(("policy %s: "):format(definition.name) .. (...):format(select(2, ...)), 0)
  end
  if default == nil then
    local known = copy(definition.defaults)
    known.preset = next(definition.presets) and true or nil
    wrong("unknown option '%s' (known: %s)", tostring(key), list(known))
  end
  if type(value) ~= type(default) then
    wrong("option '%s' must be a %s, not a %s (%s)", key, type(default), type(value),
      tostring(value))
  end
  if value ~= value then wrong("option '%s' is not a number (%s)", key, tostring(value)) end
  if math.type(default) == "integer" then  -- JSON knows no integers: 3.0 is one
    value = math.tointeger(value) or wrong("option '%s' must be an integer, not %s", key,
      tostring(value))
  end
  local allowed = limit and outside(value, limit)
  if allowed then wrong("option '%s' is %s; it must be %s", key, tostring(value), allowed) end
  return value
end

local function merge(definition, given)
  local merged, name = copy(definition.defaults), given.preset
  if name ~= nil then
    if type(name) == "number" then name = tostring(math.tointeger(name) or name) end
    local chosen = definition.presets[name]
    if not chosen then
      error(("policy %s: unknown preset '%s' (known: %s)"):format(definition.name, tostring(name),
        list(definition.presets)), 0)
    end
    for key, value in pairs(chosen) do merged[key] = checked(definition, key, value) end
    merged.preset = name
  end
  for key, value in pairs(given) do
    if key ~= "preset" then merged[key] = checked(definition, key, value) end
  end
  -- the budget beside a ratio
  local rows = definition.fit and definition.fit:gsub("ratio$", "rows")
  if rows and rows ~= definition.fit and (merged[rows] or 0) > 0 and merged.target > 0 then
    error(("policy %s: '%s' and 'target' are two budgets: give one of them"):format(
      definition.name, rows), 0)
  end
  return merged
end

local function new(definition, given)
  given = copy(given)
  local in_force = merge(definition, given)
  return setmetatable({ name = definition.name, definition = definition, given = given,
    in_force = in_force, options = copy(in_force) }, Policy)
end

---The same policy under other options.
---@param given table
---@return pyramid.Policy
function Policy:with(given)
  local _ <close> = core.plain_locale()
  if type(given) ~= "table" then error("policy " .. self.name .. ": options must be a table", 2) end
  local all = copy(self.given)
  for key, value in pairs(given) do all[key] = value end
  return new(self.definition, all)
end

-- How many rows a policy would keep of a prompt, over all layers.
local function rows_of(candidate, l)
  local rows = 0
  for _, layer in ipairs(module.forecast(candidate, l, l.prompt)) do rows = rows + layer.rows end
  return rows
end

-- The policy whose rows come nearest to `wanted`, and are no more where that can be: by secants,
-- and every other time by halves, as rows grow with the option in steps. It ends within a row, or
-- where the option's interval is a thousandth of a row of one layer.
local function search(self, l, wanted)
  local fit = self.definition.fit
  local range = self.definition.limits[fit] or {}
  local low, high = range[1] or 0, range[2] or 1
  local function at(value)
    local candidate = self:with { target = 0, [fit] = value }
    return candidate, rows_of(candidate, l) - wanted
  end
  local best, below = at(low)
  if below > 0 then return best end
  local most, above = at(high)
  if above <= 0 then return most end
  for turn = 1, 60 do
    if below > -1 or (high - low) * l.prompt < 1e-3 then break end
    local part = turn % 2 == 1 and math.min(math.max(-below / (above - below), 0.01), 0.99) or 0.5
    local middle = low + (high - low) * part
    local candidate, off = at(middle)
    if off > 0 then high, above = middle, off else low, below, best = middle, off, candidate end
  end
  return best
end

---The options for a prompt: as they are, or, where the option `target` is set, with the option that
---`fit` names chosen so that the prompt's rows, on average over layers, come as near to that share
---of a full cache as they can without passing it.
---@param l pyramid.Layer
---@return table
function Policy:fitted(l)
  local fit, target = self.definition.fit, self.in_force.target
  if not fit or target <= 0 then return self.in_force end
  return search(self, l, target * l.prompt * l.layers).in_force
end

---The functions that the core calls, and what their scores refer to by number (see lplan.c).
---@param encode? fun(text: string): integer[]?, string?
---  the model's tokens of a text that `prepare` says; without it, texts are left out
---@param tokens? fun(set: table): pyramid.Vector
---  numbers by id of what score.tokens says (token_classes.reader)
---@return table
function Policy:bind(encode, tokens)
  -- known: by prompt; sequences of a batch take turns
  local d, known, slots = self.definition, {}, {}
  slots.tokens = tokens or token_classes.reader()
  local function options_for(l)
    known[l.prompt] = known[l.prompt] or self:fitted(l)
    return known[l.prompt]
  end
  local function keep(l, ...)
    local by, weight = select(15, ...)
    score.anchor(slots, by, l.index, weight)
    return ...
  end
  local function hold(...)
    score.hold(slots, (select(7, ...)))
    return ...
  end
  local function encoded(field, text)
    if not encode then return {} end
    local ids, message = encode(text)
    return ids or refuse(field, ("cannot be encoded: %s"):format(tostring(message)))
  end
  local function bound(f, flat)
    return f and function(...)
      local l = module.shape(...)
      if flat == flat_preparation then
        l.index, l.depth = nil, nil
        return flat(f(options_for(l), l), encoded)
      end
      if flat == flat_plan then return keep(l, flat(f(options_for(l), l), l)) end
      return hold(flat(f(options_for(l), l)))
    end
  end
  return { slots, name = self.name, options = copy(self.in_force),
    prefill = bound(d.prefill, flat_plan), trigger = bound(d.trigger, flat_trigger),
      decode = bound(d.decode, flat_plan), prepare = bound(d.prepare, flat_preparation) }
end

function Policy:__tostring()
  local _ <close> = core.plain_locale()
  local parts = {}
  for _, key in ipairs(options.sorted_keys(self.in_force)) do
    parts[#parts + 1] = key .. "=" .. tostring(self.in_force[key])
  end
  return ("%s(%s)"):format(self.name, table.concat(parts, ", "))
end

---Whether a value is a policy.
---@param value any
---@return boolean
function module.is(value) return getmetatable(value) == Policy end

---Makes a policy from its definition; raises on unknown keys and wrong types. Calling the module
---does the same: `policy { name = … }`.
---@param definition pyramid.Definition
---@return pyramid.Policy
function module.define(definition)
  local _ <close> = core.plain_locale()
  if type(definition) ~= "table" then error("policy: a table is wanted", 2) end
  options.check("policy", definition, definition_keys, 2)
  if not definition.name or definition.name == "" then error("policy: a name is wanted", 2) end
  if definition.fit and type((definition.defaults or {})[definition.fit]) ~= "number" then
    error("policy " .. definition.name .. ": fit must name an option whose default is a number", 2)
  end
  if definition.prepare and not definition.prefill then
    error("policy " .. definition.name .. ": prepare needs a prefill plan that it prepares", 2)
  end
  local own = copy(definition)
  own.defaults, own.limits, own.presets = copy(own.defaults), copy(own.limits), copy(own.presets)
  for key in pairs(own.limits) do
    if own.defaults[key] == nil then
      error(("policy %s: limits of an unknown option '%s'"):format(own.name, key), 2)
    end
  end
  if own.fit then
    own.defaults.target = own.defaults.target or 0.0
    own.limits.target = own.limits.target or { 0, 1 }
  end
  return new(own)
end

-- ---- calling what they brought ------------------------------------------------------------------

--- Seconds that one call of a policy's function, or the loading of its file, may take, unless a
--- cache says otherwise (policy_seconds): plans are a few sums, and a custom score's vectors are
--- computed natively.
module.SECONDS = 10

local late = setmetatable({}, { __mode = "k" })  -- what has once not returned is not called again

local function judged(owner, raised, returned, ...)
  if not raised then return false, returned end
  if returned then return true, ... end
  if (...) ~= "time" then return false, "cancelled" end
  late[owner] = ("did not return within %g seconds"):format(module.SECONDS)
  return false, late[owner]
end

---Calls a function that runs what a policy brought, as pcall does, but not for longer than SECONDS.
---@param owner function  of the policy: if it has been late before, nothing is called
---@param f function
---@return boolean ok
---@return any ...
function module.call(owner, f, ...)
  if late[owner] then return false, late[owner] end
  return judged(owner, pcall(core.limited, module.SECONDS, f, ...))
end

-- ---- finding them by name -----------------------------------------------------------------------

local function read_file(path)
  local file = io.open(path, "rb")
  if not file then return nil end
  local text = file:read("a")
  file:close()
  return text
end

local function find(name)
  if name:find("[/\\]") or name:find("%.lua$") then
    local text = read_file(name)
    if not text then return nil, ("policy: cannot read '%s'"):format(name), "io" end
    return text, "@" .. name
  end
  for _, folder in ipairs(require "pyramid.paths") do
    local path = folder .. "/policies/" .. name .. ".lua"
    local text = read_file(path)
    if text then return text, "@" .. path end
  end
  local text, chunk = core.bundled("policy", name)
  if text then return text, chunk end
  return nil, ("policy: unknown policy '%s' (known: %s)"):format(name,
    table.concat(module.list(), ", ")), "policy"
end

---The names of the policies that can be asked for by name.
---@return string[]
function module.list() return core.bundled_list("policy") end

---A policy by name, by the path of a policy file, from a definition, or as it is; with options.
---@param which pyramid.PolicyLike
---@param given? table
---@return pyramid.Policy?
---@return string? message
---@return string? code
function module.load(which, given)
  local _ <close> = core.plain_locale()
  local found = which
  if type(which) ~= "string" and type(which) ~= "table" then
    error(("pyramid.policy: a name, a path or a table is wanted, not %s"):format(tostring(which)),
      2)
  end
  if type(which) == "string" then
    local text, chunk, code = find(which)
    if not text then return nil, chunk, code end
    local loader, message = load(text, chunk, "t")
    if not loader then return nil, "policy: " .. message, "policy" end
    local ok, value = module.call(loader, loader, which)
    if not ok then return nil, ("policy %s: %s"):format(which, tostring(value)), "policy" end
    found = value
  end
  if type(found) == "table" and not module.is(found) then
    local ok, value = pcall(module.define, found)
    if not ok then return nil, tostring(value), "policy" end
    found = value
  end
  if not module.is(found) then
    return nil, ("policy %s: the file returns no policy"):format(tostring(which)), "policy"
  end
  if given == nil or next(given) == nil then return found end
  local ok, changed = pcall(Policy.with, found, given)
  if not ok then return nil, tostring(changed), "policy" end
  return changed
end

---The same policy under other options.
---@param p pyramid.Policy
---@param given table
---@return pyramid.Policy
function module.with(p, given) return p:with(given) end

---Options written as text, key=value, with the type of the policy's default: what scripts and the C
---facade accept.
---@param which string|pyramid.Policy
---@param words string[]
---@return table?
---@return string? message
---@return string? code
function module.parse_options(which, words)
  local _ <close> = core.plain_locale()
  local found, message, code = module.load(which)
  if not found then return nil, message, code end
  local function wrong(text, ...)
    return nil, ("policy %s: "):format(found.name) .. text:format(...), "policy"
  end
  local given = {}
  for _, word in ipairs(words) do
    local key, text = word:match("^([%w_]+)=(.*)$")
    if not key then return wrong("'%s' is not key=value", word) end
    local value, default = text, (found.definition.defaults or {})[key]
    if type(default) == "number" then
      value = tonumber(text)
      if not value then return wrong("option '%s' must be a number, not '%s'", key, text) end
    elseif type(default) == "boolean" then
      if text ~= "true" and text ~= "false" then
        return wrong("option '%s' must be true or false", key)
      end
      value = text == "true"
    end
    given[key] = value
  end
  return given
end

-- The rows that a prefill plan keeps, on average over heads; what it prunes; whether the rows are
-- the most that it may keep (under `mass` or `above`, where scores decide). Refuses what the core
-- refuses
-- (core/policy/policy.c).
local function kept_by(prefill, o, l)
  if not prefill then return nil end
  local keep, first, last, share, prune, _, least, mass, _, _, above = flat_plan(prefill(o, l), l)
  if not keep then return nil end
  local each = { keep }
  if type(keep) == "string" then
    if share ~= shares.head then refuse("keep", 'is a list, which needs share = "head"') end
    each = { ("<" .. ("i4"):rep(#keep // 4)):unpack(keep) }
    each[#each] = nil                                                 -- where unpacking ended
  end
  for _, rows in ipairs(each) do
    if rows < 1 then refuse("keep", "is less than 1") end
    if rows > l.rows then refuse("keep", "asks for more rows than there are") end
    if least > rows then refuse("least", "is more than keep") end
  end
  if first < 0 then refuse("guard.first", "is negative") end
  if last < 0 then refuse("guard.last", "is negative") end
  local hidden = prune & prunes.hidden ~= 0
  if hidden and share ~= shares.layer then
    refuse("share", 'must be "layer" where hidden states are pruned')
  end
  first = math.min(first, l.rows)
  last = math.min(hidden and math.max(last, 1) or last, l.rows - first)
  local sum = 0
  for _, rows in ipairs(each) do sum = sum + math.max(rows, first + last) end
  return sum % #each == 0 and sum // #each or sum / #each, prune, mass > 0 or above ~= nil
end

-- Tokens that the passes over a prompt read, but for texts, whose tokens only a model knows.
local function pass_tokens(d, o, l)
  local track, block, first, lead = flat_preparation(d.prepare(o, l), function() return {} end)
  if not track then return 0 end
  local function tokens_of(packed, at)
    local sum = 0
    for i = 1, #packed, 4 do
      local id = ("<i4"):unpack(packed, i)
      sum = sum + (id < 0 and math.min(-id, at) or 1)
    end
    return sum
  end
  if block <= 0 then return tokens_of(first, 0) end
  local sum = l.prompt
  for at = 0, l.prompt - 1, block do sum = sum + tokens_of(at == 0 and first or lead, at) end
  return sum
end

---What a policy would keep at each layer of a prompt of `tokens`, without a model running: rows
---stored, on average over KV heads (under share = "model" over all layers), and tokens computed,
---with those of preparing passes but for the texts that lead them, as far as its plans say (they
---are pure functions of shapes; under `mass` or `above`, the most).
---@param which pyramid.Policy
---@param config { layers: integer, heads: integer, kv_heads: integer, head_dim: integer }
---@param tokens integer
---@return { rows: number, computed: integer, most: boolean }[]
---  most: what the text says decides, and it is no more than that
function module.forecast(which, config, tokens)
  local _ <close> = core.plain_locale()
  local d, alive, layers, most, evicts = which.definition, tokens, {}, false, false
  local function shape(index)
    return module.shape(index, config.layers, tokens, 0, alive, 0, tokens, config.heads,
      config.kv_heads, config.head_dim)
  end
  local o = which:fitted(shape(1))
  for index = 1, config.layers do
    local rows, computed = alive, alive
    local ok, kept, prune, by_mass = module.call(d.prefill or kept_by, kept_by, d.prefill, o,
      shape(index))
    if not ok then
      error(("policy %s, layer %d, prefill: %s"):format(which.name, index, tostring(kept)), 0)
    end
    local at_most = most
    if kept then
      if prune & prunes.cache ~= 0 then rows, at_most = kept, most or by_mass end
      if prune & prunes.hidden ~= 0 then alive, most = kept, most or by_mass end
    end
    layers[index] = { rows = rows, computed = computed, most = at_most }
    evicts = evicts or rows < alive
  end
  if d.prepare and evicts then
    local whole = shape(1)
    whole.index, whole.depth = nil, nil
    local ok, passes = module.call(d.prepare, pass_tokens, d, o, whole)
    if not ok then error(("policy %s, prepare: %s"):format(which.name, tostring(passes)), 0) end
    for _, layer in ipairs(layers) do layer.computed = layer.computed + passes end
  end
  return layers
end

-- compose, layers, from, named: policies made from policies; scorer: what most policies share. In
-- files of their own, which need this one whole.
setmetatable(module, {
  __call = function(_, definition) return module.define(definition) end,
  __index = function(_, name)
    if name == "scorer" then return require "pyramid.scorer".scorer end
    return require "pyramid.compose"[name]
  end,
})

return module

--- Policies made from policies. Each function here takes policies (or names, paths, definitions)
--- and returns a new one whose options are those of its parts, so that `with`, printing, forecasts,
--- `target` and policy files work as for any other. They are reached as fields of pyramid.policy:
---
---   policy.compose { prefill = "snapkv", decode = "h2o" } one's prompt, another's generation
---   policy.layers("snapkv", { [1] = { ratio = 1 }, ["2-4"] = { ratio = 0.6 } })
---   policy.from("pyramidinfer", 3) layers 1 and 2 keep everything
---   policy.demote("h2o", "warm") losers go down a tier of the cache
---   policy.endless("h2o") keys are placed anew after each cut, for texts without end
---   policy.by_task("snapkv", { code = { ratio = 0.7 } }) another share for a prompt that is code
---   policy.named("mine", policy.from(policy.compose { … }, 3))
local core = require "pyramid.core"
local options = require "pyramid.options"
local policy = require "pyramid.policy"
local score = require "pyramid.score"

local compose = {}

---@class pyramid.ComposedParts
---@field prefill? pyramid.PolicyLike   whose prefill
---@field decode? pyramid.PolicyLike    whose trigger and decode

-- ---- what all of them share ---------------------------------------------------------------------

local function copy(t)
  local result = {}
  for key, value in pairs(t or {}) do result[key] = value end
  return result
end

-- A policy from whatever names one; raises, for the caller of the function that was called.
local function part(what, value)
  if type(value) ~= "string" and type(value) ~= "table" then
    error(("%s: a policy, its name or its path is wanted, not %s"):format(what, tostring(value)), 3)
  end
  local found, message = policy.load(value)
  return found or error(("%s: %s"):format(what, message), 3)
end

-- The options in force as defaults of a new policy. A number keeps the kind that its own default
-- has: an option that is 1 at the moment may become 0.5 later. A chosen preset is already merged
-- into the others.
local function defaults_of(p)
  local defaults = {}
  for key, default in pairs(p.definition.defaults) do
    local value = p.in_force[key]
    if math.type(default) == "float" then value = value + 0.0 end
    defaults[key] = value
  end
  return defaults
end

-- A definition that says what `p` says, to be changed.
local function like(p)
  local d = copy(p.definition)
  d.defaults, d.limits, d.presets = defaults_of(p), copy(d.limits), copy(d.presets)
  return d
end

-- f(o, l) -> options of a part under the options `o` of the whole, made once for each table `o` and
-- key: a policy's functions are called layer by layer with the same table.
local function remembering(make, key_of)
  local known = setmetatable({}, { __mode = "k" })
  return function(o, l)
    local of_o = known[o] or {}
    known[o] = of_o
    local key = key_of(l)
    if of_o[key] == nil then of_o[key] = make(o, l) end
    return of_o[key]
  end
end

-- The functions of a definition that are asked layer by layer, each through around(f, o, l).
local function wrap(d, around)
  for _, name in ipairs { "prefill", "trigger", "decode" } do
    local f = d[name]
    d[name] = f and function(o, l) return around(f, o, l) end
  end
end

-- A definition that says what `p` says, but for what `change` makes of a copy of each plan.
local function with_plans(p, change)
  local d = like(p)
  for _, name in ipairs { "prefill", "decode" } do
    local f = d[name]
    d[name] = f and function(o, l)
      local plan = f(o, l)
      if type(plan) ~= "table" then return plan end
      plan = copy(plan)
      change(plan)
      return plan
    end
  end
  return d
end

-- ---- one's prompt, another's generation ---------------------------------------------------------

local function prefixed(t, prefix, skip)
  local result = {}
  for key, value in pairs(t or {}) do
    if key ~= skip then result[prefix .. key] = value end
  end
  return result
end

local function add(to, from)
  for key, value in pairs(from) do to[key] = value end
end

-- What options that are fitted to a prompt depend on.
local function prompt_of(l) return ("%d of %d"):format(l.prompt, l.layers) end

-- The options of one part: those of the whole that begin with `prefix`.
local function options_of(p, prefix, skip)
  return remembering(function(o, l)
    local given = {}
    for key in pairs(p.definition.defaults) do
      if key ~= skip then given[key] = o[prefix .. key] end
    end
    -- the whole is fitted, not the part
    if skip and p.definition.defaults[skip] then given[skip] = 0.0 end
    return p:with(given):fitted(l)
  end, prompt_of)
end

---One policy's prefill with another's trigger and decode. Either may be left out: then the prompt
---is kept whole, or generation evicts nothing. Raises where a part has nothing of what it is to
---give, and where neither evicts. Options get the prefix `prefill_` or `decode_`; `target` fits the
---prefill's, if it can be fitted, and the prefill's presets keep their names.
---@param parts pyramid.ComposedParts
---@return pyramid.Policy
function compose.compose(parts)
  local _ <close> = core.plain_locale()
  parts = options.check("policy.compose", parts,
    { prefill = "string|table", decode = "string|table" })
  local reads = parts.prefill and part("policy.compose: prefill", parts.prefill)
  local writes = parts.decode and part("policy.compose: decode", parts.decode)
  if not reads and not writes then
    error("policy.compose: prefill, decode or both are wanted", 2)
  end
  if reads and not reads.definition.prefill and reads.definition.decode then
    error(("policy.compose: prefill: %s evicts while text is generated only"):format(reads.name), 2)
  end
  if writes and not writes.definition.decode and writes.definition.prefill then
    error(("policy.compose: decode: %s evicts when a prompt is read only"):format(writes.name), 2)
  end
  if not (reads and reads.definition.prefill) and not (writes and writes.definition.decode) then
    error(("policy.compose: %s never evicts"):format(reads and reads.name or writes.name), 2)
  end
  local names, docs = {}, {}
  local d = { defaults = {}, limits = {}, presets = {} }
  if reads then
    local its = reads.definition
    names[#names + 1], docs[#docs + 1] = reads.name, its.doc
    add(d.defaults, prefixed(defaults_of(reads), "prefill_", "target"))
    add(d.limits, prefixed(its.limits, "prefill_", "target"))
    for name, chosen in pairs(its.presets) do
      d.presets[name] = prefixed(chosen, "prefill_", "target")
      d.presets[name].target = chosen.target
    end
    if its.fit then
      d.fit, d.defaults.target = "prefill_" .. its.fit, reads.in_force.target + 0.0
    end
    local own = options_of(reads, "prefill_", "target")
    d.prefill = its.prefill and function(o, l) return its.prefill(own(o, l), l) end
    d.prepare = its.prepare and function(o, l) return its.prepare(own(o, l), l) end
  end
  if writes then
    local its = writes.definition
    names[#names + 1], docs[#docs + 1] = writes.name, its.doc
    add(d.defaults, prefixed(defaults_of(writes), "decode_"))
    add(d.limits, prefixed(its.limits, "decode_"))
    local own = options_of(writes, "decode_")
    d.trigger = its.trigger and function(o, l) return its.trigger(own(o, l), l) end
    d.decode = its.decode and function(o, l) return its.decode(own(o, l), l) end
  end
  d.name, d.doc = table.concat(names, "+"), table.concat(docs, "; then ")
  return policy.define(d)
end

-- ---- by layer -----------------------------------------------------------------------------------

-- First and last layer of 3, "3", "2-4" or "5-".
local function range_of(key)
  key = options.whole(key)
  if math.type(key) == "integer" then return key, key end
  local first, dash, last = tostring(key):match "^%s*(%d+)%s*(%-?)%s*(%d*)%s*$"
  first = math.tointeger(tonumber(first))
  if dash == "" then
    last = first
  else
    last = last == "" and math.maxinteger or math.tointeger(tonumber(last))
  end
  return first, last
end

-- Overrides as { first, last, given, text }, by layer; raises on ranges that are none or overlap.
local function ranges_of(p, overrides)
  local ranges = {}
  for key, given in pairs(overrides) do
    local first, last = range_of(key)
    if not first or not last or first < 1 or last < first then
      error(("policy.layers: '%s' is no layer and no range of layers (write 1, \"2-4\" or "
        .. "\"5-\")"):format(tostring(key)), 3)
    end
    if type(given) ~= "table" then
      error(("policy.layers: layer %s: a table of options is wanted, not %s"):format(tostring(key),
        type(given)), 3)
    end
    if given.target then error("policy.layers: target is of all layers: set it on the whole", 3) end
    local ok, message = pcall(p.with, p, given)
    if not ok then
      error(("policy.layers: layer %s: %s"):format(tostring(key), tostring(message)), 3)
    end
    local words = {}
    for _, name in ipairs(options.sorted_keys(given)) do
      words[#words + 1] = name .. "=" .. tostring(given[name])
    end
    ranges[#ranges + 1] = { first = first, last = last, given = copy(given),
      text = ("%s: %s"):format(tostring(key), table.concat(words, " ")) }
  end
  table.sort(ranges, function(a, b) return a.first < b.first end)
  for i = 2, #ranges do
    if ranges[i].first <= ranges[i - 1].last then
      error(("policy.layers: layer %d is in two ranges"):format(ranges[i].first), 3)
    end
  end
  return ranges
end

---A policy whose options differ in some layers. What is given for a layer stands, whatever the
---whole's options become; a `target` of the whole is reached by the other layers.
---@param p pyramid.PolicyLike
---@param overrides table<integer|string, table>
---  options by layer: 1, "2-4" (inclusive) or "5-" (to the last)
---@return pyramid.Policy
function compose.layers(p, overrides)
  local _ <close> = core.plain_locale()
  p = part("policy.layers", p)
  if type(overrides) ~= "table" then
    error("policy.layers: a table of options by layer is wanted", 2)
  end
  local ranges, texts, d = ranges_of(p, overrides), {}, like(p)
  for i, range in ipairs(ranges) do texts[i] = range.text end
  local function range_at(l)
    for i, range in ipairs(ranges) do
      if l.index >= range.first and l.index <= range.last then return i end
    end
  end
  local whole = policy.define(like(p))
  local own = remembering(function(o, l)
    local all = copy(o)
    all.preset = nil
    if all.target then all.target = 0.0 end                -- o is fitted already
    return whole:with(all):with(ranges[range_at(l)].given).in_force
  end, range_at)
  wrap(d, function(f, o, l) return f(range_at(l) and own(o, l) or o, l) end)
  d.name = ("%s[%s]"):format(p.name, table.concat(texts, "; "))
  return policy.define(d)
end

---A policy that begins at layer `k`: the layers before keep everything, in prefill and in decode.
---`k` becomes the option `from`.
---@param p pyramid.PolicyLike
---@param k integer  from 1
---@return pyramid.Policy
function compose.from(p, k)
  local _ <close> = core.plain_locale()
  p = part("policy.from", p)
  k = options.whole(k)
  if math.type(k) ~= "integer" or k < 1 then
    error(("policy.from: a layer from 1 is wanted, not %s"):format(tostring(k)), 2)
  end
  if p.definition.defaults.from ~= nil then
    error(("policy.from: %s has an option 'from' already: use with { from = %d }"):format(p.name,
      k), 2)
  end
  local d = like(p)
  d.defaults.from, d.limits.from = k, { 1 }
  wrap(d, function(f, o, l)
    if l.index >= o.from then return f(o, l) end
  end)
  return policy.define(d)
end

---The same policy for texts without end: its cuts leave keys at the positions 0, 1, 2, … within
---the cache (rotate = "compact"), so that reading and writing go on past the model's context. Heads
---must keep as many rows as each other: a pool, a share of the score or a list of numbers is
---refused when its plan is asked for.
---@param p pyramid.PolicyLike
---@return pyramid.Policy
function compose.endless(p)
  local _ <close> = core.plain_locale()
  local d = with_plans(part("policy.endless", p), function(plan)
    if plan.prune ~= "hidden" then plan.rotate = "compact" end
  end)
  return policy.define(d)
end

---A policy whose losers go down to a tier of the cache's, where queries still find them, instead of
---leaving it; of a cache without that tier, or one below it, they leave.
---@param p pyramid.PolicyLike
---@param to? "warm"|"cold"   "warm" if left out
---@param given? { recall?: integer }
---  recall: when the policy's trigger fires, which must track attention, so many rows of lower
---  tiers that were given most come up and are judged with the others (pyramid.Trigger)
---@return pyramid.Policy
function compose.demote(p, to, given)
  local _ <close> = core.plain_locale()
  p = part("policy.demote", p)
  local recall = options.check("policy.demote", given, { recall = "integer" }).recall
  to = to or "warm"
  if to ~= "warm" and to ~= "cold" then
    error(("policy.demote: a tier is \"warm\" or \"cold\", not %s"):format(tostring(to)), 2)
  end
  local d = with_plans(p, function(plan) plan.losers = { to = to, or_drop = true } end)
  if recall and (recall < 1 or not d.trigger) then
    error("policy.demote: recall " .. (recall < 1 and "is 1 row or more"
      or ("needs a policy with a trigger, and %s has none"):format(p.name)), 2)
  end
  local trigger = recall and d.trigger
  if trigger then
    d.trigger = function(o, l)
      local t = trigger(o, l)
      if t then
        t = copy(t)
        t.recall = recall
      end
      return t
    end
  end
  d.name = ("demote(%s)"):format(p.name)
  return policy.define(d)
end

-- ---- by what the prompt is ----------------------------------------------------------------------

-- A prompt is what its tokens are: digits count for arithmetic, separators and symbols for code,
-- and of prose there are few of either. Of the judged rows, one and a half times the share of
-- digits, less the share of separators and symbols:
--
--     code                 prose                  arithmetic
--   -1 ........... -0.26 ............... 0.04 ................. 1.5
local LEANING = { digits = 1.5, separators = -1, symbols = -1 }
local CODE, ARITHMETIC = -0.26, 0.04
local TASKS = { "code", "prose", "arithmetic" }            -- from low to high

local same_fields = { "share", "prune", "rotate", "mass", "weight", "merge", "losers", "read",
  "least" }

-- Plans are made anew each time: their tables are compared by what they hold.
local function alike(a, b)
  if type(a) ~= "table" or type(b) ~= "table" or getmetatable(a) or getmetatable(b) then
    return a == b
  end
  for key, value in pairs(a) do
    if not alike(value, b[key]) then return false end
  end
  for key in pairs(b) do
    if a[key] == nil then return false end
  end
  return true
end

local function refuse_tasks(what) error("policy.by_task: " .. what, 0) end

-- What the plans of all tasks have in common, and whether they count rows or rank by a threshold.
local function common_plan(plans, l)
  local first = plans[1]
  local function number(x) return x or 0 end
  if first.mass or first.weight or first.share == "pool" or first.share == "model" then
    refuse_tasks 'rows of heads compete: share must be "layer" or "head", without mass and weight'
  end
  for _, plan in ipairs(plans) do
    for _, field in ipairs(same_fields) do
      if not alike(plan[field], first[field]) then
        refuse_tasks(("options change %s: only keep and above may differ"):format(field))
      end
    end
    local a, b = plan.guard or {}, first.guard or {}
    if number(a.first) ~= number(b.first) or number(a.last) ~= number(b.last) then
      refuse_tasks "options change guards: only keep and above may differ"
    end
    if (plan.score or score.position()) ~= (first.score or score.position()) then
      refuse_tasks "options change the score: only keep and above may differ"
    end
    if (plan.above == nil) ~= (first.above == nil) then
      refuse_tasks "one task counts rows, another has a threshold"
    end
    if type(plan.keep) == "table" then refuse_tasks "keep is a list of heads" end
    if plan.above and number(plan.keep) ~= number(first.keep) then
      refuse_tasks "options change keep beside a threshold: above alone may differ there"
    end
  end
  local guard = first.guard or {}
  return first, math.max(1, l.rows - number(guard.first) - number(guard.last))
end

-- a for code, b for prose, c for arithmetic: one number for all judged rows.
local function by_leaning(judged, a, b, c)
  local leaning = score.tokens(LEANING):sum()
  return a + (b - a) * leaning:above(CODE * judged) + (c - b) * leaning:above(ARITHMETIC * judged)
end

-- One plan that does what the plan of the prompt's task says. Where rows are counted, a row's rank
-- is told by how many of the tops it is in; of 3, 5 and 9 rows those of the fifth rank are in two:
--
--     rank        1 2 3   4 5   6 .. 9   10 ..
--     in          3       2     1        0       stays under "5 rows" if in 2 or more
local function joined(plans, l)
  local plan, judged = common_plan(plans, l)
  local made, ranks = copy(plan), plan.score or score.position()
  local counts = {}
  for i, each in ipairs(plans) do
    local keep = each.above and each.above or (each.keep or l.rows) - (l.rows - judged)
    counts[i] = each.above and keep or math.max(0, math.min(judged, keep))
    made.keep = math.max(made.keep or l.rows, each.keep or l.rows)
  end
  if plan.above then
    made.above, made.score = 0, ranks - by_leaning(judged, table.unpack(counts))
    return made
  end
  local sorted, seen, within, needed = { table.unpack(counts) }, {}, nil, {}
  table.sort(sorted)
  for _, count in ipairs(sorted) do
    if not seen[count] then
      local top = ranks:top(count)
      within, seen[count] = within and within + top or top, true
    end
  end
  if counts[1] == counts[2] and counts[2] == counts[3] then return plan end
  for i, count in ipairs(counts) do
    needed[i] = 0                                 -- tops that hold a row of this rank
    for other in pairs(seen) do needed[i] = needed[i] + (other >= count and 1 or 0) end
  end
  made.above, made.least = 0, 1
  made.score = within - (by_leaning(judged, table.unpack(needed)) - 0.5)
  return made
end

---A policy that picks options by what a prompt is: code, arithmetic or prose, told by its tokens.
---Of the judged rows, 1.5 times the share of tokens that are digits, less the share of separators
---and symbols: code up to -0.26, arithmetic above 0.04, prose between. It is a sum on the device,
---for which nothing waits, and its plans name the most that any task keeps. Prompts only: while
---text is generated the policy's own options hold. Options may change how many rows stay (`ratio`,
---`rows`, `target`) or a threshold (`above`), and nothing else of a plan. A model without a
---tokenizer reads prose.
---@param p pyramid.PolicyLike
---@param tasks { code?: table, arithmetic?: table, prose?: table }  options; else the policy's own
---@return pyramid.Policy
function compose.by_task(p, tasks)
  local _ <close> = core.plain_locale()
  p = part("policy.by_task", p)
  tasks = options.check("policy.by_task", tasks, { code = "table", arithmetic = "table",
    prose = "table" })
  local d, given, said = like(p), {}, {}
  if not d.prefill then error(("policy.by_task: %s has no plan of a prompt"):format(p.name), 2) end
  for i, task in ipairs(TASKS) do
    given[i] = copy(tasks[task])
    local ok, changed = pcall(p.with, p, given[i])
    if not ok then error(("policy.by_task: %s: %s"):format(task, tostring(changed)), 2) end
    if tasks[task] then said[#said + 1] = task end
  end
  local whole, prefill = policy.define(like(p)), d.prefill
  local own = {}
  for i = 1, #TASKS do
    own[i] = remembering(function(o, l)
      local all = copy(o)
      all.preset = nil
      if all.target then all.target = 0.0 end
      return whole:with(all):with(given[i]):fitted(l)
    end, prompt_of)
  end
  function d.prefill(o, l)
    local plans = {}
    for i = 1, #TASKS do
      plans[i] = prefill(own[i](o, l), l)
      if not plans[i] then return nil end
    end
    return joined(plans, l)
  end
  d.name = ("by_task(%s; %s)"):format(p.name, table.concat(said, ", "))
  return policy.define(d)
end

---The same policy under another name; what a policy file returns is named after the file.
---@param name string
---@param p pyramid.PolicyLike
---@param doc? string
---@return pyramid.Policy
function compose.named(name, p, doc)
  local _ <close> = core.plain_locale()
  if type(name) ~= "string" or name == "" then error("policy.named: a name is wanted", 2) end
  local d = like(part("policy.named", p))
  d.name, d.doc = name, doc or d.doc
  return policy.define(d)
end

return compose

--- Policies that rank rows by a score and keep as many as a budget says: most of them. What these
--- have in common is said here once; a scorer says what is its own.
---
---   return policy.scorer {
---     name = "keydiff", doc = "per head, the rows whose keys differ most from the mean key",
---     generates = true,
---     defaults = { sinks = 0, recent = 0 },
---     score = function() return -score.key_similarity() end,
---   }
---
--- What follows of it:
---   budget    rows of a head: the option `rows`, or, where that is 0, `ratio` of the prompt beside
---             what was held before; never less than the guards, nor than 1
---   plan      keep the budget, or all rows where there are fewer; the guards; the score; `share`
---   trigger   with `generates`: a head that holds `slack` (15) rows more than the budget is cut
---             back to it
---   window    with `looks`: the last `window` rows are the guards, and where the option `every` is
---             above 0 a head is cut back to the budget after so many written tokens, by the last
---             `window` queries
---   options   ratio, rows, with `generates` slack, with `looks` every, and with them `target` (see
---             a definition's `fit`); `defaults` adds more, and says otherwise
---   limits    of these, and of options that are named as the catalogue's are: sinks, recent,
---             window, kernel, pool, heads, queries, whole, seed
local options = require "pyramid.options"
local policy = require "pyramid.policy"

local scorer = {}

---What is a scorer's own. Its functions are pure; `o` are the options in force, `budget` is in
---rows.
---@class pyramid.Scorer
---@field name string
---@field doc? string                     one line
---@field defaults? table<string, any>    its options, and other defaults of the common ones
---@field limits? table<string, table>    of its options, where the common ones are not meant
---@field presets? table<string, table>
---@field score? fun(o: table, l: pyramid.Layer, keep: integer, seen?: pyramid.Score): pyramid.Score?
---  what ranks the rows of which `keep` stay; nothing: the newest stay. seen: what `looks` said
---@field looks? fun(o: table, queries: integer): pyramid.Score
---  the attention of so many last queries, for policies that rank by a window of them, in a prompt
---  and, if the option `every` says so, while text is generated; not with `generates`
---@field guard? fun(o: table, l: pyramid.Layer, budget: integer): { first?: integer, last?: integer }
---  rows at either end that always stay; left out: the options `sinks` and `recent`. Before the
---  budget is known it is asked with what the options say, unless there is a `floor`
---@field floor? fun(o: table): integer   the least budget, instead of the guards
---@field budget? fun(o: table, l: pyramid.Layer): integer
---  rows wanted in a layer, instead of what `rows` and `ratio` say: a lane's rows in all after the
---  prompt, so begin with l.past +
---@field each? fun(o: table, l: pyramid.Layer, rows: integer): integer[]
---  rows of each KV head, where `rows` are wanted of a layer on average; 1 to l.rows
---@field share? "head"|"layer"|"pool"|"model"    "head", unless said
---@field more? fun(o: table, l: pyramid.Layer, keep: integer): pyramid.Plan
---  what else the plan has: above, least, mass, merge, prune, rotate, share where options decide it
---@field prepare? fun(o: table, l: pyramid.Layer): pyramid.Preparation?
---  passes before the plans run; `score` may then say score.probed()
---@field generates? boolean              cuts also while text is generated
---@field slack? integer                  default of the option: rows over the budget before a cut
---@field window? fun(o: table, l: pyramid.Layer, budget: integer): integer
---  the last rows, which are not judged while text is generated
---@field track? fun(o: table, l: pyramid.Layer): pyramid.Score
---  the attention or history that is gathered while text is generated, by which rows then are
---  ranked instead of `score`
---@field decode? fun(o: table, l: pyramid.Layer, keep: integer): pyramid.Score
---  what ranks while text is generated, if it is neither what is tracked alone nor `score`

local scorer_keys = { name = "string", doc = "string", defaults = "table", limits = "table",
  presets = "table", score = "function", guard = "function", floor = "function",
  budget = "function", share = "string", more = "function", generates = "boolean",
  slack = "integer", window = "function", track = "function", prepare = "function",
  decode = "function", looks = "function", each = "function" }

local common_limits = { ratio = { 0, 1 }, rows = { 0 }, slack = { 0 }, sinks = { 0 },
  recent = { 0 }, window = { 1 }, kernel = { 1, 63, 2 }, pool = { "max", "avg" },
  heads = { "mean", "sum", "max" }, queries = { 1 }, whole = { 0 }, seed = { 0, 0x7fffffff },
  every = { 0 } }

local function sinks_and_recent(o) return { first = o.sinks, last = o.recent } end
local function the_window(o, l) return { last = math.min(o.window, l.rows) } end

-- The common options under what a scorer says of its own.
local function options_of(d)
  local defaults, limits = { ratio = 0.5, rows = 0 }, {}
  if d.generates then defaults.slack = d.slack or 15 end
  if d.looks then defaults.every = 0 end
  for key, value in pairs(d.defaults or {}) do defaults[key] = value end
  for key, value in pairs(defaults) do
    local common = common_limits[key]
    if common and type(common[1]) == type(value) then limits[key] = common end
  end
  for key, value in pairs(d.limits or {}) do limits[key] = value end
  return defaults, limits
end

---A policy that keeps the rows of the highest score, within a budget.
---@param d pyramid.Scorer
---@return pyramid.Policy
function scorer.scorer(d)
  options.check("policy.scorer", d, scorer_keys)
  if (d.track or d.window or d.decode) and not d.generates then
    error("policy.scorer: `window`, `track` and `decode` go with `generates = true`", 2)
  end
  if d.looks and d.generates then
    error("policy.scorer: `looks` cuts every so many tokens, and goes without `generates`", 2)
  end
  local defaults, limits = options_of(d)
  local guard = d.guard or d.looks and the_window or sinks_and_recent

  local function wanted(o, l)
    if d.budget then return d.budget(o, l) end
    return o.rows > 0 and o.rows or l.past + math.ceil(o.ratio * l.prompt)
  end

  local function budget(o, l)
    local rows = wanted(o, l)
    if d.floor then return math.max(rows, d.floor(o), 1) end
    local guarded = guard(o, l, rows)
    return math.max(rows, (guarded.first or 0) + (guarded.last or 0), 1)
  end

  local function plan(o, l, ranked, queries)
    if o.whole and l.index <= o.whole then return nil end
    local rows = budget(o, l)
    local keep = math.min(rows, l.rows)
    local made = d.more and d.more(o, l, keep) or {}
    made.keep, made.guard = d.each and d.each(o, l, rows) or keep, guard(o, l, rows)
    made.share = made.share or d.share or "head"
    made.score = ranked and ranked(o, l, keep, d.looks and d.looks(o, queries))
    return made
  end

  local trigger, decode
  if d.generates then
    function trigger(o, l)
      local rows = budget(o, l)
      return { over = rows + o.slack, window = d.window and d.window(o, l, rows),
        track = d.track and d.track(o, l) }
    end
    function decode(o, l) return plan(o, l, d.decode or d.track or d.score) end
  elseif d.looks then
    function trigger(o)
      return o.every > 0 and { every = o.every, track = d.looks(o, o.window) } or nil
    end
    function decode(o, l) return plan(o, l, d.score, o.window) end
  end
  return policy {
    name = d.name, doc = d.doc, defaults = defaults, limits = limits, presets = d.presets,
    fit = "ratio", prepare = d.prepare,
    prefill = function(o, l)
      return plan(o, l, d.score, d.looks and math.min(o.window, l.rows))
    end,
    trigger = trigger, decode = decode,
  }
end

return scorer

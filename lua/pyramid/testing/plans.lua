--- Plans as the core takes them: asks a policy, checks what it answers by the core's rules and in
--- its words, and says which rows a plan splits into guards and judged rows. Part of
--- pyramid.testing; written apart from the core, to be compared with it.
local policy = require "pyramid.policy"
local score = require "pyramid.score"

local plans = {}

local OP = "<BBBxi4f"
local ATTENTION, HISTORY, EXPECTED, CUSTOM, LEARNED, PROBED, MAX = 0, 1, 14, 22, 23, 24, 2

local UNPROBED = "asks for what a probe tracked, and there was none since rows last changed (a "
  .. "policy's `prepare`, or cache:probe, makes one)"

-- Fields this reference knows; a plan with others is refused rather than misread.
local plan_fields = { keep = true, guard = true, score = true, share = true, prune = true,
  mass = true, above = true, least = true, losers = true, merge = true, rotate = true,
  weight = true, read = true }                       -- which rows are held does not follow it
local trigger_fields = { every = true, over = true, window = true, once = true, track = true,
  recall = true }         -- of which nothing comes where there are no tiers

---Raises that something cannot be simulated yet. The message begins so that checks can tell it from
---a fault.
---@param what string
function plans.not_simulated(what) error("not simulated: " .. what, 0) end

---Whether an error says that.
---@param message any
---@return boolean
function plans.is_not_simulated(message)
  return tostring(message):find("not simulated: ", 1, true) ~= nil
end

local function known(kind, value, fields)
  for field in pairs(value) do
    if not fields[field] then
      plans.not_simulated(("a %s's field '%s'"):format(kind, tostring(field)))
    end
  end
end

-- The single attention or history signal of a program: { code, reduce, heads, queries, x }; nil if
-- it is none.
local function signal(program)
  if not program or #program ~= 12 then return nil end
  local code, reduce, heads, queries, x = string.unpack(OP, program)
  if code == ATTENTION or code == HISTORY then
    return { history = code == HISTORY, reduce = reduce, heads = heads, queries = queries, x = x }
  end
end

-- ---- asking -------------------------------------------------------------------------------------

---@class pyramid.testing.Asker
---@field policy pyramid.Policy
local Asker = {}
Asker.__index = Asker

-- Which tokens are of a class the simulation is told, and no tokenizer.
local function as_said(set) return set end

---Something that asks a policy as a cache of one model does.
---@param p pyramid.Policy
---@param once? boolean
---  asks it once for each plan, without a look at whether its fields have the right types
---@return pyramid.testing.Asker
function plans.asker(p, once)
  return setmetatable({ policy = p, bound = not once and p:bind(nil, as_said) }, Asker)
end

-- What the policy returns for a layer, after its fields have been checked as for the core.
local function ask(self, name, l)
  if not self.policy.definition[name] then return nil end
  if self.prompt ~= l.prompt then self.options, self.prompt = self.policy:fitted(l), l.prompt end
  local function asked()
    if self.bound then
      self.bound[name](l.index, l.layers, l.prompt, l.past, l.rows, l.waiting, l.tokens, l.heads,
        l.kv_heads, l.head_dim)
    end
    return self.policy.definition[name](self.options, l)
  end
  local ok, value = policy.call(self.policy.definition[name], asked)
  if ok then return value end
  error(("policy %s, layer %d, %s: %s"):format(self.policy.name, l.index, name, tostring(value)), 0)
end

local function refuse(self, name, l, what)
  error(("policy %s, layer %d, %s: %s"):format(self.policy.name, l.index, name, what), 0)
end

---@class pyramid.testing.Plan
---@field keep integer             of a list its highest, …
---@field keeps integer[]?         … and this is the list
---@field first integer
---@field last integer
---@field share "layer"|"head"|"pool"|"model"
---@field prune "cache"|"hidden"|"both"
---@field mass number              0: rows are counted
---@field above number?           as in pyramid.Plan
---@field least integer
---@field threshold number?        of merge
---@field compact boolean
---@field program string?
---@field weight string?           its program
---@field unjudged integer?
---  decode, where rows are judged once: how many at the end of a lane were not yet
---@field before integer[]?
---  after preparing passes: by head, rows held before the prompt, which all stay
---@field objects table            what the program refers to by number

local function nothing_to_do(l)
  return { keep = l.rows, first = 0, last = 0, share = "layer", prune = "cache", mass = 0,
    least = 0, compact = false, objects = { tokens = as_said } }
end

---Whether lanes compete under a plan: of a layer, or of all layers.
---@param plan { share: string }
---@return boolean
function plans.compete(plan)
  return plan.share == "pool" or plan.share == "model" or plan.weight ~= nil
end

---Whether a plan shares its budget with other layers'.
---@param plan pyramid.testing.Plan
---@return boolean
function plans.unites(plan) return plan.share == "model" or plan.weight ~= nil end

---Whether scores decide how many rows survive, and `keep` only how many at most.
---@param plan { mass: number, above: number? }
---@return boolean
function plans.is_open(plan) return plan.mass > 0 or plan.above ~= nil end

---Whether lanes of one length are of one length after it, whatever the scores.
---@param plan pyramid.testing.Plan
---@return boolean
function plans.keeps_equal(plan)
  return plan.share == "layer" or plan.share == "head" and not plan.keeps and not plan.weight
    and not plans.is_open(plan)
end

-- What is wrong with a plan, whatever rows there are; the first thing that a cache would name.
local function fault(out, l)
  for _, keep in ipairs(out.keeps or {}) do
    if out.share ~= "head" then return 'keep is a list, which needs share = "head"' end
    if keep < out.least then return "least is more than keep" end
  end
  local hidden = out.prune ~= "cache"
  return out.keep < 1 and "keep is less than 1"
    or out.keep > l.rows and "keep asks for more rows than there are"
    or out.first < 0 and "guard.first is negative"
    or out.last < 0 and "guard.last is negative"
    or hidden and out.share ~= "layer" and 'share must be "layer" where hidden states are pruned'
    or out.least < 0 and "least is negative"
    or out.least > out.keep and "least is more than keep"
    or out.least > 0 and not plans.is_open(out) and not plans.compete(out)
      and 'least needs mass, above, share = "pool" or share = "model"'
    or out.threshold and out.prune == "hidden"
      and 'merge needs losers: prune = "hidden" leaves the layer\'s own rows whole'
    or out.compact and (not plans.keeps_equal(out) or hidden)
      and 'rotate "compact" needs prune = "cache" and heads that keep as many rows as each other: '
        .. 'share = "layer", or "head" with one number to keep'
    or nil
end

---@return pyramid.testing.Plan
local function read_plan(self, name, l, plan)
  if plan == nil then return nothing_to_do(l) end
  known("plan", plan, plan_fields)
  local guard, keep = plan.guard or {}, plan.keep
  known("guard", guard, { first = true, last = true })
  if keep == nil then keep = l.rows end                     -- under mass or above
  local losers = plan.losers
  if type(losers) == "table" and not losers.or_drop then    -- … there are no tiers here
    plans.not_simulated("losers that go down to tier " .. tostring(losers.to))
  end
  local out = nothing_to_do(l)
  if type(keep) == "table" then
    out.keeps = table.move(keep, 1, #keep, 1, {})
    keep = math.max(table.unpack(keep))
  end
  out.keep, out.first, out.last = math.tointeger(keep), math.tointeger(guard.first or 0),
    math.tointeger(guard.last or 0)
  out.share, out.mass, out.above = plan.share or "layer", plan.mass or 0, plan.above
  out.prune = name == "prefill" and plan.prune or "cache"
  out.least, out.compact = math.tointeger(plan.least or 0), plan.rotate == "compact"
  if plan.read then                                         -- which rows are held is the same
    local edges = plan.read.guard or {}
    out.read = { rows = plan.read.rows, by = score.digest(plan.read.by), first = edges.first,
      last = edges.last }
  end
  if plan.merge then out.threshold = plan.merge == true and -1 or plan.merge.threshold end
  if plan.score then
    out.program = score.program(plan.score)
    score.anchor(out.objects, plan.score, l.index, plan.weight)
  end
  if plan.weight then
    out.weight = score.program(plan.weight)
    if not plan.score then score.anchor(out.objects, plan.weight, l.index) end
    if name ~= "prefill" then
      refuse(self, name, l, "weight divides a budget over layers while a prompt is read only")
    end
    if out.share ~= "head" and out.share ~= "pool" then
      refuse(self, name, l, 'weight needs share = "head" or share = "pool"')
    end
    if out.keeps then
      refuse(self, name, l, "weight divides one number of rows, and keep is a list")
    end
  end
  local wrong = fault(out, l)
  if wrong then refuse(self, name, l, wrong) end
  return out
end

-- Fields that a layer which shares a budget while others are still to read cannot have.
local plan_shared = {
  mass = "mass cannot be said where layers share a budget while they read, as it is of the sum of "
    .. 'all of them (share = "model" with `prepare`, or in cache:evict)',
  above = "above cannot be said where layers share a budget while they read, as that is a count "
    .. '(share = "model" with `prepare`, or in cache:evict)',
  merge = "merge cannot be said where layers share a budget while they read, as survivors may still "
    .. 'leave (share = "model" with `prepare`, or in cache:evict)',
}

-- Whether a program holds an operation of this code.
local function holds(program, wanted)
  for at = 1, #(program or ""), 12 do
    if program:byte(at) == wanted then return true end
  end
  return false
end

---What a policy says of passes over a prompt, or nil: none.
---@param l pyramid.Layer  of the whole cache
---@return { block: integer, lead: any[], first: any[] }?
function Asker:prepare(l)
  if not self.policy.definition.prepare or not self.policy.definition.prefill then return nil end
  local shown, index = {}, l.index
  for key, value in pairs(l) do shown[key] = value end
  shown.index, shown.depth = nil, nil
  if self.prompt ~= l.prompt then self.options, self.prompt = self.policy:fitted(l), l.prompt end
  local function asked()
    if self.bound then
      self.bound.prepare(index, l.layers, l.prompt, l.past, l.rows, l.waiting, l.tokens, l.heads,
        l.kv_heads, l.head_dim)
    end
    return self.policy.definition.prepare(self.options, shown)
  end
  local ok, how = policy.call(self.policy.definition.prepare, asked)
  if not ok then refuse(self, "prepare", l, tostring(how)) end
  if how == nil then return nil end
  local track = signal(score.program(how.track))
  if not track or track.history then
    refuse(self, "prepare", l, "track is no attention, which is what a pass can track")
  end
  if track.reduce > MAX then
    refuse(self, "prepare", l, "track keeps sums or maxima over queries, no variance and no entropy")
  end
  for _, field in ipairs { "block", "sinks" } do
    if (how[field] or 0) < 0 then refuse(self, "prepare", l, field .. " is negative") end
  end
  return { block = how.block, lead = how.lead or {}, first = how.first or how.lead or {},
    track = tostring(how.track), among = how.among, sinks = how.sinks }
end

---Tokens that the passes over a prompt read, where texts are none.
---@param how { block: integer, lead: any[], first: any[] }
---@param prompt integer
---@return integer
function plans.pass_tokens(how, prompt)
  local sum, block = 0, how.block > 0 and how.block or prompt
  for at = 0, prompt - 1, block do
    for _, part in ipairs(at == 0 and how.first or how.lead) do
      if type(part) == "table" then sum = sum + #part end
      if type(part) == "number" then sum = sum + math.min(part, at) end
    end
  end
  return sum + (how.block > 0 and prompt or 0)
end

---The plan for a prompt. The last layer has no next one to hand survivors to: what hides there
---hides nothing.
---@param l pyramid.Layer
---@param prepared? integer[]  it runs after passes; by head, rows held before the prompt
---@return pyramid.testing.Plan
function Asker:prefill(l, prepared)
  local plan = read_plan(self, "prefill", l, ask(self, "prefill", l))
  plan.before = prepared
  for field, what in pairs(not prepared and plans.unites(plan) and plan_shared or {}) do
    if field == "mass" and plan.mass > 0 or field == "merge" and plan.threshold
      or field == "above" and plan.above then
      refuse(self, "prefill", l, what)
    end
  end
  if not prepared and holds(plan.program, PROBED) then
    refuse(self, "prefill", l, "score " .. UNPROBED)
  end
  if plan.prune ~= "cache" then
    plan.first, plan.last = math.max(plan.first, l.past), math.max(plan.last, 1)
    if l.index == l.layers then
      if plan.prune == "hidden" then
        plan.keep, plan.mass, plan.above, plan.least = l.rows, 0, nil, 0
      end
      plan.prune = "cache"
    end
  end
  return plan
end

---Raises where a layer and others above it cannot share a budget while they read.
---@param l pyramid.Layer
---@param plan pyramid.testing.Plan
---@param alive integer    tokens that reach the layer
---@param shared boolean   a layer above shares a budget
function Asker:unites(l, plan, alive, shared)
  if plans.unites(plan) and alive < l.prompt then
    refuse(self, "prefill", l, "share is of a budget that layers share, but layers above have "
      .. "dropped hidden states: all tokens must reach such layers")
  end
  if shared and plan.prune ~= "cache" then
    refuse(self, "prefill", l, "prune drops hidden states, but a layer above shares a budget, for "
      .. "which all layers from there on must be reached by all tokens")
  end
end

---The trigger of a layer, or nil if it never fires. `track` is { history, reduce, heads, queries, x
---}.
---@param l pyramid.Layer
---@return table?
function Asker:trigger(l)
  if not self.policy.definition.decode then return nil end
  local given = ask(self, "trigger", l)
  if given == nil then return nil end
  known("trigger", given, trigger_fields)
  if holds(given.track and score.program(given.track), LEARNED) then
    plans.not_simulated "a learned score that is tracked, which reads hidden states"
  end
  local t = { every = given.every or 0, over = given.over or 0, window = given.window or 0,
    once = given.once and true or false, track = given.track
      and signal(score.program(given.track)) }
  for _, field in ipairs { "every", "over", "window" } do
    if t[field] < 0 then refuse(self, "trigger", l, field .. " is negative") end
  end
  if t.once and (t.every == 0 or t.over > 0) then
    refuse(self, "trigger", l, "once needs `every`, and not `over`")
  end
  if t.track and not t.track.history and t.track.reduce > MAX then
    refuse(self, "trigger", l, "track keeps sums or maxima over queries, no variance and no entropy")
  end
  if t.track then t.track.max = not t.track.history and t.track.reduce == MAX end
  if t.track and t.track.max ~= (t.track.heads == MAX) and l.heads ~= l.kv_heads then
    refuse(self, "trigger", l, t.track.max and "track keeps a maximum over queries of all query "
      .. 'heads of a K/V head together: heads must be "max" too'
      or "track cannot keep a maximum over the query heads of a K/V head of sums over queries; "
      .. 'track their mean, or reduce = "max" too')
  end
  return t
end

-- What about a program that ranks in generation is not what the trigger tracks.
local function untracked(program, track)
  for at = 1, #(program or ""), 12 do
    local code, reduce, _, queries, x = string.unpack(OP, program, at)
    local other = code == ATTENTION and not (track and not track.history
      and track.queries == queries)
      or code == HISTORY and not (track and track.history)
    if code == ATTENTION and reduce > MAX then
      return "asks for a variance or an entropy over queries, which only a running prefill knows"
    end
    if other then return "ranks by attention that the trigger does not track" end
    if code == CUSTOM then return "has a custom function, which can rank in prefill only" end
    if code == PROBED then
      return UNPROBED
    end
    if code == EXPECTED then
      return "expects attention from the queries of a prompt, which are known in prefill only"
    end
    if code == ATTENTION and (reduce == MAX) ~= track.max then
      return track.max and "adds queries up, of which the trigger tracks a maximum"
        or "takes a maximum over queries, of which the trigger tracks a sum"
    end
    if code == ATTENTION and x ~= track.x then
      return "ranks by attention of another ramp than the trigger tracks"
    end
    if code == HISTORY and x ~= track.x then
      return "ranks by history of another decay than the trigger tracks"
    end
  end
end

---Raises where a plan that runs after passes asks for what is not known then.
---@param l pyramid.Layer
---@param plan pyramid.testing.Plan
---@param trigger table?
function Asker:rests(l, plan, trigger)
  if plan.prune ~= "cache" then
    refuse(self, "prefill", l, "prune drops hidden states, which are there while a prefill runs "
      .. 'only ("cache" drops rows)')
  end
  if holds(plan.program, EXPECTED) then
    refuse(self, "prefill", l, "score expects attention from the queries of a prompt, which only a "
      .. "running prefill knows")
  end
  for at = 1, #(plan.program or ""), 12 do
    local code, _, heads = string.unpack(OP, plan.program, at)
    if (code == ATTENTION or code == HISTORY)
      and untracked(plan.program:sub(at, at + 11), trigger and trigger.track) then
      refuse(self, "prefill", l, "score ranks by attention that the cache does not track, and "
        .. "only a running prefill knows")
    end
    local max = trigger and trigger.track and trigger.track.max or false
    if (code == ATTENTION or code == HISTORY) and max and heads ~= MAX
      and l.heads ~= l.kv_heads then
      refuse(self, "prefill", l, "score adds up query heads, of which the trigger tracks the "
        .. "maximum")
    end
    if (code == ATTENTION or code == HISTORY) and heads == MAX and not max
      and l.heads ~= l.kv_heads then
      refuse(self, "prefill", l, "score takes a maximum over the query heads of a K/V head, of "
        .. "which only the mean is tracked")
    end
  end
end

---The plan of a trigger that fires.
---@param l pyramid.Layer
---@param trigger table
---@return pyramid.testing.Plan
function Asker:decode(l, trigger)
  local plan = read_plan(self, "decode", l, ask(self, "decode", l))
  if plan.share == "model" then
    refuse(self, "decode", l, 'share cannot be "model" in decode, where layers fire one by one')
  end
  if trigger.once and plan.last > trigger.window then
    refuse(self, "decode", l,
      "guard.last exceeds the trigger's window, by which rows judged once are counted")
  end
  plan.last = math.max(plan.last, trigger.window)
  local wrong = untracked(plan.program, trigger.track)
  for at = 1, #(plan.program or ""), 12 do
    local code, reduce, heads = string.unpack(OP, plan.program, at)
    if not wrong and code == ATTENTION and reduce == MAX and heads ~= MAX
      and l.heads ~= l.kv_heads then
      wrong = "adds up query heads, of which the trigger tracks the maximum"
    end
  end
  if wrong then refuse(self, "decode", l, "score " .. wrong) end
  return plan
end

---Raises where a prompt's plan asks for a history that is not what the trigger tracks, and there is
---history before.
---@param l pyramid.Layer
---@param plan pyramid.testing.Plan
---@param trigger table?
function Asker:remembers(l, plan, trigger)
  local track = trigger and trigger.track
  if not (track and track.history) or l.past == 0 then return end
  for at = 1, #(plan.program or ""), 12 do
    local code, _, heads, _, x = string.unpack(OP, plan.program, at)
    if code == HISTORY and heads == MAX and l.heads ~= l.kv_heads then
      refuse(self, "prefill", l,
        'score wants history{heads=max}, of which earlier prompts left the mean over a K/V head')
    elseif code == HISTORY and x ~= track.x then
      refuse(self, "prefill", l, "score ranks by history of another decay than the trigger tracks")
    end
  end
end

-- ---- what a plan means --------------------------------------------------------------------------

local function within(x, low, high) return math.max(low, math.min(x, high)) end

---@class pyramid.testing.Split  rows = first + judged + last; of the judged, least to most survive (in a pool: together)
---@field first integer
---@field judged integer
---@field last integer
---@field least integer
---@field most integer

---What a plan lets a lane keep: of the rows held before passes over a prompt, which all stay, it
---has counted those of the longest lane.
---@param plan pyramid.testing.Plan
---@param head integer
---@return integer
function plans.keep_of(plan, head)
  local keep = plan.keeps and plan.keeps[head] or plan.keep
  if not plan.before then return keep end
  return keep - math.max(table.unpack(plan.before)) + plan.before[head]
end

---How a plan falls on a lane of so many rows.
---@param plan pyramid.testing.Plan
---@param rows integer
---@param head? integer
---@return pyramid.testing.Split
function plans.split(plan, rows, head)
  local before = plan.before and plan.before[head or 1] or 0
  local first = math.min(math.max(plan.first, before,
    plan.unjudged and rows - plan.unjudged or 0), rows)
  local last = math.min(plan.last, rows - first)
  local guards, judged = first + last, rows - first - last
  local most = within(plans.keep_of(plan, head or 1) - guards, 0, judged)
  local least = most
  if plans.compete(plan) then most = judged end
  if plans.compete(plan) or plans.is_open(plan) then
    least = within(math.max(plan.least, 1) - guards, 0, judged)
  end
  return { first = first, judged = judged, last = last, least = least,
    most = math.max(most, least) }
end

---Whether a plan may take rows from a lane that is split so, all by itself.
---@param plan pyramid.testing.Plan
---@param split pyramid.testing.Split
---@return boolean
function plans.cuts(plan, split)
  return split.most < split.judged or plans.is_open(plan) and split.least < split.judged
end

-- The splits of lanes of so many rows, and what is judged, promised and, at most, kept of all of
-- them.
local function splits_of(plan, lanes)
  local splits, judged, least, budget = {}, 0, 0, 0
  for head, rows in ipairs(lanes) do
    local split = plans.split(plan, rows, head)
    splits[head], judged, least = split, judged + split.judged, least + split.least
    budget = budget + plans.keep_of(plan, head) - split.first - split.last
  end
  return splits, judged, least, math.min(math.max(budget, least), judged), budget
end

---The splits of the lanes of several layers that share a budget, one after the other, and how many
---of their judged rows survive at most; nil where all do.
---@param layers { plan: pyramid.testing.Plan, lanes: integer[] }[]
---@return pyramid.testing.Split[]?
---@return integer most
function plans.united(layers)
  local all, judged, least, budget, open = {}, 0, 0, 0, false
  for _, layer in ipairs(layers) do
    local splits, its_judged, its_least, _, its_budget = splits_of(layer.plan, layer.lanes)
    table.move(splits, 1, #splits, #all + 1, all)
    judged, least, budget = judged + its_judged, least + its_least, budget + its_budget
    open = plans.is_open(layer.plan)
  end
  local most = math.min(math.max(budget, least), judged)
  if not (most < judged or open and least < judged) then return nil, most end
  return all, most
end

---Judged rows that a pool of lanes keeps at most.
---@param plan pyramid.testing.Plan
---@param lanes integer[]  each lane's rows
---@return integer
function plans.pooled(plan, lanes) return (select(4, splits_of(plan, lanes))) end

---Whether a plan may take any row.
---@param plan pyramid.testing.Plan
---@param lanes integer[]
---@return boolean
function plans.needed(plan, lanes)
  local splits, judged, least, most = splits_of(plan, lanes)
  if plans.compete(plan) then return most < judged or plans.is_open(plan) and least < judged end
  for _, split in ipairs(splits) do
    if plans.cuts(plan, split) then return true end
  end
  return false
end

---How many of a lane's last rows no plan has ranked once a prompt's plan has run: the window's, or
---where it evicts those that it guards at the end, if they are fewer.
---@param plan pyramid.testing.Plan
---@param lanes integer[]  rows before it
---@param trigger? table
---@return integer
function plans.unranked(plan, lanes, trigger)
  local window = trigger and trigger.window or 0
  local ranks = plan.prune ~= "hidden" and (plans.unites(plan) or plans.needed(plan, lanes))
  local last = plan.prune == "cache" and plan.last or math.max(plan.last, 1)
  return ranks and math.min(window, last) or window
end

---Rows that a plan leaves in each lane, at most.
---@param plan pyramid.testing.Plan
---@param lanes integer[]
---@return integer[]
function plans.left(plan, lanes)
  local splits, _, _, pooled = splits_of(plan, lanes)
  local left = {}
  for head, split in ipairs(splits) do
    local alone = plan.share == "pool" and not plan.weight
    left[head] = split.first + split.last + (alone and math.min(split.most, pooled) or split.most)
  end
  return left
end

---Whether all are the same number.
---@param numbers integer[]
---@return boolean
function plans.equal(numbers)
  for _, rows in ipairs(numbers) do
    if rows ~= numbers[1] then return false end
  end
  return true
end

---Raises where a plan cannot be carried out on lanes of so many rows.
---@param self pyramid.testing.Asker
---@param name "prefill"|"decode"
---@param l pyramid.Layer
---@param plan pyramid.testing.Plan
---@param lanes integer[]
---@param compact boolean?  the layer's keys are rotated to its places
function Asker:fits(name, l, plan, lanes, compact)
  if not plans.needed(plan, lanes) then return end
  local ranks, equal = plan.prune ~= "cache", plans.equal(lanes)
  for _, split in ipairs((splits_of(plan, lanes))) do
    ranks = ranks or plans.cuts(plan, split) and split.most > 0
  end
  if plan.share == "layer" and not equal and ranks then
    refuse(self, name, l,
      'share is "layer", but the heads hold unequal numbers of rows ("head" and "pool" judge each by its own)')
  end
  if not (compact or plan.compact) or plan.prune == "hidden" then return end
  if not equal then
    refuse(self, name, l, 'rotate cannot be "compact" where the heads hold unequal numbers of rows')
  end
  if not plans.keeps_equal(plan) then
    refuse(self, name, l,
      'rotate was "compact": the layer\'s heads must go on keeping as many rows as each other '
        .. '(share = "layer", or "head" with one number to keep)')
  end
end

---Steps until a trigger fires, seen `since` steps after it fired last, with `rows` rows; math.huge
---if never.
---@param trigger table?
---@param since integer
---@param rows integer
---@return number
function plans.steps_until(trigger, since, rows)
  local steps = math.huge
  if trigger and trigger.every > 0 then steps = math.max(trigger.every - since, 1) end
  if trigger and trigger.over > 0 then
    steps = math.min(steps, math.max(trigger.over + 1 - rows, 1))
  end
  return steps
end

---A layer's shape, from a configuration and what is known of the rows.
---@param index integer
---@param config { layers: integer, heads: integer, kv_heads: integer, head_dim: integer }
---@param l { prompt: integer, past: integer, rows: integer, waiting?: integer, tokens: integer }
---@return pyramid.Layer
function plans.shape(index, config, l)
  return policy.shape(index, config.layers, l.prompt, l.past, l.rows, l.waiting or 0, l.tokens,
    config.heads, config.kv_heads, config.head_dim)
end

return plans

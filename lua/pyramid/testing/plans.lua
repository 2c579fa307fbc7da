--- Plans as the core takes them: asks a policy, checks what it answers by the core's rules and in its words, and says which
--- rows a plan splits into guards and judged rows. Part of pyramid.testing; written apart from the core, to be compared
--- with it.
local policy = require "pyramid.policy"
local score = require "pyramid.score"

local plans = {}

local OP = "<BBBxi4f"
local ATTENTION, HISTORY = 0, 1

-- Fields this reference knows; a plan with others is refused rather than misread.
local plan_fields = { keep = true, guard = true, score = true, share = true, prune = true }
local trigger_fields = { every = true, over = true, window = true, once = true, track = true }

---Raises that something cannot be simulated yet. The message begins so that checks can tell it from a fault.
---@param what string
function plans.not_simulated(what) error("not simulated: " .. what, 0) end

---@param message any
---@return boolean
function plans.is_not_simulated(message) return tostring(message):find("not simulated: ", 1, true) ~= nil end

local function known(kind, value, fields)
  for field in pairs(value) do
    if not fields[field] then plans.not_simulated(("a %s's field '%s'"):format(kind, tostring(field))) end
  end
end

-- The single attention or history signal of a program: { code, reduce, heads, queries, x }; nil if it is none.
local function signal(program)
  if not program or #program ~= 12 then return nil end
  local code, reduce, heads, queries, x = string.unpack(OP, program)
  if code == ATTENTION or code == HISTORY then
    return { history = code == HISTORY, reduce = reduce, heads = heads, queries = queries, x = x }
  end
end

-- ---- asking --------------------------------------------------------------------------------------------------------

---@class pyramid.testing.Asker
---@field policy pyramid.policy
local Asker = {}
Asker.__index = Asker

---Something that asks a policy as a cache of one model does.
---@param p pyramid.policy
---@param once? boolean  asks it once for each plan, without a look at whether its fields have the right types
---@return pyramid.testing.Asker
function plans.asker(p, once)
  return setmetatable({ policy = p, bound = not once and p:bind() }, Asker)
end

-- What the policy returns for a layer, after its fields have been checked as for the core.
local function ask(self, name, l)
  if not self.policy.definition[name] then return nil end
  if self.prompt ~= l.prompt then self.options, self.prompt = self.policy:fitted(l), l.prompt end
  local function asked()
    if self.bound then
      self.bound[name](l.index, l.layers, l.prompt, l.past, l.rows, l.waiting, l.tokens, l.heads, l.kv_heads, l.head_dim)
    end
    return self.policy.definition[name](self.options, l)
  end
  local ok, value = pcall(asked)
  if ok then return value end
  error(("policy %s, layer %d, %s: %s"):format(self.policy.name, l.index, name, tostring(value)), 0)
end

local function refuse(self, name, l, what)
  error(("policy %s, layer %d, %s: %s"):format(self.policy.name, l.index, name, what), 0)
end

---@class pyramid.testing.Plan
---@field keep integer
---@field first integer
---@field last integer
---@field share "layer"|"head"
---@field prune "cache"|"hidden"|"both"
---@field program string?

---@return pyramid.testing.Plan
local function read_plan(self, name, l, plan)
  if plan == nil then return { keep = l.rows, first = 0, last = 0, share = "layer", prune = "cache" } end
  known("plan", plan, plan_fields)
  if type(plan.keep) ~= "number" then plans.not_simulated("a keep that is no number") end
  local guard = plan.guard or {}
  known("guard", guard, { first = true, last = true })
  local out = { keep = math.tointeger(plan.keep), first = math.tointeger(guard.first or 0), last = math.tointeger(guard.last or 0),
    share = plan.share or "layer", prune = plan.prune or "cache", program = plan.score and score.program(plan.score) }
  if out.share ~= "layer" and out.share ~= "head" then plans.not_simulated(("share = %q"):format(out.share)) end
  if out.keep < 1 then refuse(self, name, l, "keep is less than 1") end
  if out.keep > l.rows then refuse(self, name, l, "keep asks for more rows than there are") end
  if out.first < 0 then refuse(self, name, l, "guard.first is negative") end
  if out.last < 0 then refuse(self, name, l, "guard.last is negative") end
  if out.share ~= "layer" and out.prune ~= "cache" then
    refuse(self, name, l, 'share must be "layer" where hidden states are pruned')
  end
  return out
end

---The plan for a prompt. The last layer has no next one to hand survivors to: what hides there hides nothing.
---@param l pyramid.layer
---@return pyramid.testing.Plan
function Asker:prefill(l)
  local plan = read_plan(self, "prefill", l, ask(self, "prefill", l))
  if plan.prune ~= "cache" then
    plan.first, plan.last = math.max(plan.first, l.past), math.max(plan.last, 1)
    if l.index == l.layers then
      if plan.prune == "hidden" then plan.keep = l.rows end
      plan.prune = "cache"
    end
  end
  return plan
end

---The trigger of a layer, or nil if it never fires. `track` is { history, reduce, heads, queries, x }.
---@param l pyramid.layer
---@return table?
function Asker:trigger(l)
  if not self.policy.definition.decode then return nil end
  local given = ask(self, "trigger", l)
  if given == nil then return nil end
  known("trigger", given, trigger_fields)
  local t = { every = given.every or 0, over = given.over or 0, window = given.window or 0, once = given.once and true or false,
    track = given.track and signal(score.program(given.track)) }
  for _, field in ipairs { "every", "over", "window" } do
    if t[field] < 0 then refuse(self, "trigger", l, field .. " is negative") end
  end
  if t.once and (t.every == 0 or t.over > 0) then refuse(self, "trigger", l, "once needs `every`, and not `over`") end
  if t.track and t.track.reduce == 2 then refuse(self, "trigger", l, "track cannot keep a maximum over queries") end
  if t.track and t.track.heads == 2 and l.heads ~= l.kv_heads then
    refuse(self, "trigger", l, "track cannot keep a maximum over the query heads of a K/V head; track their mean")
  end
  return t
end

---The plan of a trigger that fires.
---@param l pyramid.layer
---@param trigger table
---@return pyramid.testing.Plan
function Asker:decode(l, trigger)
  local plan = read_plan(self, "decode", l, ask(self, "decode", l))
  plan.prune = "cache"
  if trigger.once and plan.last > trigger.window then
    refuse(self, "decode", l, "guard.last exceeds the trigger's window, by which rows judged once are counted")
  end
  plan.last = math.max(plan.last, trigger.window)
  for at = 1, #(plan.program or ""), 12 do
    local code, _, _, queries = string.unpack(OP, plan.program, at)
    local track = trigger.track
    if code == ATTENTION and not (track and not track.history and track.queries == queries)
      or code == HISTORY and not (track and track.history) then
      refuse(self, "decode", l, "score ranks by attention that the trigger does not track")
    end
  end
  return plan
end

-- ---- what a plan means ---------------------------------------------------------------------------------------------

---Rows guarded at the front, chosen among the judged, and guarded at the end.
---@param plan pyramid.testing.Plan
---@param rows integer
---@return integer first, integer want, integer last
function plans.split(plan, rows)
  local first = math.min(plan.first, rows)
  local last = math.min(plan.last, rows - first)
  return first, math.min(math.max(plan.keep - first - last, 0), rows - first - last), last
end

---Rows that a plan leaves of `rows`.
---@param plan pyramid.testing.Plan
---@param rows integer
---@return integer
function plans.left(plan, rows)
  local first, want, last = plans.split(plan, rows)
  return first + want + last
end

---Steps until a trigger fires, seen `since` steps after it fired last, with `rows` rows; math.huge if never.
---@param trigger table?
---@param since integer
---@param rows integer
---@return number
function plans.steps_until(trigger, since, rows)
  local steps = math.huge
  if trigger and trigger.every > 0 then steps = math.max(trigger.every - since, 1) end
  if trigger and trigger.over > 0 then steps = math.min(steps, math.max(trigger.over + 1 - rows, 1)) end
  return steps
end

---@param index integer
---@param config { layers: integer, heads: integer, kv_heads: integer, head_dim: integer }
---@param l { prompt: integer, past: integer, rows: integer, waiting?: integer, tokens: integer }
---@return pyramid.layer
function plans.shape(index, config, l)
  return policy.shape(index, config.layers, l.prompt, l.past, l.rows, l.waiting or 0, l.tokens, config.heads, config.kv_heads,
    config.head_dim)
end

return plans

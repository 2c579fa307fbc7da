--- What a score program says of rows, in plain Lua: a stack of lists with one number for each judged row. Part of
--- pyramid.testing. An operation that the core learns is taught here by one entry of `operations`.
local plans = require "pyramid.testing.plans"

local scores = {}

---@class pyramid.testing.Group
---@field layer integer                from 1
---@field lanes table[]                the lanes that share a set: { head =, rows = judged positions }
---@field rows integer[]               the judged positions of the first of them
---@field attention fun(op: table): number[]   what the simulation remembers
---@field history fun(op: table): number[]
---@field key fun(head: integer, position: integer): number|number[]
---@field value fun(head: integer, position: integer): number|number[]

-- The core's codes, in order (pyr_score_code).
local names = { [0] = "attention", "history", "key_norm", "value_norm", "position", "random", "const", "add", "sub", "mul", "div",
  "pool", "normalize" }

local function each(list, f)
  local out = {}
  for i, x in ipairs(list) do out[i] = f(x, i) end
  return out
end

local function length(vector)
  if type(vector) == "number" then return math.abs(vector) end
  local sum = 0.0
  for _, x in ipairs(vector) do sum = sum + x * x end
  return sum ^ 0.5
end

-- The mean over lanes of f(head, position).
local function over_lanes(group, f)
  return each(group.rows, function(_, i)
    local sum = 0.0
    for _, lane in ipairs(group.lanes) do sum = sum + f(lane.head, lane.rows[i]) end
    return sum / #group.lanes
  end)
end

-- Uniform in [0, 1) from seed, layer and position: splitmix64, as in the core.
local function random(seed, layer, position)
  local z = ((seed & 0xffffffff) << 32 | layer - 1) * 0x9e3779b97f4a7c15
  z = z + (position + 1) * 0x9e3779b97f4a7c15
  z = (z ~ z >> 30) * 0xbf58476d1ce4e5b9
  z = (z ~ z >> 27) * 0x94d049bb133111eb
  return ((z ~ z >> 31) >> 40) * 2.0 ^ -24
end

local function pool(list, width, maximum)
  return each(list, function(_, i)
    local low, high = math.max(1, i - width // 2), math.min(#list, i + width // 2)
    local x = list[low]
    for j = low + 1, high do x = maximum and math.max(x, list[j]) or not maximum and x + list[j] or x end
    return maximum and x or x / (high - low + 1)
  end)
end

local function binary(f)
  return { pops = 2, run = function(_, _, a, b) return each(a, function(x, i) return f(x, b[i]) end) end }
end

-- By name: how many lists it takes off the stack, and what it puts there. op: a, b, n, x of the program.
local function key_length(group) return over_lanes(group, function(head, p) return length(group.key(head, p)) end) end
local function value_length(group) return over_lanes(group, function(head, p) return length(group.value(head, p)) end) end

local operations = {
  attention = { pops = 0, run = function(group, op) return group.attention(op) end },
  history = { pops = 0, run = function(group, op) return group.history(op) end },
  key_norm = { pops = 0, run = key_length },
  value_norm = { pops = 0, run = value_length },
  position = { pops = 0, run = function(group) return each(group.rows, function(p) return p + 0.0 end) end },
  random = { pops = 0, run = function(group, op) return each(group.rows, function(p) return random(op.n, group.layer, p) end) end },
  const = { pops = 0, run = function(group, op) return each(group.rows, function() return op.x end) end },
  add = binary(function(a, b) return a + b end),
  sub = binary(function(a, b) return a - b end),
  mul = binary(function(a, b) return a * b end),
  div = binary(function(a, b) return b == 0 and 0.0 or a / b end),
  pool = { pops = 1, run = function(_, op, a) return pool(a, op.n, op.a == 1) end },
  normalize = { pops = 1, run = function(_, _, a)
    local sum = 0.0
    for _, x in ipairs(a) do sum = sum + x end
    return sum == 0 and a or each(a, function(x) return x / sum end)
  end },
}

---The score of each judged row; without a program the newest rank highest.
---@param program string?
---@param group pyramid.testing.Group
---@return number[]
function scores.evaluate(program, group)
  if not program or program == "" then return operations.position.run(group) end
  local stack = {}
  for at = 1, #program, 12 do
    local code, a, b, n, x = string.unpack("<BBBxi4f", program, at)
    local operation = operations[names[code]]
    if not operation then plans.not_simulated(("the score operation '%s'"):format(names[code] or "code " .. code)) end
    local second = operation.pops == 2 and table.remove(stack) or nil
    local first = operation.pops >= 1 and table.remove(stack) or nil
    stack[#stack + 1] = operation.run(group, { a = a, b = b, n = n, x = x }, first, second)
  end
  return stack[1]
end

---Of `scored`, the places of the `want` highest, ascending; equal ones go to the lower place, NaN below all.
---@param scored number[]
---@param want integer
---@return integer[]
function scores.top(scored, want)
  local order = each(scored, function(_, i) return i end)
  table.sort(order, function(i, j)
    local a, b = scored[i], scored[j]
    if a ~= a then a = -math.huge end
    if b ~= b then b = -math.huge end
    if a ~= b then return a > b end
    return i < j
  end)
  local places = table.move(order, 1, want, 1, {})
  table.sort(places)
  return places
end

return scores

--- What a score program says of rows, in plain Lua: a stack of lists with one number for each
--- judged row. Part of pyramid.testing. An operation that the core learns is taught here by one
--- entry of `operations`.
---
--- The core's stack holds f32, and what f32 swallows changes which rows stay: 1e9 + 3 is 1e9 there,
--- for its neighbours are 64 apart. So each list is rounded to f32 when an operation has made it.
--- Within one operation numbers are doubles, and sums are taken in the order of rows, of lanes, of
--- query heads: the core sums in f32 in orders of its own (in parts, by the width of a vector), so
--- that its last bits are its own, and only scores that differ by less than these rank otherwise.
local plans = require "pyramid.testing.plans"
local policy = require "pyramid.policy"
local new_vector = require "pyramid.vector"

local scores = {}

---@class pyramid.testing.Group
---@field policy string                the name, for messages
---@field layer integer                from 1
---@field lanes table[]
---  the lanes that share a set: { head =, rows = judged positions, first = rows before them }
---@field held integer[][]             each KV head's positions, guarded ones among them
---@field rows integer[]               the judged positions of the first of the lanes
---@field each integer                 query heads a lane
---@field compact boolean              keys are rotated to places
---@field objects table                what the program refers to by number
---@field attention fun(op: table): number[]   what the simulation remembers
---@field history fun(op: table): number[]
---@field key fun(head: integer, position: integer): number|number[]
---@field value fun(head: integer, position: integer): number|number[]
---@field queries fun(): integer[]     the prompt's positions that reached the layer
---@field next integer                 the position behind them
---@field outputs? fun(layer: integer, head: integer, value: number|number[]): number
---@field expected? fun(layer: integer, head: integer, keys: table, how: table): number[]
---@field probed fun(layer: integer, head: integer, position: integer): number
---@field tokens fun(position: integer): integer|string|nil
---@field reduce fun(list: number[], how: integer): number

-- The core's codes, in order (pyr_score_code).
local names = { [0] = "attention", "history", "key_norm", "value_norm", "position", "random",
  "const", "add", "sub", "mul", "div", "pool", "normalize", "key_similarity", "expected", "lag",
    "output_norm", "table", "place", "softmax", "chunk", "top", "custom", "learned",
      "probed", "redundancy", "total", "map", "along", "centres", "tokens" }

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

local function list_of(x) return type(x) == "number" and { x } or x end

---A row's key or value with another's added.
---@param a number|number[]
---@param b number|number[]
---@return number|number[]
function scores.plus(a, b)
  if type(a) == "number" then return a + b end
  return each(a, function(x, i) return x + b[i] end)
end

---A key or value times a number.
---@param a number|number[]
---@param factor number
---@return number|number[]
function scores.times(a, factor)
  if type(a) == "number" then return a * factor end
  return each(a, function(x) return x * factor end)
end

local function cosine(a, b)
  local dot, size = 0.0, length(a) * length(b)
  a, b = list_of(a), list_of(b)
  for i, x in ipairs(a) do dot = dot + x * b[i] end
  return size > 0 and dot / size or 0.0
end

---Of the rows `kept` of a head, the one whose key is most similar to that of a row; nil if none is
---similar enough.
---@param group pyramid.testing.Group
---@param head integer
---@param position integer
---@param kept integer[]
---@param threshold number
---@return integer?
function scores.most_similar(group, head, position, kept, threshold)
  local best, target = -math.huge, nil
  for _, other in ipairs(kept) do
    local x = cosine(group.key(head, position), group.key(head, other))
    if x > best then best, target = x, other end
  end
  return best >= threshold and target or nil
end

-- Which way keys point is not known once they were rotated by more than what they were read with.
local function directions(group, what)
  if group.compact then plans.not_simulated(what .. " where keys are rotated to their places") end
end

-- Lists, one a lane, as their mean.
local function mean_of(lists)
  return each(lists[1], function(_, i)
    local sum = 0.0
    for _, list in ipairs(lists) do sum = sum + list[i] end
    return sum / #lists
  end)
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
    for j = low + 1, high do
      x = maximum and math.max(x, list[j]) or not maximum and x + list[j] or x
    end
    return maximum and x or x / (high - low + 1)
  end)
end

local function softmax(list)
  local top, sum = -math.huge, 0.0
  for _, x in ipairs(list) do top = math.max(top, x) end
  local out = each(list, function(x) return math.exp(x - top) end)
  for _, x in ipairs(out) do sum = sum + x end
  return each(out, function(x) return x / sum end)
end

local function chunk(list, width)
  return each(list, function(_, i)
    local from = (i - 1) // width * width + 1
    local to, sum = math.min(from + width - 1, #list), 0.0
    for j = from, to do sum = sum + list[j] end
    return sum / (to - from + 1)
  end)
end

-- The cosine of each key of a lane to the mean of all of them, each made of length 1.
local function similarities(group, lane)
  local sum
  for _, position in ipairs(lane.rows) do
    local key = group.key(lane.head, position)
    local size = length(key)
    local unit = scores.times(key, size > 0 and 1 / size or 0.0)
    sum = sum and scores.plus(sum, unit) or unit
  end
  return each(lane.rows, function(position) return cosine(group.key(lane.head, position), sum) end)
end

-- How like the other keys of the lane each judged row's key is.
local function redundancy(group, lane, threshold)
  local all, sums = group.held[lane.head], {}
  local units = each(all, function(position)
    local key = group.key(lane.head, position)
    local size = length(key)
    return list_of(scores.times(key, size > 0 and 1 / size or 0.0))
  end)
  for i in ipairs(all) do sums[i] = 0.0 end
  for i, unit in ipairs(units) do
    local last, alike
    for j, other in ipairs(units) do
      local dot = 0.0
      for c, x in ipairs(unit) do dot = dot + x * other[c] end
      if i ~= j then sums[i] = sums[i] + dot / #all end
      if i ~= j and dot > threshold then last, alike = j, dot end
    end
    if last then sums[last] = sums[last] - alike / #all end
  end
  return table.move(softmax(sums), lane.first + 1, lane.first + #lane.rows, 1, {})
end

-- Softmax over a run of rows of how far their channels spread, in the range that each has in the
-- run behind.
local function spreads(run, behind)
  local out = {}
  for i, row in ipairs(run) do
    local scaled, mean = {}, 0.0
    for c, x in ipairs(row) do
      local low, high = math.huge, -math.huge
      for _, other in ipairs(behind) do
        low, high = math.min(low, other[c]), math.max(high, other[c])
      end
      scaled[c] = high > low and (x - low) / (high - low) or 0.0
      mean = mean + scaled[c] / #row
    end
    local squares = 0.0
    for _, x in ipairs(scaled) do squares = squares + (x - mean) ^ 2 end
    out[i] = #row > 1 and (squares / (#row - 1)) ^ 0.5 or 0.0
  end
  return softmax(out)
end

local function lag(group, lane, size, ranked)
  local all, out = group.held[lane.head], {}
  local function run(from, source)
    local rows = {}
    for at = from, from + size - 1 do rows[#rows + 1] = list_of(source(lane.head, all[at])) end
    return rows
  end
  for from = lane.first + 1, lane.first + #lane.rows, size do
    local score = {}
    if from + 2 * size - 1 <= #all then
      local k = spreads(run(from, group.key), run(from + size, group.key))
      local v = spreads(run(from, group.value), run(from + size, group.value))
      score = each(k, function(x, i) return (x + v[i]) / 2 end)
      if ranked then
        local order = each(score, function(_, i) return i end)
        table.sort(order, function(i, j) return score[i] < score[j] or score[i] == score[j]
          and i < j end)
        for rank, i in ipairs(order) do score[i] = (rank - 1) / size end
      end
    end
    for i = 1, math.min(size, lane.first + #lane.rows - from + 1) do
      out[#out + 1] = score[i] or 1.0
    end
  end
  return out
end

-- What a custom score is shown of a lane, and what it makes of it.
local function custom(group, lane, object, inputs)
  local function rows(source) return new_vector(each(lane.rows,
    function(p) return list_of(source(lane.head, p)) end)) end
  local shown = { layer = group.layer, head = lane.head, rows = #lane.rows,
    positions = new_vector(lane.rows), keys = rows(group.key), values = rows(group.value) }
  for i, input in ipairs(inputs) do shown[object[i + 1]] = new_vector(input) end
  local ok, result = policy.call(object[1], object[1], shown)
  local function wrong(message)
    error(("policy %s, layer %d, prefill: %s"):format(group.policy, group.layer,
      tostring(message)), 0)
  end
  if not ok then wrong(result) end
  if type(result) == "userdata" then result = result:totable() end
  if type(result) ~= "table" or #result ~= #lane.rows then
    wrong(("a custom score is not one number for each of %d rows"):format(#lane.rows))
  end
  return result
end

-- A made-up token is an id or the name of a class.
local function among(group, op)
  local weights = group.objects[op.n].weights
  return each(group.rows, function(p) return weights[group.tokens(p) or false] or 0.0 end)
end

local function from_table(group, op)
  local values = group.objects[op.n]
  if values:columns() == 0 then return each(group.rows,
    function(p) return values[p + 1] or 0.0 end) end
  local mine = values[group.layer]
  return over_lanes(group, function(head) return mine and mine[head] or 0.0 end)
end

-- What queries to come are expected to give, head by head.
local function expected(group, op)
  if not group.expected then
    plans.not_simulated "expected attention, unless `expected` is given"
  end
  directions(group, "expected attention")
  local lists, all = {}, group.queries()
  local how = { queries = table.move(all, math.tointeger(op.x) + 1, #all, 1, {}),
    next = group.next, future = op.n, covariance = op.a == 1 }
  for _, lane in ipairs(group.lanes) do
    local keys = each(lane.rows, function(p) return group.key(lane.head, p) end)
    for i = 1, group.each do
      lists[#lists + 1] = softmax(group.expected(group.layer, (lane.head - 1) * group.each + i,
        keys, how))
    end
  end
  return each(group.rows, function(_, i)
    return group.reduce(each(lists, function(list) return list[i] end), op.b)
  end)
end

local function output_norm(group)
  if not group.outputs then
    plans.not_simulated "what values add to the output, unless `outputs` is given"
  end
  return over_lanes(group, function(head, p)
    local sum = 0.0
    for i = 1, group.each do
      sum = sum + group.outputs(group.layer, (head - 1) * group.each + i,
        group.value(head, p)) / group.each
    end
    return sum
  end)
end

local function binary(f)
  return { pops = 2, run = function(_, _, a, b) return each(a,
    function(x, i) return f(x, b[i]) end) end }
end

local function absolute(vector)
  local sum = 0.0
  for _, x in ipairs(list_of(vector)) do sum = sum + math.abs(x) end
  return sum
end

local function key_length(group, op)
  local norm = op.a == 1 and absolute or length
  return over_lanes(group, function(head, p) return norm(group.key(head, p)) end)
end
local function value_length(group, op)
  local norm = op.a == 1 and absolute or length
  return over_lanes(group, function(head, p) return norm(group.value(head, p)) end)
end

-- By name: how many lists it takes off the stack, and what it puts there. op: a, b, n, x of the
-- program.
local operations = {
  attention = { pops = 0, run = function(group, op) return group.attention(op) end },
  history = { pops = 0, run = function(group, op) return group.history(op) end },
  key_norm = { pops = 0, run = key_length },
  value_norm = { pops = 0, run = value_length },
  position = { pops = 0, run = function(group) return each(group.rows,
    function(p) return p + 0.0 end) end },
  random = { pops = 0, run = function(group, op) return each(group.rows,
    function(p) return random(op.n, group.layer, p) end) end },
  const = { pops = 0, run = function(group, op) return each(group.rows,
    function() return op.x end) end },
  add = binary(function(a, b) return a + b end),
  sub = binary(function(a, b) return a - b end),
  mul = binary(function(a, b) return a * b end),
  div = binary(function(a, b) return b == 0 and 0.0 or a / b end),
  pool = { pops = 1, run = function(_, op, a) return pool(a, op.n, op.a == 1) end },
  key_similarity = { pops = 0, run = function(group)
    directions(group, "the similarity of keys")
    return mean_of(each(group.lanes, function(lane) return similarities(group, lane) end))
  end },
  redundancy = { pops = 0, run = function(group, op)
    directions(group, "the redundancy of keys")
    return mean_of(each(group.lanes, function(lane) return redundancy(group, lane, op.x) end))
  end },
  lag = { pops = 0, run = function(group, op)
    directions(group, "lag")
    return mean_of(each(group.lanes, function(lane) return lag(group, lane, op.n, op.a == 1) end))
  end },
  expected = { pops = 0, run = expected },
  probed = { pops = 0, run = function(group)
    return over_lanes(group, function(head, p) return group.probed(group.layer, head, p) end)
  end },
  output_norm = { pops = 0, run = output_norm },
  along = { pops = 0, run = function() plans.not_simulated "vectors of a model's heads" end },
  centres = { pops = 0, run = function() plans.not_simulated "the queries of a model's heads" end },
  learned = { pops = 0, run = function() plans.not_simulated("hidden states, which a "
    .. "learned score reads") end },
  table = { pops = 0, run = from_table },
  tokens = { pops = 0, run = among },
  place = { pops = 0, run = function(group)
    return each(group.rows, function(_, i) return #group.rows > 1 and (i - 1) / (#group.rows - 1)
      or 1.0 end)
  end },
  softmax = { pops = 1, run = function(_, _, a) return softmax(a) end },
  chunk = { pops = 1, run = function(_, op, a) return chunk(a, op.n) end },
  top = { pops = 1, run = function(_, op, a)
    local out = each(a, function() return 0.0 end)
    for _, place in ipairs(scores.top(a, math.min(op.n, #a))) do out[place] = 1.0 end
    return out
  end },
  total = { pops = 1, run = function(_, op, a)
    local sum = a[1]
    for i = 2, #a do sum = op.a == 1 and math.max(sum, a[i]) or op.a ~= 1 and sum + a[i] or sum end
    return each(a, function() return sum end)
  end },
  map = { pops = 1, run = function(_, op, a)
    return each(a, function(x)
      if op.a == 0 then return math.log(math.max(x, 2.0 ^ -126)) end
      if op.a == 1 then return x > 0 and x ^ op.x or 0.0 end
      return x > op.x and 1.0 or 0.0
    end)
  end },
  custom = { run = function(group, op, inputs)
    directions(group, "a custom score")
    return mean_of(each(group.lanes, function(lane) return custom(group, lane, group.objects[op.n],
      inputs) end))
  end },
  normalize = { pops = 1, run = function(_, _, a)
    local sum = 0.0
    for _, x in ipairs(a) do sum = sum + x end
    return sum == 0 and a or each(a, function(x) return x / sum end)
  end },
}

local LARGEST = 0x1.fffffffp127                          -- what is beyond rounds to no f32
local RUN = 64                                           -- rounded at once
local formats = {}
for n = 1, RUN do formats[n] = "<" .. ("f"):rep(n) end

-- The numbers, each the nearest f32 (ties to even): what a stack in f32 makes of them. A new list,
-- as a signal's may be the caller's.
local function rounded(values)
  local out = {}
  for at = 1, #values, RUN do
    local n = math.min(RUN, #values - at + 1)
    local format = formats[n]
    table.move({ string.unpack(format, string.pack(format, table.unpack(values, at, at + n - 1))) },
      1, n, at, out)
  end
  return out
end

local function finite(values)
  for _, x in ipairs(values) do
    if not (x > -LARGEST and x < LARGEST) then return false end
  end
  return true
end

---The score of each judged row; without a program the newest rank highest. Nil where a value on the
---way is no finite number.
---@param program string?
---@param group pyramid.testing.Group
---@return number[]?
function scores.evaluate(program, group)
  if not program or program == "" then return operations.position.run(group) end
  local stack = {}
  for at = 1, #program, 12 do
    local code, a, b, n, x = string.unpack("<BBBxi4f", program, at)
    local operation = operations[names[code]]
    if not operation then
      plans.not_simulated(("the score operation '%s'"):format(names[code] or "code " .. code))
    end
    local made
    if names[code] == "custom" then
      local inputs = table.move(stack, #stack - a + 1, #stack, 1, {})
      for _ = 1, a do table.remove(stack) end
      made = operation.run(group, { n = n }, inputs)
    else
      local second = operation.pops == 2 and table.remove(stack) or nil
      local first = operation.pops >= 1 and table.remove(stack) or nil
      made = operation.run(group, { a = a, b = b, n = n, x = x }, first, second)
    end
    if not finite(made) then return nil end
    stack[#stack + 1] = rounded(made)
  end
  return stack[1]
end

---What a layer weighs: the mean of what a program leaves over the judged rows of all its lanes, a
---group each; sums and normalisation are over all of them, all else within a lane.
---@param program string
---@param groups pyramid.testing.Group[]
---@return number
function scores.weigh(program, groups)
  local stack = {}
  for at = 1, #program, 12 do
    local code, a, b, n, x = string.unpack("<BBBxi4f", program, at)
    local name = names[code]
    local operation, op = operations[name], { a = a, b = b, n = n, x = x }
    local second = operation.pops == 2 and table.remove(stack) or nil
    local first = operation.pops >= 1 and table.remove(stack) or nil
    local made = {}
    if name == "total" and a == 0 or name == "normalize" then   -- of all lanes, as of one
      local flat, from = {}, 0
      for _, list in ipairs(first) do table.move(list, 1, #list, #flat + 1, flat) end
      if #flat > 0 then flat = rounded(operation.run(nil, op, flat)) end
      for i, list in ipairs(first) do
        made[i] = table.move(flat, from + 1, from + #list, 1, {})
        from = from + #list
      end
    else
      for i, group in ipairs(groups) do
        made[i] = #group.rows == 0 and {} or rounded(operation.run(group, op, first and first[i],
          second and second[i]))
      end
    end
    stack[#stack + 1] = made
  end
  local sum, count = 0.0, 0
  for _, list in ipairs(stack[1]) do
    for _, y in ipairs(list) do sum, count = sum + y, count + 1 end
  end
  return count > 0 and sum / count or 0.0
end

---Of `scored`, the places of the `want` highest, ascending; equal ones go to the lower place, NaN
---below all.
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

-- What a score counts in a sum: a whole number of steps, of which the least power of two above the
-- highest has 2^36, so that sums are exact and a share of them is the same in any order.
local function weights_of(order)
  local largest, top, above = (2 - 2.0 ^ -23) * 2.0 ^ 127, 0.0, -200
  for _, row in ipairs(order) do
    if row.score > top then top = math.min(row.score, largest) end
  end
  while 2.0 ^ above <= top do above = above + 1 end
  for _, row in ipairs(order) do
    row.weight = row.score > 0 and math.floor(math.min(row.score, largest) * 2.0 ^ (36 - above))
      or 0
  end
end

---Of several lists of scores, the places of those that survive together, ascending, a list each:
---the `least` highest of each list, then the highest of all until there are `most` or, if a plan's
---mass > 0, until they hold that share of the sum of all; none below `above`, if the plan has one.
---@param lists number[][]
---@param least integer[]
---@param most integer
---@param plan { mass: number, above: number? }
---@return integer[][]
function scores.choose(lists, least, most, plan)
  local mass, above = plan.mass, plan.above or -math.huge
  above = ("f"):unpack(("f"):pack(above))
  local order, chosen, count, held, sum = {}, {}, 0, 0, 0
  for at, list in ipairs(lists) do
    chosen[at] = {}
    for place, x in ipairs(list) do
      order[#order + 1] = { at = at, place = place, score = x == x and x or -math.huge }
    end
  end
  table.sort(order, function(a, b)
    if a.score ~= b.score then return a.score > b.score end
    if a.at ~= b.at then return a.at < b.at end
    return a.place < b.place
  end)
  weights_of(order)
  local function take(row)
    row.taken, count, held = true, count + 1, held + row.weight
    table.insert(chosen[row.at], row.place)
  end
  for _, row in ipairs(order) do
    sum = sum + row.weight
    if #chosen[row.at] < least[row.at] then take(row) end
  end
  local target = mass == 0 and math.huge or mass == 1 and sum
    or math.min(sum, math.ceil(mass * (sum + 0.0)))
  for _, row in ipairs(order) do
    if not row.taken and count < most and held < target and row.score >= above then take(row) end
  end
  for _, places in ipairs(chosen) do table.sort(places) end
  return chosen
end

return scores

--- Schedules: pure functions from a layer's depth (0 for the first layer, below 1 for the last) to
--- a ratio.
---
---   local falling = schedule.cosine(1, 0.9)
---   falling(l.depth)
local schedule = {}

---From `from` at depth 0 towards `to` at depth 1 along half a cosine: slow, fast, slow
---(PyramidInfer's default).
---@param from number
---@param to number
---@return fun(depth: number): number
function schedule.cosine(from, to)
  return function(depth) return to + (from - to) * (math.cos(math.pi * depth) + 1) / 2 end
end

---From `from` at depth 0 towards `to` at depth 1 along a line.
---@param from number
---@param to number
---@return fun(depth: number): number
function schedule.linear(from, to)
  return function(depth) return to + (from - to) * (1 - depth) end
end

---`from` below depth `at`, `to` from there on.
---@param from number
---@param to number
---@param at number
---@return fun(depth: number): number
function schedule.step(from, to, at)
  return function(depth) return depth < at and from or to end
end

---The same ratio everywhere.
---@param ratio number
---@return fun(depth: number): number
function schedule.constant(ratio)
  return function() return ratio end
end

---One ratio for each equal share of the depth: with as many values as layers, one for each layer.
---@param ratios number[]
---@return fun(depth: number): number
function schedule.table(ratios)
  assert(type(ratios) == "table" and #ratios > 0, "schedule.table: a list of ratios is wanted")
  local copy = table.move(ratios, 1, #ratios, 1, {})
  return function(depth) return copy[math.min(math.floor(depth * #copy + 1e-9) + 1, #copy)] end
end

setmetatable(schedule, { __index = function(_, name)
  local known = {}
  for key in pairs(schedule) do known[#known + 1] = key end
  table.sort(known)
  error(("schedule: unknown schedule '%s' (known: %s)"):format(tostring(name),
    table.concat(known, ", ")), 2)
end })

return schedule

-- H2O (arXiv 2306.14048): each KV head keeps its heavy hitters, the rows that all queries so far
-- attended to most, and as many recent rows; while text is generated, the lightest row leaves
-- whenever the budget is passed.
local policy, score = require "pyramid.policy", require "pyramid.score"

local function recent(o, _, budget) return math.ceil(budget * o.recent) end
local function history() return score.history() end

return policy.scorer {
  name = "h2o",
  doc = "heavy hitters by accumulated attention, and recent rows",
  generates = true,
  slack = 0,
  defaults = { recent = 0.5 },
  limits = { recent = { 0, 1 } },
  floor = function() return 2 end,
  guard = function(o, l, budget) return { last = recent(o, l, budget) } end,
  window = recent,
  score = history,
  track = history,
}

-- D2O (arXiv 2406.13035), simplified: each KV head keeps sinks, recent rows and its heavy hitters
-- by accumulated attention; a row that goes is averaged into the most similar row that stays, if
-- their keys are similar enough. (The paper also gives layers budgets by the variance of their
-- attention, and adapts the threshold.)
local policy, score = require "pyramid.policy", require "pyramid.score"

local function recent(o, _, budget) return math.ceil((budget - o.sinks) * o.recent) end
local function history() return score.history() end

return policy.scorer {
  name = "d2o",
  doc = "heavy hitters and recent rows; what goes is merged into what is similar",
  generates = true,
  defaults = { recent = 0.5, sinks = 4, threshold = 0.6 },
  limits = { recent = { 0, 1 }, threshold = { -1, 1 } },
  floor = function(o) return o.sinks + 2 end,
  guard = function(o, l, budget) return { first = o.sinks, last = recent(o, l, budget) } end,
  window = recent,
  score = history,
  track = history,
  more = function(o) return { merge = { threshold = o.threshold } } end,
}

-- D2O (arXiv 2406.13035), simplified: each KV head keeps sinks, recent rows and its heavy hitters
-- by accumulated attention; a row that goes is averaged into the most similar row that stays, if
-- their keys are similar enough. (The paper also gives layers budgets by the variance of their
-- attention, and adapts the threshold.)
local policy, score = require "pyramid.policy", require "pyramid.score"

local function budget(o, l)
  return math.max(o.rows > 0 and o.rows or l.past + math.ceil(o.ratio * l.prompt), o.sinks + 2)
end

local function recent(o, l) return math.ceil((budget(o, l) - o.sinks) * o.recent) end

local function plan(o, l)
  return { keep = math.min(budget(o, l), l.rows), guard = { first = o.sinks, last = recent(o, l) },
    score = score.history(), share = "head", merge = { threshold = o.threshold } }
end

return policy {
  name = "d2o",
  doc = "heavy hitters and recent rows; what goes is merged into what is similar",
  -- slack: rows over it before a cut
  defaults = { ratio = 0.5, rows = 0, recent = 0.5, sinks = 4, threshold = 0.6, slack = 15 },
  limits = { ratio = { 0, 1 }, rows = { 0 }, recent = { 0, 1 }, sinks = { 0 },
    threshold = { -1, 1 }, slack = { 0 } },
  fit = "ratio",
  prefill = plan,
  trigger = function(o, l) return { over = budget(o, l) + o.slack, window = recent(o, l),
    track = score.history() } end,
  decode = plan,
}

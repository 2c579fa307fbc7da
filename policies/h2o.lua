-- H2O (arXiv 2306.14048): each KV head keeps its heavy hitters, the rows that all queries so far
-- attended to most, and as many recent rows; while text is generated, the lightest row leaves
-- whenever the budget is passed.
local policy, score = require "pyramid.policy", require "pyramid.score"

local function budget(o, l)
  return math.max(o.rows > 0 and o.rows or l.past + math.ceil(o.ratio * l.prompt), 2)
end

local function recent(o, l) return math.ceil(budget(o, l) * o.recent) end

local function plan(o, l)
  return { keep = math.min(budget(o, l), l.rows), guard = { last = recent(o, l) },
    score = score.history(), share = "head" }
end

return policy {
  name = "h2o",
  doc = "heavy hitters by accumulated attention, and recent rows",
  -- slack: rows over the budget before a cut
  defaults = { ratio = 0.5, rows = 0, recent = 0.5, slack = 0 },
  limits = { ratio = { 0, 1 }, rows = { 0 }, recent = { 0, 1 }, slack = { 0 } },
  fit = "ratio",
  prefill = plan,
  trigger = function(o, l) return { over = budget(o, l) + o.slack, window = recent(o, l),
    track = score.history() } end,
  decode = plan,
}

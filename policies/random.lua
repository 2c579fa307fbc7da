-- Rows drawn by lot, the same for the same seed: what any other policy must beat.
local policy, score = require "pyramid.policy", require "pyramid.score"

local function budget(o, l)
  return math.max(o.rows > 0 and o.rows or l.past + math.ceil(o.ratio * l.prompt),
    o.sinks + o.recent, 1)
end

local function plan(o, l)
  return { keep = math.min(budget(o, l), l.rows), guard = { first = o.sinks, last = o.recent },
    score = score.random(o.seed) }
end

return policy {
  name = "random",
  doc = "rows by lot, sinks and recent rows beside them",
  defaults = { ratio = 0.5, rows = 0, sinks = 0, recent = 1, seed = 0, slack = 15 },
  limits = { ratio = { 0, 1 }, rows = { 0 }, sinks = { 0 }, recent = { 0 },
    seed = { 0, 0x7fffffff }, slack = { 0 } },
  fit = "ratio",
  prefill = plan,
  trigger = function(o, l) return { over = budget(o, l) + o.slack } end,
  decode = plan,
}

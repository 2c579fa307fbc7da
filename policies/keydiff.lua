-- KeyDiff (arXiv 2504.15364): each KV head keeps the rows whose keys are least like the mean of all
-- keys, in the prompt and again while text is generated. No attention is looked at.
local policy, score = require "pyramid.policy", require "pyramid.score"

local function budget(o, l)
  return math.max(o.rows > 0 and o.rows or l.past + math.ceil(o.ratio * l.prompt),
    o.sinks + o.recent, 1)
end

local function plan(o, l)
  return { keep = math.min(budget(o, l), l.rows), guard = { first = o.sinks, last = o.recent },
    score = -score.key_similarity(), share = "head" }
end

return policy {
  name = "keydiff",
  doc = "per head, the rows whose keys differ most from the mean key",
  defaults = { ratio = 0.5, rows = 0, sinks = 0, recent = 0, slack = 15 },
  limits = { ratio = { 0, 1 }, rows = { 0 }, sinks = { 0 }, recent = { 0 }, slack = { 0 } },
  fit = "ratio",
  prefill = plan,
  trigger = function(o, l) return { over = budget(o, l) + o.slack } end,
  decode = plan,
}

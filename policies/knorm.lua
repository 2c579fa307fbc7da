-- L2 norm (arXiv 2406.11430): rows whose keys are short are the ones that attention goes to. Each
-- KV head keeps the shortest keys; the paper leaves the first two layers whole (`whole = 2`). While
-- text is generated, the longest key leaves.
local policy, score = require "pyramid.policy", require "pyramid.score"

local function budget(o, l)
  return math.max(o.rows > 0 and o.rows or l.past + math.ceil(o.ratio * l.prompt),
    o.sinks + o.recent, 1)
end

local function plan(o, l)
  if l.index <= o.whole then return end
  return { keep = math.min(budget(o, l), l.rows), guard = { first = o.sinks, last = o.recent },
    score = -score.key_norm(), share = "head" }
end

return policy {
  name = "knorm",
  doc = "per head, the rows of the shortest keys",
  defaults = { ratio = 0.5, rows = 0, sinks = 0, recent = 0, whole = 0, slack = 15 },
  limits = { ratio = { 0, 1 }, rows = { 0 }, sinks = { 0 }, recent = { 0 }, whole = { 0 },
    slack = { 0 } },
  fit = "ratio",
  prefill = plan,
  trigger = function(o, l) return { over = budget(o, l) + o.slack } end,
  decode = plan,
}

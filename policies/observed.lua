-- Observed attention (related to H2O, arXiv 2306.14048): once, after the prompt, each KV head keeps
-- the rows of the highest mean attention, over the queries that could see them; so that old rows
-- are not ahead by their age alone.
local policy, score = require "pyramid.policy", require "pyramid.score"

return policy {
  name = "observed",
  doc = "per head, what the queries that see a row give it on average",
  defaults = { ratio = 0.5, rows = 0, sinks = 0, recent = 0, heads = "mean" },
  limits = { ratio = { 0, 1 }, rows = { 0 }, sinks = { 0 }, recent = { 0 },
    heads = { "mean", "sum", "max" } },
  fit = "ratio",
  prefill = function(o, l)
    local budget = math.max(o.rows > 0 and o.rows or l.past + math.ceil(o.ratio * l.prompt),
      o.sinks + o.recent, 1)
    return {
      keep = math.min(budget, l.rows),
      guard = { first = o.sinks, last = o.recent },
      score = score.attention { reduce = "sum", heads = o.heads } / (l.tokens - score.position()),
      share = "head",
    }
  end,
}

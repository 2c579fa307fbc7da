-- Observed attention (related to H2O, arXiv 2306.14048): once, after the prompt, each KV head keeps
-- the rows of the highest mean attention, over the queries that could see them; so that old rows
-- are not ahead by their age alone.
local policy, score = require "pyramid.policy", require "pyramid.score"

return policy.scorer {
  name = "observed",
  doc = "per head, what the queries that see a row give it on average",
  defaults = { sinks = 0, recent = 0, heads = "mean" },
  score = function(o, l)
    return score.attention { reduce = "sum", heads = o.heads } / (l.tokens - score.position())
  end,
}

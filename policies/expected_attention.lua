-- Expected Attention (arXiv 2510.00636): once, after the prompt, each KV head keeps the rows that
-- queries to come are expected to read most from: the attention that they would get from queries as
-- the prompt's were, times what they hold.
local policy, score = require "pyramid.policy", require "pyramid.score"

return policy {
  name = "expected_attention",
  doc = "per head, what queries yet to come should look at",
  defaults = { ratio = 0.5, rows = 0, sinks = 4, recent = 0, future = 512, covariance = true,
    epsilon = 0.0 },
  limits = { ratio = { 0, 1 }, rows = { 0 }, sinks = { 0 }, recent = { 0 }, future = { 1, 65536 },
    epsilon = { 0 } },
  fit = "ratio",
  prefill = function(o, l)
    local budget = math.max(o.rows > 0 and o.rows or l.past + math.ceil(o.ratio * l.prompt),
      o.sinks + o.recent, 1)
    local expected = score.expected { future = o.future, sinks = o.sinks,
      covariance = o.covariance }
    return {
      keep = math.min(budget, l.rows),
      guard = { first = o.sinks, last = o.recent },
      score = (expected + o.epsilon) * score.value_norm(),
      share = "head",
    }
  end,
}

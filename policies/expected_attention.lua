-- Expected Attention (arXiv 2510.00636): once, after the prompt, each KV head keeps the rows that
-- queries to come are expected to read most from: the attention that they would get from queries as
-- the prompt's were, times what they hold.
local policy, score = require "pyramid.policy", require "pyramid.score"

return policy.scorer {
  name = "expected_attention",
  doc = "per head, what queries yet to come should look at",
  defaults = { sinks = 4, recent = 0, future = 512, covariance = true, epsilon = 0.0 },
  limits = { future = { 1, 65536 }, epsilon = { 0 } },
  score = function(o)
    local expected = score.expected { future = o.future, sinks = o.sinks,
      covariance = o.covariance }
    return (expected + o.epsilon) * score.value_norm()
  end,
}

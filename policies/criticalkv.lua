-- CriticalKV (arXiv 2502.03805), over SnapKV's score: a part of each KV head's budget goes to the
-- rows of highest attention, the rest by attention times the length of what a row adds to the
-- residual stream, |W_o v|.
local policy, score = require "pyramid.policy", require "pyramid.score"

return policy.scorer {
  name = "criticalkv",
  doc = "per head, attention weighed by what a row's value does to the output",
  defaults = { window = 32, kernel = 7, pool = "max", first = 0.5, epsilon = 1e-4 },
  limits = { first = { 0, 1 }, epsilon = { 0 } },
  looks = function(_, queries) return score.attention { queries = queries } end,
  score = function(o, l, keep, seen)
    local window = math.min(o.window, l.rows)
    seen = seen:pool(o.pool, o.kernel)
    -- the window is of the first part
    local by_attention = math.max(math.floor(keep * o.first) - window, 0)
    return seen:top(by_attention) * 1e9 + (seen + o.epsilon) * score.output_norm()
  end,
}

-- R-KV (arXiv 2505.24133): each KV head keeps recent rows, and of the others those that the last
-- queries look at and whose keys are unlike the rest; of keys that are alike the last one stays. In
-- the prompt, and again whenever `slack` rows more are held. Attention is a softmax over all rows
-- (the authors' is over those before the window) and, while text is generated, a mean over a KV
-- head's query heads, not their highest. The authors judge generated text only; here the prompt is
-- judged, too.
local policy, score = require "pyramid.policy", require "pyramid.score"

local function ranked(o, heads)
  local seen = score.attention { queries = o.window, heads = heads }
  return seen:normalize():pool("max", o.kernel) * o.lambda
    - score.redundancy { threshold = o.threshold } * (1 - o.lambda)
end

return policy.scorer {
  name = "rkv",
  doc = "per head, what the last queries look at and what says something new",
  generates = true,
  slack = 128,
  defaults = { window = 8, kernel = 7, lambda = 0.07, threshold = 0.5 },
  limits = { lambda = { 0, 1 }, threshold = { -1, 1 } },
  guard = function(o, l) return { last = math.min(o.window, l.rows) } end,
  window = function(o) return o.window end,
  score = function(o) return ranked(o, "max") end,
  track = function(o) return score.attention { queries = o.window } end,
  decode = function(o) return ranked(o, "mean") end,
}

-- KeyDiff (arXiv 2504.15364): each KV head keeps the rows whose keys are least like the mean of all
-- keys, in the prompt and again while text is generated. No attention is looked at.
local policy, score = require "pyramid.policy", require "pyramid.score"

return policy.scorer {
  name = "keydiff",
  doc = "per head, the rows whose keys differ most from the mean key",
  generates = true,
  defaults = { sinks = 0, recent = 0 },
  score = function() return -score.key_similarity() end,
}

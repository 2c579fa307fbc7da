-- L2 norm (arXiv 2406.11430): rows whose keys are short are the ones that attention goes to. Each
-- KV head keeps the shortest keys; the paper leaves the first two layers whole (`whole = 2`). While
-- text is generated, the longest key leaves.
local policy, score = require "pyramid.policy", require "pyramid.score"

return policy.scorer {
  name = "knorm",
  doc = "per head, the rows of the shortest keys",
  generates = true,
  defaults = { sinks = 0, recent = 0, whole = 0 },
  score = function() return -score.key_norm() end,
}

-- Rows drawn by lot, the same for the same seed: what any other policy must beat.
local policy, score = require "pyramid.policy", require "pyramid.score"

return policy.scorer {
  name = "random",
  doc = "rows by lot, sinks and recent rows beside them",
  generates = true,
  defaults = { sinks = 0, recent = 1, seed = 0 },
  share = "layer",
  score = function(o) return score.random(o.seed) end,
}

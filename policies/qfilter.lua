-- Q-Filters (arXiv 2503.02812): each KV head keeps the rows whose keys go furthest along the main
-- direction of the head's queries, in the prompt and again while text is generated. Directions are
-- a model's own: `pyramid calibrate --centres` takes them from plain text. Without them the rows
-- whose keys are unlike all others stay, as under keydiff. No attention is looked at.
local maps, policy, score = require "pyramid.maps", require "pyramid.policy",
  require "pyramid.score"

local unlike = -score.key_similarity()

return policy.scorer {
  name = "qfilter",
  doc = "per head, the rows whose keys go along the main direction of queries",
  generates = true,
  defaults = { map = "", sinks = 0, recent = 0 },
  score = function(o) return o.map ~= "" and maps.along(o.map) or unlike end,
}

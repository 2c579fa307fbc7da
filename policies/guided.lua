-- A small model's attention picks what a large one keeps, and, with `prune`, what its deeper layers
-- compute at all:
--
--   local draft = small:cache { policy = "guide" }
--   draft:prefill(ids)
--   local cache = large:cache { policy = pyramid.policy("guided", { by = score.from(draft) }) }
--
-- Both must have read the same tokens. Without `by`, the newest rows stay.
local policy, score = require "pyramid.policy", require "pyramid.score"

return policy.scorer {
  name = "guided",
  doc = "what another model's cache says of each position",
  defaults = { by = score.position(), sinks = 4, recent = 32, kernel = 13, prune = "both" },
  limits = { recent = { 1 }, prune = { "cache", "hidden", "both" } },
  share = "layer",
  score = function(o) return o.by:pool("max", o.kernel) end,
  more = function(o) return { prune = o.prune } end,
}

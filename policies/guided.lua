-- A small model's attention picks what a large one keeps, and, with `prune`, what its deeper layers
-- compute at all:
--
--   local draft = small:cache { policy = "guide" }
--   draft:prefill(ids)
--   local cache = large:cache { policy = pyramid.policy("guided", { by = score.from(draft) }) }
--
-- Both must have read the same tokens. Without `by`, the newest rows stay.
local policy, score = require "pyramid.policy", require "pyramid.score"

return policy {
  name = "guided",
  doc = "what another model's cache says of each position",
  defaults = { by = score.position(), ratio = 0.5, rows = 0, sinks = 4, recent = 32, kernel = 13,
    prune = "both" },
  limits = { ratio = { 0, 1 }, rows = { 0 }, sinks = { 0 }, recent = { 1 }, kernel = { 1, 63, 2 },
    prune = { "cache", "hidden", "both" } },
  fit = "ratio",
  prefill = function(o, l)
    local budget = math.max(o.rows > 0 and o.rows or l.past + math.ceil(o.ratio * l.prompt),
      o.sinks + o.recent)
    return { keep = math.min(budget, l.rows), guard = { first = o.sinks, last = o.recent },
      score = o.by:pool("max", o.kernel), prune = o.prune }
  end,
}

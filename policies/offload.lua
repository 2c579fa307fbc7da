-- Sinks and recent rows stay hot, all others go down a tier of the cache, of fewer bits or in a
-- file, and each step reads the best pages of all tiers: the placement of InfLLM (arXiv 2402.04617)
-- with the ranking of `signs`. The rest comes down in order, so that its pages are stretches of the
-- text, of whose digests much can be told. The first layers, where attention is spread over all
-- rows, stay hot as they are, and are read whole. Of a cache without that tier the others are
-- `streaming`'s.
local policy, score = require "pyramid.policy", require "pyramid.score"

local nearby = policy.scorer {
  name = "offload",
  doc = "recent rows stay hot, the rest goes down a tier; a step reads the best pages of all",
  generates = true,
  defaults = { ratio = 0.2, sinks = 4, recent = 64, read = 1024, whole = 2 },
  limits = { read = { 1 }, whole = { 0 }, sinks = { 0 }, recent = { 1 } },
  share = "layer",
  floor = function(o) return o.sinks + 1 end,
  guard = function(o, l, budget)
    return { first = o.sinks, last = math.max(math.min(budget, l.rows) - o.sinks, 1) }
  end,
  more = function(o)
    return { read = { rows = o.read, by = score.signs(),
      guard = { first = o.sinks, last = o.recent } } }
  end,
}

return policy.named("offload", policy.demote(nearby, "warm"), nearby.definition.doc)

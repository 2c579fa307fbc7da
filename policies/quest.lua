-- Quest (arXiv 2406.10774): nothing is evicted; each step reads the pages whose keys might matter
-- most to its query, by the bounds of their channels, and the first layers, where attention is
-- spread over all rows, are read whole. The authors' pages have 16 rows, ours 32.
local policy, score = require "pyramid.policy", require "pyramid.score"

return policy {
  name = "quest",
  doc = "all rows stay; a step reads the pages that its query might look at",
  defaults = { rows = 1024, whole = 2, sinks = 4, recent = 32 },
  limits = { rows = { 1 }, whole = { 0 }, sinks = { 0 }, recent = { 1 } },
  decode = function(o, l)
    if l.index <= o.whole then return nil end
    return { read = { rows = o.rows, by = score.bound(),
      guard = { first = o.sinks, last = o.recent } } }
  end,
}

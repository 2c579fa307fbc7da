-- Pages by the signs of their keys (RaBitQ, arXiv 2405.12497, of which this takes the estimate of a
-- product, not the index): nothing is evicted; each step reads the pages in one of whose keys its
-- query is estimated to find the most. A key takes a bit a channel, so that one row that stands out
-- is seen among 31 that do not, which bounds and means of a page hide. The first layers, where
-- attention is spread over all rows, are read whole, as Quest reads them.
local policy, score = require "pyramid.policy", require "pyramid.score"

return policy {
  name = "signs",
  doc = "all rows stay; a step reads pages by one bit a channel of each key",
  defaults = { rows = 1024, whole = 2, sinks = 4, recent = 64 },
  limits = { rows = { 1 }, whole = { 0 }, sinks = { 0 }, recent = { 1 } },
  decode = function(o, l)
    if l.index <= o.whole then return nil end
    return { read = { rows = o.rows, by = score.signs(),
      guard = { first = o.sinks, last = o.recent } } }
  end,
}

-- StreamingLLM (arXiv 2309.17453): the first rows, which attention uses as sinks, and the most
-- recent ones. Positions stay as they were read, or, with `rotate`, become those within the cache,
-- and generation goes on past the model's context.
local policy = require "pyramid.policy"

return policy.scorer {
  name = "streaming",
  doc = "attention sinks and a sliding window",
  generates = true,
  defaults = { sinks = 4, rotate = false },
  share = "layer",
  floor = function(o) return o.sinks + 1 end,
  guard = function(o, l, budget)
    return { first = o.sinks, last = math.max(math.min(budget, l.rows) - o.sinks, 1) }
  end,
  more = function(o) return { rotate = o.rotate and "compact" or "keep" } end,
}

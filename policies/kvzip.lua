-- KVzip (arXiv 2505.23416): the prompt is read a second time, in blocks that repeat it, and what a
-- repetition looks at, in any query and any head, is what any question will need. The rows of all
-- layers and heads compete for one budget, with `uniform` those of each layer for its own.
local policy, score = require "pyramid.policy", require "pyramid.score"

local track, seen = score.attention { reduce = "max", heads = "max" }, score.probed()

return policy.scorer {
  name = "kvzip",
  doc = "what a second reading that repeats the text looks at; one budget for all layers and heads",
  defaults = { ratio = 0.3, block = 2048, cue = 8, sinks = 4, recent = 0, uniform = false },
  limits = { block = { 1 }, cue = { 0 } },
  prepare = function(o)
    return { track = track, block = o.block, among = "block", sinks = o.sinks,
      first = { "\n\nRepeat the previous context exactly.", "\n" },
      lead = { "\n\nRepeat the part of the previous context exactly, starting with", o.cue, "\n" } }
  end,
  score = function() return seen end,
  more = function(o) return { share = o.uniform and "pool" or "model" } end,
}

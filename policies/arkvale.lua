-- ArkVale (NeurIPS 2024): a page is known by a volume around its keys, here a ball: their mean and
-- the distance of the farthest. Each step reads the pages in whose volumes its query might find the
-- most. The paper moves the others out of the device's memory and recalls them when they are
-- picked; here they stay where they are.
local policy, score = require "pyramid.policy", require "pyramid.score"

return policy {
  name = "arkvale",
  doc = "all rows stay; a step reads pages by a ball around their keys",
  defaults = { rows = 1024, whole = 2, sinks = 32, recent = 64 },
  limits = { rows = { 1 }, whole = { 0 }, sinks = { 0 }, recent = { 1 } },
  decode = function(o, l)
    if l.index <= o.whole then return nil end
    return { read = { rows = o.rows, by = score.ball(),
      guard = { first = o.sinks, last = o.recent } } }
  end,
}

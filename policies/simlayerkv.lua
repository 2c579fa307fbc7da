-- SimLayerKV (arXiv 2410.13846): a layer is lazy if the prompt's last queries give the first rows
-- and the most recent ones more than `lazy` of their attention. A lazy layer keeps these rows
-- alone, every other layer all rows; so how much is saved follows the text. `recent` counts the
-- window of those queries in.
local policy, score = require "pyramid.policy", require "pyramid.score"

return policy {
  name = "simlayerkv",
  doc = "layers that look at first and recent rows alone keep those; the others keep all",
  defaults = { lazy = 0.9, window = 32, sinks = 4, recent = 1024 },
  limits = { lazy = { 0, 1 }, window = { 1 }, sinks = { 0 }, recent = { 1 } },
  prefill = function(o, l)
    if l.rows <= o.sinks + o.recent then return nil end
    local others = score.attention { queries = math.min(o.window, l.rows) }:sum()
    return { mass = 1, guard = { first = o.sinks, last = o.recent },
      score = (1 - others):above(o.lazy) * -1 + 1 }
  end,
}

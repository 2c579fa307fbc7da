-- FastKV (arXiv 2502.01068): one layer in the middle hands only the tokens on that the prompt's
-- last queries look at, so that the deeper half computes a fifth; how many rows are held is a
-- budget apart. The rows are SnapKV's choice, of a narrow window. The layer that hands on keeps in
-- its own cache what it hands on, one set for all heads, where the authors' code cuts that by head.
local policy, score = require "pyramid.policy", require "pyramid.score"

local function hands_on(o, l) return l.index == math.floor(o.at * l.layers) end

return policy.scorer {
  name = "fastkv",
  doc = "a layer in the middle hands on what the last queries look at, and each keeps few rows",
  defaults = { ratio = 0.1, handed = 0.2, at = 0.5, window = 8, kernel = 7 },
  limits = { handed = { 0, 1 }, at = { 0, 1 } },
  guard = function(o, l) return { last = math.min(o.window, l.rows) } end,
  budget = function(o, l)
    if o.rows > 0 and not hands_on(o, l) then return o.rows end
    return l.past + math.floor((hands_on(o, l) and o.handed or o.ratio) * l.prompt)
  end,
  score = function(o, l)
    return score.attention { queries = math.min(o.window, l.rows) }:pool("avg", o.kernel)
  end,
  more = function(o, l)
    return hands_on(o, l) and { share = "layer", prune = "both" } or {}
  end,
}

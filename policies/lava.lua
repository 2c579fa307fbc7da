-- LAVa (arXiv 2509.09754): a row is worth the attention of the prompt's last queries, times the
-- largest value of its head (L1). The rows of all heads of a layer compete, and layers divide the
-- budget in proportion to the entropy of these scores: who has many rows of like worth gets more.
-- Layers that have read are cut again as later ones are read.
local policy, score = require "pyramid.policy", require "pyramid.score"

local function worth(o, l)
  return score.attention { queries = math.min(o.window, l.rows), heads = o.heads }:pool(o.pool,
    o.kernel) * score.value_norm { power = 1 }:max()
end

return policy.scorer {
  name = "lava",
  doc = "attention times the head's largest value; layers divide the budget by their entropy",
  defaults = { window = 32, kernel = 7, pool = "max", heads = "max" },
  share = "pool",
  guard = function(o, l) return { last = math.min(o.window, l.rows) } end,
  score = worth,
  more = function(o, l)
    local share = worth(o, l):normalize()
    return { weight = -(share * share:log()):sum() }
  end,
}

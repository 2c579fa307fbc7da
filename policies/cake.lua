-- CAKE (arXiv 2503.12491): rows are ranked per head by what the prompt's last queries give them on
-- average and by how that changes from query to query (`gamma`); and layers divide the budget by
-- how widely their attention is spread (entropy) and how much it shifts (variance). Layers that
-- have read are cut again as later ones are read. `tau1` and `tau2` temper the two; the authors
-- chose them for each model (0.4 to 3).
local policy, score = require "pyramid.policy", require "pyramid.score"

return policy.scorer {
  name = "cake",
  doc = "per head, attention and its variance; layers divide the budget by entropy and variance",
  defaults = { window = 32, kernel = 5, gamma = 200.0, tau1 = 1.0, tau2 = 1.0 },
  limits = { gamma = { 0 }, tau1 = { 0.1 }, tau2 = { 0.1 } },
  guard = function(o, l) return { last = math.min(o.window, l.rows) } end,
  score = function(o, l)
    local window = math.min(o.window, l.rows)
    return (score.attention { queries = window } + o.gamma * score.attention { queries = window,
      reduce = "variance" }):pool("avg", o.kernel)
  end,
  more = function(o, l)
    local function sum(reduce)
      return score.attention { queries = math.min(o.window, l.rows), reduce = reduce,
        heads = "sum" }:sum()
    end
    return { weight = sum "entropy":power(1 / o.tau1) * sum "variance":power(1 / o.tau2) }
  end,
}

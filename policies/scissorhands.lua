-- Scissorhands (arXiv 2305.17118): what was pivotal stays pivotal. Each KV head keeps recent rows,
-- and of the others those that the last `history` queries attended to most; while text is generated
-- these fade, so that about as many count. (The paper counts, over that window, how often a row had
-- less than its even share; this sums what it had.)
local policy, score = require "pyramid.policy", require "pyramid.score"

local function recent(o, _, budget) return math.ceil(budget * o.recent) end

return policy.scorer {
  name = "scissorhands",
  doc = "per head, what recent queries attended to, and recent rows",
  generates = true,
  defaults = { recent = 0.2, history = 400 },
  limits = { recent = { 0, 1 }, history = { 1 } },
  floor = function() return 2 end,
  guard = function(o, l, budget) return { last = recent(o, l, budget) } end,
  window = recent,
  score = function(o) return score.attention { queries = o.history, reduce = "sum" } end,
  track = function(o) return score.history { decay = 1 - 1 / o.history } end,
}

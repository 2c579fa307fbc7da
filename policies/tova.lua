-- TOVA (arXiv 2401.06104): all heads of a layer keep the rows that the newest query attends to most
-- on average; while text is generated, the row that it attends to least leaves whenever there are
-- too many.
local policy, score = require "pyramid.policy", require "pyramid.score"

local function last_query() return score.attention { queries = 1 } end

return policy.scorer {
  name = "tova",
  doc = "per layer, what the newest query looks at",
  generates = true,
  slack = 0,
  share = "layer",
  guard = function() return { last = 1 } end,
  window = function() return 1 end,
  score = last_query,
  track = last_query,
}

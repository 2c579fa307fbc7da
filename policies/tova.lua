-- TOVA (arXiv 2401.06104): all heads of a layer keep the rows that the newest query attends to most
-- on average; while text is generated, the row that it attends to least leaves whenever there are
-- too many.
local policy, score = require "pyramid.policy", require "pyramid.score"

local function budget(o, l)
  return math.max(o.rows > 0 and o.rows or l.past + math.ceil(o.ratio * l.prompt), 1)
end

local function plan(o, l)
  return { keep = math.min(budget(o, l), l.rows), guard = { last = 1 },
    score = score.attention { queries = 1 } }
end

return policy {
  name = "tova",
  doc = "per layer, what the newest query looks at",
  defaults = { ratio = 0.5, rows = 0, slack = 0 },  -- slack: rows over the budget before a cut
  limits = { ratio = { 0, 1 }, rows = { 0 }, slack = { 0 } },
  fit = "ratio",
  prefill = plan,
  trigger = function(o, l)
    return { over = budget(o, l) + o.slack, window = 1, track = score.attention { queries = 1 } }
  end,
  decode = plan,
}

-- FINCH (TACL 2024, doi 10.1162/tacl_a_00716): a prompt ends with its question, `window` tokens of
-- it. Once, after the prompt, each KV head keeps these and the rows that they look at most: a
-- query's attention counts the more, the more rows it is spread over. Keys keep their positions;
-- the authors rotate them to new ones.
local policy, score = require "pyramid.policy", require "pyramid.score"

return policy.scorer {
  name = "finch",
  doc = "per head, what the question at the prompt's end looks at",
  defaults = { window = 32, normalize = true },
  guard = function(o, l) return { last = math.min(o.window, l.rows) } end,
  score = function(o, l)
    local window = math.min(o.window, l.rows)
    local before = math.max(l.rows - window, 1)                   -- rows before the window
    local ramp = o.normalize and (before + window - 1) / before or 1
    return score.attention { queries = window, ramp = ramp }
  end,
}

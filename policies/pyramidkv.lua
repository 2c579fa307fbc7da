-- PyramidKV (arXiv 2406.02069): SnapKV's choice, with budgets that fall evenly from the first layer
-- to the last. A layer has `ratio` of the prompt on average, the last one a `beta`-th of that;
-- where the first one would have more than there is, or the last one less than the window, the
-- slope is as flat as it must be, or none. Window (8), kernel and pooling are those of its authors'
-- LongBench settings.
local policy, score = require "pyramid.policy", require "pyramid.score"

local function budget(o, l)
  local window = math.min(o.window, l.rows)
  local mean, most = o.rows > 0 and o.rows or o.ratio * l.prompt, l.prompt - window
  local last = mean / o.beta
  local first = 2 * mean - last
  if first >= most then first, last = most, 2 * mean - most end
  if not (first >= last and last >= window) then first, last = mean, mean end
  return l.past + math.floor(first - (first - last) * (l.index - 1) / math.max(l.layers - 1, 1)
    + 0.5)
end

return policy.scorer {
  name = "pyramidkv",
  doc = "per head, what the prompt's last queries look at; deeper layers keep less",
  defaults = { window = 8, kernel = 7, pool = "max", beta = 20, heads = "mean" },
  limits = { beta = { 1 } },
  budget = budget,
  looks = function(o, queries) return score.attention { queries = queries, heads = o.heads } end,
  score = function(o, _, _, seen) return seen:pool(o.pool, o.kernel) end,
}

-- PyramidKV (arXiv 2406.02069): SnapKV's choice, with budgets that fall evenly from the first layer
-- to the last. A layer has `ratio` of the prompt on average, the last one a `beta`-th of that;
-- where the first one would have more than there is, or the last one less than the window, the
-- slope is as flat as it must be, or none. Window (8), kernel and pooling are those of its authors'
-- LongBench settings.
local policy, score = require "pyramid.policy", require "pyramid.score"

local function budget(o, l, window)
  local mean, most = o.rows > 0 and o.rows or o.ratio * l.prompt, l.prompt - window
  local last = mean / o.beta
  local first = 2 * mean - last
  if first >= most then first, last = most, 2 * mean - most end
  if not (first >= last and last >= window) then first, last = mean, mean end
  return l.past + math.floor(first - (first - last) * (l.index - 1) / math.max(l.layers - 1, 1)
    + 0.5)
end

return policy {
  name = "pyramidkv",
  doc = "per head, what the prompt's last queries look at; deeper layers keep less",
  defaults = { ratio = 0.5, rows = 0, window = 8, kernel = 7, pool = "max", beta = 20,
    heads = "mean" },
  limits = { ratio = { 0, 1 }, rows = { 0 }, window = { 1 }, kernel = { 1, 63, 2 },
    pool = { "max", "avg" }, beta = { 1 }, heads = { "mean", "sum", "max" } },
  fit = "ratio",
  prefill = function(o, l)
    local window = math.min(o.window, l.rows)
    return {
      keep = math.min(math.max(budget(o, l, window), window), l.rows),
      guard = { last = window },
      score = score.attention { queries = window, heads = o.heads }:pool(o.pool, o.kernel),
      share = "head",
    }
  end,
}

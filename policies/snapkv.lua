-- SnapKV (arXiv 2404.14469): once, after the prompt, each KV head keeps the rows that the prompt's
-- last queries attended to most, smoothed over neighbours, and the window of those queries itself.
-- Window, kernel and pooling are those of the authors' runs on LongBench; kvpress has 64, 5 and
-- "avg". Facts of long prose that no query has asked for yet are lost under either.
local policy, score = require "pyramid.policy", require "pyramid.score"

return policy {
  name = "snapkv",
  doc = "per head, what the prompt's last queries look at",
  defaults = { ratio = 0.5, rows = 0, window = 32, kernel = 7, pool = "max", heads = "mean" },
  limits = { ratio = { 0, 1 }, rows = { 0 }, window = { 1 }, kernel = { 1, 63, 2 },
    pool = { "max", "avg" }, heads = { "mean", "sum", "max" } },
  fit = "ratio",
  prefill = function(o, l)
    local budget = o.rows > 0 and o.rows or l.past + math.ceil(o.ratio * l.prompt)
    local window = math.min(o.window, l.rows)
    return {
      keep = math.min(math.max(budget, window), l.rows),
      guard = { last = window },
      score = score.attention { queries = window, heads = o.heads }:pool(o.pool, o.kernel),
      share = "head",
    }
  end,
}

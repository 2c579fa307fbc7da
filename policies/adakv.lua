-- AdaKV (arXiv 2407.11550) over SnapKV's score: once, after the prompt, the rows of all KV heads of
-- a layer compete for one budget, so that heads whose attention is spread keep more than heads that
-- look at few rows; none gets less than `safe` of its share. The window of the last queries stays.
-- Defaults are those of the authors' runs on LongBench.
local policy, score = require "pyramid.policy", require "pyramid.score"

return policy {
  name = "adakv",
  doc = "snapkv, with one budget for all heads of a layer",
  defaults = { ratio = 0.5, rows = 0, window = 32, kernel = 7, pool = "max", heads = "mean",
    safe = 0.2 },
  limits = { ratio = { 0, 1 }, rows = { 0 }, window = { 1 }, kernel = { 1, 63, 2 },
    pool = { "max", "avg" }, heads = { "mean", "sum", "max" }, safe = { 0, 1 } },
  fit = "ratio",
  prefill = function(o, l)
    local window = math.min(o.window, l.rows)
    local budget = math.max(o.rows > 0 and o.rows or l.past + math.ceil(o.ratio * l.prompt), window)
    local keep = math.min(budget, l.rows)
    return {
      keep = keep,
      least = math.min(window + math.floor(o.safe * (keep - window)), keep),
      guard = { last = window },
      score = score.attention { queries = window, heads = o.heads }:pool(o.pool, o.kernel),
      share = "pool",
    }
  end,
}

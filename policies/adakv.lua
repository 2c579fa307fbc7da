-- AdaKV (arXiv 2407.11550) over SnapKV's score: once, after the prompt, the rows of all KV heads of
-- a layer compete for one budget, so that heads whose attention is spread keep more than heads that
-- look at few rows; none gets less than `safe` of its share. The window of the last queries stays.
-- Defaults are those of the authors' runs on LongBench.
local policy, score = require "pyramid.policy", require "pyramid.score"

return policy.scorer {
  name = "adakv",
  doc = "snapkv, with one budget for all heads of a layer",
  defaults = { window = 32, kernel = 7, pool = "max", heads = "mean", safe = 0.2 },
  limits = { safe = { 0, 1 } },
  share = "pool",
  looks = function(o, queries) return score.attention { queries = queries, heads = o.heads } end,
  score = function(o, _, _, seen) return seen:pool(o.pool, o.kernel) end,
  more = function(o, l, keep)
    local window = math.min(o.window, l.rows)
    return { least = math.min(window + math.floor(o.safe * (keep - window)), keep) }
  end,
}

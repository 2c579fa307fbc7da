-- SnapKV (arXiv 2404.14469): once, after the prompt, each KV head keeps the rows that the prompt's
-- last queries attended to most, smoothed over neighbours, and the window of those queries itself.
-- Window, kernel and pooling are those of the authors' runs on LongBench; kvpress has 64, 5 and
-- "avg". Facts of long prose that no query has asked for yet are lost under either.
local policy, score = require "pyramid.policy", require "pyramid.score"

return policy.scorer {
  name = "snapkv",
  doc = "per head, what the prompt's last queries look at",
  defaults = { window = 32, kernel = 7, pool = "max", heads = "mean" },
  looks = function(o, queries) return score.attention { queries = queries, heads = o.heads } end,
  score = function(o, _, _, seen) return seen:pool(o.pool, o.kernel) end,
}

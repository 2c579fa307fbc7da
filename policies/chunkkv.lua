-- ChunkKV (arXiv 2502.00299): once, after the prompt, a layer keeps whole chunks of consecutive
-- rows, those that the prompt's last queries attended to most, and the window of those queries.
-- Sentences stay sentences.
local policy, score = require "pyramid.policy", require "pyramid.score"

return policy.scorer {
  name = "chunkkv",
  doc = "per layer, the chunks that the prompt's last queries look at",
  defaults = { window = 32, chunk = 10, heads = "mean" },
  limits = { chunk = { 1 } },
  share = "layer",
  looks = function(o, queries) return score.attention { queries = queries, heads = o.heads } end,
  -- of the last chunk that fits in part, its first rows stay
  score = function(o, _, _, seen) return seen:chunk(o.chunk) end,
}

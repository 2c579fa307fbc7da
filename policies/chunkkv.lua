-- ChunkKV (arXiv 2502.00299): once, after the prompt, a layer keeps whole chunks of consecutive
-- rows, those that the prompt's last queries attended to most, and the window of those queries.
-- Sentences stay sentences.
local policy, score = require "pyramid.policy", require "pyramid.score"

return policy {
  name = "chunkkv",
  doc = "per layer, the chunks that the prompt's last queries look at",
  defaults = { ratio = 0.5, rows = 0, window = 32, chunk = 10, heads = "mean" },
  limits = { ratio = { 0, 1 }, rows = { 0 }, window = { 1 }, chunk = { 1 },
    heads = { "mean", "sum", "max" } },
  fit = "ratio",
  prefill = function(o, l)
    local budget = o.rows > 0 and o.rows or l.past + math.ceil(o.ratio * l.prompt)
    local window = math.min(o.window, l.rows)
    return {
      -- of the last chunk that fits in part, its first rows
      keep = math.min(math.max(budget, window), l.rows),
      guard = { last = window },
      score = score.attention { queries = window, heads = o.heads }:chunk(o.chunk),
    }
  end,
}

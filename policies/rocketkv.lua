-- RocketKV (arXiv 2502.14051): in two stages. After the prompt each KV head keeps what the prompt's
-- last queries attended to most, smoothed over 63 rows (SnapKV with a wide kernel); of these rows
-- each step reads the pages that its query might look at most, by the bounds of their channels. The
-- paper's second stage bounds a few of the channels alone, over pages of a few rows.
local policy, score = require "pyramid.policy", require "pyramid.score"

return policy.scorer {
  name = "rocketkv",
  doc = "evicts by the prompt's last queries, and reads the best pages of the rest",
  defaults = { window = 32, kernel = 63, pool = "max", read = 512, sinks = 4 },
  limits = { read = { 1 } },
  guard = function(o, l) return { last = math.min(o.window, l.rows) } end,
  score = function(o, l)
    return score.attention { queries = math.min(o.window, l.rows) }:pool(o.pool, o.kernel)
  end,
  more = function(o)
    return { read = { rows = o.read, by = score.bound(),
      guard = { first = o.sinks, last = o.window } } }
  end,
}

-- LagKV (arXiv 2504.04704): once, after the prompt, each KV head keeps of every run of `lag` rows
-- those that stand out most against the next run, the sinks, and the last rows, which have no run
-- behind them; where the budget holds no more than these, the newest of them. A prompt of less than
-- two runs keeps its newest rows.
local policy, score = require "pyramid.policy", require "pyramid.score"

return policy {
  name = "lagkv",
  doc = "per head, the rows that stand out against the rows behind them",
  -- ranked: every run keeps as many as the others
  defaults = { ratio = 0.5, rows = 0, sinks = 4, lag = 128, ranked = true },
  limits = { ratio = { 0, 1 }, rows = { 0 }, sinks = { 0 }, lag = { 1 } },
  fit = "ratio",
  prefill = function(o, l)
    local budget = math.max(o.rows > 0 and o.rows or l.past + math.ceil(o.ratio * l.prompt),
      o.sinks + 1)
    local short = l.rows < o.sinks + 2 * o.lag
    -- the rows that have no run behind them
    local behind = short and 0 or (l.rows - o.sinks) % o.lag + o.lag
    return {
      keep = math.min(budget, l.rows),
      guard = { first = o.sinks, last = math.min(behind, budget - o.sinks) },
      score = short and score.place() or score.lag { lag = o.lag, ranked = o.ranked },
      share = "head",
    }
  end,
}

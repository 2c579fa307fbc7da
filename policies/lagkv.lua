-- LagKV (arXiv 2504.04704): once, after the prompt, each KV head keeps of every run of `lag` rows
-- those that stand out most against the next run, the sinks, and the last rows, which have no run
-- behind them; where the budget holds no more than these, the newest of them. A prompt of less than
-- two runs keeps its newest rows.
local policy, score = require "pyramid.policy", require "pyramid.score"

-- A prompt of less than two runs.
local function is_short(o, l) return l.rows < o.sinks + 2 * o.lag end

return policy.scorer {
  name = "lagkv",
  doc = "per head, the rows that stand out against the rows behind them",
  -- ranked: every run keeps as many as the others
  defaults = { sinks = 4, lag = 128, ranked = true },
  limits = { lag = { 1 } },
  floor = function(o) return o.sinks + 1 end,
  guard = function(o, l, budget)
    -- the rows that have no run behind them
    local behind = is_short(o, l) and 0 or (l.rows - o.sinks) % o.lag + o.lag
    return { first = o.sinks, last = math.min(behind, budget - o.sinks) }
  end,
  score = function(o, l)
    return is_short(o, l) and score.place() or score.lag { lag = o.lag, ranked = o.ranked }
  end,
}

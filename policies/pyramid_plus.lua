-- The house's own, which reads a prompt once. With a map of the model (`pyramid calibrate --learn`)
-- rows are ranked by what it says will be looked at, and each layer and head keeps the share of its
-- rows that was learned for it, as in KVzap (arXiv 2601.07891). An eighth of the budget guards
-- recent rows, but no more than `window`: of few rows most are to lie where the text is. Without a
-- map each head keeps rows with keys unlike all others (KeyDiff, arXiv 2504.15364), and for a
-- tenth of its budget, `seen`, those that all queries so far attended to most (H2O, arXiv
-- 2306.14048).
local maps, policy, score = require "pyramid.maps", require "pyramid.policy",
  require "pyramid.score"

local unlike, history = score.key_similarity(), score.history()

return policy {
  name = "pyramid_plus",
  doc = "what a learned map says will be looked at; without one, rare keys and heavy hitters",
  defaults = { ratio = 0.45, map = "", sinks = 4, recent = 0.125, window = 32, seen = 0.1 },
  limits = { ratio = { 0, 1 }, sinks = { 0 }, recent = { 0, 1 }, window = { 1 }, seen = { 0, 1 } },
  presets = { ["45"] = { target = 0.45 }, ["35"] = { target = 0.35 }, ["20"] = { target = 0.2 } },
  fit = "ratio",
  prefill = function(o, l)
    local file = o.map ~= "" and maps.learned(o.map)
    local recent = math.min(o.window, math.max(1, math.floor(o.recent * o.ratio * l.prompt + 0.5)))
    local guarded, keep, own = math.min(o.sinks + recent, l.prompt), {}, 0
    local share = math.max(o.ratio * l.prompt - guarded, 0) / math.max(l.prompt - guarded, 1)
    for head = 1, l.kv_heads do
      local budget = file and maps.budget(file, (l.index - 1) * l.kv_heads + head, share) or share
      own = math.floor(budget * (l.prompt - guarded) + 0.5)
      keep[head] = math.min(l.rows, math.max(1, l.past + guarded + own))
    end
    return { keep = keep, guard = { first = o.sinks, last = recent }, share = "head",
      score = file and file.score or history:top(math.floor(o.seen * own)) * 1e6 - unlike }
  end,
}

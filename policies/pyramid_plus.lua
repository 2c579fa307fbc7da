-- PyramidInfer's pyramid (arXiv 2405.12532) with what it loses by mended. One early layer, which
-- costs most by far when cut, stays whole, which is most of the gain (`pyramid calibrate` shows
-- which of a model; 0: none). In the others rows fall with depth, each KV head chooses for itself,
-- and two kinds of rows are kept: what the prompt's last queries look at, with neighbours, and rows
-- whose keys are unlike all others (KeyDiff, arXiv 2504.15364): what will be asked for may be where
-- no query has looked yet. Hidden states are pruned only from depth `hidden` on, by one set for all
-- heads; 1: nowhere.
local policy, score, schedule = require "pyramid.policy", require "pyramid.score",
  require "pyramid.schedule"

-- About `ratio` of the prompt's rows on average. Of what layer `whole` leaves, the first layer has
-- as much more as the last has less.
local function budget(o, l)
  if l.index == o.whole then return l.past + l.prompt end
  local ratio = o.ratio
  if o.whole >= 1 and o.whole <= l.layers then
    ratio = math.max((ratio * l.layers - 1) / (l.layers - 1), 0)
  end
  local slope = math.min(o.slope, 1 / ratio - 1)
  return l.past + math.floor(ratio * schedule.linear(1 + slope,
    1 - slope)(l.depth + 0.5 / l.layers) * l.prompt)
end

return policy {
  name = "pyramid_plus",
  doc = "a pyramid of rows that are looked at and rows unlike all others",
  defaults = { ratio = 0.45, slope = 0.8, whole = 2, seen = 0.4, queries = 16, recent = 4,
    sinks = 4, kernel = 5, heads = "max", hidden = 1.0 },
  limits = { ratio = { 0, 1 }, slope = { 0, 1 }, whole = { 0 }, seen = { 0, 1 }, queries = { 1 },
    recent = { 1 }, sinks = { 0 }, kernel = { 1, 63, 2 }, heads = { "mean", "sum", "max" },
      hidden = { 0, 1 } },
  presets = { ["45"] = { target = 0.45 }, ["35"] = { target = 0.35 }, ["20"] = { target = 0.2 } },
  fit = "ratio",
  prefill = function(o, l)
    local guarded = math.min(o.sinks + o.recent, l.rows)
    local keep = math.min(math.max(budget(o, l), guarded, 1), l.rows)
    local looked_at = math.floor(o.seen * (keep - guarded))            -- the rest goes to rare keys
    local attention = score.attention { queries = o.queries, reduce = "max", heads = o.heads }
    local hides = l.depth >= o.hidden
    return {
      keep = keep,
      guard = { first = o.sinks, last = o.recent },
      score = attention:pool("max", o.kernel):top(looked_at) * 1e6 - score.key_similarity(),
      share = hides and "layer" or "head",
      prune = hides and "both" or "cache",
    }
  end,
}

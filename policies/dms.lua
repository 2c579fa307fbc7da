-- DMS (arXiv 2506.05345): a row leaves when it passes out of a window of recent ones, if what was
-- said of it when it was made is below a threshold. So how much is kept follows the text, in the
-- prompt and while text is generated. DMS trains a model to say it; here a learned map of hidden
-- states does, as in KVzap (arXiv 2601.07891), which `pyramid calibrate --learn` makes. `above` is
-- the threshold, in the map's numbers: logarithms of attention; 0: that which `ratio` of the rows
-- of plain text pass. Without both, `ratio` of the rows that pass out of the window stay, those
-- with keys unlike all others (KeyDiff, arXiv 2504.15364).
local maps, policy, score = require "pyramid.maps", require "pyramid.policy",
  require "pyramid.score"

local unlike = -score.key_similarity()

local function plan(o, counted, guard)
  local file = o.map ~= "" and maps.learned(o.map)
  local above = o.above ~= 0 and o.above or file and maps.threshold(file, o.ratio) or nil
  return { above = above, keep = not above and counted or nil, guard = guard, share = "head",
    score = file and file.score or unlike }
end

return policy {
  name = "dms",
  doc = "rows of which more is said than a threshold, once a window has passed them",
  defaults = { ratio = 0.3, above = 0.0, map = "", sinks = 4, window = 128, every = 16 },
  limits = { ratio = { 0, 1 }, above = { -100 }, sinks = { 0 }, window = { 0 }, every = { 1 } },
  prefill = function(o, l)
    local keep = math.min(l.rows, l.past + math.max(1, math.ceil(o.ratio * l.prompt)))
    return plan(o, keep, { first = o.sinks, last = o.window })
  end,
  trigger = function(o)
    return { every = o.every, window = o.window, once = true,
      track = o.map ~= "" and maps.learned(o.map).score or nil }
  end,
  decode = function(o, l)
    return plan(o, math.max(1, l.rows - l.waiting + math.ceil(o.ratio * l.waiting)))
  end,
}

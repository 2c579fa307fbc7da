-- StreamingLLM (arXiv 2309.17453): the first rows, which attention uses as sinks, and the most recent ones. Positions stay
-- as they were read.
local policy = require "pyramid.policy"

local function budget(o, l)
  return math.max(o.rows > 0 and o.rows or l.past + math.ceil(o.ratio * l.prompt), o.sinks + 1)
end

return policy {
  name = "streaming",
  doc = "attention sinks and a sliding window",
  defaults = { sinks = 4, ratio = 0.5, rows = 0, slack = 15 },   -- rows: a fixed budget; slack: rows over it before a cut
  limits = { sinks = { 0 }, ratio = { 0, 1 }, rows = { 0 }, slack = { 0 } },
  prefill = function(o, l)
    local keep = math.min(budget(o, l), l.rows)
    return { keep = keep, guard = { first = o.sinks, last = math.max(keep - o.sinks, 1) } }
  end,
  trigger = function(o, l) return { over = budget(o, l) + o.slack } end,
  decode = function(o, l)
    local keep = math.min(budget(o, l), l.rows)
    return { keep = keep, guard = { first = o.sinks, last = math.max(keep - o.sinks, 1) } }
  end,
}

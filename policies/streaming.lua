-- StreamingLLM (arXiv 2309.17453): the first rows, which attention uses as sinks, and the most
-- recent ones. Positions stay as they were read, or, with `rotate`, become those within the cache,
-- and generation goes on past the model's context.
local policy = require "pyramid.policy"

local function budget(o, l)
  return math.max(o.rows > 0 and o.rows or l.past + math.ceil(o.ratio * l.prompt), o.sinks + 1)
end

local function plan(o, l)
  local keep = math.min(budget(o, l), l.rows)
  return { keep = keep, guard = { first = o.sinks, last = math.max(keep - o.sinks, 1) },
    rotate = o.rotate and "compact" or "keep" }
end

return policy {
  name = "streaming",
  doc = "attention sinks and a sliding window",
  -- rows: a budget; slack: rows over it before a cut
  defaults = { sinks = 4, ratio = 0.5, rows = 0, slack = 15, rotate = false },
  limits = { sinks = { 0 }, ratio = { 0, 1 }, rows = { 0 }, slack = { 0 } },
  fit = "ratio",
  prefill = plan,
  trigger = function(o, l) return { over = budget(o, l) + o.slack } end,
  decode = plan,
}

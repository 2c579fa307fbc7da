-- Scissorhands (arXiv 2305.17118): what was pivotal stays pivotal. Each KV head keeps recent rows,
-- and of the others those that the last `history` queries attended to most; while text is generated
-- these fade, so that about as many count. (The paper counts, over that window, how often a row had
-- less than its even share; this sums what it had.)
local policy, score = require "pyramid.policy", require "pyramid.score"

local function budget(o, l)
  return math.max(o.rows > 0 and o.rows or l.past + math.ceil(o.ratio * l.prompt), 2)
end
local function recent(o, l) return math.ceil(budget(o, l) * o.recent) end
local function faded(o) return score.history { decay = 1 - 1 / o.history } end

local function plan(o, l, by)
  return { keep = math.min(budget(o, l), l.rows), guard = { last = recent(o, l) }, score = by,
    share = "head" }
end

return policy {
  name = "scissorhands",
  doc = "per head, what recent queries attended to, and recent rows",
  defaults = { ratio = 0.5, rows = 0, recent = 0.2, history = 400, slack = 15 },
  limits = { ratio = { 0, 1 }, rows = { 0 }, recent = { 0, 1 }, history = { 1 }, slack = { 0 } },
  fit = "ratio",
  prefill = function(o, l) return plan(o, l, score.attention { queries = o.history,
    reduce = "sum" }) end,
  trigger = function(o, l) return { over = budget(o, l) + o.slack, window = recent(o, l),
    track = faded(o) } end,
  decode = function(o, l) return plan(o, l, faded(o)) end,
}

-- PyramidInfer (arXiv 2405.12532). Every layer hands only its pivotal context to the next one, so
-- deeper layers neither compute nor store the rest; in generation, what leaves the recent window is
-- judged once. mode = "code" is what the authors published as code, "paper" is Algorithm 1.
local policy, score, schedule = require "pyramid.policy", require "pyramid.score",
  require "pyramid.schedule"

local function window(o, l) return math.min(math.floor(o.recent * l.prompt) + 1, l.prompt) end
local function attention(o, l, heads)
  return score.attention { queries = window(o, l), ramp = o.ramp, heads = heads }
end

return policy {
  name = "pyramidinfer",
  doc = "each layer hands its pivotal context to the next",
  defaults = { mode = "code", recent = 0.2, ratio = 0.9, decay = "cosine", sinks = 4, ramp = 1.2,
    heads = "mean", floor = 64, interval = 1, p_decay = 0.98, exceed = 16, gen_ratio = 0.9,
      gen_decay = 0.1, rejudge = false },
  limits = { mode = { "code", "paper" }, recent = { 0, 1 }, ratio = { 0, 1 },
    decay = { "cosine", "linear" }, sinks = { 0 }, ramp = { 0 }, heads = { "mean", "sum", "max" },
      floor = { 0 }, interval = { 1 }, p_decay = { 0, 1 }, exceed = { 1 }, gen_ratio = { 0, 1 },
        gen_decay = { 0, 1 } },
  presets = {
    -- as published
    ["7b"] = {}, ["8b"] = {}, ["13b"] = { ratio = 0.8, interval = 2 }, ["70b"] = { interval = 3 },
    -- the share of rows that the paper reports
    ["45"] = { mode = "paper", recent = 0.1, p_decay = 1, floor = 16, target = 0.45 },
  },
  fit = "ratio",
  prefill = function(o, l)
    if (l.index - 1) % o.interval ~= 0 then return end
    local recent = window(o, l)
    local context = l.rows - l.past - recent
    local paper = o.mode == "paper"
    local ratio = paper and o.ratio * o.p_decay ^ (l.index - 1)
      or schedule[o.decay](1, o.ratio)(l.depth)
    local keep = math.floor(context * ratio)
    if keep <= o.floor then keep = paper and math.min(o.floor, context) or context end
    return { keep = l.past + keep + recent, guard = { first = o.sinks, last = recent },
      score = attention(o, l, o.heads), prune = paper and "both" or "hidden" }
  end,
  trigger = function(o, l)
    return { every = o.exceed, window = window(o, l), once = not o.rejudge,
      track = attention(o, l, "mean") }
  end,
  decode = function(o, l)
    local survive = math.max(1, math.floor(o.exceed * o.gen_ratio * schedule[o.decay](1,
      o.gen_decay)(l.depth)))
    return { keep = l.rows - (o.exceed - survive), guard = { first = o.sinks } }
  end,
}

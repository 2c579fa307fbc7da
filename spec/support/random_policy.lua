-- Policies that nobody would write: plans, triggers and scores drawn from a seed, all valid. The core and the simulation
-- of pyramid.testing must agree on every one of them.
local policy = require "pyramid.policy"
local score = require "pyramid.score"

local function picker(seed)
  local state = seed * 0x9e3779b97f4a7c15
  local function draw(n)                         -- 0 … n - 1
    state = state * 6364136223846793005 + 1442695040888963407
    local z = state ~ state >> 31
    return (z >> 16 & 0x7fffffff) % n
  end
  local function pick(list) return list[draw(#list) + 1] end
  return draw, pick
end

local function random_score(draw, pick, attention)
  local function signal()
    local kind = pick { "attention", "attention", "key_norm", "value_norm", "position", "random" }
    if kind == "attention" then return attention() end
    return kind == "random" and score.random(draw(100)) or score[kind]()
  end
  local s = signal()
  for _ = 1, draw(4) do
    local how = draw(6)
    if how == 0 then s = s:pool(pick { "avg", "max" }, 2 * draw(4) + 1)
    elseif how == 1 then s = s:normalize()
    elseif how == 2 then s = s + 0.5 * signal()
    elseif how == 3 then s = s * signal()
    elseif how == 4 then s = s - 0.3 * signal()
    else s = s / (signal() + 1) end
  end
  return s
end

---A policy of a seed; grouped: query heads share KV heads.
return function(seed, grouped)
  local draw, pick = picker(seed)
  local function prompt_attention()
    if draw(4) == 0 then return score.history { heads = pick { "mean", "sum", "max" } } end
    return score.attention { queries = pick { 0, 1, 4, 9, 30, 100 }, ramp = pick { 1, 0.5, 2 },
      reduce = pick { "mean", "sum", "max" }, heads = pick { "mean", "sum", "max" } }
  end
  local heads = grouped and { "mean", "sum" } or { "mean", "sum", "max" }
  local track = pick {
    function() return score.attention { queries = pick { 0, 1, 6, 20, 60 }, ramp = pick { 1, 1.5 }, reduce = pick { "mean", "sum" },
      heads = pick(heads) } end,
    function() return score.history { decay = pick { 1, 0.9 }, heads = pick(heads) } end,
    function() return nil end,
  }()
  local plans = {}
  for layer = 1, 8 do
    local prune = pick { "cache", "cache", "hidden", "both" }
    plans[layer] = { skip = draw(6) == 0, share = prune == "cache" and pick { "layer", "head" } or "layer", prune = prune,
      ratio = pick { 0.1, 0.4, 0.6, 0.9 }, first = pick { 0, 1, 4 }, last = pick { 0, 1, 5, 20 },
      score = draw(8) > 0 and random_score(draw, pick, prompt_attention) or nil }
  end
  local once = draw(3) == 0
  local trigger = { every = (once or draw(2) == 0) and pick { 1, 3, 8 } or nil, window = pick { 0, 1, 6 }, once = once,
    track = track }
  trigger.over = not once and (not trigger.every or draw(2) == 0) and pick { 10, 30, 70 } or nil
  local decode = { ratio = pick { 0.3, 0.7, 0.95 }, first = pick { 0, 1, 5 }, last = pick { 0, 1, 4 },
    share = pick { "layer", "head" } }
  if draw(2) == 0 then decode.score = random_score(draw, pick, function() return track or score.position() end) end
  if once then decode.last = math.min(decode.last, trigger.window) end
  local function keep(rows, ratio) return math.max(1, math.ceil(rows * ratio)) end
  return policy {
    name = "random" .. seed,
    prefill = function(_, l)
      local p = plans[l.index]
      if p.skip then return nil end
      return { keep = keep(l.rows, p.ratio), guard = { first = p.first, last = p.last }, share = p.share, prune = p.prune,
        score = p.score }
    end,
    trigger = function(_, l) return l.index % 3 > 0 and trigger or nil end,
    decode = function(_, l)
      return { keep = keep(l.rows, decode.ratio), guard = { first = decode.first, last = decode.last }, share = decode.share,
        score = decode.score }
    end,
  }
end

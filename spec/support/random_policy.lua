-- Policies that nobody would write: plans, triggers and scores drawn from a seed, all valid. The
-- core and the simulation of pyramid.testing must agree on every one of them.
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

local by_position, by_head = { by = "position" }, { by = "head" }
for i = 1, 60 do by_position[i] = i * 29 % 61 / 61 end
for layer = 1, 3 do by_head[layer] = { layer, 0.5, 2, 1 / layer } end
local some_tokens = score.tokens { 0, 3, 10, 37, 40, 74, 111, 120, 148, 185, 222, 259, 270 }
local tables = { score.table(by_position), score.table(by_head) }

-- turned: keys may have been rotated to their places, which the simulation does not follow. probed:
-- passes track what the score may say.
local function random_score(draw, pick, attention, turned, probed)
  local function signal()
    if probed and draw(3) > 0 then return score.probed() end
    local kind = pick { "attention", "attention", "key_norm", "value_norm", "position", "random",
      "place", "output_norm", "table", "lag", "key_similarity", "redundancy", "tokens" }
    if kind == "attention" then return attention() end
    if kind == "table" then return tables[draw(2) + 1] end
    if kind == "tokens" then return some_tokens + 0.3 * score.random(draw(100)) end -- few are alike
    if turned and (kind == "lag" or kind == "key_similarity" or kind == "redundancy") then
      return score.place()
    end
    -- no cosine comes near this: above a threshold that some come near, two ways of rounding differ
    if kind == "redundancy" then return score.redundancy { threshold = -1.5 } end
    -- of no odd width: means over a whole run are all alike, but for their rounding
    if kind == "lag" then return score.lag { lag = pick { 4, 8 }, ranked = draw(2) == 0 } end
    return kind == "random" and score.random(draw(100))
      or kind == "value_norm" and score.value_norm { power = pick { 1, 2 } } or score[kind]()
  end
  local s = signal()
  for _ = 1, draw(4) do
    local how = draw(11)
    if how == 0 then s = s:pool(pick { "avg", "max" }, 2 * draw(4) + 1)
    elseif how == 1 then s = s:normalize()
    elseif how == 2 then s = s + 0.5 * signal()
    elseif how == 3 then s = s * signal()
    elseif how == 4 then s = s - 0.3 * signal()
    elseif how == 5 then s = s:softmax()
    elseif how == 6 then s = s:chunk(pick { 2, 5 }) + 0.01 * signal()
    elseif how == 7 then s = s:top(draw(20)) + 0.5 * signal()
    elseif how == 8 then s = s / (signal() + 1)
    elseif how == 9 then
      s = pick { s:power(pick { 0.5, 2 }), s:log(), s:above(0.1) + 0.1 * signal() }
    else s = s + pick { signal():sum(), signal():max() } * 0.01 end
  end
  return s
end

---A policy of a seed; grouped: query heads share KV heads. Every fifth prepares its plans.
return function(seed, grouped)
  local draw, pick = picker(seed)
  local prepared = seed % 5 == 2
  local decay, compact = draw(2) == 0 and 0.9 or 1, draw(5) == 0 and not prepared
  -- As the trigger's, where it tracks history: what earlier prompts left is of that decay, and of
  -- means over KV heads.
  local function history(choose)
    return score.history { decay = decay, heads = choose(grouped and { "mean", "sum" }
      or { "mean", "sum", "max" }) }
  end
  local function prompt_attention()
    if draw(4) == 0 then return history(pick) end
    if draw(4) == 0 then
      return score.attention { queries = pick { 0, 1, 4, 30 },
        heads = pick { "mean", "sum", "max" }, reduce = pick { "variance", "entropy" } }
    end
    return score.attention { queries = pick { 0, 1, 4, 9, 30, 100 }, ramp = pick { 1, 0.5, 2 },
      reduce = pick { "mean", "sum", "max" }, heads = pick { "mean", "sum", "max" } }
  end
  local heads = grouped and { "mean", "sum" } or { "mean", "sum", "max" }
  local track = pick {
    function() return score.attention { queries = pick { 0, 1, 6, 20, 60 }, ramp = pick { 1, 1.5 },
      reduce = pick { "mean", "sum" },
      heads = pick(heads) } end,
    function() return score.history { decay = decay, heads = pick(heads) } end,
    function() return score.attention { queries = pick { 0, 1, 6, 20, 60 }, ramp = pick { 1, 1.5 },
      reduce = "max", heads = "max" } end,
    function() return nil end,
  }()
  local plans, ragged = {}, false
  local weigh = draw(2) == 0 and pick { "head", "pool" } or nil
  local united = not prepared and not compact and draw(4) == 0   -- some layers share a budget
  for layer = 1, 8 do
    local prune = pick { "cache", "cache", "hidden", "both" }
    if prepared or united then prune = "cache" end
    local share = prune == "cache" and not compact and pick { "layer", "head", "pool", "list" }
      or "layer"
    if (prepared or united) and draw(2) == 0 then share = "model" end
    plans[layer] = { skip = draw(6) == 0, share = share, prune = prune,
      ratio = pick { 0.1, 0.4, 0.6, 0.9 }, first = pick { 0, 1, 4 }, last = pick { 0, 1, 5, 20 },
        score = draw(8) > 0 and random_score(draw, pick, prepared and function()
          return score.place()
        end or prompt_attention, compact, prepared) or nil,
          mass = share ~= "model" and draw(4) == 0 and pick { 0.3, 0.8 } or nil,
          above = share ~= "model" and draw(8) == 0 and pick { -1, 0, 0.01, 0.5 } or nil,
            least = draw(2) == 0 and 3 or nil,
            weight = pick {
              score.attention { queries = 9, reduce = "entropy", heads = "sum" }:sum():power(0.5),
              score.attention { queries = 9 }:normalize():power(1.5) * score.value_norm():max(),
              score.key_norm():pool("max", 3):above(3) + 0.01 },
            merge = prune ~= "hidden" and not compact and (prepared or share ~= "model")
              and draw(4) == 0 and pick { true, { threshold = 0.3 } } or nil }
    ragged = ragged or share == "pool" or share == "list" or share == "model"
      or plans[layer].mass ~= nil or plans[layer].above ~= nil
  end
  local once = draw(3) == 0
  local trigger = { every = (once or draw(2) == 0) and pick { 1, 3, 8 } or nil,
    window = pick { 0, 1, 6 }, once = once, track = track }
  trigger.over = not once and (not trigger.every or draw(2) == 0) and pick { 10, 30, 70 } or nil
  local decode = { ratio = pick { 0.3, 0.7, 0.95 }, first = pick { 0, 1, 5 },
    last = pick { 0, 1, 4 }, share = compact and "layer" or ragged and pick { "head", "pool" }
      or pick { "layer", "head", "pool" } }
  if draw(2) == 0 then decode.score = random_score(draw, pick,
    function() return track or score.position() end, compact) end
  if once then decode.last = math.min(decode.last, trigger.window) end
  local function keep(rows, ratio) return math.max(1, math.ceil(rows * ratio)) end
  local how = { track = score.attention { reduce = pick { "max", "mean" }, heads = pick { "max",
    "sum" }, queries = pick { 0, 3 } }, block = pick { 0, 1, 7, 20, 100 },
    lead = { { 5, 9 }, draw(5) }, among = pick { "all", "block" }, sinks = draw(6) }
  return policy {
    name = "random" .. seed,
    prepare = prepared and function(_, l) return l.prompt > 3 and how or nil end or nil,
    prefill = function(_, l)
      local p = plans[l.index]
      if p.skip or prepared and l.prompt <= 3 then return nil end
      local many, shares = keep(l.rows, p.ratio), p.share == "list" and "head" or p.share
      -- Lanes that earlier plans left unequal cannot share one set, nor be handed on as one.
      if l.past > 0 and ragged and shares == "layer" then return nil end
      local plan = { keep = many, guard = { first = p.first, last = p.last }, share = shares,
        prune = p.prune, score = p.score, mass = p.mass, above = p.above, merge = p.merge,
          rotate = compact and p.prune == "cache" and "compact" or nil }
      if united and weigh and p.share == "model" then
        plan.share, plan.weight = weigh, p.weight
      end
      if p.share == "list" then
        plan.keep = {}
        for head = 1, l.kv_heads do plan.keep[head] = math.max(1, many - 2 * head) end
      end
      local competes = p.share == "pool" or p.share == "model"
      if p.least and many >= 10 and (competes or p.mass or p.above) then plan.least = p.least end
      return plan
    end,
    trigger = function(_, l) return l.index % 3 > 0 and trigger or nil end,
    decode = function(_, l)
      return { keep = keep(l.rows, decode.ratio),
        guard = { first = decode.first, last = decode.last }, share = decode.share,
          score = decode.score }
    end,
  }
end

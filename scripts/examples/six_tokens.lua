-- six_tokens.lua: PyramidInfer on a sentence of six tokens, A to F, and on six more that are
-- generated, G to L: small enough to be followed with a pencil. docs/pyramidinfer.md explains what
-- this prints, and a spec holds it to that.
--
--   build/pyramid scripts/examples/six_tokens.lua
--
-- What is kept comes from the policy itself, run by pyramid.testing on made-up attention. The
-- scores beside it are worked out once more here, from the page's equations: the two must agree.
local policy = require "pyramid.policy"
local testing = require "pyramid.testing"

local LAYERS, PROMPT, STEPS = 4, 6, 6
local letters = "ABCDEFGHIJKL"

-- How much any query of a layer looks at each token; its shares are made to add up to 1 over the
-- tokens that it sees.
local looks = {
  { A = 6, B = 1, C = 3, D = 2, E = 2, F = 1, G = 3, H = 1, I = 1, J = 2, K = 1, L = 1 },
  { A = 5, B = 1, C = 2, D = 3, E = 1, F = 2, G = 3, H = 2, I = 1, J = 1, K = 1, L = 1 },
  { A = 1, B = 9, C = 2, D = 2, E = 1, F = 3, G = 2, H = 3, I = 1, J = 2, K = 1, L = 1 },
  { A = 1, B = 9, C = 5, D = 2, E = 4, F = 1, G = 1, H = 1, I = 3, J = 2, K = 1, L = 1 },
}

local function letter(position) return letters:sub(position + 1, position + 1) end

local function attention(layer, _, _, position) return looks[layer][letter(position)] end

local pyramidinfer = assert(policy.load("pyramidinfer",
  { ratio = 0.5, recent = 0.2, sinks = 1, floor = 0, exceed = 3 }))

-- ---- the page's equations ---------------------------------------------------------------------

local function cosine(from, to, layer)
  return to + (from - to) * (math.cos(math.pi * (layer - 1) / LAYERS) + 1) / 2
end

-- A_j: what the recent queries (the oldest first) gave to `row`; each sees the rows up to itself.
local function score_of(layer, row, queries, held, ramp)
  local sum = 0
  for i, query in ipairs(queries) do
    local all = 0
    for _, other in ipairs(held) do
      if other <= query then all = all + attention(layer, 1, query, other) end
    end
    local weight = #queries == 1 and 1 or 1 + (ramp - 1) * (i - 1) / (#queries - 1)
    sum = sum + weight * attention(layer, 1, query, row) / all
  end
  return sum / #queries
end

-- The `count` rows of `from` with the highest scores, in their order; sinks come before all others,
-- and of equal scores the lower position.
local function best(from, scores, count, sinks)
  local ranked, stays, out = table.move(from, 1, #from, 1, {}), {}, {}
  local function rank(row) return row < sinks and math.huge or scores[row] end
  table.sort(ranked, function(a, b)
    if rank(a) ~= rank(b) then return rank(a) > rank(b) end
    return a < b
  end)
  for i = 1, count do stays[ranked[i]] = true end
  for _, row in ipairs(from) do
    if stays[row] then out[#out + 1] = row end
  end
  return out
end

-- ---- printing ---------------------------------------------------------------------------------

local function say(format, ...) print((format:format(...):gsub("%s+$", ""))) end

local function named(rows)
  local out = {}
  for i, row in ipairs(rows) do out[i] = letter(row) end
  return table.concat(out, " ")
end

local function scored(rows, scores)
  local out = {}
  for i, row in ipairs(rows) do out[i] = ("%s %.3f"):format(letter(row), scores[row]) end
  return table.concat(out, "  ")
end

-- The rows of each layer, the last layer on top, as the cache holds them.
local function draw(layers, tokens)
  local all = 0
  for layer = LAYERS, 1, -1 do
    local held, cells = {}, {}
    for _, row in ipairs(layers[layer][1]) do held[row] = true end
    for row = 0, tokens - 1 do cells[row + 1] = held[row] and letter(row) or "·" end
    all = all + #layers[layer][1]
    say("  layer %d   %s   %2d", layer, table.concat(cells, " "), #layers[layer][1])
  end
  say("  %d of %d rows", all, LAYERS * tokens)
end

local function agree(layer, mine, held)
  local one, other = named(mine), named(held)
  assert(one == other, ("layer %d: %s here, %s by the policy"):format(layer, one, other))
end

-- ---- the walk ---------------------------------------------------------------------------------

local o = pyramidinfer.options
local recent = math.floor(o.recent * PROMPT) + 1

-- How the lanes look after the prompt (0) and after each generated token.
local moments = {}
local run = testing.run(pyramidinfer, { prompt = PROMPT, steps = STEPS, layers = LAYERS, heads = 1,
  attention = attention, watch = function(now, step)
    moments[step] = {}
    for layer = 1, LAYERS do
      local lane = now[layer][1]
      moments[step][layer] = { table.move(lane, 1, #lane, 1, {}) }
    end
  end })

say("prefill: ratio %g, recent %g, sinks %d, floor %d, so that r = floor(%g * %d) + 1 = %d",
  o.ratio, o.recent, o.sinks, o.floor, o.recent, PROMPT, recent)
local alive = { 0, 1, 2, 3, 4, 5 }
for layer = 1, LAYERS do
  agree(layer, alive, moments[0][layer][1])
  local context, queries, scores = {}, {}, {}
  for i, row in ipairs(alive) do table.insert(i <= #alive - recent and context or queries, row) end
  for _, row in ipairs(context) do scores[row] = score_of(layer, row, queries, alive, o.ramp) end
  local share = cosine(1, o.ratio, layer)
  local keep = math.floor(#context * share)
  local kept = keep > o.floor and best(context, scores, keep, o.sinks) or context
  say("")
  say("layer %d reads and stores %s", layer, named(alive))
  say("  scores     %s", scored(context, scores))
  say("  keeps      floor(%d * %.3f) = %d of them: %s", #context, share, keep, named(kept))
  alive = table.move(queries, 1, #queries, #kept + 1, table.move(kept, 1, #kept, 1, {}))
  local last = layer == LAYERS
  say("  hands on   %s%s", named(alive), last and ", to nobody: this was the last layer" or "")
end
say("")
say("the cache after the prompt")
draw(moments[0], PROMPT)

for round = 1, STEPS // o.exceed do
  local step = round * o.exceed
  local newest = PROMPT + step - 1
  local queries, waiting = { newest - 1, newest }, {}
  for row = newest - recent - o.exceed + 1, newest - recent do waiting[#waiting + 1] = row end
  say("")
  say("%s: %s have left the window and wait, %s are recent",
    named { newest - 2, newest - 1, newest }, named(waiting), named(queries))
  for layer = 1, LAYERS do
    local held, scores = {}, {}
    for _, row in ipairs(moments[step - o.exceed][layer][1]) do held[#held + 1] = row end
    for row = newest - o.exceed + 1, newest do held[#held + 1] = row end
    for _, row in ipairs(waiting) do scores[row] = score_of(layer, row, queries, held, o.ramp) end
    local falling = cosine(1, o.gen_decay, layer)
    local survive = math.max(1, math.floor(o.exceed * o.gen_ratio * falling))
    local kept, stays, after = best(waiting, scores, survive, 0), {}, {}
    for _, row in ipairs(kept) do stays[row] = true end
    for _, row in ipairs(held) do
      if not scores[row] or stays[row] then after[#after + 1] = row end
    end
    agree(layer, after, moments[step][layer][1])
    say("  layer %d   %s   max(1, floor(%d * %g * %.3f)) = %d: %s", layer, scored(waiting, scores),
      o.exceed, o.gen_ratio, falling, survive, named(kept))
  end
end
say("")
say("the cache after twelve tokens")
draw(run, PROMPT + STEPS)

-- ---- other options ----------------------------------------------------------------------------

for _, other in ipairs { { interval = 2 }, { floor = 2 }, { sinks = 0 }, { mode = "paper" } } do
  local name, value = next(other)
  say("")
  say("the cache after the prompt, with %s = %s", name, value)
  draw(testing.run(pyramidinfer:with(other), { prompt = PROMPT, layers = LAYERS, heads = 1,
    attention = attention }), PROMPT)
end

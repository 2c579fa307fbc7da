-- costs.lua: what a prompt and a step cost under three policies: by the formulas of
-- docs/pyramidinfer.md, as the runtime counts it, and in seconds (the best of three rounds).
--
--   build/pyramid scripts/examples/costs.lua MODEL TEXT [TOKENS]
local policy = require "pyramid.policy"
local pyramid = require "pyramid"

local ROUNDS, STEPS, F16 = 3, 16, 2
local path, text_path, tokens = arg[1], arg[2], math.tointeger(tonumber(arg[3] or 2048))
if not text_path or not tokens then error("usage: costs.lua MODEL TEXT [TOKENS]", 0) end

local model = assert(pyramid.model(path, { threads = 2 }))
local c = model.config
local text <close> = assert(io.open(text_path))
local ids = assert(model:encode(text:read "a"))
if #ids < tokens then error(("%s has %d tokens"):format(text_path, #ids), 0) end
ids = table.move(ids, 1, tokens, 1, {})

-- ---- formulas -----------------------------------------------------------------------------------

local row_bytes = 2 * c.head_dim * F16                       -- K and V of one row of one lane
local kv = 2 * c.width * c.kv_heads * c.head_dim             -- weights of a layer's k and v
local matrices = kv + 2 * c.width * c.heads * c.head_dim + 3 * c.width * c.ff   -- and of all of it

-- FLOP of a prompt by operation, and bytes of its rows.
local function formulas(p)
  local f = { linear = 2 * c.width * c.vocab, attention = 0, mass = 0, rows = 0 }
  local recent = p.options.recent and math.floor(p.options.recent * tokens) + 1 or 0
  for i, layer in ipairs(policy.forecast(p, c, tokens)) do
    local n = layer.computed
    f.linear = f.linear + 2 * n * (i < c.layers and matrices or kv)
    f.attention = f.attention + 4 * c.heads * c.head_dim * n * (n + 1) / 2
    f.mass = f.mass + 2 * c.heads * c.head_dim * recent * n
    f.rows = f.rows + layer.rows * c.kv_heads * row_bytes
  end
  return f
end

-- What one step reads of the rows, on average over the steps measured: each adds a row to a lane.
local function step_bytes(held)
  return held + (STEPS + 1) / 2 * c.layers * c.kv_heads * row_bytes
end

-- ---- runs ---------------------------------------------------------------------------------------

local function timed(f)
  assert(model:profile(true))
  f()
  local found = {}
  for _, entry in ipairs(assert(model:profile(false))) do found[entry.name] = entry end
  return found
end

local function best(into, found)
  for name, entry in pairs(found) do
    into[name] = into[name] or entry
    into[name].seconds = math.min(into[name].seconds, entry.seconds)
  end
end

local measured = {}
local named = { { "full" }, { "pyramidinfer" }, { "pyramidinfer", preset = "45" } }
for i, given in ipairs(named) do
  local p = assert(policy.load(given[1], { preset = given.preset }))
  local name = given[1] .. (given.preset and " preset=" .. given.preset or "")
  measured[i] = { policy = p, name = name, prompt = {}, step = {} }
end
for _ = 1, ROUNDS do
  for _, m in ipairs(measured) do
    local cache <close> = assert(model:cache { policy = m.policy })
    local logits
    best(m.prompt, timed(function() logits = assert(cache:prefill(ids)) end))
    m.bytes, m.fraction, m.computed = cache:bytes(), cache:fraction(), cache:computed()
    local id = logits:argmax()
    best(m.step, timed(function() for _ = 1, STEPS do assert(cache:step(id)) end end))
  end
end

-- ---- the table ----------------------------------------------------------------------------------

print(model.description)
print(("%d tokens, 2 threads, rows in f16"):format(tokens))
for _, m in ipairs(measured) do
  local f, all = formulas(m.policy), 0
  for _, entry in pairs(m.prompt) do all = all + entry.seconds end
  print(("\n%s: %.1f %% of the rows, %.1f %% of the token-layers"):format(m.name,
    100 * m.fraction, 100 * m.computed / (tokens * c.layers)))
  print(("%-22s %14s %14s %10s"):format("", "formula", "counted", "seconds"))
  for _, name in ipairs { "linear", "attention", "mass" } do
    local entry = m.prompt[name] or { flops = 0, seconds = 0 }
    print(("prompt, %-14s %8.2f GFLOP %8.2f GFLOP %10.3f"):format(name, f[name] / 1e9,
      entry.flops / 1e9, entry.seconds))
  end
  print(("prompt, %-14s %14s %14s %10.3f"):format("everything", "", "", all))
  print(("rows %17s %10.2f MiB %10.2f MiB"):format("", f.rows / 2 ^ 20, m.bytes / 2 ^ 20))
  local seen, step = m.step.attention, 0
  for _, entry in pairs(m.step) do step = step + entry.seconds / STEPS end
  local queries = 8 * c.layers * c.heads * c.head_dim          -- a query in, a sum out, in f32
  print(("step, rows read %6s %10.2f MiB %10.2f MiB %10.5f"):format("", step_bytes(f.rows) / 2 ^ 20,
    (seen.bytes / STEPS - queries) / 2 ^ 20, seen.seconds / STEPS))
  print(("step, everything %5s %14s %14s %10.5f"):format("", "", "", step))
end

-- held.lua: what cache:bytes() says, beside what a process holds for the cache: of each dtype, mix
-- of tiers and policy, and after rows have gone. For the specs, and as a program:
--
--   build/pyramid spec/support/held.lua MODEL [TOKENS]
--
-- `memory` is what the allocator has handed out since before the cache was, without the workspace
-- of steps; `resident` is what the process' pages in memory fell by when the cache was closed, as
-- the system counts them, its allocator told to give back at once (Linux and its C library:
-- MALLOC_MMAP_THRESHOLD_=65536 MALLOC_TRIM_THRESHOLD_=65536 in the environment).
local pyramid = require "pyramid"
local score = require "pyramid.score"

local held = {}

local PAGE = 32

-- Keeps that share of the rows of each lane; the others leave, or go to a tier.
local function keeper(share, to)
  return pyramid.policy { name = "keeper", prefill = function(_, l)
    return { keep = math.max(1, math.floor(l.rows * share)), share = "head",
      score = score.key_norm(), losers = to and { to = to } or nil }
  end }
end

local function steps(n)
  return function(cache)
    for i = 1, n do assert(cache:step(i)) end
  end
end

local function evict(share)
  return function(cache) assert(cache:evict(keeper(share))) end
end

local function cut(cache) assert(cache:truncate(cache:tokens() * 3 // 10)) end

-- What of a tier in a file is no memory: all but what describes its pages, and its lanes.
local function in_file(cache, config)
  local beside = 0
  for layer = 1, config.layers do
    for head = 1, config.kv_heads do
      local pages = (cache:rows(layer, head, "cold") + PAGE - 1) // PAGE
      beside = beside + pages * (PAGE * 4 + 48) + (pages > 0 and 256 or 0) + 24
        + 20 * config.head_dim
    end
  end
  return cache:bytes "cold" - beside
end

---Cases: a name, options of the cache (or a function that gives them), what happens to it.
held.cases = {}
local function case(name, options, after) held.cases[#held.cases + 1] = { name, options, after } end
local dtypes = { "f16", "q8_0", "q4", "q3", "q2", "k=q8_0,v=q4" }
for _, dtype in ipairs(dtypes) do
  case(dtype, { dtype = dtype })
  case(dtype .. ", 40 steps", { dtype = dtype }, steps(40))
  case(dtype .. ", a plan that keeps a fifth", { dtype = dtype, policy = keeper(0.2) })
  case(dtype .. ", evicted to a fifth", { dtype = dtype }, evict(0.2))
  case(dtype .. ", cut to three tenths", { dtype = dtype }, cut)
  case(dtype .. ", a fork that evicts to a fifth", { dtype = dtype }, function(cache)
    local fork = assert(cache:fork())
    assert(fork:evict(keeper(0.2)))
    cache:close()
    assert(fork:step(1))                  -- the others' pages are gone: its own move together now
    return fork
  end)
end
for _, dtype in ipairs { "f16", "q4" } do
  case(dtype .. ", h2o, 100 steps", { dtype = dtype, policy = pyramid.policy("h2o",
    { ratio = 0.25 }) }, steps(100))
  case(dtype .. ", pyramidinfer, 100 steps", { dtype = dtype, policy = "pyramidinfer" }, steps(100))
  case(dtype .. ", quest, 40 steps", { dtype = dtype, policy = pyramid.policy("quest",
    { rows = 128 }) }, steps(40))
end
for _, tiers in ipairs { { "f16", "q8_0" }, { "f16", "q4" }, { "q8_0", "q4" }, { "q4", "q2" } } do
  local function options()
    return { policy = keeper(0.25, "warm"), tiers = { hot = tiers[1], warm = tiers[2] } }
  end
  local name = ("hot %s, warm %s"):format(tiers[1], tiers[2])
  case(name, options)
  case(name .. ", 40 steps", options, steps(40))
  case(name .. ", cut to three tenths", options, cut)
end
case("hot f16, warm q4, cold q2, all in memory", function()
  return { policy = keeper(0.25, "warm"), tiers = { hot = "f16", cold = "q2",
    warm = { dtype = "q4", rows = 256 } } }
end)
case("hot f16, cold q4 in a file", function()
  local path = os.tmpname()
  os.remove(path)
  return { policy = keeper(0.25, "cold"), tiers = { hot = "f16", cold = { dtype = "q4",
    file = path, bytes = "256 MiB" } } }
end)

-- Of the process, now; nil where the system does not say.
local function resident()
  local file <close> = io.open("/proc/self/status")
  local kib = file and file:read "a":match "VmRSS:%s+(%d+)"
  return kib and math.tointeger(kib) * 1024
end

local function collect()
  collectgarbage()
  collectgarbage()
end

---@param model pyramid.Model
---@param tokens integer
---@param which table   one of the cases
---@return integer bytes    what the cache says of its memory
---@return integer memory   what was handed out for it
---@return integer? resident   what the system took back
function held.measure(model, tokens, which)
  local ids = {}
  for i = 1, tokens do ids[i] = i * 7919 % (model.config.vocab - 10) + 5 end
  local function options()
    local given = which[2]
    return type(given) == "function" and given() or given
  end
  local function make()
    local cache = assert(model:cache(options()))
    assert(cache:prefill(ids))
    return which[3] and which[3](cache) or cache
  end
  make():close()                          -- what the backend keeps to work in is there from now on
  collect()
  local before = model:memory()
  local cache = make()
  collect()
  local bytes, memory = cache:bytes(), model:memory() - before - cache:workspace()
  if cache:has_tier "cold" and type(options().tiers.cold) == "table" then
    bytes = bytes - in_file(cache, model.config)
  end
  local full = resident()
  cache:close()
  collect()
  return bytes, memory, full and full - resident()
end

if arg and arg[0] and arg[0]:match "held%.lua$" then
  local model <close> = assert(pyramid.model(arg[1]))
  local worst = 0
  for _, which in ipairs(held.cases) do
    local bytes, memory, gone = held.measure(model, math.tointeger(arg[2]) or 1000, which)
    worst = math.max(worst, math.abs(memory / bytes - 1))
    print(("%-44s bytes %11d  memory %11d  %+.2f %%  resident %s"):format(which[1], bytes, memory,
      100 * (memory / bytes - 1), gone or "?"))
  end
  print(("the largest difference is %.2f %%"):format(100 * worst))
end

return held

-- reading.lua: what steps cost that read less than is held, beside full ones, in turns.
--
--   build/pyramid scripts/examples/reading.lua MODEL TEXT DEPTH ROWS [THREADS] [ROUNDS] [POLICY]
--
-- One prompt, two caches that hold the same rows: what their bytes promise is worked out, and what
-- a step without rows takes is measured, so that the two can be compared.
local core = require "pyramid.core"
local pyramid = require "pyramid"

local path, file, depth, rows = arg[1], arg[2], math.tointeger(arg[3]), math.tointeger(arg[4])
local threads, rounds = math.tointeger(arg[5] or 1), math.tointeger(arg[6] or 9)
local steps <const> = 8

local model <close> = assert(pyramid.model(path, { threads = threads }))
local c = model.config
local reader = assert(pyramid.policy(arg[7] or "signs", { rows = rows, whole = 0 }))
local f <close> = assert(io.open(file))
local ids = table.move(assert(model:encode(f:read "a")), 1, depth, 1, {})
assert(#ids == depth, "the text is too short")

-- Saved under the policy, loaded under both: "full" reads all of the same rows.
local saved = os.tmpname()
do
  local cache <close> = assert(model:cache { policy = reader })
  assert(cache:prefill(ids))
  assert(cache:save(saved))
end
local full <close> = assert(model:load_cache(saved, { policy = "full" }))
local less <close> = assert(model:load_cache(saved, { policy = reader }))
local short <close> = assert(model:cache())
assert(short:prefill(table.move(ids, 1, 4, 1, {})))
os.remove(saved)

-- Milliseconds a step, by the clock and of the processor.
local function run(from)
  local cache <close> = assert(from:fork())
  assert(cache:step(1))                          -- makes digests, where there are none yet
  local wall, cpu = core.clock(), os.clock()
  for i = 1, steps do assert(cache:step(i)) end
  return { (core.clock() - wall) / steps * 1e3, (os.clock() - cpu) / steps * 1e3 }
end

local function median(list, which)
  local values = {}
  for i, one in ipairs(list) do values[i] = one[which] end
  table.sort(values)
  return values[(#values + 1) // 2]
end

local times = { {}, {}, {} }
for round = 1, rounds do
  for i, cache in ipairs { full, less, short } do times[i][round] = run(cache) end
end
-- Of a lane: K and V in f16; where less is read, the digests of all full pages.
local stepped <close> = assert(less:fork())
assert(stepped:step(1))
local beside <close> = assert(full:fork())
assert(beside:step(1))
local row = 2 * 2 * c.head_dim
local digests = (stepped:bytes() - beside:bytes()) / (c.layers * c.kv_heads)
local promise = depth * row / (rows * row + digests)
for which, name in ipairs { "clock", "processor" } do
  local a, b, none = median(times[1], which), median(times[2], which), median(times[3], which)
  print(("%-9s  full %.2f ms, %d rows %.2f ms, at depth 0 %.2f ms: %.2f times as fast, "
    .. "attention alone %.1f of %.1f times that its bytes promise"):format(name, a, rows, b, none,
    a / b, (a - none) / (b - none), promise))
end

-- host_cost.lua [--layers=N] [--lanes=N] [--group=N] [--sequences=N] [--rows=N] [--steps=N]
-- [--policy=NAME]: what a decode step costs the host, in milliseconds of its processor's time, with
-- kernels that are not run (PYR_EMULATE_SKIP): all that is not the device's work, but for what the
-- driver does in its calls. `make host-cost` runs it at the shapes of docs/gpu.md.
--
-- Heads have 2 dimensions, so that rows take little memory: what the host does does not depend on
-- it. The processor's time, not the clock's, so that others on the machine weigh less; the least
-- and the median of as many steps, and the mean, which alone has the steps that take new pages.

local pyramid = require "pyramid"
local random_model = require "pyramid.tools.random_model"

local given = { layers = 40, lanes = 40, group = 1, sequences = 32, rows = 600, steps = 64,
  policy = "full" }
for _, word in ipairs(arg) do
  local name, value = word:match "^%-%-(%a+)=(.+)$"
  if not name or given[name] == nil then
    io.stderr:write("host_cost: ", word, " is no option\n")
    os.exit(2)
  end
  given[name] = type(given[name]) == "number" and assert(tonumber(value), word) or value
end
if not os.getenv "PYR_EMULATE_SKIP" then
  io.stderr:write "host_cost: without PYR_EMULATE_SKIP kernels would run\n"
  os.exit(2)
end

local path = os.tmpname()
os.remove(path)
local heads = given.lanes * given.group
assert(random_model.write(path, { dtype = "bf16", seed = 5, shape = { layers = given.layers,
  width = heads * 2, heads = heads, kv_heads = given.lanes, ff = 4, vocab = 260,
  context = 4096 } }))
local model <close> = assert(pyramid.model(path, { device = "emulated", threads = 1 }))
os.execute("rm -rf " .. path)

local ids = {}
for i = 1, given.rows do ids[i] = 3 + i % 13 end
local batch <close> = assert(model:batch { policy = given.policy, dtype = "f16" })
for _ = 1, given.sequences do assert(batch:add(ids)) end
for _ = 1, 3 do assert(batch:step()) end

local spent, sum = {}, 0
for i = 1, given.steps do
  local began = os.clock()
  assert(batch:step())
  spent[i] = (os.clock() - began) * 1e3
  sum = sum + spent[i]
end
table.sort(spent)
print(("%d sequences of %d layers x %d lanes, %s: least %.3f ms, median %.3f, mean %.3f, most %.3f")
  :format(given.sequences, given.layers, given.lanes, given.policy, spent[1],
    spent[(#spent + 1) // 2], sum / #spent, spent[#spent]))

-- soak.lua [--steps=N] [--json=FILE]: many steps of one sequence on the device that PYRAMID_DEVICE names, with a random model and
-- policies that drop rows all the time. After every hundredth step every logit is a number; after each, no more rows are held than
-- the first tenth of the steps showed, and the runtime holds no more memory than then. A second run of each policy gives the same
-- last logits, bit for bit. Exits 1 if anything of that fails.
local core = require "pyramid.core"
local machine = require "pyramid.bench.machine"
local pyramid = require "pyramid"
local random_model = require "pyramid.random_model"
local report = require "pyramid.bench.report"

local given = { steps = "10000", json = "" }
for _, word in ipairs(arg) do
  local key, value = word:match "^%-%-(%l+)=(.+)$"
  if not given[key] then
    io.stderr:write("usage: soak.lua [--steps=N] [--json=FILE]\n")
    os.exit(1)
  end
  given[key] = value
end
local steps, prompt = math.tointeger(tonumber(given.steps)), 256
if not steps or steps < 10 then
  io.stderr:write "--steps is a whole number, at least 10\n"
  os.exit(1)
end
local settled = steps // 10                 -- by then a policy holds what it will ever hold

local path = os.tmpname()
os.remove(path)
assert(random_model.write(path, { shape = { layers = 2, width = 256, heads = 4, kv_heads = 2, ff = 256, vocab = 512,
  context = steps + 1024 }, dtype = "bf16", seed = 5 }))
local model = assert(pyramid.model(path))
os.execute("rm -rf " .. path)
local runtime = model:runtime()
local record = { steps = steps, device = machine.device(runtime), commit = machine.commit(), date = os.date "!%Y-%m-%dT%H:%M:%SZ",
  runs = report.list {}, failures = report.list {} }

local function fail(...)
  local text = table.concat({ ... }, " ")
  table.insert(record.failures, text)
  io.write("FAILED ", text, "\n")
end

local function finite(logits)
  for _, x in ipairs(logits:totable()) do
    if x ~= x or math.abs(x) == math.huge then return false end
  end
  return true
end

-- The last logits as bytes, and what was seen on the way.
local function soak(name, options)
  local ids = {}
  for i = 1, prompt do ids[i] = 3 + i * 37 % 500 end
  local cache <close> = assert(model:cache { policy = assert(pyramid.policy(name, options)), dtype = "f16" })
  local logits, began = assert(cache:prefill(ids)), core.clock()
  local most, held = 0, 0
  for step = 1, steps do
    local message
    logits, message = cache:step(3 + step * 101 % 500)
    if not logits then
      fail(name, "step", tostring(step) .. ":", message)
      return nil
    end
    local bytes, memory = cache:bytes(), runtime:memory()
    if step <= settled then most, held = math.max(most, bytes), math.max(held, memory)
    elseif bytes > most or memory > held then
      fail(("%s: step %d holds %d bytes of rows and %d in all; %d and %d were the most by step %d"):format(name, step, bytes,
        memory, most, held, settled))
      return nil
    end
    if step % 100 == 0 and not finite(logits) then
      fail(("%s: step %d: a logit is no number"):format(name, step))
      return nil
    end
  end
  return logits:tostring(), { policy = name, seconds = core.clock() - began, rows_bytes = most, held_bytes = held,
    tokens = cache:tokens(), kept = cache:fraction() }
end

for _, name in ipairs { "streaming", "h2o", "tova" } do            -- those that hold a budget of rows, half of the prompt
  local first, run = soak(name, { ratio = 0.5 })
  local second = first and soak(name, { ratio = 0.5 })
  if first and second and first ~= second then fail(name .. ": a second run gives other logits") end
  if run then
    record.runs[#record.runs + 1] = run
    io.write(("%s: %d steps in %.1f s, %d bytes of rows at most, %d held\n"):format(name, steps, run.seconds, run.rows_bytes,
      run.held_bytes))
  end
end
model:close()
if given.json ~= "" then
  local file <close> = assert(io.open(given.json, "w"))
  assert(file:write(report.encode(record)))
end
os.exit(#record.failures == 0 and 0 or 1)

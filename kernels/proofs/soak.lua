-- soak.lua [--steps=N] [--json=FILE]: many steps of a ragged batch on the device that
-- PYRAMID_DEVICE names, with a random model and policies that drop rows all the time. Half of the
-- sequences give logits, half pick on the device. At every hundredth of the steps (every 25, if
-- that is more) the oldest leaves and another comes, of another length, and every logit is a
-- number. After each step no more rows are held than the first twenty of these turns showed, and
-- the runtime holds no more memory than then. A second run of each policy gives the same ids and
-- last logits, bit for bit. Exits 1 if anything of that fails.
local core = require "pyramid.core"
local machine = require "pyramid.tools.bench.machine"
local probe = require "pyramid.probe"
local pyramid = require "pyramid"
local random_model = require "pyramid.tools.random_model"
local report = require "pyramid.tools.bench.report"

local given = { steps = "10000", json = "" }
for _, word in ipairs(arg) do
  local key, value = word:match "^%-%-(%l+)=(.+)$"
  if not given[key] then
    io.stderr:write("usage: soak.lua [--steps=N] [--json=FILE]\n")
    os.exit(1)
  end
  given[key] = value
end
local steps = math.tointeger(tonumber(given.steps))
if not steps or steps < 100 then
  io.stderr:write "--steps is a whole number, at least 100\n"
  os.exit(1)
end
local lengths = { 40, 256, 7, 131, 300, 90 }
local turn = math.max(25, steps // 100)
-- by then all that will ever be held was held: each 6 turns are like those before
local settled = 20 * turn

local path = os.tmpname()
os.remove(path)
assert(random_model.write(path, { shape = { layers = 2, width = 256, heads = 4, kv_heads = 2,
  ff = 256, vocab = 512, context = 512 + 7 * math.max(25, steps // 100) }, dtype = "bf16",
    seed = 5 }))
local model = assert(pyramid.model(path))
os.execute("rm -rf " .. path)
local runtime = model:runtime()
local record = { steps = steps, device = machine.device(runtime), commit = machine.commit(),
  date = os.date "!%Y-%m-%dT%H:%M:%SZ", runs = report.list {}, failures = report.list {} }

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

local function prompt(n)
  local ids = {}
  for i = 1, n do ids[i] = 3 + (n + i * 37) % 500 end
  return ids
end

-- What was picked, and the last logits as bytes; and what was seen on the way.
local function soak(name, options)
  local batch <close> = assert(model:batch { policy = assert(pyramid.policy(name, options)),
    dtype = "f16" })
  local began, count, queue, seen = core.clock(), 0, {}, {}
  local most, held = 0, 0
  local function more()
    count = count + 1
    local sampler = count % 2 == 0 and assert(pyramid.sampler { temperature = count % 4 == 0
      and 0.8 or 0, top_k = 40, repeat_penalty = 1.1, seed = count }) or nil
    queue[#queue + 1] = assert(batch:add(prompt(lengths[1 + count % #lengths]), sampler))
  end
  for _ = 1, #lengths do more() end
  for step = 1, steps do
    local entries, message = batch:step()
    if not entries then return fail(name, "step", tostring(step) .. ":", message) end
    local bytes, memory = batch:bytes(), runtime:memory()
    if step <= settled then most, held = math.max(most, bytes), math.max(held, memory)
    elseif bytes > most or memory > held then
      return fail(("%s: step %d holds %d bytes of rows and %d in all; %d and %d were the most by "
        .. "step %d"):format(name, step, bytes, memory, most, held, settled))
    end
    if step % turn == 0 then
      for i, entry in ipairs(entries) do
        if entry.id == false or entry[2] and not finite(entry[2]) then
          return fail(("%s: step %d: a logit of sequence %d is no number"):format(name, step, i))
        end
        seen[#seen + 1] = entry.id or entry[2]:argmax()
      end
      if step == steps then
        for _, entry in ipairs(entries) do seen[#seen + 1] = entry[2] and entry[2]:tostring() end
      else
        batch:remove(table.remove(queue, 1))
        more()
      end
    end
  end
  return table.concat(seen, " "), { policy = name, seconds = core.clock() - began,
    sequences = count, rows_bytes = most, held_bytes = held }
end

for _, name in ipairs { "streaming", "h2o", "tova", "pyramidinfer" } do
  local options = name ~= "pyramidinfer" and { ratio = 0.5 } or { preset = "45" }
  local first, run = soak(name, options)
  local second = first and soak(name, options)
  if first and second and first ~= second then
    fail(name .. ": a second run gives other ids or logits")
  end
  if run then
    record.runs[#record.runs + 1] = run
    io.write(("%s: %d steps, %d sequences in %.1f s, %d bytes of rows at most, %d held\n"):format(
      name, steps, run.sequences, run.seconds, run.rows_bytes, run.held_bytes))
  end
end
record.ways = assert(probe.device_ways(runtime))  -- how many products went by ways that are slow
io.write(("products by slow ways: %d\n"):format(record.ways.slow))
model:close()
if given.json ~= "" then
  local file <close> = assert(io.open(given.json, "w"))
  assert(file:write(report.encode(record)))
end
os.exit(#record.failures == 0 and 0 or 1)

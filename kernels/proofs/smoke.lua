-- smoke.lua [--quick] [--json=FILE]: does the device do anything at all, and the right thing? For
-- heads of 64 and of 128, f32 and bf16, and every dtype of cache rows: one prompt and four steps
-- beside the processor's, whose f32 is the reference, under a policy that drops rows; and which of
-- the products went by ways that are slow (op_args.h). --quick: heads of 64 only, a shorter prompt,
-- for a tool that watches every access. It goes on after the first that fails, so that one run says
-- all that is wrong.
--
--   PYRAMID_DEVICE=cuda build/pyramid kernels/proofs/smoke.lua --json=smoke.json
--
-- Exits 1 if anything failed.
local core = require "pyramid.core"
local machine = require "pyramid.tools.bench.machine"
local probe = require "pyramid.probe"
local pyramid = require "pyramid"
local random_model = require "pyramid.tools.random_model"
local report = require "pyramid.tools.bench.report"

local quick, json = false, nil
for _, word in ipairs(arg) do
  local file = word:match "^%-%-json=(.+)$"
  if not file and word ~= "--quick" then
    io.stderr:write "usage: smoke.lua [--quick] [--json=FILE]\n"
    os.exit(1)
  end
  quick, json = quick or word == "--quick", file or json
end

local device = core.default_device()
if device == "cpu" then
  io.stderr:write "set PYRAMID_DEVICE to the device, such as cuda\n"
  os.exit(1)
end
local runtime, missing = core.runtime { device = device }
if not runtime then
  io.stderr:write("PYRAMID_DEVICE=", device, ": ", missing, "\n")
  os.exit(1)
end
runtime:close()

-- How far logits may be from the processor's with rows of the same dtype: what rounding of rows
-- makes of sums in another order; and what operands of 16 bits add.
local limits = { f32 = 1e-4, f16 = 2e-3, bf16 = 1e-2, q8_0 = 1e-2, fp8_e4m3 = 8e-2 }
local rounded = 2e-2
local dtypes = { "f32", "f16", "bf16", "q8_0", "fp8_e4m3" }

local function distance(out, ref)
  local apart, size = 0.0, 0.0
  for i = 1, #ref do
    apart, size = apart + (out[i] - ref[i]) ^ 2, size + ref[i] ^ 2
  end
  local far = (apart / size) ^ 0.5
  return far == far and far or math.huge
end

-- The logits of a prompt and of each step, as lists; nil, message.
local function run(model, dtype, prompt, steps)
  local cache <close>, message = model:cache { policy = assert(pyramid.policy("streaming",
    { ratio = 0.8 })), dtype = dtype }
  if not cache then return nil, message end
  local logits
  logits, message = cache:prefill(prompt)
  if not logits then return nil, message end
  local out = { logits:totable() }
  for _, id in ipairs(steps) do
    logits, message = cache:step(id)
    if not logits then return nil, message end
    out[#out + 1] = logits:totable()
  end
  return out
end

local began = core.clock()
local record = { commit = machine.commit(), date = os.date "!%Y-%m-%dT%H:%M:%SZ",
  cases = report.list {}, failed = 0 }
local folder = os.tmpname()
os.remove(folder)

local function try(heads, precision, dtype, ref, open, prompt, steps)
  local case, at = { heads_of = heads, precision = precision, dtype = dtype }, core.clock()
  local model <close>, message = open(precision)
  local out
  if model then
    out, message = run(model, dtype, prompt, steps)
    case.ways = probe.device_ways(model:runtime()) or nil
    record.device = record.device or machine.device(model:runtime())
  end
  local worst, limit = 0.0, limits[dtype] + (precision == "bf16" and rounded or 0)
  for i, logits in ipairs(out or {}) do worst = math.max(worst, distance(logits, ref[i])) end
  case.distance, case.limit, case.seconds = out and worst, limit, core.clock() - at
  if out and worst > limit then
    message = ("logits are %.3g from the processor's, and may be %.3g"):format(worst, limit)
  end
  if message then
    case.message, record.failed = message, record.failed + 1
  end
  record.cases[#record.cases + 1] = case
  io.write(("%s  heads of %d, %s, rows of %s: %s; %d slow products; %.1f s\n"):format(message
    and "FAILED" or "ok    ", heads, precision, dtype,
      message or ("%.2g from the processor"):format(worst), case.ways and case.ways.slow or 0,
        case.seconds))
  io.flush()
end

for _, head in ipairs(quick and { 64 } or { 64, 128 }) do
  assert(random_model.write(folder, { shape = { layers = 2, width = 4 * head, heads = 4,
    kv_heads = 2, ff = 256, vocab = 271, context = 512 }, dtype = "bf16", seed = head }))
  local prompt, steps = {}, {}
  for i = 1, quick and 60 or 150 do prompt[i] = i * 37 % 271 end
  for i = 1, quick and 1 or 4 do steps[i] = i * 11 % 271 end
  local cpu <close> = assert(pyramid.model(folder, { device = "cpu", precision = "f32" }))
  for _, dtype in ipairs(dtypes) do
    local ref = assert(run(cpu, dtype, prompt, steps))
    for _, precision in ipairs { "f32", "bf16" } do
      try(head, precision, dtype, ref, function(what) return pyramid.model(folder,
        { device = device, precision = what }) end,
        prompt, steps)
    end
  end
  os.execute("rm -rf " .. folder)
end

record.seconds = core.clock() - began
io.write(("%d of %d failed in %.1f s\n"):format(record.failed, #record.cases, record.seconds))
if json then
  local file <close> = assert(io.open(json, "w"))
  assert(file:write(report.encode(record)))
end
os.exit(record.failed == 0 and 0 or 1)

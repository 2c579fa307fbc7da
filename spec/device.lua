-- device.lua [WORD…]: the specs with another device than the processor as default, a process for
-- each file, several at once, so that a file which a fault of the device ends costs no other.
-- Writes OUT/test.json, OUT/test.md and each file's own text.
--
--   PYRAMID_DEVICE=cuda build/pyramid spec/device.lua [--out=DIR] [--jobs=N] [--limit=SECONDS of a
--   file] [WORD…]
--
-- Words pick spec files (spec/support/files.lua). A file that leaves no record (it ran out of time,
-- or it crashed) counts as one failure, with the end of what it printed. Exits 1 if anything
-- failed, or if the device cannot be had.
package.path = "spec/?.lua;./?.lua;" .. package.path
local core = require "pyramid.core"
local machine = require "pyramid.tools.bench.machine"
local parts = require "spec.support.parts"
local report = require "pyramid.tools.bench.report"
local shell = require "spec.support.shell"

local given, words = { out = shell.build .. "/device", jobs = "1", limit = "540" }, {}
for _, word in ipairs(arg) do
  local key, value = word:match "^%-%-(%l+)=(.+)$"
  if key and given[key] then given[key] = value else words[#words + 1] = word end
end

local function fail(...)
  io.stderr:write(...)
  io.stderr:write "\n"
  os.exit(1)
end

local jobs, limit = math.tointeger(tonumber(given.jobs)), math.tointeger(tonumber(given.limit))
if not jobs or jobs < 1 or not limit or limit < 1 then
  fail "--jobs and --limit are whole numbers, at least 1"
end
local device = core.default_device()
if device == "cpu" then fail "set PYRAMID_DEVICE to the device, such as cuda" end
local runtime, message = core.runtime { device = device }
if not runtime then fail("PYRAMID_DEVICE=", device, ": ", message) end

-- The device, and its ceilings before anything else runs on it.
local record = machine.record(runtime)
runtime:close()

local files = require "spec.support.files"(words)
if #files == 0 then fail("no spec file's path contains: ", table.concat(words, ", ")) end

local began = core.clock()
local found = parts.run { first = files, folder = given.out .. "/specs", jobs = jobs, limit = limit,
  done = function(part)
    io.write(part.name, "\n")
    io.flush()
  end }
record.seconds = core.clock() - began
for _, key in ipairs { "passed", "failed", "pending" } do record[key] = found[key] end
for _, key in ipairs { "files", "failures", "pendings" } do
  record[key] = report.list(found[key])
end

local function number(value, scale, unit)
  return value and ("%.0f %s"):format(value / scale, unit) or "not known"
end

local lines = {
  "| | |", "| --- | --- |",
  ("| device | %s, %s |"):format(record.device.name, record.device.arch),
  ("| driver, runtime | %s (CUDA %s), CUDA %s |"):format(record.device.module or "not known",
    record.device.driver, record.device.runtime),
  ("| copy within its memory | %s, read and written |"):format(number(record.ceilings.copy, 1e9,
    "GB/s")),
  ("| products f32, f16, bf16 | %s, %s, %s |"):format(number(record.ceilings.f32, 1e12, "TFLOP/s"),
    number(record.ceilings.f16, 1e12, "TFLOP/s"), number(record.ceilings.bf16, 1e12, "TFLOP/s")),
  ("| specs | %d passed, %d failed, %d pending in %.0f s |"):format(record.passed, record.failed,
    record.pending, record.seconds),
  ("| commit, date | %s, %s |"):format(record.commit or "not known", record.date),
}
for _, file in ipairs(record.files) do
  if file.failed > 0 then
    lines[#lines + 1] = ("| failed | %s: %d of %d |"):format(file.name, file.failed,
      file.failed + file.passed)
  end
end
local text = table.concat(lines, "\n") .. "\n"
for name, content in pairs { ["test.json"] = report.encode(record), ["test.md"] = text } do
  local file <close> = assert(io.open(given.out .. "/" .. name, "w"))
  assert(file:write(content))
end
io.write(text)
for _, failure in ipairs(record.failures) do io.write("\nFAILED  ", failure, "\n") end
os.exit(record.failed == 0 and 0 or 1)

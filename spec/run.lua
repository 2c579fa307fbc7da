-- run.lua [WORD…] [-OPTION…]: runs the specs inside our own host: `build/pyramid spec/run.lua`.
-- Words pick spec files (spec/support/files.lua), a path is one file; options go to Busted
-- (`--filter=…`, `--verbose`), but these:
--
--   --jobs=N       so many processes at once, each for a file (spec/support/parts.lua); without it
--                  as many as this process may have processors, on a device of its own 1. 1, or a
--                  single file: all in this process
--   --record=FILE  what passed and what failed is written there as JSON
--   --stress[=N]   full collections wherever the binding allocates, in the first N calls of each of
--                  its functions and some later ones (spec/support/stress.c); in one process
--   --part         this process runs a file for another run.lua, which prints what all files left
--
-- PYRAMID_DEVICE is the device of all that asks for none.
local core = require "pyramid.core"

local device = core.default_device()
local runtime, message = core.runtime { device = device }
if not runtime then
  io.stderr:write(("PYRAMID_DEVICE=%s: %s\n"):format(device, message))
  os.exit(1)
end
local jobs = device == "cuda" and 1 or runtime:threads()
runtime:close()

local files, words, options, stressed, record, part = {}, {}, {}, nil, nil, nil
for _, word in ipairs(arg) do
  record = word:match "^%-%-record=(.+)$" or record
  if word:find "^%-%-stress" then stressed = tonumber(word:match "^%-%-stress=(%d+)$" or 5)
  elseif word:find "^%-%-jobs=" then jobs = tonumber(word:match "^%-%-jobs=([1-9]%d*)$")
  elseif word == "--part" then part = true
  elseif word:sub(1, 1) ~= "-" then words[#words + 1] = word
  elseif not word:find "^%-%-record=" then options[#options + 1] = word end
end
if not jobs then
  io.stderr:write "--jobs=N: N is a whole number, at least 1\n"
  os.exit(1)
end

package.path = "spec/?.lua;./?.lua;" .. package.path
local names = require "spec.support.files"(words)
if #names == 0 then
  io.stderr:write("no spec file's path contains: ", table.concat(words, ", "), "\n")
  os.exit(1)
end
for i, name in ipairs(names) do files[i] = "spec/" .. name .. ".lua" end

if jobs > 1 and #files > 1 and not stressed then
  os.exit(require "spec.support.parts".main { files = names, jobs = jobs, options = options,
    record = record })
end
if record or part then
  table.move({ "-Xoutput", record or "/dev/null", part and "-Xoutput", part and "part" }, 1, 4,
    #options + 1, options)
end

-- luacheck: ignore
arg = table.move(files, 1, #files, 1 + #options,
  table.move(options, 1, #options, 1, { [0] = arg[0] }))
-- pyramid_specs.so
package.cpath = (os.getenv "PYRAMID_BUILD" or "build") .. "/?.so;" .. package.cpath
io.stdout:setvbuf("line")
local stress = stressed and require "pyramid" and require "pyramid_specs.stress"
if stress then stress.start(stressed, 97) end
require "busted.runner" { standalone = false, output = "spec/support/report.lua" }
if stress then print(("stress: %d allocations refused in %d calls"):format(stress.stop())) end

-- run.lua [WORD…] [-OPTION…]: runs the specs inside our own host: `build/pyramid spec/run.lua`.
-- Words pick spec files (spec/support/files.lua), a path is one file; options go to Busted
-- (`--filter=…`, `--verbose`), but `--record=FILE`: what passed and what failed is written there as
-- JSON, and `--stress[=N]`: full collections wherever the binding allocates, in the first N calls
-- of each of its functions and some later ones (spec/support/stress.c). PYRAMID_DEVICE is the
-- device of all that asks for none.
local core = require "pyramid.core"

local device = core.default_device()
if device ~= "cpu" then
  local runtime, message = core.runtime { device = device }
  if not runtime then
    io.stderr:write(("PYRAMID_DEVICE=%s: %s\n"):format(device, message))
    os.exit(1)
  end
  runtime:close()
end

local files, words, options, stressed = {}, {}, {}, nil
for _, word in ipairs(arg) do
  local record = word:match "^%-%-record=(.+)$"
  if record then table.move({ "-Xoutput", record }, 1, 2, #options + 1, options)
  elseif word:find "^%-%-stress" then stressed = tonumber(word:match "^%-%-stress=(%d+)$" or 5)
  elseif word:sub(1, 1) == "-" then options[#options + 1] = word
  else words[#words + 1] = word end
end

package.path = "spec/?.lua;./?.lua;" .. package.path
for i, name in ipairs(require "spec.support.files"(words)) do
  files[i] = "spec/" .. name .. ".lua"
end
if #files == 0 then
  io.stderr:write("no spec file's path contains: ", table.concat(words, ", "), "\n")
  os.exit(1)
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

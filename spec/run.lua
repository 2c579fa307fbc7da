-- run.lua [WORD…] [-OPTION…]: runs the specs inside our own host: `build/pyramid spec/run.lua`.
-- A word picks the spec files whose names contain it; options go to Busted (`--filter=…`, `--verbose`).
local lfs = require "lfs"

local files, words, options = {}, {}, {}
for _, word in ipairs(arg) do
  table.insert(word:sub(1, 1) == "-" and options or words, word)
end

local function wanted(name)
  for _, word in ipairs(words) do
    if name:find(word, 1, true) then return true end
  end
  return #words == 0
end

for name in lfs.dir("spec") do
  if name:find("_spec%.lua$") and wanted(name) then files[#files + 1] = "spec/" .. name end
end
table.sort(files)
if #files == 0 then
  io.stderr:write("no spec file's name contains: ", table.concat(words, ", "), "\n")
  os.exit(1)
end

arg = table.move(files, 1, #files, 1 + #options, table.move(options, 1, #options, 1, { [0] = arg[0] })) -- luacheck: ignore
package.path = "spec/?.lua;" .. package.path
io.stdout:setvbuf("line")
require "busted.runner" { standalone = false, output = "spec/support/report.lua" }

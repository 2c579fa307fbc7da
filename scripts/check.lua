-- check.lua: checks policies without a model: valid plans at every shape, options at their limits, forecast and order.
local cli = require "pyramid.cli"
local lfs_ok, lfs = pcall(require, "lfs")
local policy = require "pyramid.policy"
local testing = require "pyramid.testing"

local parser = cli.parser("[options] POLICY…", "Checks policies without a model: their plans are asked for at hundreds of shapes "
  .. "and with every option at its limits, and must be valid, the same when asked twice, and keep what the forecast says.", [[
Examples:
   pyramid check mine.lua
   pyramid check policies
   pyramid check snapkv h2o --quiet
A policy file's name is its policy's. Files are run as Lua, with all rights of this program.]])
parser:argument("policy", "Policy files, folders of them, or names of those that come along."):args "+"
parser:flag("--quiet", "Print problems only.")
local args = cli.parse(parser, arg)

-- What a word names: { what to load, the name it should have or nil }, several for a folder.
local function named(word)
  if lfs_ok and lfs.attributes(word, "mode") == "directory" then
    local list = {}
    for name in lfs.dir(word) do
      if name:find "%.lua$" then list[#list + 1] = { word .. "/" .. name, name:sub(1, -5) } end
    end
    table.sort(list, function(a, b) return a[1] < b[1] end)
    if #list == 0 then cli.fail(("'%s' holds no policy files"):format(word)) end
    return list
  end
  return { { word, word:match "([^/\\]*)%.lua$" } }
end

local failed = false
for _, word in ipairs(args.policy) do
  for _, entry in ipairs(named(word)) do
    local found = cli.must(policy.load(entry[1]))
    local report, message = testing.check(found, { name = entry[2] })
    failed = failed or not report
    if not report or not args.quiet then print(report or message) end
  end
end
os.exit(failed and 1 or 0, true)

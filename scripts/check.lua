-- check.lua: checks policies without a model: plans at every shape, limits, forecast and order.
local cli = require "pyramid.tools.cli"
local inspect = require "pyramid.tools.inspect"
local lfs_ok, lfs = pcall(require, "lfs")
local policy = require "pyramid.policy"
local testing = require "pyramid.testing"

local parser = cli.parser("[options] POLICY…",
  "Checks policies without a model: their plans are asked for at hundreds of shapes "
  .. "and with every option at its limits, and must be valid, the same when asked twice, and keep what the forecast says.", [[
Examples:
   pyramid check mine.lua
   pyramid check policies
   pyramid check snapkv h2o --quiet
   pyramid check --model model.gguf build/calibrated.lua
With --model, plans are asked for in the shape of that model alone (its weights
are not read): for policies that name layers or heads of one, as those that
calibrate writes with --share head and --heads.
A policy file's name is its policy's. Files are run as Lua, with all rights of this program.]])
parser:argument("policy",
  "Policy files, folders of them, or names of those that come along."):args "+"
cli.option(parser, "--model", "PATH",
  "The model that the policies are made for: a Hugging Face folder or a .gguf file.",
    { short = "-m" })
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

local config
if args.model then
  local about = cli.must(inspect.model(cli.need_model(args.model)))
  local c = about.config or cli.fail(about.problem)
  config = { layers = c.layers, heads = c.heads, kv_heads = c.kv_heads, head_dim = c.head_dim }
end

local failed, own = false, false
for _, word in ipairs(args.policy) do
  for _, entry in ipairs(named(word)) do
    local found = cli.must(policy.load(entry[1]))
    local report, message = testing.check(found, { name = entry[2], config = config })
    failed = failed or not report
    own = own or not report and (message:find("made for %d+ layers")
      or message:find("there is no %d+:%d+ among")) ~= nil
    if not report or not args.quiet then print(report or message) end
  end
end
if own and not config then
  io.stdout:flush()
  io.stderr:write("A policy that names layers or heads is one model's own: check it with --model "
    .. "PATH.\n")
end
os.exit(failed and 1 or 0, true)

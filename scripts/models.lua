-- models.lua: lists the models that were fetched, by the names that --model takes.
local cli = require "pyramid.tools.cli"
local inspect = require "pyramid.tools.inspect"
local picture = require "pyramid.tools.picture"
local store = require "pyramid.tools.store"

local parser = cli.parser("[options]",
  "Lists the models that `pyramid get` and `make models` have fetched, by the names that --model "
  .. "takes.", "To remove one, remove its file or folder.")
parser:flag("--json", "Print one JSON object.")
local args = cli.parse(parser, arg)

local found = store.list()
for _, entry in ipairs(found) do
  local model, message = inspect.model(entry.path)
  entry.problem = message or model.problem
  if model then
    entry.family = model.config and model.config.family
      or model.metadata and model.metadata["general.architecture"]
    entry.dtype = model.totals[1] and model.totals[1].dtype
  end
end

if args.json then
  cli.json { folder = store.folder(), models = found }
  os.exit(0, true)
end
if #found == 0 then
  print(("no models in %s"):format(store.folder() or "the cache folder"))
  print(("pyramid get NAME fetches one: %s, ORG/REPO, a URL"):format(
    table.concat(store.names(), ", ")))
  os.exit(0, true)
end
local pic = picture.new(io.stdout)
local rows = { { "name", "size", "family", "dtype", "path" } }
for i, title in ipairs(rows[1]) do rows[1][i] = pic:paint(title, "dim") end
for _, entry in ipairs(found) do
  rows[#rows + 1] = { entry.name, cli.bytes(entry.bytes), entry.family or "?", entry.dtype or "?",
    entry.path }
end
print(table.concat(picture.table(rows, "<><<<"), "\n"))
for _, entry in ipairs(found) do
  if entry.problem then print(("%s cannot be opened: %s"):format(entry.name, entry.problem)) end
end

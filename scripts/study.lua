-- study.lua: the two observations that PyramidInfer rests on, on one's own model.
local cli = require "pyramid.tools.cli"
local grid = require "pyramid.tools.report.grid"
local perplexity = require "pyramid.tools.perplexity"
local picture = require "pyramid.tools.picture"
local rivals = require "pyramid.tools.rivals"
local study = require "pyramid.tools.study"
local world = require "pyramid.tools.world"

local parser = cli.parser("icr|rac [options]",
  "Tries the observations that PyramidInfer rests on. icr: what it costs to drop a share of the "
  .. "context in one layer, by the attention of the last queries. rac: how far what recent queries "
  .. "attend to is what the last one does. Prints a table by layer and writes a page.", [[
Examples:
   pyramid study icr --text book.txt
   pyramid study rac --text book.txt --distances 1,8,64 --share 0.1
icr: nats of loss over the full cache's, a token, of the tokens that follow; one layer is cut, all
others are whole. rac: the share that two queries' top rows have in common; chance alone makes it
--share. depth: the rank correlation with the layer's number, from -1 (falls) to 1 (rises).]])
parser:argument("what", "icr or rac."):choices { "icr", "rac" }
cli.add_model(parser, true)
cli.option(parser, "--text", "FILE", "What is read; else documents of Pyramid's own.")
cli.option(parser, "--context", "N", "Tokens of a context.", { default = "512", integer = 16 })
cli.option(parser, "--predict", "M", "icr: tokens scored after it.",
  { default = "64", integer = 1 })
cli.option(parser, "--windows", "N", "Contexts.", { default = "4", integer = 1 })
cli.option(parser, "--layers", "LIST", "Which layers; else all.")
cli.option(parser, "--shares", "LIST", "icr: shares of the context that are dropped.",
  { default = "0.2,0.5,0.8,0.9" })
cli.option(parser, "--recent", "N", "icr: the last rows, which stay, and whose queries rank.",
  { default = "32", integer = 1 })
cli.option(parser, "--distances", "LIST", "rac: how far before the last a query stands.",
  { default = "1,2,4,8,16,32,64,128" })
cli.option(parser, "--share", "P", "rac: the share of the rows that counts as attended to.",
  { default = "0.2", number = true })
cli.option(parser, "--queries", "N", "rac: queries averaged at each place.",
  { default = "1", integer = 1 })
cli.add_cache_dtype(parser)
cli.option(parser, "--out", "FILE", "The page; else build/study-icr.html or build/study-rac.html.")
parser:flag("--json", "Print one JSON object instead of the table.")
local args = cli.parse(parser, arg)

-- ---- arguments ----------------------------------------------------------------------------------

local function share(word)
  local value = tonumber(word)
  return value and value > 0 and value < 1 and value or nil
end

local function count(word)
  local value = math.tointeger(tonumber(word))
  return value and value >= 1 and value or nil
end

local shares = rivals.list_of("--shares", args.shares, share, "a share between 0 and 1")
local distances = rivals.list_of("--distances", args.distances, count, "a number from 1")
if not share(args.share) then cli.fail("--share must be between 0 and 1") end
table.sort(shares)
table.sort(distances)
local asked = args.layers and rivals.list_of("--layers", args.layers, count, "a layer's number")
local text = args.text and cli.read(args.text)
local model <close> = cli.open_text_model(args)
for _, layer in ipairs(asked or {}) do
  if layer > model.config.layers then
    cli.fail(("--layers: %d is more than the model's %d"):format(layer, model.config.layers))
  end
end
local layers = asked or {}
if not asked then
  for layer = 1, model.config.layers do layers[layer] = layer end
end
if args.context + args.predict > model.config.context then
  cli.fail(("--context and --predict are more than the model's context of %d"):format(
    model.config.context))
end

-- Contexts with what follows them, spread over the text.
local function windows()
  local bos = model.tokenizer.adds_bos and model.tokenizer.bos or nil
  local source = text
  if not source then
    local parts = {}
    for i = 1, args.windows do
      parts[i] = world.document(world.held_out + i, { words = args.context + args.predict + 50,
        questions = 0 }).text
    end
    source = table.concat(parts, "\n\n")
  end
  local ids = cli.must(model:encode(source, { special = false }))
  local room = #ids - args.context - args.predict
  if room < 0 then
    cli.fail(("the text has %d tokens, fewer than --context and --predict"):format(#ids))
  end
  local stride = math.max(args.predict, args.windows > 1 and room // (args.windows - 1) or 1)
  return perplexity.windows(ids, { context = args.context, predict = args.predict,
    stride = stride, limit = args.windows, bos = bos })
end

-- ---- the run ------------------------------------------------------------------------------------

local columns = args.what == "icr" and shares or distances
local cells
do
  local progress <close> = picture.progress(args.what)
  local given = { windows = windows(), layers = layers, dtype = args.cache_dtype,
    progress = progress.update }
  if args.what == "icr" then
    given.shares, given.recent = shares, args.recent
    cells = cli.must(study.icr(model, given))
  else
    given.distances, given.share, given.queries = distances, args.share, args.queries
    cells = cli.must(study.rac(model, given))
  end
end

local function shown(value)
  return args.what == "icr" and ("%.4f"):format(value) or ("%.0f %%"):format(100 * value)
end

local function named(column)
  return args.what == "icr" and ("-%.0f %%"):format(100 * column) or ("%d"):format(column)
end

local title = args.what == "icr"
  and "Nats lost, one layer's context cut by the share above, ranked by the last queries"
  or ("Share of the top %.0f %% of rows that a query so far before the last has in common with it")
    :format(100 * args.share)

local function print_table()
  local pic = picture.new(io.stdout)
  print(pic:paint(pic:cut(model.description, pic.width), "dim"))
  print(title)
  local rows, by = { { "layer" } }, {}
  for _, cell in ipairs(cells) do
    by[cell.layer] = by[cell.layer] or {}
    by[cell.layer][cell.at] = cell
  end
  for _, column in ipairs(columns) do table.insert(rows[1], named(column)) end
  for i, cell in ipairs(rows[1]) do rows[1][i] = pic:paint(cell, "dim") end
  for _, layer in ipairs(layers) do
    local row = { ("%d"):format(layer) }
    for _, column in ipairs(columns) do row[#row + 1] = shown(by[layer][column].mean) end
    rows[#rows + 1] = row
  end
  local depth = { "depth" }
  for _, column in ipairs(columns) do
    depth[#depth + 1] = ("%+.2f"):format(study.trend(cells, column))
  end
  rows[#rows + 1] = depth
  print(table.concat(picture.table(rows, ">"), "\n"))
end

local path = args.out or ("build/study-%s.html"):format(args.what)
if not args.out then os.execute "mkdir -p build 2>/dev/null" end
cli.write(path, grid.render { title = ("%s: %s"):format(args.what, model.path:match "[^/]*$"),
  what = title, command = cli.command_line "study", model = model.description, cells = cells,
  layers = layers, columns = columns, name = named, show = shown,
  trend = function(column) return study.trend(cells, column) end })
if args.json then
  cli.json { model = model.description, what = args.what, context = args.context,
    windows = args.windows, cells = cells }
else
  print_table()
  print("page: " .. path)
end

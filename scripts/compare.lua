-- compare.lua: what policies cost and save, at several budgets and lengths: a table and a report.
local cli = require "pyramid.tools.cli"
local compare = require "pyramid.tools.compare"
local page = require "pyramid.tools.report.comparison"
local picture = require "pyramid.tools.picture"
local recall = require "pyramid.tools.recall"
local rivals = require "pyramid.tools.rivals"
local world = require "pyramid.tools.world"

local parser = cli.parser("[options]",
  "Measures policies against the full cache, at several budgets and lengths: facts "
  .. "recalled, evidence that survived, perplexity, how far the model's predictions are from the "
  .. "full cache's, rows and "
  .. "bytes held, time. Prints a table and writes a report that a browser opens.", [[
Examples:
   pyramid compare
   pyramid compare --policy snapkv --policy pyramidinfer preset=45 \
     --budgets 0.2,0.4 --lengths 1024,2048 --mode both
   pyramid compare --policy-file mine.lua --text book.txt --out build/mine
Without --policy: streaming, h2o, snapkv, pyramidinfer, pyramidinfer preset=45.
The full cache is always measured.
A policy with an option that says what share of the rows it keeps (target, or
else ratio) is measured at each of --budgets; one without, or with ratio=,
target= or rows= after its name, is measured once, as it is. One that kept
another share than it was asked for is named by the share it kept.
DIR/report.html is the report, DIR/results.jsonl has one line for each document
and policy. The same command goes on where it was ended; other commands may use
the same DIR. What is there already is not measured again.]])
cli.add_model(parser, true)
rivals.add_options(parser, "build/compare")
cli.option(parser, "--lengths", "LIST",
  ("Tokens of a document with what follows it: %d for question and answer, or --predict.")
  :format(recall.room), { default = "1024" })
cli.option(parser, "--mode", "MODE",
  "agnostic: a document is read before its question is known; aware: with it; or both.",
    { default = "agnostic", choices = { "agnostic", "aware", "both" } })
cli.option(parser, "--questions", "N", "Questions of each kind, for each length and mode; 0: none.",
  { default = "20", integer = 0 })
cli.option(parser, "--kinds", "LIST",
  ("Which kinds: %s; all but the last, if not given. word: facts of one word, hidden in --text "
  .. "or in documents, for any model."):format(table.concat(recall.kinds, ", ")))
cli.option(parser, "--documents", "N", "Documents whose continuation is scored.",
  { default = "8", integer = 0 })
cli.option(parser, "--text", "FILE", "A text whose continuations are scored too.")
cli.option(parser, "--windows", "N", "At most N stretches of that text.",
  { default = "4", integer = 1 })
cli.option(parser, "--predict", "M", "Tokens scored after each context.",
  { default = "128", integer = 1 })
cli.option(parser, "--seed", "N", "The first document, counted from the first held-out one.",
  { default = "0", integer = 0 })
parser:flag("--json", "Print one JSON object instead of the table.")
local args = cli.parse(parser, arg)

-- ---- arguments ----------------------------------------------------------------------------------

local function length(word)
  local value = math.tointeger(tonumber(word))
  return value and value >= 200 and value or nil
end

local function kind(word)
  for _, known in ipairs(recall.kinds) do if word == known then return word end end
end

local budgets = rivals.budgets(args)
local lengths = rivals.list_of("--lengths", args.lengths, length,
  "a number of tokens of 200 or more")
local kinds = args.kinds and rivals.list_of("--kinds", args.kinds, kind,
  "a kind (known: " .. table.concat(recall.kinds, ", ") .. ")")
table.sort(lengths)
if args.predict >= lengths[1] then
  cli.fail(("--predict %d leaves nothing of a length of %d to read"):format(args.predict,
    lengths[1]))
end
if args.questions == 0 and args.documents == 0 and not args.text then
  cli.fail("nothing to measure",
    "At least one of --questions and --documents must be more than 0, or --text given.")
end

local variants = rivals.variants(args, budgets)

-- ---- telling ------------------------------------------------------------------------------------

local function percent(value) return value and ("%.0f %%"):format(100 * value) or "-" end
local function number(value, format) return value and format:format(value) or "-" end

local function accuracy(r)
  return r and ("%s ±%2.0f"):format(percent(r.accuracy), 100 * r.uncertainty) or "-"
end

local function notes(entry)
  local list = {}
  if entry.front then list[1] = "front" end
  if entry.silent then list[#list + 1] = "pruned nothing" end
  if entry.missed then list[#list + 1] = ("asked %s"):format(percent(entry.asked)) end
  return table.concat(list, ", ")
end

local function print_group(pic, entries, last)
  local first = entries[1]
  print(pic:rule(("%d tokens, %s"):format(first.length, first.mode)))
  local rows = { { "policy", "rows", "KV", "recall", "evid.", "perpl.", "bit/B", "KL", "top-1",
    "read", "write/s", "" } }
  for i, cell in ipairs(rows[1]) do rows[1][i] = pic:paint(cell, "dim") end
  for i, entry in ipairs(entries) do
    local text, asked = entry.document or entry.file or {}, entry.recall or {}
    rows[i + 1] = { pic:cut(entry.label, 34), percent(entry.fraction),
      text.cache_bytes and cli.bytes(math.floor(text.cache_bytes)) or "-",
      accuracy(entry.recall), percent(asked.evidence), number(text.perplexity, "%.2f"),
        number(text.bits_per_byte, "%.3f"),
      number(text.kl, "%.3f"), percent(text.top1),
        text.prefill_seconds and picture.seconds(text.prefill_seconds) or "-",
      number(text.decode_rate, "%.0f"), pic:paint(notes(entry),
        (entry.silent or entry.missed) and "warn" or "good") }
  end
  for _, row in ipairs(rows) do
    if not first.recall then table.move(row, 6, #row + 2, 4) end         -- nothing was asked
  end
  print(table.concat(picture.table(rows, first.recall and "<>>>>>>>>>><" or "<>>>>>>>><"), "\n"))
  if first.recall then
    print()
    rows = { { pic:paint("right answers by kind", "dim") } }
    local names = kinds or world.kinds
    for _, name in ipairs(names) do table.insert(rows[1], pic:paint(name, "dim")) end
    for i, entry in ipairs(entries) do
      rows[i + 1] = { pic:cut(entry.label, 34) }
      for _, name in ipairs(names) do
        local n = entry.recall and entry.recall.kinds[name]
        table.insert(rows[i + 1], n and percent(n.right / n.asked) or "-")
      end
    end
    print(table.concat(picture.table(rows, "<>"), "\n"))
  end
  if not last then print() end
end

local function print_tables(entries, model)
  local pic = picture.new(io.stdout)
  print(pic:paint(pic:cut(model.description, pic.width), "dim"))
  print(pic:paint(cli.products(model), "dim"))
  local group = {}
  for i, entry in ipairs(entries) do
    group[#group + 1] = entry
    local following = entries[i + 1]
    if not following or following.length ~= entry.length or following.mode ~= entry.mode then
      print_group(pic, group, not following)
      group = {}
    end
  end
  if entries[1].recall then
    print(pic:paint("front: none with as few rows is better, none with fewer as good, as far as "
      .. "the errors tell", "dim"))
  end
  for _, entry in ipairs(entries) do
    if entry.missed then
      cli.warn(("%s, %d tokens, %s: asked for %s of the rows"):format(entry.label, entry.length,
        entry.mode, percent(entry.asked)))
    end
  end
end

local function print_json(entries, run)
  for _, entry in ipairs(entries) do entry.kept = nil end               -- long, and in the results
  cli.json { model = run.model, version = run.version, command = run.command,
    settings = run.settings, results = entries }
end

-- ---- the run ------------------------------------------------------------------------------------

local text = args.text and { name = args.text == "-" and "standard input" or args.text,
  text = cli.read(args.text), windows = args.windows }
local store <close> = rivals.store(args, compare.format)
local model <close> = cli.open_text_model(args)
if lengths[#lengths] > model.config.context then
  cli.fail(("--lengths: %d is more than the model's context of %d"):format(lengths[#lengths],
    model.config.context))
end
local modes = args.mode == "both" and recall.modes or { args.mode }

local plan
do
  local progress <close> = picture.progress "writing documents"
  local message, code
  plan, message, code = compare.plan(model, { variants = variants,
    circumstances = rivals.circumstances(model, args), lengths = lengths, modes = modes,
      questions = args.questions, kinds = kinds, documents = args.documents,
        predict = args.predict, seed = args.seed, text = text,
          cache = cli.cache_options(args), progress = progress.update })
  if not plan then
    cli.fail(message, code == "questions" and "Give a greater length, or --questions 0."
      or code == "length" and "Give a longer text, or smaller --lengths." or cli.hints[code])
  end
end

local described = rivals.describe("compare", model)

-- What the page says of the run; `share`: how much of it is done, if not all.
local function about(measured, share)
  local run = described(measured, share)
  run.kinds = kinds or world.kinds
  run.settings = { lengths = lengths, modes = modes, budgets = budgets, questions = args.questions,
    documents = args.documents, predict = args.predict, windows = text and args.windows or nil,
    text = text and text.name or nil, first_seed = world.held_out + args.seed,
    cache_dtype = args.cache_dtype, weights = args.weights, precision = model.precision,
    layers = model.config.layers, kv_heads = model.config.kv_heads }
  return run
end

local report_path = args.out .. "/report.html"
local measured = rivals.measure(compare, plan, model, store, report_path, about)
local entries, run = compare.summary(plan, store), about(measured)
cli.write(report_path, page.render(entries, run))
if args.json then
  print_json(entries, run)
else
  print_tables(entries, model)
  print(("%d results, %d of them new: %s\nreport: %s"):format(store.count, measured, store.path,
    report_path))
end

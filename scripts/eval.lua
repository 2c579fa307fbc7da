-- eval.lua: the field's tasks on one's own model, under policies, paired with the full cache.
local cli = require "pyramid.tools.cli"
local core = require "pyramid.core"
local eval = require "pyramid.tools.eval"
local exams = require "pyramid.tools.eval.tasks.exams"
local files = require "pyramid.files"
local json = require "pyramid.json"
local lines = require "pyramid.tools.eval.lines"
local page = require "pyramid.tools.report.comparison"
local picture = require "pyramid.tools.picture"
local rivals = require "pyramid.tools.rivals"
local tasks = require "pyramid.tools.eval.tasks"

local parser = cli.parser("[options]",
  "Puts tasks of the field to a model under policies, at several budgets and lengths, and pairs "
  .. "every answer with the full cache's. Prints a table and writes every score, and a report that "
  .. "a browser opens.", [[
Examples:
   pyramid eval --tasks ruler --text book.txt --lengths 2048 --budgets 0.2,0.45
   pyramid eval --tasks word,nq=nq-open-oracle.jsonl --policy keydiff --policy h2o --mode both
   pyramid eval --tasks longbench=qasper.jsonl,mmlu=mmlu,gsm8k=test.jsonl --lengths 4096
Tasks:
   niah_single_1, _2, _3, niah_multikey_1, _2, _3, niah_multivalue, niah_multiquery, vt, cwe, fwe:
   RULER's, made up to the length; qa_1=SQUAD.json, qa_2=HOTPOTQA.json; ruler: all that need no file
   nq=FILE: Natural Questions with gold passages; word: facts of one word; world: as in recall
   longbench=FILE, leval=FILE, gsm8k=FILE, humaneval=FILE, mmlu=FOLDER: as published
   mtbench=FILE: conversations whose answers are given; nats a token lost, and no text is written
   data=FILE: your own JSON lines with context, question, answers and metric
A task counts if the full cache reaches 80 %; the last columns are over those: the share of the
full cache's score that is kept, with its 95 % interval, and McNemar's p. docs/protocol.md has more.
HumanEval's samples go to DIR for the official checker; no code is run here. --results says pass@k of
what the checker wrote.
DIR/results.jsonl holds every answer, and the same command goes on where it was ended; DIR/scores.csv
has a row for each question.]])
cli.add_model(parser, true)
rivals.add_options(parser, "build/eval")
cli.add_sessions(parser)
cli.option(parser, "--tasks", "LIST", "Tasks, with their files: NAME or NAME=PATH.",
  { default = "niah_single_1,niah_single_2,niah_multikey_1,word" })
cli.option(parser, "--lengths", "LIST", "Tokens of a prompt with its answer. Files' longer "
  .. "contexts are cut in their middle, to the greatest.", { default = "1024" })
cli.option(parser, "--mode", "MODE",
  "agnostic: the context is read before the question is known; aware: with it; or both.",
    { default = "agnostic", choices = { "agnostic", "aware", "both" } })
cli.option(parser, "--questions", "N", "Of each task, for each length and mode.",
  { default = "40", integer = 1 })
cli.option(parser, "--per-context", "N", "The most questions about one context.",
  { default = "4", integer = 1 })
cli.option(parser, "--text", "FILE", "What haystacks are made of; else documents of Pyramid's own.")
cli.option(parser, "--seed", "N", "The first case.", { default = "0", integer = 0 })
parser:flag("--plain", "Use no chat template, also where the model has one.")
cli.option(parser, "--results", "FILE", "Say pass@1 of what HumanEval's checker wrote, and end.")
cli.option(parser, "--pass", "K", "With --results: pass@K instead.", { default = "1", integer = 1 })
parser:flag("--json", "Print one JSON object instead of the table.")
local args = cli.parse(parser, arg)

if args.results then
  local share, problems, code = exams.passed(args.results, cli.read(args.results), args.pass)
  if not share then cli.must(nil, problems, code) end
  print(("pass@%d: %.1f %% of %d problems"):format(args.pass, 100 * share, problems))
  return
end

-- ---- arguments ----------------------------------------------------------------------------------

local function task_list()
  local list = {}
  local function add(name, path)
    if not tasks.known(name) then
      cli.fail(("--tasks: '%s' is no task"):format(name),
        "Known: " .. table.concat(tasks.list(), ", ") .. ", ruler.")
    end
    if tasks.wants_file(name) ~= (path ~= nil) then
      cli.fail(("--tasks: %s %s"):format(name, path and "reads no file" or "needs a file"),
        ("Write %s%s."):format(name, path and "" or "=PATH"))
    end
    list[#list + 1] = { name = name, path = path }
  end
  for word in (args.tasks .. ","):gmatch "([^,]*)," do
    local name, path = word:match "^([^=]*)=(.+)$"
    if word == "ruler" then
      for _, each in ipairs(tasks.ruler) do
        if not tasks.wants_file(each) then add(each) end
      end
    else add(name or word, path) end
  end
  return list
end

local function length(word)
  local value = math.tointeger(tonumber(word))
  return value and value >= 200 and value or nil
end

local budgets, asked = rivals.budgets(args), task_list()
local lengths = rivals.list_of("--lengths", args.lengths, length,
  "a number of tokens of 200 or more")
table.sort(lengths)
local variants = rivals.variants(args, budgets)
local modes = args.mode == "both" and eval.modes or { args.mode }
local text = args.text and cli.read(args.text)
if text and #text < 1000 then
  cli.fail(("--text: %s is too short to hide anything in"):format(args.text),
    "Give a text of 1,000 bytes or more.")
end

-- ---- telling ------------------------------------------------------------------------------------

local function percent(value) return value and ("%.0f %%"):format(100 * value) or "-" end
-- An interval as wide as all scores says nothing: two contexts have one.
local function points(half) return half < 1 and (" ±%.0f"):format(100 * half) or "" end

local function notes(entry)
  local list = {}
  if entry.silent then list[1] = "pruned nothing" end
  if entry.missed then list[#list + 1] = ("asked %s"):format(percent(entry.asked)) end
  return table.concat(list, ", ")
end

-- The table of one length and mode: entries, their tasks' scores, and what is pooled.
local function print_group(pic, entries, plan)
  local first = entries[1]
  print(pic:rule(("%d tokens, %s"):format(first.length, first.mode)))
  local names = {}
  for _, name in ipairs(plan.tasks) do
    if first.tasks[name] then names[#names + 1] = name end
  end
  local head = { "policy", "rows", "KV", "of full", "share of full", "p", "" }
  for i, name in ipairs(names) do
    local of = first.tasks[name]
    table.insert(head, 3 + i, name .. ((of.counted or of.nats) and "" or "*"))
  end
  table.remove(head, 4 + #names)
  for i, cell in ipairs(head) do head[i] = pic:paint(cell, "dim") end
  local rows = { head }
  for _, entry in ipairs(entries) do
    local row = { pic:cut(entry.label, 34), percent(entry.fraction),
      cli.bytes(math.floor(entry.bytes)) }
    for _, name in ipairs(names) do
      local of = entry.tasks[name]
      row[#row + 1] = not of and "-" or not of.nats and percent(of.score) .. points(of.half)
        or entry == first and ("%.3f nats"):format(-of.score)
        or of.lost and ("%+.3f ±%.3f"):format(of.lost, of.lost_half) or "-"
    end
    local pooled = entry.pooled
    local own = pooled and entry ~= first
    row[#row + 1] = own and percent(pooled.share) .. points(pooled.half) or "-"
    row[#row + 1] = own and ("%.2g"):format(pooled.p) or "-"
    row[#row + 1] = pic:paint(notes(entry), "warn")
    rows[#rows + 1] = row
  end
  print(table.concat(picture.table(rows, "<" .. (">"):rep(#head - 2) .. "<"), "\n"))
  local pooled = first.pooled
  print(pooled and ("%d questions about %d contexts count"):format(pooled.n, pooled.contexts)
    or "no task counts: the full cache reaches 80 % in none")
  print()
end

local function print_tables(entries, plan, model)
  local pic = picture.new(io.stdout)
  print(pic:paint(pic:cut(model.description, pic.width), "dim"))
  local group, starred = {}, false
  for i, entry in ipairs(entries) do
    group[#group + 1] = entry
    for _, of in pairs(entry.tasks) do starred = starred or not of.counted and not of.nats end
    local following = entries[i + 1]
    if not following or following.length ~= entry.length or following.mode ~= entry.mode then
      print_group(pic, group, plan)
      group = {}
    end
  end
  if starred then print(pic:paint("* does not count: the full cache is below 80 %", "dim")) end
  for _, entry in ipairs(entries) do
    if entry.missed then
      cli.warn(("%s, %d tokens, %s: asked for %s of the rows"):format(entry.label, entry.length,
        entry.mode, percent(entry.asked)))
    end
  end
end

-- ---- files --------------------------------------------------------------------------------------

local function write_scores(plan, store)
  local columns, rows = eval.scores(plan, store)
  local out = { table.concat(columns, ",") }
  for i, row in ipairs(rows) do
    local fields = {}
    for k, value in ipairs(row) do fields[k] = lines.field(value) end
    out[i + 1] = table.concat(fields, ",")
  end
  cli.write(args.out .. "/scores.csv", table.concat(out, "\n") .. "\n")
end

-- HumanEval's samples, a file for each variant; their paths.
local function write_samples(plan, store)
  local paths = {}
  for _, group in ipairs(eval.samples(plan, store)) do
    local name = ("%s/humaneval-%s-%d-%s.jsonl"):format(args.out, group.mode, group.length,
      (group.variant.label:gsub("[^%w.]+", "-")))
    local out = {}
    for i, sample in ipairs(group.samples) do out[i] = json.encode(sample) end
    cli.write(name, table.concat(out, "\n") .. "\n")
    paths[#paths + 1] = name
  end
  return paths
end

local function read(path)
  if files.kind(path) ~= "file" then return nil, path .. ": no such file", "io" end
  local file <close>, message = io.open(path, "rb")
  if not file then return nil, message, "io" end
  return file:read "a"
end

-- ---- the run ------------------------------------------------------------------------------------

local store <close> = rivals.store(args, eval.format)
local model <close> = cli.open_text_model(args)
if lengths[#lengths] > model.config.context then
  cli.fail(("--lengths: %d is more than the model's context of %d"):format(lengths[#lengths],
    model.config.context))
end

local plan
do
  local progress <close> = picture.progress "writing prompts"
  local message, code
  plan, message, code = eval.plan(model, { variants = variants, tasks = asked, lengths = lengths,
    circumstances = rivals.circumstances(model, args), modes = modes, questions = args.questions,
    per_context = args.per_context, seed = args.seed, text = text, chat = not args.plain,
    cache = cli.cache_options(args), read = read, progress = progress.update })
  if not plan then
    cli.fail(message, code == "length" and "Give a greater --lengths." or cli.hints[code])
  end
end

local nats = {}                       -- tasks whose scores are log-probabilities
for _, step in ipairs(plan.steps) do nats[step.task] = step.turns ~= nil or nil end

local described = rivals.describe("eval", model)

-- What the page says of the run; `share`: how much of it is done, if not all.
local function about(measured, share)
  local run = described(measured, share)
  run.kinds = plan.tasks
  run.protocol = { chat = plan.chat, per_context = args.per_context, nats = nats }
  run.settings = { lengths = lengths, modes = modes, budgets = budgets, questions = args.questions,
    documents = 0, text = args.text, first_seed = args.seed, cache_dtype = args.cache_dtype,
    weights = args.weights, precision = model.precision, layers = model.config.layers,
    kv_heads = model.config.kv_heads }
  return run
end

local report_path = args.out .. "/report.html"
local measured = rivals.measure(eval, plan, model, store, report_path, about)
local entries = eval.summary(plan, store)
cli.write(report_path, page.render(entries, about(measured)))
write_scores(plan, store)
local samples = write_samples(plan, store)
if args.json then
  cli.json { model = model.description, version = core.version,
    command = cli.command_line "eval", settings = about(measured).settings, results = entries }
else
  print_tables(entries, plan, model)
  print(("%d results, %d of them new: %s\nscores: %s/scores.csv\nreport: %s"):format(store.count,
    measured, store.path, args.out, report_path))
  for _, path in ipairs(samples) do print("samples: " .. path) end
end

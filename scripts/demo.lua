-- demo.lua: reads a long text under several policies, asks about it, and draws what each kept.
local cli = require "pyramid.tools.cli"
local core = require "pyramid.core"
local hidden = require "pyramid.tools.hidden"
local picture = require "pyramid.tools.picture"
local recall = require "pyramid.tools.recall"
local screen = require "pyramid.tools.screen"
local target = require "pyramid.tools.target"
local world = require "pyramid.tools.world"

local parser = cli.parser("[options]",
  "Reads a long text under several policies, asks about it, and draws what each kept.",
    [[
Without --policy: full, pyramidinfer, and pyramidinfer preset=45; with --text, where the model
is supposed to be a real one, full, keydiff target=0.5, and pyramidinfer.
Examples:
   pyramid demo
   pyramid get smollm2 && pyramid demo --model smollm2 --text docs/glossary.md]])
cli.add_model(parser)
cli.add_policy(parser, true)
cli.add_cache(parser)
cli.option(parser, "--seed", "N", "Which story.", { default = "25", integer = 0 })
cli.option(parser, "--words", "N", "About how many words it has.",
  { default = "950", integer = 50 })
cli.option(parser, "--text", "FILE", "Read this text instead, of which as many words are taken. "
  .. "Four facts are put into it, and asked for: any language model can be asked so.")
local args = cli.parse(parser, arg)
args.policies = args.policies
  or args.text and { { text = "full" }, { text = "keydiff target=0.5" }, { text = "pyramidinfer" } }
  or { { text = "full" }, { text = "pyramidinfer" }, { text = "pyramidinfer preset=45" } }

local pic = picture.new(io.stdout)
local story_tokens, scored_tokens, timed_steps = 64, 128, 24

-- ---- what is read -------------------------------------------------------------------------------

-- A text with what is asked about it:
--   what       how it is called          body        the text, and a blank line
--   opening    begins what is written    rest        how it goes on, which is scored
--   questions  { question, answer } of the world, or { question, begun, word } of hidden facts

-- A story, up to three questions whose answers were told in its first two thirds, each about
-- another thing, and how the document goes on: questions with the right answers.
local function tell()
  local document = world.document(world.held_out + args.seed,
    { words = args.words, title = true, density = 45, recall = 25,
      kinds = { "attribute", "code", "gift", "moved" }, questions = 24 })
  local questions, asked = {}, {}
  for _, question in ipairs(document.questions) do
    local first = question.evidence[1][1]
    if not question.inside and not asked[first] and first < document.body_bytes * 2 // 3
      and #questions < 3 then
      asked[first] = true
      questions[#questions + 1] = question
    end
  end
  -- With the blank line after it: tokens that begin in the story end in it.
  local past = document.body_bytes + 3
  return { what = "A story", body = document.text:sub(1, past - 1), questions = questions,
    opening = "The next morning", rest = document.text:sub(past) }
end

-- Markdown as a reader sees it, a paragraph a line; links by their labels, but for those that are
-- paths.
local function plain(text)
  text = text:gsub("\r", ""):gsub("%[([^%]]*)%]%([^)]*%)[.,]?", function(label)
    return label:find "/" and "" or nil
  end):gsub("%[([^%]]*)%]%([^)]*%)", "%1"):gsub("[*`]+", ""):gsub("%f[^\n\0]#+ ", "")
  local paragraphs = {}
  for paragraph in (text .. "\n\n"):gmatch "%s*(.-)%s*\n[ \t]*\n" do
    if paragraph ~= "" then
      paragraphs[#paragraphs + 1] = paragraph:gsub("%s*\n%s*", " ")
    end
  end
  return table.concat(paragraphs, "\n\n")
end

-- The first words of a file's text with facts among them. It is cut where a sentence ends, and at
-- the latest so that there is something to score.
local function quote(path)
  local text = cli.read(path)
  if path:find "%.md$" then text = plain(text) end
  local past, words = #text, 0
  for place in text:gmatch "()%s+%S" do
    words = words + 1
    if words == args.words or place > #text * 4 // 5 then
      past = text:match("[%.!?]()%s", place) or place
      break
    end
  end
  local rest = text:sub(past):match "^%s*(.*)$"
  local opening = rest:match "^%S+%s+%S+%s+%S+"
  if words < 50 or not opening then
    cli.fail(("%s: too short a text"):format(path), "Give one of at least a hundred words.")
  end
  local questions = hidden.of(args.seed)
  local body = hidden.set(text:sub(1, past - 1), questions, 0.5)
  for _, fact in ipairs(questions) do fact.question = fact.begun .. " ..." end
  return { what = "A text", body = body .. "\n\n", questions = questions, opening = opening,
    rest = rest }
end

local function show_text(of, tokens)
  local text = of.body
  print(pic:rule(("%s of %d tokens"):format(of.what, tokens)))
  local function show(part)
    local writer = pic:writer { indent = 2, width = pic.width - 2, how = "dim" }
    writer:push(part)
    writer:finish()
  end
  local head, tail = text:sub(1, 300):match "^(.*[%.!?\"])%s",
    text:sub(-220):match "[%.!?\"]%s+(.*)\n\n$"
  show(head or text:sub(1, 300))
  print(pic:paint("  " .. (pic.ascii and "..." or "⋮"), "dim"))
  show(tail or text:sub(-220))
  print()
end

-- ---- reading, writing, answering ----------------------------------------------------------------

local function write_on(model, cache, opening)
  local fork <close> = cli.must(cache:fork())
  local writer = pic:writer { indent = 2, width = pic.width - 2 }
  writer:push(opening)
  -- The policy has judged the story, not how it goes on.
  local run <close> = cli.must(model:generate(opening,
    { cache = fork, special = false, prune = false, max_tokens = story_tokens,
      sampler = { temperature = 0.6, top_k = 20, seed = 3 } }))
  for piece in run do writer:push(pic.terminal and screen.safe(piece) or piece) end
  writer:finish()
end

-- The line that answers a question, and whether it is right.
local function answer(model, cache, question)
  local fork <close> = cli.must(cache:fork())
  if not question.begun then
    local line = cli.must(recall.answer(model, fork, question.question))
    return line, line == question.answer
  end
  local run <close> = cli.must(model:generate(question.begun,
    { cache = fork, special = false, prune = false, max_tokens = 8 }))
  local line = ""
  for piece in run do line = line .. piece end
  line = line:match "^%s*([^\n]*)"
  if pic.terminal then line = screen.safe(line) end
  return line:match "^.-%." or line, hidden.answers(line, question.word)
end

-- Perplexity of what follows the story: how much the model still knows of it, whatever it would
-- have written itself.
local function score(model, entry, rest)
  local ids, sum = cli.must(model:encode(rest, { special = false })), 0
  local count = math.min(#ids, scored_tokens)
  local fork <close> = cli.must(entry.cache:fork())
  local all = cli.must(fork:prefill(table.move(ids, 1, count - 1, 1, {}),
    { all = true, prune = false }))
  for i, logits in ipairs(all) do sum = sum + logits:logprob(ids[i + 1]) end
  entry.perplexity = math.exp(-sum / #all)
end

local function read(model, entry, ids)
  local progress <close> = picture.progress("  prefill", { after = 0 })
  entry.cache = cli.must(model:cache(cli.cache_options(args, entry.policy)))
  cli.must(entry.cache:prefill(ids, { progress = progress.update }))
  entry.bytes, entry.fraction = entry.cache:bytes(), entry.cache:fraction()
  entry.computed = entry.cache:computed() / (#ids * model.config.layers)
  entry.layers = picture.survey(entry.cache, model.config)
end

-- What an answer says beyond what its question says; the whole of it, if it is worded otherwise.
local function asked_for(text, question)
  if question.begun then return (text:gsub("%.$", "")) end
  local head = question.answer:sub(1, question.answer:find(question.value, 1, true) - 1)
  return text:sub(1, #head) == head and text:sub(#head + 1):gsub("%.$", "") or text
end

local function show_answers(model, entry, questions)
  entry.right = 0
  local rows, wide = {}, (pic.width - 8) * 11 // 20
  local half = (pic.width - 8 - wide) // 2
  for i, question in ipairs(questions) do
    local text, right = answer(model, entry.cache, question)
    if right then entry.right = entry.right + 1 end
    local mark = right and (pic.ascii and "+" or "✓") or (pic.ascii and "-" or "✗")
    rows[i] = { "  " .. pic:paint(mark, right and "good" or "warn"),
      pic:paint(pic:cut(question.question, wide), "dim"),
        pic:cut(text == "" and "(nothing)" or asked_for(text, question), half),
          right and "" or pic:paint(pic:cut("told: " .. (question.value or question.word), half),
            "dim") }
  end
  if #rows > 0 then print(table.concat(picture.table(rows, "<", 1), "\n")) end
end

-- ---- measuring ----------------------------------------------------------------------------------

-- The best of several rounds in which the policies take turns: what else the machine does disturbs
-- only some of them.
local function measure(model, entries, ids)
  local progress <close> = picture.progress("measuring", { after = 0 })
  -- rounds, seconds: at least four, or two of a large model; more while there is time
  local least, fewest, most, enough = 4, 2, 8, 5.0
  local start, round = core.clock(), 0
  repeat
    round = round + 1
    for i, entry in ipairs(entries) do
      local cache <close> = cli.must(model:cache(cli.cache_options(args, entry.policy)))
      local began = core.clock()
      local logits = cli.must(cache:prefill(ids))
      local read_at = core.clock()
      for _ = 1, timed_steps do logits = cli.must(cache:step((logits:argmax()))) end
      local stepped = core.clock()
      entry.read_seconds = math.min(entry.read_seconds or math.huge, read_at - began)
      entry.step_seconds = math.min(entry.step_seconds or math.huge,
        (stepped - read_at) / timed_steps)
      progress.update((round - 1) * #entries + i, most * #entries)
    end
    local took = core.clock() - start
  until round == most or round >= least and took > enough
    or round >= fewest and took > 3 * enough
  return round
end

-- ---- the picture --------------------------------------------------------------------------------

local function depth(layer, layers) return (layer - 1) / layers end

-- Each policy's layers as steps of a pyramid, the last layer on top.
local function draw_pyramids(entries, tokens, layers)
  print(pic:rule "Rows kept in each layer, the last layer on top")
  local column = (pic.width - 5) // #entries
  local wide = (column - 7) // 2 * 2
  local line = { (" "):rep(5) }
  for i, entry in ipairs(entries) do
    local title = pic:paint(pic:cut(entry.label, column - 1), "bold")
    line[i + 1] = picture.pad(picture.pad(title, wide, "^"), column)
  end
  print((table.concat(line):gsub("%s+$", "")))
  for layer = layers, 1, -1 do
    line = { ("%3d  "):format(layer) }
    for i, entry in ipairs(entries) do
      local rows = entry.layers[layer].rows
      line[i + 1] = pic:step(rows / tokens, wide, depth(layer, layers))
        .. picture.pad((" %.0f"):format(rows), column - wide)
    end
    print((table.concat(line):gsub("%s+$", "")))
  end
  print()
end

-- Where in the text the rows lie that are kept: two policies side by side if there is room for it.
local function draw_strips(entries, tokens, layers, what)
  print(pic:rule(("Where in the %s they lie: "):format(what) .. pic:legend()))
  local shown = {}
  for _, entry in ipairs(entries) do
    if entry.fraction < 0.9999 then shown[#shown + 1] = entry end
  end
  for first = 1, #shown, 2 do
    local pair = { shown[first], shown[first + 1] }
    local wide = (pic.width - 5) // #pair - 2
    local line = {}
    for i, entry in ipairs(pair) do
      line[i] = picture.pad(pic:paint(pic:cut(entry.label, wide), "bold"), wide, "^")
    end
    print((("     " .. table.concat(line, "  ")):gsub("%s+$", "")))
    for layer = layers, 1, -1 do
      for i, entry in ipairs(pair) do
        line[i] = pic:strip(entry.layers[layer].lanes, tokens, wide, depth(layer, layers))
      end
      print(("%3d  %s"):format(layer, table.concat(line, "  ")))
    end
  end
  print()
end

local function draw_numbers(entries, questions, rounds, tokens)
  print(pic:rule(("What that saves (best of %d rounds)"):format(rounds)))
  local base = entries[1]
  local cross = pic.ascii and "x" or "×"
  local rows = { { "" }, { "rows kept" }, { "computed" }, { "KV cache" }, { "prefill" },
    { "decode" }, { "perplexity" }, { "answers" } }
  for i, entry in ipairs(entries) do
    local function ratio(value, cell)
      return i == 1 and cell or ("%s  %s"):format(cell,
        pic:paint(("%.2f%s"):format(value, cross), value >= 1 and "good" or "warn"))
    end
    for r, cell in ipairs {
      pic:paint(pic:cut(entry.label, 24), "bold"), cli.percent(entry.fraction),
        cli.percent(entry.computed),
      ratio(base.bytes / entry.bytes, cli.bytes(entry.bytes)),
      ratio(base.read_seconds / entry.read_seconds, picture.seconds(entry.read_seconds)),
      ratio(base.step_seconds / entry.step_seconds, ("%.0f tok/s"):format(1 / entry.step_seconds)),
      ("%.3f"):format(entry.perplexity), ("%d of %d"):format(entry.right, #questions),
    } do rows[r][i + 1] = cell end
  end
  for r, row in ipairs(rows) do row[1] = "  " .. (r > 1 and pic:paint(row[1], "dim") or row[1]) end
  print(table.concat(picture.table(rows, "<>", 3), "\n"))
  for _, entry in ipairs(entries) do
    local warning = target.warning(entry.policy, entry.label, entry.fraction, tokens)
    if warning then print("\n  " .. pic:paint(warning, "warn")) end
  end
  for _, entry in ipairs(entries) do
    if entry.perplexity < 0.98 * base.perplexity then
      print(pic:paint("\n  (Perplexity of what follows. A model that was trained on "
        .. "short texts\n"
        .. "  reads them better than long ones: a smaller cache may even help it.)", "dim"))
      break
    end
  end
  print()
end

-- ---- the demo -----------------------------------------------------------------------------------

local entries = cli.policies(args)
local model <close> = cli.open_text_model(args)
local subject = args.text and quote(args.text) or tell()
local ids = cli.must(model:encode(subject.body))
local layers = model.config.layers

print()
print(pic:paint("Pyramid", "bold") .. " " .. core.version .. ": "
  .. pic:cut(model.description, pic.width - 16))
print(pic:paint(cli.products(model), "dim"))
if args.model == cli.default_model then
  print(pic:paint(pic:cut(
    "The default model is small and young: judge policies by what they lose to full.", pic.width),
      "dim"))
end
print()
show_text(subject, #ids)
for _, entry in ipairs(entries) do
  print(pic:rule(entry.label .. " goes on"))
  read(model, entry, ids)
  write_on(model, entry.cache, subject.opening)
  show_answers(model, entry, subject.questions)
  score(model, entry, subject.rest)
  entry.cache:close()
  print()
end
local rounds = measure(model, entries, ids)
draw_pyramids(entries, #ids, layers)
draw_strips(entries, #ids, layers, args.text and "text" or "story")
draw_numbers(entries, subject.questions, rounds, #ids)
local program = arg[-1] or "pyramid"
print(("%s  %s generate --help\n       %s chat"):format(pic:paint("Next:", "bold"), program,
  program))

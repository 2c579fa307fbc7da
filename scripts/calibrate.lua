-- calibrate.lua: measures what layers and heads look at, and writes a policy file that keeps it.
local calibrate = require "pyramid.tools.calibrate"
local centres = require "pyramid.tools.centres"
local cli = require "pyramid.tools.cli"
local compare = require "pyramid.tools.compare"
local core = require "pyramid.core"
local learn = require "pyramid.tools.learn"
local noise = require "pyramid.tools.noise"
local picture = require "pyramid.tools.picture"
local policy = require "pyramid.policy"
local rivals = require "pyramid.tools.rivals"

local parser = cli.parser("[options]",
  "Finds a schedule for a model instead of guessing one: measures what is lost "
  .. "if layers keep fewer rows, solves for the ratios that lose "
  .. "the least, and writes a policy file.", [[
Examples:
   pyramid calibrate --target 0.45 --out mine.lua
   pyramid calibrate --loss 0.05 --share head --text book.txt --out mine.lua
   pyramid calibrate --target 0.45 --prune both --out mine.lua --check
   pyramid calibrate --heads --target 0.5 --out duo_mine.lua
   pyramid calibrate --heads --as headkv --text book.txt --out heads.lua
   pyramid calibrate --learn --model smollm2 --text book.txt --out build/learned
   pyramid generate --policy-file mine.lua target=0.3 "Once there was"
   pyramid calibrate --target 0.45 --out mine.lua --shard 1/2
Without --text: held-out documents of the world that the default model knows.
Neither the mass nor a layer alone is what a model forgets in the end: --check
measures the policy on other documents, beside PyramidInfer's cosine at the same
share of the rows, and says which did better. What is measured is kept beside
the policy, in mine.jsonl: a run that was ended goes on.]])
cli.add_model(parser, true)
cli.option(parser, "--target", "SHARE", "Rows to keep, of all. (default: 0.45, if no --loss)",
  { number = true })
cli.option(parser, "--loss", "SHARE",
  "The most to lose, on average over layers (see --by), for as few rows as it takes.",
    { number = true })
cli.option(parser, "--share", "WHO",
  "layer: one ratio for a layer, one set for its heads; head: each KV head its own.",
    { default = "layer", choices = { "layer", "head" } })
cli.option(parser, "--prune", "WHAT",
  "cache: rows; both: nor do later layers see the token, so ratios never rise.",
    { default = "cache", choices = { "cache", "both" } })
cli.option(parser, "--by", "WHAT",
  "mass: attention lost; kl: how far predictions are off if one layer alone is cut."
  .. " (default: kl; mass for heads)",
  { choices = { "mass", "kl" } })
parser:flag("--heads",
  "Rank KV heads by attention outside of sinks and recent rows, and write a duo policy.")
cli.option(parser, "--as", "POLICY",
  "With --heads: duo, where some heads keep all (default); headkv, with budgets by the scores.",
  { choices = { "duo", "headkv" } })
parser:flag("--learn",
  "Learn from plain text what will be looked at (KVzap), and write a folder that is a policy; with"
  .. " --text, --length, --texts, --seed and --out.")
parser:flag("--centres",
  "Take from plain text where each head's queries lie (TriAttention, Q-Filters), and write a folder"
  .. " that is a policy; with --text, --length, --texts, --seed and --out.")
cli.option(parser, "--text", "FILE", "A text to measure on.")
cli.option(parser, "--length", "N",
  "Tokens of each stretch that is read; if not given, the model's context, at most 1024.",
    { integer = 64 })
cli.option(parser, "--texts", "N", "How many of them. (default: 8; 32 with --learn)",
  { integer = 1 })
cli.option(parser, "--seed", "N", "The first document, counted from the first held-out one.",
  { default = "0", integer = 0 })
cli.option(parser, "--queries", "N",
  "Last queries whose attention counts; they are the window that always stays.",
    { default = "32", integer = 1 })
cli.option(parser, "--sinks", "N", "First rows that always stay.", { default = "4", integer = 0 })
cli.option(parser, "--recent", "N", "With --heads: recent rows that streaming heads keep.",
  { default = "64", integer = 1 })
cli.option(parser, "--kernel", "N",
  "Neighbours whose highest attention a row counts with, an odd number; 1: its own.",
    { default = "1", integer = 1 })
cli.option(parser, "--steps", "N",
  "How finely ratios are told apart. (default: 50; 25 for more than 40 layers)", { integer = 2 })
cli.option(parser, "--out", "FILE",
  "The policy file; its name is the policy's. With --learn and --centres: a folder."
  .. " (default: build/calibrated.lua, build/learned, build/centres)")
rivals.add_shard(parser)
parser:flag("--check",
  "Measure the policy on other documents, beside the cosine at the same share of the rows.")
cli.option(parser, "--questions", "N", "With --check: questions of each kind; 0: none.",
  { default = "10", integer = 0 })
cli.option(parser, "--documents", "N", "With --check: documents whose continuation is scored.",
  { default = "4", integer = 0 })
cli.option(parser, "--mode", "MODE",
  "With --check: whether the question is known when the document is read.",
    { default = "agnostic", choices = { "agnostic", "aware" } })
parser:flag("--json", "Print one JSON object.")
local args = cli.parse(parser, arg)

-- ---- arguments ----------------------------------------------------------------------------------

for _, name in ipairs { "target", "loss" } do
  local value = args[name]
  if value and not (value > 0 and value <= 1) then
    cli.fail(("--%s: %g is no share, more than 0 and at most 1"):format(name, value))
  end
end
if args.target and args.loss then
  cli.fail("--target and --loss: one of them follows from the other", "Give one of the two.")
end
if args.heads and args.loss then
  cli.fail("--heads goes with --target", "Retrieval heads are picked until the share is used up.")
end
if args.shard and (args.learn or args.centres) then
  cli.fail("--shard shares out what is measured text by text", "Leave it out.")
end
if args.as and not args.heads then cli.fail("--as goes with --heads", "Give both.") end
if args.share == "head" and args.prune == "both" then
  cli.fail("--share head cannot go with --prune both",
    "A token whose hidden state is gone is gone for all heads.")
end
args.by = args.by or ((args.share == "head" or args.heads) and "mass" or "kl")
if args.by == "kl" and (args.share == "head" or args.heads) then
  cli.fail("--by kl cuts whole layers", "Heads are measured with --by mass.")
end
if args.kernel % 2 == 0 or args.kernel > 63 then
  cli.fail(("--kernel: %d is not an odd number up to 63"):format(args.kernel))
end
args.texts = args.texts or (args.learn and 32 or 8)
args.out = args.out or (args.learn and "build/learned" or args.centres and "build/centres"
  or "build/calibrated.lua")
local target = not args.loss and (args.target or 0.45) or nil
local name = args.out:match "([^/\\]+)%.lua$"
if not name and not args.learn and not args.centres then
  cli.fail(("--out: '%s' does not end in .lua"):format(args.out))
end

-- ---- texts --------------------------------------------------------------------------------------

local text = args.text and cli.read(args.text)
local model <close> = cli.open_text_model(args)
local length = args.length
  or math.min(args.learn and model.config.context // 2 - 32 or model.config.context, 1024)
if length > model.config.context then
  cli.fail(("--length %d is more than the model's context of %d"):format(length,
    model.config.context))
end
local guarded = args.sinks + (args.heads and args.recent or args.queries)
if guarded >= length then
  cli.fail(("--length %d: the %d guarded rows are all there is"):format(length, guarded))
end

local texts = cli.must(calibrate.texts(model, { length = length, count = args.texts,
  seed = args.seed, text = text }))

local function about()
  return ("made for %s by `%s` from %d texts of %d tokens (%s), in %s, with pyramid %s."):format(
    model.description or args.model, cli.command_line "calibrate", #texts, length,
      args.text and "the user's" or "held-out documents", model.precision, core.version)
end

-- ---- learning -----------------------------------------------------------------------------------

local pic = picture.new(io.stdout)

local function print_agreement(learned)
  print(("rank agreement with a second reading, on %d texts that were left out"):format(
    learned.held_out))
  local rows, sum, count = {}, 0, 0
  for layer, heads in ipairs(learned.agreement) do
    local mean = 0
    for _, x in ipairs(heads) do
      mean, sum, count = mean + x / #heads, sum + x, count + 1
    end
    rows[layer] = { tostring(layer), ("%.3f"):format(mean),
      pic:bar(math.max(mean, 0), math.max(10, pic.width - 30), (layer - 1) / #learned.agreement) }
  end
  print(table.concat(picture.table(rows, ">><"), "\n"))
  print(("%.3f on average over %d heads"):format(sum / count, count))
  local tokens = 0
  for _, x in ipairs(learned.deeper) do tokens = tokens + x / math.max(1, #learned.deeper - 1) end
  print(("%.3f of what tokens are worth to deeper layers, on average"):format(tokens))
  return sum / count
end

-- A folder of these files; the path of its policy.
local function write_folder(files)
  if not os.execute("mkdir -p " .. cli.quote(args.out)) then
    cli.fail(("--out: the folder '%s' cannot be made"):format(args.out))
  end
  for file, bytes in pairs(files) do cli.write(args.out .. "/" .. file, bytes) end
  local path = args.out .. "/policy.lua"
  cli.must(policy.load(path))
  return path
end

local function centres_and_write()
  local learned
  do
    local progress <close> = picture.progress "reading"
    learned = cli.must(centres.learn(model, texts, { progress = progress.update }))
  end
  local path = write_folder(centres.folder(learned, about()))
  local rows = math.tointeger(learned.metadata.rows)
  if args.json then return cli.json { file = path, rows = rows } end
  print(("centres of %s queries a head\npolicy: --policy-file %s target=0.3"):format(
    learned.metadata.rows, path))
end

local function learn_and_write()
  if #texts < 2 then
    cli.fail("--learn wants two texts and more", "Give a longer --text, or a shorter --length.")
  end
  local learned
  do
    local progress <close> = picture.progress "reading twice"
    learned = cli.must(learn.map(model, texts, { progress = progress.update }))
  end
  local path = write_folder(learn.folder(learned, about()))
  if args.json then
    cli.json { file = path, agreement = learned.agreement, deeper = learned.deeper,
      rows = learned.rows, texts = learned.texts, held_out = learned.held_out }
    return
  end
  print_agreement(learned)
  print(("learned from %d rows\npolicy: --policy-file %s target=0.3"):format(learned.rows, path))
  print(("or: --policy-file %s/narrow.lua"):format(args.out))
end

if args.learn then return learn_and_write(texts) end
if args.centres then return centres_and_write() end

-- ---- measuring ----------------------------------------------------------------------------------

-- A worker of several measures what is its own of both, and leaves the rest to who joins them.
local made
local store <close> = rivals.store(args, calibrate.format, args.out:gsub("%.lua$", "") .. ".jsonl",
  model)
local circumstances = rivals.untimed_circumstances(model, args)
do
  local already, waits, known = store.count, nil, 0
  local function count_known() known = known + 1 end
  local function must(value, message, code)
    if code == "shard" then
      waits = message
      return nil
    end
    return cli.must(value, message, code)
  end
  do
    local progress <close> = picture.progress "measuring attention"
    made = must(calibrate.measure(model, texts, { queries = args.queries, sinks = args.sinks,
      recent = args.heads and args.recent or args.queries, store = store,
      circumstances = circumstances, progress = progress.update, known = count_known,
      steps = args.steps or (model.config.layers > 40 and 25 or 50) }))
  end
  if args.by == "kl" then
    local progress <close> = picture.progress "cutting layers"
    local curves, details, code = calibrate.sensitivity(model, texts,
      { queries = args.queries, sinks = args.sinks, kernel = args.kernel, prune = args.prune,
        steps = made and made.steps, predict = math.min(64, length // 4), store = store,
        circumstances = circumstances, progress = progress.update, known = count_known })
    curves = must(curves, details, code)
    if curves and made then
      made.layer, made.floor = curves, details.floor
      for t, one in ipairs(made.each) do one.layer = details.each[t] end
    end
  end
  local total = #texts * (args.by == "kl" and 1 + model.config.layers or 1)
  if known > 0 and not args.json then
    print(("%d of %d measured before: %s"):format(known, total, store.path))
  end
  if args.shard then
    if args.json then
      return cli.json { new = store.count - already, known = known, total = total,
        results = store.path, waits = waits }
    end
    return print(("%d new results: %s\n%s\nthe same command without --shard joins them"):format(
      store.count - already, store.path, waits or "all measurements are there"))
  end
end

local function write_policy(path, body)
  cli.write(path, body)
  return cli.must(policy.load(path:find "[/\\]" and path or "./" .. path))
end

local function percent(x) return ("%.1f %%"):format(100 * x) end
local function dim(row)
  for i, cell in ipairs(row) do row[i] = pic:paint(cell, "dim") end
  return row
end

-- ---- retrieval heads ----------------------------------------------------------------------------

-- As many as fit: the other heads hold their guards and nothing else.
local function retrieval_count(lanes)
  local streaming = math.min(guarded / length, 1)
  return math.max(0, math.min(lanes, math.floor(lanes * (target - streaming) / (1 - streaming)
    + 1e-9)))
end

local function print_heads(ranked, count)
  print(("attention of the last %d queries outside of %d sinks and %d recent rows"):format(
    args.queries, args.sinks, args.recent))
  local rows, wide = { dim { "layer:head", "outside", "" } }, math.max(10, pic.width - 40)
  for i, one in ipairs(ranked) do
    rows[i + 1] = { ("%d:%d"):format(one.layer, one.head), percent(one.outside),
      pic:bar(one.outside, wide, i <= count and "good" or "dim")
        .. (i <= count and " retrieval" or "") }
  end
  print(table.concat(picture.table(rows, "<><"), "\n"))
end

-- ---- schedules ----------------------------------------------------------------------------------

local function flat(ratio)
  if type(ratio) == "number" then return ratio end
  local sum = 0
  for _, x in ipairs(ratio) do sum = sum + x end
  return sum / #ratio
end

local lost = calibrate.lost

local function layer_lost(layer, ratio)
  if type(ratio) == "number" then return lost(made.layer[layer], ratio) end
  local sum = 0
  for head, x in ipairs(ratio) do sum = sum + lost(made.head[layer][head], x) end
  return sum / #ratio
end

local function mean_lost(ratios)
  local sum = 0
  for layer, ratio in ipairs(ratios) do sum = sum + layer_lost(layer, ratio) end
  return sum / #ratios
end

local function loss_text(x) return args.by == "kl" and ("%.4f"):format(x) or percent(x) end

-- What was gained, as far as it is more than noise; else that nothing is claimed.
local function gain_text(gain)
  local rival = gain.rival == "even" and "rows shared out evenly" or "the cosine"
  if gain.half == math.huge then
    return ("against %s: from one text alone noise is not known, and no gain is claimed (--texts "
      .. "4)"):format(rival)
  end
  local figures = ("%s ± %s"):format(loss_text(gain.gain), loss_text(gain.half))
  if gain.claimed then
    return ("against %s: loses %s less, on texts that were left out"):format(rival, figures)
  end
  if gain.gain < -gain.half then
    return ("against %s: LOSES MORE, by %s ± %s, on texts that were left out"):format(rival,
      loss_text(-gain.gain), loss_text(gain.half))
  end
  return ("against %s: no gain beyond noise (%s on texts that were left out; more --texts tell "
    .. "more)"):format(rival, figures)
end

local function print_ratios(ratios, cosine)
  print(args.by == "kl"
    and "KL to the full cache's predictions, nats a token, if that layer alone keeps so many of its rows"
    or ("mass lost of the last %d queries' attention if a layer keeps so many of its rows"):format(
      args.queries))
  local shares = { 0.1, 0.2, 0.4, 0.6 }
  local rows, wide = { dim { "layer", "10 %", "20 %", "40 %", "60 %", "keeps", "loses", "" } },
    math.max(10, pic.width - 60)
  for layer, ratio in ipairs(ratios) do
    local row = { tostring(layer) }
    for i, share in ipairs(shares) do row[i + 1] = loss_text(lost(made.layer[layer], share)) end
    row[6], row[7] = percent(flat(ratio)), loss_text(layer_lost(layer, ratio))
    row[8] = pic:bar(flat(ratio), wide, (layer - 1) / #ratios)
    rows[layer + 1] = row
  end
  print(table.concat(picture.table(rows, ">>>>>>><"), "\n"))
  print(("cosine at the same share of the rows would lose %s"):format(loss_text(mean_lost(cosine))))
end

-- ---- checking -----------------------------------------------------------------------------------

-- On documents far from those that were measured.
local function check(them)
  local progress <close> = picture.progress "checking"
  return cli.must(calibrate.check(model, them,
    { length = length, questions = args.questions, documents = args.documents,
      predict = math.min(64, length // 4), seed = args.seed + 100000, mode = args.mode },
        progress.update))
end

local function print_check(entries)
  print(pic:rule(("other documents, %d tokens, %s"):format(length, args.mode)))
  local rows = { dim { "policy", "rows", "recall", "perpl.", "KL", "top-1" } }
  for i, entry in ipairs(entries) do
    local of, recall = entry.document, entry.recall
    rows[i + 1] = { pic:cut(entry.label, 40), percent(entry.fraction or 0),
      recall and percent(recall.accuracy) or "-", of and ("%.3f"):format(of.perplexity) or "-",
        of and ("%.4f"):format(of.kl) or "-", of and percent(of.top1) or "-" }
  end
  print(table.concat(picture.table(rows, "<>"), "\n"))
  for i = 3, #entries do
    local ours, theirs, words = entries[2], entries[i], {}
    local function verdict(what, better, worse)
      words[#words + 1] = what .. (better and " better" or worse and " WORSE"
        or " no different beyond noise")
    end
    local function paired(what, key)
      if not ours.document then return end
      local difference, half = noise.paired(ours.document[key], theirs.document[key])
      verdict(what, difference < -half, difference > half)
    end
    local a, b = ours.recall, theirs.recall
    if a and b then
      verdict("recall", compare.answers_better(a, b), compare.answers_better(b, a))
    end
    paired("KL", "kl_each")
    paired("perplexity", "loss_each")
    print(("%s against %s: %s"):format(ours.label, theirs.label, table.concat(words, ", ")))
  end
  local recall = entries[2].recall
  if recall then
    print(("%d questions: recall is uncertain by %s"):format(recall.asked,
      percent(recall.uncertainty)))
  end
end

-- The same policy with the cosine's ratios, which differs in nothing but them, and PyramidInfer
-- itself.
local function rivals_of(chosen, fraction, ratios_text)
  local list = { { label = name, policy = chosen } }
  if ratios_text then
    local cosine = cli.must(policy.load(assert(load(ratios_text, "=cosine", "t"))()))
    list[2] = { label = name .. ", cosine ratios", policy = cosine:with { target = fraction } }
  end
  list[#list + 1] = { label = ("pyramidinfer preset=45 target=%.3g"):format(fraction),
    policy = assert(policy.load("pyramidinfer", { preset = "45", target = fraction })) }
  return list
end

local result = { policy = name, file = args.out, measured = made }
if args.heads then
  local ranked = calibrate.retrieval(made)
  local count = retrieval_count(#ranked)
  local duo, fraction = args.as ~= "headkv", target
  local written
  if duo then
    written = calibrate.write_duo(ranked, count, { name = name, about = about(), sinks = args.sinks,
      recent = args.recent })
    fraction = (count + (#ranked - count) * math.min(guarded / length, 1)) / #ranked
  else
    written = calibrate.write_headkv(made, { name = name, about = about() })
  end
  local chosen = write_policy(args.out, written)
  result.heads, result.retrieval, result.fraction = ranked, count, fraction
  if not args.json then
    print_heads(ranked, duo and count or 0)
    if duo then
      print(("%d of %d heads keep everything: %s of the rows of %d tokens"):format(count, #ranked,
        percent(fraction), length))
    end
    print(("policy: %s%s"):format(args.out, duo and "" or (" ratio=%g"):format(target)))
  end
  if not duo then chosen = chosen:with { ratio = target } end
  if args.check then result.check = check(rivals_of(chosen, fraction)) end
else
  local wanted = { target = target, loss = args.loss, falling = args.prune == "both",
    share = args.share,
    least = math.ceil(guarded / length * made.steps) }  -- guards stay whatever a ratio says
  local ratios, solved, loss_error = calibrate.ratios(made, wanted)
  local gains = calibrate.gains(made, wanted)
  local how = { name = name, about = about(), share = args.share, prune = args.prune,
    window = args.queries, sinks = args.sinks, kernel = args.kernel }
  local chosen = write_policy(args.out, calibrate.write(ratios, how))
  local cosine = calibrate.cosine(made.layers, solved.fraction)
  result.ratios, result.loss, result.fraction, result.cosine_loss = ratios, solved.loss,
    solved.fraction, mean_lost(cosine)
  result.error, result.gains = loss_error, gains
  if not args.json then
    print_ratios(ratios, cosine)
    print(("%s of the rows, %s lost on average over layers; a loss is uncertain by %s, from one "
      .. "text to another"):format(
      percent(solved.fraction), loss_text(solved.loss), loss_text(loss_error)))
    if made.floor then print(("rounding alone: %.2g nats, taken off"):format(made.floor)) end
    for _, gain in ipairs(gains) do print(gain_text(gain)) end
    print("policy: " .. args.out)
  end
  if args.check then
    local beside = {}
    for layer, ratio in ipairs(cosine) do
      beside[layer] = ratio
      if args.share == "head" then
        beside[layer] = {}
        for head = 1, made.kv_heads do beside[layer][head] = ratio end
      end
    end
    result.check = check(rivals_of(chosen, solved.fraction, calibrate.write(beside, how)))
  end
end
if args.json then
  for _, entry in ipairs(result.check or {}) do entry.kept = nil end
  made.each = nil  -- long, and the means are there
  cli.json(result)
elseif result.check then
  print_check(result.check)
end

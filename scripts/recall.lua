-- recall.lua: what a model still finds in its context under one policy or several.
local cli = require "pyramid.tools.cli"
local picture = require "pyramid.tools.picture"
local recall = require "pyramid.tools.recall"
local target = require "pyramid.tools.target"
local world = require "pyramid.tools.world"

local parser = cli.parser("[options]",
  "Lets a model read held-out documents under a policy and asks for facts that were told "
  .. "once in them: the share of exact answers for each kind of question, the rows held, and how "
  .. "much of the sentences that "
  .. "hold the answers survived.", [[
Examples:
   pyramid recall --length 1024
   pyramid recall --length 512,1024,2048 --policy full --policy streaming ratio=0.3 --policy snapkv ratio=0.3
   pyramid recall --mode aware --questions 100 --json
agnostic: a document is read before the question is known, and policies judge it so. aware: they judge both together.
An answer is picked from logits after the cut: the question, or its "Answer:", is read when the policy has judged.
Documents and questions are the same for every policy. An answer is right if the line is, letter for letter.
rows: of what was read under the policy, the share of rows that it left.]])
cli.add_model(parser, true)
cli.add_policy(parser, true)
cli.option(parser, "--length", "N",
  ("Tokens of a document and %d more for its question and answer; several with commas.")
  :format(recall.room), { default = "1024" })
cli.option(parser, "--mode", "MODE", "agnostic, aware, or both.",
  { default = "agnostic", choices = { "agnostic", "aware", "both" } })
cli.option(parser, "--questions", "N", "Questions of each kind.", { default = "40", integer = 1 })
cli.option(parser, "--kinds", "LIST",
  ("Which kinds: %s; all but the last, if not given. word: facts of one word, hidden in --text "
  .. "or in documents, for any model."):format(table.concat(recall.kinds, ", ")))
cli.option(parser, "--text", "FILE", "With --kinds word: a text that its facts are hidden in.")
cli.option(parser, "--seed", "N", "The first document, counted from the first held-out one.",
  { default = "0", integer = 0 })
cli.add_cache(parser)
cli.add_trace(parser)
parser:flag("--found",
  "Count an answer as right if what was asked for stands in it: for models that word it "
    .. "differently.")
parser:flag("--json", "Print one JSON object instead of the tables.")
local args = cli.parse(parser, arg)

local function lengths_of(text)
  local list = {}
  for word in (text .. ","):gmatch "([^,]*)," do
    local n = math.tointeger(tonumber(word))
    if not n or n < 200 then
      cli.fail(("--length: '%s' is not a number of tokens of 200 or more"):format(word))
    end
    list[#list + 1] = n
  end
  return list
end

local function kinds_of(text)
  if not text then return world.kinds end
  local list, known = {}, {}
  for _, kind in ipairs(recall.kinds) do known[kind] = true end
  for word in (text .. ","):gmatch "([^,]*)," do
    if not known[word] then
      cli.fail(("--kinds: '%s' is not a kind"):format(word),
        "Known: " .. table.concat(recall.kinds, ", ") .. ".")
    end
    list[#list + 1] = word
  end
  return list
end

-- ---- asking -------------------------------------------------------------------------------------

local text = args.text and cli.read(args.text)

local function cases_of(model, length, kinds, progress)
  local cases = cli.must(recall.cases(model, length,
    { questions = args.questions, kinds = kinds, seed = args.seed, text = text,
      progress = progress.update }))
  if #cases == 0 then
    cli.fail(("no document of %d tokens has such questions"):format(length),
      "Give a greater --length.")
  end
  return cases
end

local function new_entry(given, mode, length, layers)
  local entry = { label = given.label, policy = given.policy, mode = mode, length = length,
    asked = 0, fraction = 0, tokens = 0, survival = {}, kinds = {},
      document_tokens = length - recall.room }
  for layer = 1, layers do entry.survival[layer] = 0 end
  return entry
end

local function count(entry, results)
  for _, r in ipairs(results) do
    entry.tokens = entry.tokens + r.tokens
    local kind = entry.kinds[r.kind] or { asked = 0, right = 0, found = 0 }
    entry.kinds[r.kind] = kind
    kind.asked, entry.asked = kind.asked + 1, entry.asked + 1
    if r.right then kind.right = kind.right + 1 end
    if r.found then kind.found = kind.found + 1 end
    entry.fraction = entry.fraction + r.fraction
    for layer, share in ipairs(r.survival) do
      entry.survival[layer] = entry.survival[layer] + share
    end
  end
end

local function conclude(entry)
  entry.fraction, entry.tokens = entry.fraction / entry.asked, entry.tokens / entry.asked
  for layer, sum in ipairs(entry.survival) do entry.survival[layer] = sum / entry.asked end
end

local function measure(model, policies, modes, lengths, kinds)
  local entries = {}
  for _, length in ipairs(lengths) do
    local cases
    do
      local progress <close> = picture.progress(("documents of %d tokens"):format(length))
      cases = cases_of(model, length, kinds, progress)
    end
    local of_length = {}
    for _, mode in ipairs(modes) do
      for _, given in ipairs(policies) do
        of_length[#of_length + 1] = new_entry(given, mode, length, model.config.layers)
      end
    end
    local progress <close> = picture.progress(("asking at %d tokens"):format(length))
    for i, case in ipairs(cases) do
      for j, entry in ipairs(of_length) do
        count(entry, cli.must(recall.ask(model, case, entry.mode,
          cli.cache_options(args, entry.policy))))
        progress.update((i - 1) * #of_length + j, #cases * #of_length)
      end
    end
    for _, entry in ipairs(of_length) do
      conclude(entry)
      entries[#entries + 1] = entry
      entry.warning = target.warning(entry.policy, entry.label, entry.fraction, entry.tokens)
    end
  end
  return entries
end

-- ---- telling ------------------------------------------------------------------------------------

local function score(kind)
  return kind and (args.found and kind.found or kind.right) / kind.asked
end

local function mean(list)
  local sum = 0
  for _, x in ipairs(list) do sum = sum + x end
  return #list > 0 and sum / #list or 0
end

local function print_table(entries, lengths, kinds, model)
  local pic = picture.new(io.stdout)
  print(pic:paint(pic:cut(model.description, pic.width), "dim"))
  print(pic:paint(cli.products(model), "dim"))
  print(("%s answers, %d question%s of a kind; evidence: what survived of the sentences that "
    .. "hold the answers, on average"
    .. " over layers"):format(args.found and "Found" or "Exact", args.questions,
      args.questions == 1 and "" or "s"))
  for _, length in ipairs(lengths) do
    print(("%d tokens: a document of %d, and room for %d of question and answer"):format(length,
      length - recall.room, recall.room))
  end
  print()
  local rows = { { "policy", "mode", "tokens", "rows", "evidence" } }
  for _, kind in ipairs(kinds) do table.insert(rows[1], kind) end
  for i, cell in ipairs(rows[1]) do rows[1][i] = pic:paint(cell, "dim") end
  for _, entry in ipairs(entries) do
    local row = { pic:cut(entry.label, 32), entry.mode, ("%d"):format(entry.length),
      cli.percent(entry.fraction), cli.percent(mean(entry.survival)) }
    for _, kind in ipairs(kinds) do
      local share = score(entry.kinds[kind])
      row[#row + 1] = share and ("%.0f %%"):format(share * 100) or "-"
    end
    rows[#rows + 1] = row
  end
  print(table.concat(picture.table(rows, "<<>"), "\n"))
  print()
  print(pic:paint("Evidence held, first layer to last", "dim"))
  for _, entry in ipairs(entries) do
    local cells = {}
    for layer, share in ipairs(entry.survival) do cells[layer] = ("%3.0f"):format(share * 100) end
    print(("  %s  %s"):format(table.concat(cells, " "),
      pic:cut(("%s, %s, %d"):format(entry.label, entry.mode, entry.length), 40)))
  end
  io.stdout:flush()
  for _, entry in ipairs(entries) do
    if entry.warning then cli.warn(entry.warning) end
  end
  if args.kinds then return end
  for _, entry in ipairs(entries) do
    local right, asked = 0, 0
    for _, kind in pairs(entry.kinds) do
      right, asked = right + (args.found and kind.found or kind.right), asked + kind.asked
    end
    if entry.fraction >= 1 and right < asked / 2 then
      return cli.warn(("with every row this model answers %d of %d: it has not learned these "
        .. "documents' language; "
        .. "`--kinds word --text FILE` asks what any model can answer"):format(right, asked))
    end
  end
end

local function print_json(entries, model)
  local out = { questions_per_kind = args.questions, first_seed = world.held_out + args.seed,
    cache_dtype = args.cache_dtype, results = {} }
  for i, entry in ipairs(entries) do
    local about = cli.description(model, entry.policy)
    local kinds = {}
    for kind, n in pairs(entry.kinds) do
      kinds[kind] = { asked = n.asked, right = n.right, found = n.found,
        exact_match = n.right / n.asked }
    end
    out.results[i] = { policy = about.policy, label = entry.label, mode = entry.mode,
      length = entry.length, document_tokens = entry.document_tokens, prompt_tokens = entry.tokens,
        cache_fraction = entry.fraction, target = target.of(entry.policy),
          target_missed = entry.warning and true or nil, evidence_survival = entry.survival,
            kinds = kinds }
    about.policy = nil
    for key, value in pairs(about) do out[key] = value end
  end
  cli.json(out)
end

local lengths, kinds = lengths_of(args.length), kinds_of(args.kinds)
local modes = args.mode == "both" and recall.modes or { args.mode }
local policies = cli.policies(args)
local model <close> = cli.open_text_model(args)
for _, length in ipairs(lengths) do
  if length > model.config.context then
    cli.fail(("--length %d is more than the model's context of %d"):format(length,
      model.config.context))
  end
end
local entries = measure(model, policies, modes, lengths, kinds)
if args.json then print_json(entries, model) else print_table(entries, lengths, kinds, model) end

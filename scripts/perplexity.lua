-- perplexity.lua: how well a model foretells a text under one policy or several.
local cli = require "pyramid.tools.cli"
local perplexity = require "pyramid.tools.perplexity"
local picture = require "pyramid.tools.picture"
local target = require "pyramid.tools.target"

local parser = cli.parser("[options] FILE",
  "Reads contexts out of a text under a policy, then scores the tokens that "
  .. "follow each, and says how surprising they were: perplexity (of tokens; lower is better), "
  .. "bits per byte (which compares "
  .. "between tokenizers), and what the cache held.", [[
Examples:
   pyramid perplexity book.txt --policy full --policy pyramidinfer --policy pyramidinfer ratio=0.6
   pyramid perplexity book.txt --context 1024 --predict 256 --windows 8 --append --json
The true tokens are fed one by one, so that policies act as they do in generation; --append reads them at once.
A context's last token is read after the policy's cut, so that the first target, too, is foretold from what was kept.
rows: the share of the context's rows that the policy kept; KV: bytes held then.]])
parser:argument("file", "A text file; - is standard input.")
cli.option(parser, "--context", "N",
  "Tokens read under the policy, any that begins texts included.", { default = "512", integer = 2 })
cli.option(parser, "--predict", "M", "Tokens scored after them.", { default = "128", integer = 1 })
cli.option(parser, "--stride", "N",
  "How far the next window is; as many as are scored, if not given.", { integer = 1 })
cli.option(parser, "--windows", "N", "At most N windows.", { integer = 1 })
parser:flag("--append",
  "Score all tokens of a window at once: faster, and nothing is dropped meanwhile.")
cli.add_model(parser, true)
cli.add_policy(parser, true)
cli.add_cache(parser)
cli.add_trace(parser)
parser:flag("--json", "Print one JSON object instead of the table.")
local args = cli.parse(parser, arg)

-- Bytes of the text that these ids stand for, in the middle of it.
local function bytes_of(tokenizer, ids)
  local decoder <close>, count = cli.must(tokenizer:decoder { raw = true, continues = true }), 0
  for _, id in ipairs(ids) do count = count + #cli.must(decoder:push(id)) end
  return count + #cli.must(decoder:finish())
end

local function check_context(model)
  local fed = args.context + args.predict - 1                      -- the last token is only scored
  if fed > model.config.context then
    cli.fail(("--context %d and --predict %d are more than the model's context of %d"):format(
      args.context, args.predict, model.config.context),
        ("Lower one of them: their sum may be %d."):format(model.config.context + 1))
  end
end

local function text_windows(model)
  local tokenizer, text = model.tokenizer, cli.read(args.file)
  local ids = cli.must(tokenizer:encode(text, { special = false }))
  local bos = tokenizer.adds_bos and tokenizer.bos or nil
  local windows = perplexity.windows(ids, { context = args.context, predict = args.predict,
    stride = args.stride, limit = args.windows, bos = bos })
  if #windows == 0 then
    cli.fail(("the text has %d tokens, and a window takes %d and %d"):format(#ids,
      args.context - (bos and 1 or 0), args.predict),
        "Give a longer text, or lower --context or --predict.")
  end
  return windows, #ids
end

-- ---- measuring ----------------------------------------------------------------------------------

-- A step of one token costs about as much as reading this many: only the progress bar's estimate
-- depends on it.
local step_cost = args.append and 1 or 6

local sums = { "sum", "prefill_seconds", "predict_seconds", "context_fraction", "context_bytes",
  "fraction", "bytes", "computed" }

local function measure(model, entry, window, report)
  local cache <close> = cli.must(model:cache(cli.cache_options(args, entry.policy)))
  local context = #window.context
  local result = cli.must(perplexity.window(cache, window.context, window.targets, {
    append = args.append,
    progress = function(done) report(math.min(done, context)
      + math.max(0, done - context) * step_cost) end,
  }))
  result.fraction, result.bytes = cache:fraction(), cache:bytes()
  result.computed = cache:computed() / (cache:tokens() * model.config.layers)
  for _, key in ipairs(sums) do entry[key] = entry[key] + result[key] end
  for layer, rows in ipairs(cli.layer_rows(cache, model.config)) do
    entry.rows[layer] = (entry.rows[layer] or 0) + rows
  end
  entry.windows = entry.windows + 1
end

local function measure_all(model, entries, windows)
  local progress <close> = picture.progress "scoring"
  local cost = args.context + args.predict * step_cost
  local done, total = 0, #windows * #entries * cost
  for _, entry in ipairs(entries) do
    entry.rows, entry.windows = {}, 0
    for _, key in ipairs(sums) do entry[key] = 0 end
  end
  -- Window by window, so that a machine that gets slower does so for all policies.
  for _, window in ipairs(windows) do
    for _, entry in ipairs(entries) do
      measure(model, entry, window, function(part) progress.update(done + part, total) end)
      done = done + cost
    end
    local so_far = {}
    for i, entry in ipairs(entries) do
      so_far[i] = ("%.3f"):format(math.exp(-entry.sum / (entry.windows * args.predict)))
    end
    progress.note = table.concat(so_far, "  ")
  end
end

local function conclude(entry, tokens, bytes)
  for _, key in ipairs { "context_fraction", "context_bytes", "fraction", "bytes", "computed" } do
    entry[key] = entry[key] / entry.windows
  end
  for layer, rows in ipairs(entry.rows) do entry.rows[layer] = rows / entry.windows end
  entry.warning = target.warning(entry.policy, entry.label, entry.context_fraction,
    args.context - 1)
  entry.perplexity = math.exp(-entry.sum / tokens)
  entry.bits_per_byte = -entry.sum / math.log(2) / bytes
  entry.read_rate = cli.rate((args.context - 1) * entry.windows, entry.prefill_seconds)
  entry.predict_rate = cli.rate(tokens, entry.predict_seconds)
end

-- ---- telling ------------------------------------------------------------------------------------

-- What is going to be measured, before it takes its minutes.
local function print_task(windows, tokens, bytes, model)
  local pic = picture.new(io.stdout)
  print(("%s: %d window%s of %d + %d tokens; %d tokens scored, %d bytes"):format(args.file == "-"
    and "standard input" or args.file, windows, windows == 1 and "" or "s", args.context,
      args.predict, tokens, bytes))
  print(pic:paint(pic:cut(model.description, pic.width), "dim"))
  print(pic:paint(cli.products(model), "dim"))
  print()
  io.stdout:flush()
end

local function print_table(entries)
  local pic = picture.new(io.stdout)
  local several = #entries > 1
  local rows = { { "policy", "perplexity", several and "" or nil } }
  for _, name in ipairs { "bits/byte", "rows", "KV", "read/s", "scored/s" } do
    table.insert(rows[1], name)
  end
  for i, cell in ipairs(rows[1]) do rows[1][i] = pic:paint(cell, "dim") end
  for i, entry in ipairs(entries) do
    local row = { pic:cut(entry.label, 40), ("%.3f"):format(entry.perplexity) }
    if several then
      row[3] = i > 1 and ("%+.1f %%"):format((entry.perplexity / entries[1].perplexity - 1) * 100)
        or ""
    end
    for _, cell in ipairs { ("%.4f"):format(entry.bits_per_byte),
      cli.percent(entry.context_fraction), cli.bytes(math.floor(entry.context_bytes)),
        ("%.0f"):format(entry.read_rate), ("%.0f"):format(entry.predict_rate) } do
      row[#row + 1] = cell
    end
    rows[i + 1] = row
  end
  print(table.concat(picture.table(rows, "<>"), "\n"))
  io.stdout:flush()
  for _, entry in ipairs(entries) do
    if entry.warning then cli.warn(entry.warning) end
  end
end

local function print_json(entries, windows, tokens, bytes, text_tokens, model)
  local out = { text = args.file, text_tokens = text_tokens, context = args.context,
    predict = args.predict, stride = args.stride or args.predict, append = args.append or false,
      windows = windows, scored_tokens = tokens, scored_bytes = bytes,
        cache_dtype = args.cache_dtype, results = {} }
  for i, entry in ipairs(entries) do
    local about = cli.description(model, entry.policy)
    out.results[i] = {
      policy = about.policy, label = entry.label, target = target.of(entry.policy),
        target_missed = entry.warning and true or nil,
      perplexity = entry.perplexity, bits_per_byte = entry.bits_per_byte,
        log_likelihood = entry.sum,
      context_fraction = entry.context_fraction, context_bytes = entry.context_bytes,
        cache_fraction = entry.fraction,
      cache_bytes = entry.bytes,
      computed_fraction = entry.computed, rows = entry.rows,
      prefill_seconds = entry.prefill_seconds, predict_seconds = entry.predict_seconds,
      prefill_tokens_per_second = entry.read_rate, predict_tokens_per_second = entry.predict_rate,
    }
    about.policy = nil
    for key, value in pairs(about) do out[key] = value end
  end
  cli.json(out)
end

local entries = cli.policies(args)
local model <close> = cli.open_text_model(args)
check_context(model)
local windows, text_tokens = text_windows(model)
local bytes = 0
for _, window in ipairs(windows) do bytes = bytes + bytes_of(model.tokenizer, window.targets) end
local tokens = #windows * args.predict
if not args.json then print_task(#windows, tokens, bytes, model) end
measure_all(model, entries, windows)
for _, entry in ipairs(entries) do conclude(entry, tokens, bytes) end
if args.json then print_json(entries, #windows, tokens, bytes, text_tokens, model)
else print_table(entries) end

-- generate.lua: continues a prompt, and says what that took.
local chat = require "pyramid.chat"
local cli = require "pyramid.tools.cli"
local conversation = require "pyramid.conversation"
local core = require "pyramid.core"
local endless = require "pyramid.compose".endless
local picture = require "pyramid.tools.picture"
local screen = require "pyramid.tools.screen"
local target = require "pyramid.tools.target"

local parser = cli.parser("[options] [PROMPT]",
  "Continues a prompt. The text goes to standard output as it is made, all else to standard error.", [[
Examples:
   pyramid generate "Once upon a time" --max-tokens 100
   pyramid generate --prompt-file book.txt --policy pyramidinfer ratio=0.6 --stats
   pyramid generate --stream book.txt --policy h2o rows=1024 "Who was the captain?"
   pyramid generate --messages asked.json --tools tools.json
   pyramid generate -t 0.8 --top-p 0.95 --seed 7 --stop '\n\n' <prompt.txt
Short: -m --model, -p --policy, -n --max-tokens, -t --temperature, -f --prompt-file.]])
parser:argument("prompt", "The prompt; without one, --prompt-file or standard input."):args "*"
cli.option(parser, "--prompt-file", "FILE", "Read the prompt from a file (- is standard input).",
  { short = "-f" })
cli.option(parser, "--stream", "FILE", "Before the prompt read this, of any length (- is standard "
  .. "input): block by block, the policy cutting after each, past the model's context, too.")
cli.option(parser, "--block", "N", "Tokens of a block of --stream. (default: 512)", { integer = 1 })
cli.option(parser, "--messages", "FILE",
  "Answer a JSON list of messages, each with role and content, in the model's chat format, instead.")
cli.option(parser, "--template", "NAME",
  "Their chat format, if not the model's own: llama-2, llama-3, chatml, mistral, …")
cli.add_tools(parser)
cli.add_model(parser)
cli.add_policy(parser)
cli.add_cache(parser)
cli.add_sessions(parser)
cli.add_trace(parser)
cli.add_length(parser, 256)
cli.add_sampler(parser)
cli.add_speculation(parser)
cli.option(parser, "--context", "N", "Read only the last N tokens of a longer prompt.",
  { integer = 1 })
cli.option(parser, "--logprobs", "K", "Say at the end how probable each token was, as logarithms, "
  .. "and which K were the most probable in its place.", { integer = 0 })
parser:flag("--ignore-eos", "Go on after an end-of-text token.")
parser:flag("-s --stats", "Say at the end what was read, kept and how fast.")
parser:flag("--json", "Print one JSON object instead of the text.")
local args = cli.parse(parser, arg)
cli.hints.context = "Shorten the text, or let --context N read only its last N tokens."

-- What goes with a prompt alone, or with messages alone.
local function check_source()
  if not args.messages then
    for _, name in ipairs { "template", "tools", "thinking" } do
      if args[name] then
        cli.fail(("--%s goes with --messages"):format(name), "Give the messages in a JSON file.")
      end
    end
    return
  end
  if #args.prompt > 0 or args.prompt_file then
    cli.fail("both a prompt and --messages", "Leave one out.")
  end
  if args.context then
    cli.fail("--context cuts texts, not messages", "Leave out some of the messages.")
  end
end

local function read_messages()
  local messages = cli.read_list(args.messages)
  local wrong = chat.check(messages) or #messages == 0 and "there are no messages"
  if wrong then
    cli.fail(("%s: %s"):format(args.messages, wrong),
      'Write [{"role": "user", "content": "Hello"}].')
  end
  return messages
end

-- The ids of messages, what would end the answer where no token does, and what others may share.
local function chat_ids(model, messages)
  local ids, o, code = conversation.prompt("generate", model, messages,
    cli.tools(args, { stop = args.stop, format = args.template, sessions = cli.sessions(args) }))
  cli.must(ids, o, code)
  return ids, o.stop, o.boundaries
end

local function prompt_text()
  if #args.prompt > 0 then
    if args.prompt_file then cli.fail("both a prompt and --prompt-file", "Leave one out.") end
    return table.concat(args.prompt, " ")
  end
  if args.ranks and (args.prompt_file or "-") == "-" then
    cli.fail("standard input is one process's, and --ranks has several",
      "Write the prompt behind the name, or give --prompt-file FILE.")
  end
  if not args.prompt_file and picture.new(io.stdin).terminal then
    cli.fail("no prompt",
      "Write it behind the name (pyramid generate \"Once upon a time\"), or give --prompt-file "
        .. "FILE.")
  end
  return cli.read(args.prompt_file or "-")
end

local function prompt_ids(model, text)
  local ids = cli.must(model:encode(text, { add = not args.stream and nil }))
  if #ids == 0 then cli.fail("the prompt is empty", "Give at least one character.") end
  local limit = args.context
  if limit and #ids > limit then
    -- keeps what begins every text
    local begins = ids[1] == model.tokenizer.bos and limit > 1 and 1 or 0
    ids = table.move(ids, #ids - (limit - begins) + 1, #ids, begins + 1, { ids[1] })
  end
  return ids
end

local function show_stats(model, run, rows, label)
  local stats, pic = run.stats, picture.new(io.stderr)
  local function work(name, count, seconds, more)
    return { pic:paint(name, "dim"), ("%d tokens"):format(count), picture.seconds(seconds),
      ("%.0f tok/s"):format(cli.rate(count, seconds)), more }
  end
  local lines = picture.table({ work("prompt   ", stats.prompt_tokens, stats.prefill_seconds),
    work("generated", stats.generated_tokens, stats.decode_seconds, "ended by " .. run.finish) },
      "<>>><")
  local shown = {}
  for i, count in ipairs(rows) do shown[i] = ("%.0f"):format(count) end
  local _, peak = model:memory()
  local reused = stats.reused_tokens > 0
    and ("%d tokens of the prompt were stored"):format(stats.reused_tokens) or nil
  for _, pair in ipairs {
    { "sessions", reused },
    { "products", cli.products(model) },
    { "policy", label },
    { "KV cache", ("%s in %s, %s of a full cache's rows"):format(cli.bytes(stats.cache_bytes),
      args.cache_dtype, cli.percent(stats.cache_fraction)) },
    { "guesses", stats.drafted and ("%d of %d held"):format(stats.accepted, stats.drafted) },
    { "reads", stats.cache_reading < 1
      and ("%s of the rows held, at most, in a step"):format(cli.percent(stats.cache_reading)) },
    { "rows", pic:cut(table.concat(shown, " "), pic.width - 12) },
    { "memory", cli.bytes(peak) .. " at most, without mapped weights" },
  } do
    if pair[2] then
      lines[#lines + 1] = pic:paint(picture.pad(pair[1], 9), "dim") .. "  " .. pair[2]
    end
  end
  io.stderr:write("\n", table.concat(lines, "\n"), "\n")
end

-- A token as text, between quotes.
local function token(model, id)
  return ('"%s"'):format((screen.safe(model:decode({ id }) or ""):gsub("[\n\t\"\\]",
    { ["\n"] = "\\n", ["\t"] = "\\t", ['"'] = '\\"', ["\\"] = "\\\\" })))
end

local function show_logprobs(model, made, logprobs, instead)
  local rows = { { "token", "log p", args.logprobs > 0 and "most probable" or "" } }
  for i, id in ipairs(made) do
    local others = {}
    for k, other in ipairs(instead[i][1]) do
      others[k] = ("%s %.3f"):format(token(model, other), instead[i][2][k])
    end
    rows[i + 1] = { token(model, id), ("%.3f"):format(logprobs[i]), table.concat(others, "  ") }
  end
  io.stderr:write("\n", table.concat(picture.table(rows, "<><"), "\n"), "\n")
end

-- The same for JSON: of each token its id, its text, and as much of the others.
local function list_logprobs(model, made, logprobs, instead)
  local list = {}
  for i, id in ipairs(made) do
    local top = {}
    for k, other in ipairs(instead[i][1]) do
      top[k] = { id = other, text = model:decode { other }, logprob = instead[i][2][k] }
    end
    list[i] = { id = id, text = model:decode { id }, logprob = logprobs[i],
      top = #top > 0 and top or nil }
  end
  return list
end

-- Reads --stream, and says how far it is.
local function read_stream(model, cache)
  local file, message = io.stdin, nil
  if args.stream ~= "-" then file, message = io.open(args.stream, "rb") end
  if not file then cli.fail(message) end
  local size = file ~= io.stdin and file:seek "end" or 0
  if size > 0 then file:seek "set" end
  local progress <close> = picture.progress "reading the stream"
  local began = core.clock()
  cli.hints.context = ("Under a policy with a budget in rows it may be longer: --policy streaming "
    .. "rows=%d, for example."):format(math.max(model.config.context // 4, 1))
  local read = cli.must(cache:read(file, { block = args.block, progress = function()
    if size > 0 then progress.update(file:seek "cur", size) end
  end }))
  if file ~= io.stdin then file:close() end
  if args.stats then
    progress:close()
    local seconds = core.clock() - began
    io.stderr:write(("stream     %d tokens in %d blocks, %s, %.0f tok/s, %s held\n"):format(
      read.tokens, read.blocks, picture.seconds(seconds), cli.rate(read.tokens, seconds),
        cli.bytes(cache:bytes())))
  end
  return read.tokens
end

local policy, label = cli.one_policy(args)
if args.block and not args.stream then
  cli.fail("--block goes with --stream", "Name the file that is read in blocks.")
end
if args.stream and (policy.definition.prefill or policy.definition.decode) then
  policy = endless(policy)
end
check_source()
local source = args.messages and read_messages() or prompt_text()
local model <close> = cli.open_text_model(args)
local ids, stop, boundaries
if args.messages then ids, stop, boundaries = chat_ids(model, source)
else ids, stop = prompt_ids(model, source), args.stop
end
local speculation, draft = cli.speculation(args)
local _ <close> = draft
local cache <close> = cli.must(model:cache(cli.cache_options(args, policy)))

local streamed = args.stream and read_stream(model, cache)
local progress <close> = picture.progress(("prefill of %d tokens"):format(#ids))
local run <close> = cli.must(model:generate(ids,
  { cache = cache, sampler = cli.sampler(args), max_tokens = args.max_tokens, stop = stop,
    logprobs = args.logprobs, speculate = speculation, ignore_eos = args.ignore_eos,
      progress = progress.update,
      prune = not args.stream and nil,
      boundaries = boundaries }))
progress:close()
local kept = cache:fraction()                  -- of the prompt
local warning = not streamed and target.warning(policy, label, kept, #ids) or nil

local pieces, made, instead = {}, {}, {}
local terminal = picture.new(io.stdout).terminal
io.stdout:setvbuf "no"                         -- a piece is seen when it is made
for piece, id in run do
  made[#made + 1] = id
  if id and args.logprobs then instead[#made] = { run.top or {}, run.top_logprobs or {} } end
  if args.json then pieces[#pieces + 1] = piece
  else io.write(terminal and screen.safe(piece) or piece)
  end
end
io.stdout:setvbuf "full"
if not args.json then print() end
if run.finish == "error" then cli.must(nil, run.message, run.code) end

local rows = cli.layer_rows(cache, model.config)
if args.json then
  local stats = run.stats
  local out = cli.description(model, policy)
  out.stream_tokens = streamed
  out.text, out.ids, out.finish = table.concat(pieces), made, run.finish
  out.prompt_tokens, out.generated_tokens = stats.prompt_tokens, stats.generated_tokens
  out.reused_tokens = stats.reused_tokens
  out.prefill_seconds, out.decode_seconds = stats.prefill_seconds, stats.decode_seconds
  out.prefill_tokens_per_second = cli.rate(stats.prompt_tokens, stats.prefill_seconds)
  out.decode_tokens_per_second = cli.rate(stats.generated_tokens, stats.decode_seconds)
  out.cache_bytes, out.cache_fraction, out.cache_dtype = stats.cache_bytes, stats.cache_fraction,
    args.cache_dtype
  out.pruned, out.cache_reading = stats.pruned, stats.cache_reading
  out.drafted, out.accepted = stats.drafted, stats.accepted
  out.prompt_fraction, out.target, out.target_missed = kept, target.of(policy),
    warning and true or nil
  out.rows, out.computed, out.evicted = rows, cache:computed(), cache:evicted()
  out.peak_bytes = select(2, model:memory())
  out.seed = args.seed or 0
  if args.logprobs then out.logprobs = list_logprobs(model, made, run.logprobs, instead) end
  cli.json(out)
else
  if args.logprobs then show_logprobs(model, made, run.logprobs, instead) end
  if args.stats then show_stats(model, run, rows, label) end
  if warning then cli.warn(warning) end
  local could = policy.definition.prefill or policy.definition.decode
  -- else the text would pass for the policy's
  local full = not run.stats.pruned and run.stats.cache_reading == 1
  if could and full and not (warning and kept == 1) then
    io.stderr:write(("\n%s: %s dropped nothing of these tokens: the text is a full cache's\n")
      :format(arg[0], label))
  end
end

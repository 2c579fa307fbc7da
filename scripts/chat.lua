-- chat.lua: talks with a model in its own chat format; one cache lasts the whole conversation.
local chat = require "pyramid.chat"
local cli = require "pyramid.tools.cli"
local picture = require "pyramid.tools.picture"
local target = require "pyramid.tools.target"

local parser = cli.parser("[options]",
  "Talks with a model in the chat format that its tokenizer describes. One cache lasts the "
  .. "whole conversation: each turn reads only what is new. Lines of standard input are what you say.", [[
In the conversation: /stats, /clear, /quit, /help.
A model without a chat format: --template NAME, or each line is a text that the model goes on with (\n is a new line).
The first message is read under the policy; later ones are appended whole, and policies that act in generation go on.]])
cli.add_model(parser)
cli.option(parser, "--template", "NAME",
  "The chat format, if not the model's own: llama-2, llama-3, chatml, mistral, …; or none.")
cli.option(parser, "--system", "TEXT", "What the model is told before the first message.")
cli.add_tools(parser)
cli.add_policy(parser)
cli.add_cache(parser)
cli.add_sessions(parser)
cli.add_trace(parser)
cli.add_length(parser, 256)
local sampling = { temperature = 0.7, top_p = 0.95 }   -- what chat models are made for
cli.add_sampler(parser, sampling)
cli.add_speculation(parser)
local args = cli.parse(parser, arg)

local policy, label = cli.one_policy(args)
local model <close> = cli.open_text_model(args)
local picker = cli.sampler(args, sampling)
local speculation, draft = cli.speculation(args)
local _ <close> = draft
local plain = args.template == "none" or not args.template and not model.tokenizer.chat_template
for _, name in ipairs(plain and { "system", "tools" } or {}) do
  if args[name] then
    cli.fail(("--%s needs a chat format, and there is none"):format(name),
      ("Name one with --template, or leave --%s out."):format(name))
  end
end
local told = cli.tools(args, {})

local out, err = picture.new(io.stdout), picture.new(io.stderr)
local interactive = picture.new(io.stdin).terminal and out.terminal
local talk, turns, last, stuck, warned

local function note(text) io.stderr:write(err:paint(text, "dim"), "\n") end

local function forget()
  if talk then talk:close() end
  local o = cli.cache_options(args, policy)
  cli.must(model:cache(o)):close()  -- what is wrong with it is said before the first message
  o.system, o.format = args.system, plain and "none" or args.template
  o.tools, o.thinking = told.tools, told.thinking
  local message
  talk, message = model:conversation(o)
  if not talk then
    cli.fail(message, "Name a format with --template, or go without one: --template none.")
  end
  picker:reset()
  turns, last, stuck = 0, nil, nil
end

-- ---- a turn -------------------------------------------------------------------------------------

-- What keeps the conversation from going on is said once, not for each line of a file that is piped
-- in.
local function say_stuck(code, message)
  local cure = turns == 0 and cli.hints[code]
  if stuck ~= code then
    note(message .. (cure and "\n" .. cure or "; /clear forgets the conversation and begins anew"))
  end
  stuck = not interactive and code or nil
end

local function say(line)
  local progress, first
  -- What is said when the message is read, before the answer to it. Whether a target was missed is
  -- said once.
  local function read(stats)
    if progress then progress:close() end
    local warning = first and not warned and target.warning(policy, label, stats.cache_fraction,
      stats.prompt_tokens)
    first = false
    if warning then note(warning) end
    warned = warned or warning
  end
  local wrote, begun = false, plain  -- the blank between "Answer:" and the answer is not shown
  local given = plain and cli.unescape(line) or line
  local stats, message, code = talk:say(given, { sampler = picker, max_tokens = args.max_tokens,
    stop = args.stop, speculate = speculation,
    on_prompt = function(tokens, anew)
      progress, first = picture.progress(("prefill of %d tokens"):format(tokens)), anew
    end,
    progress = function(...) return progress.update(...) end,
    on_piece = function(piece, _, run)
      read(run.stats)
      if not begun then piece = piece:match "^%s*(.*)$" end
      begun, wrote = begun or piece ~= "", wrote or piece ~= ""
      io.write(piece)
      io.flush()
    end })
  if stats then read(stats) elseif progress then progress:close() end
  if stats or wrote then print() end
  if not stats then return say_stuck(code, message) end
  turns, last, stuck = turns + 1, stats, nil
  if talk.finish == "context" then
    say_stuck("context", ("the model's context of %d tokens is full"):format(model.config.context))
  end
end

-- ---- commands -----------------------------------------------------------------------------------

local function show_stats()
  local none <close> = not talk.cache and cli.must(model:cache(cli.cache_options(args, policy)))
    or nil
  local cache, config = talk.cache or none, model.config
  local tokens = cache:tokens()
  print(("%s: %d turn%s, %d tokens seen; %s in %s, %s of the rows%s"):format(label, turns,
    turns == 1 and "" or "s", tokens, cli.bytes(cache:bytes()), args.cache_dtype,
      cli.percent(cache:fraction()), talk.rereads > 0
        and ("; read anew %d times"):format(talk.rereads) or ""))
  if last then
    print(("last turn: read %d tokens at %.0f a second, wrote %d at %.0f a second"):format(
      last.prompt_tokens, cli.rate(last.prompt_tokens, last.prefill_seconds),
      last.generated_tokens, cli.rate(last.generated_tokens, last.decode_seconds)))
  end
  for layer, rows in ipairs(cli.layer_rows(cache, config)) do
    print(("%3d  %s %.0f"):format(layer, out:bar(rows / math.max(tokens, 1), 40,
      (layer - 1) / config.layers), rows))
  end
end

local commands = {
  ["/stats"] = show_stats,
  ["/clear"] = function() forget() note "forgotten" end,
  ["/help"] = function() note "/stats: what the cache holds   /clear: begin anew   /quit: end (so does the end of the input)" end,
}

forget()
if interactive then
  note(err:cut(model.description, err.width))
  note(("policy %s; %s; /help lists commands"):format(label, cli.products(model)))
end
if plain then
  note "There is no chat format (--template NAME would give one): the model goes on with each line as a plain text."
end
while true do
  if interactive then io.write(out:paint("> ", "accent")) io.flush() end
  local line = io.read "l"
  local command = line and line:find "^/" and chat.trim(line)
  if not line or command == "/quit" then break end
  if commands[command] then commands[command]()
  elseif command then note((
    "there is no command %s; /help lists them (a blank before the / makes it a message)"):format(
      command))
  elseif line:find "%S" then say(line)
  end
end
if interactive then print() end
talk:close()

-- chat.lua: talks with a model in its own chat format; one cache lasts the whole conversation.
local cli = require "pyramid.tools.cli"
local commands = require "pyramid.tools.talk_commands"
local core = require "pyramid.core"
local files = require "pyramid.files"
local interrupts = require "pyramid.interrupts"
local picture = require "pyramid.tools.picture"
local prompt = require "pyramid.tools.prompt"
local talks = require "pyramid.tools.talk"
local terminal = require "pyramid.terminal"

local parser = cli.parser("[options]",
  "Talks with a model in the chat format that its tokenizer describes. One cache lasts the "
  .. "whole conversation: each turn reads only what is new. Lines of standard input are what you say.", [[
In the conversation: /help lists commands, to save it, to change how tokens are picked and what of the cache is kept, …
At a terminal: Ctrl-C ends an answer; Ctrl-D, or Ctrl-C twice, ends the program; Alt-Enter is a line break.
A model without a chat format: --template NAME, or each line is a text that the model goes on with (\n is a new line).
The first message is read under the policy; later ones are appended whole, and policies that act in generation go on.]])
cli.add_model(parser)
cli.option(parser, "--template", "NAME",
  "The chat format, if not the model's own: llama-2, llama-3, chatml, mistral, …; or none.")
cli.option(parser, "--system", "TEXT", "What the model is told before the first message.")
cli.option(parser, "--resume", "NAME", "Go on with the conversation of that name, if there is one, "
  .. "and keep it at the end; a path with a slash is a file's.")
cli.add_tools(parser)
cli.add_policy(parser)
cli.add_cache(parser)
cli.add_sessions(parser)
cli.add_trace(parser)
cli.add_length(parser, 256)
local sampling = { temperature = 0.7, top_p = 0.95 }   -- what chat models are made for
cli.add_sampler(parser, sampling)
cli.add_speculation(parser)
parser:flag("--no-edit", "Read what is typed without a library that edits lines.")
parser:flag("--no-history", "Keep no file of what was said.")
local args = cli.parse(parser, arg)

-- The file of --resume. Names are of the state folder; nobody else may read what is kept there.
local function resumed_path(name)
  if not name then return nil end
  if name:find "/" then return name end
  if not name:find "^%w[%w._-]*$" then
    cli.fail(("--resume: '%s' is no name"):format(name),
      "Take letters, digits, dots, dashes; or a path, with a slash.")
  end
  local folder = cli.must(prompt.make_state_folder())
  cli.must(core.make_folder(folder .. "/chats"))
  return ("%s/chats/%s.chat"):format(folder, name)
end

local policy, label = cli.one_policy(args)
local kept_at = resumed_path(args.resume)
local model <close> = cli.open_text_model(args)
local speculation, draft = cli.speculation(args)
local _ <close> = draft
local plain = args.template == "none" or not args.template and not model.tokenizer.chat_template
for _, name in ipairs(plain and { "system", "tools" } or {}) do
  if args[name] then
    cli.fail(("--%s needs a chat format, and there is none"):format(name),
      ("Name one with --template, or leave --%s out."):format(name))
  end
end
local told = cli.tools(args, { system = args.system, format = plain and "none" or args.template })
local picked = cli.sampling(args, sampling)
picked.seed = picked.seed or (math.random(0) ~ math.floor(core.clock() * 1e9)) & 0x7FFFFFFF

local interactive = picture.new(io.stdin).terminal and picture.new(io.stdout).terminal
local cache_options = cli.cache_options(args, policy)
cli.must(model:cache(cache_options)):close()
local talk <close>, message = talks.new { model = model, label = label,
  cache_options = cache_options, dtype = args.cache_dtype, told = told,
  max_tokens = args.max_tokens, stop = args.stop, speculation = speculation, plain = plain,
  interactive = interactive }
if not talk then
  cli.fail(message, "Name a format with --template, or go without one: --template none.")
end
cli.must(talk:set_sampling(picked))

local function resume()
  if not kept_at or not files.exists(kept_at) then return end
  local ok, why = talk:load(kept_at)
  if not ok then
    cli.fail(why, "Give the model, --policy and --cache-dtype that it was kept with, or another "
      .. "name.")
  end
  if args.system then cli.must(talk:set_system(args.system)) end
  talk.changed = nil                           -- what the file has, or the arguments say each time
  talk:note(("%s: %d messages"):format(kept_at, #talk.talk.messages))
end

-- After each turn the messages alone, so that nothing is lost whatever ends the program; at its end
-- with the cache.
local function keep(how)
  if not kept_at or not talk.changed then return true end
  local new = not files.exists(kept_at)
  local ok, why = terminal.private(kept_at)
  if ok then ok, why = talk.talk:save(kept_at, how) end
  if ok then return true end
  if new then os.remove(kept_at) end
  return nil, "the conversation is not kept: " .. why
end

resume()
if interactive then
  talk:note(talk.err:cut(model.description, talk.err.width))
  talk:note(("policy %s; %s; /help lists commands"):format(label, cli.products(model)))
end
if plain then
  talk:note "There is no chat format (--template NAME would give one): the model goes on with each line as a plain text."
end
local reader = prompt.open { history = not args.no_history and "chat" or nil,
  edit = not args.no_edit, complete = commands.complete }
interrupts.asks(interactive)
local warned = false           -- the next Ctrl-C ends the program
while not talk.leaving do
  local text, why, filled = reader:read(talk.out:paint("> ", "accent"))
  if text then
    warned = false
    reader:remember(text)
    if commands.is(text) then
      if commands.run(talk, text) == "leave" then break end
    elseif text:find "%S" then talk:say(text)
    end
    local kept, wrong = keep { cache = false }
    if not kept then talk:note(wrong) end
  elseif why ~= "interrupt" then break
  else
    interrupts.take()
    if warned and not filled then break end
    warned = not filled
    if warned then talk:note "Ctrl-C once more, or Ctrl-D, ends the program" end
  end
end
cli.must(keep())
interrupts.asks(false)

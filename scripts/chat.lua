-- chat.lua: talks with a model in its own chat format; one cache lasts the whole conversation.
local chat = require "pyramid.chat"
local cli = require "pyramid.cli"
local picture = require "pyramid.picture"
local target = require "pyramid.target"

local parser = cli.parser("[options]", "Talks with a model in the chat format that its tokenizer describes. One cache lasts the "
  .. "whole conversation: each turn reads only what is new. Lines of standard input are what you say.", [[
In the conversation: /stats, /clear, /quit, /help.
A model without a chat format: --template NAME, or each line is a text that the model goes on with (\n is a new line).
The first message is read under the policy; later ones are appended whole, and policies that act in generation go on.]])
cli.add_model(parser)
cli.option(parser, "--template", "NAME", "The chat format, if not the model's own: llama-2, llama-3, chatml, mistral, …; or none.")
cli.option(parser, "--system", "TEXT", "What the model is told before the first message.")
cli.add_policy(parser)
cli.add_cache(parser)
cli.add_length(parser, 256)
local sampling = { temperature = 0.7, top_p = 0.95 }   -- what chat models are made for
cli.add_sampler(parser, sampling)
local args = cli.parse(parser, arg)

local policy, label = cli.one_policy(args)
local model <close> = cli.open_text_model(args)
local tokenizer, picker = model.tokenizer, cli.sampler(args, sampling)
local template = args.template or tokenizer.chat_template
if template == "none" then template = nil end

local out, err = picture.new(io.stdout), picture.new(io.stderr)
local stops = args.stop or {}
local interactive = picture.new(io.stdin).terminal and out.terminal

---@class pyramid.Talk   what the cache holds, and what is not in it yet
local talk = { messages = {}, text = "", waiting = {}, turns = 0, rereads = 0 }

local function note(text) io.stderr:write(err:paint(text, "dim"), "\n") end

local function clear()
  if talk.cache then talk.cache:close() end
  talk.cache = cli.must(model:cache(cli.cache_options(args, policy)))
  talk.text, talk.waiting, talk.last = "", {}, nil
end

local function forget()
  clear()
  picker:reset()
  talk.messages, talk.turns, talk.rereads, talk.stuck = {}, 0, 0, nil
  if args.system and template then talk.messages[1] = { role = "system", content = args.system } end
end

-- ---- what is new ---------------------------------------------------------------------------------------------------

local function render(messages, ask)
  return chat.render(template, messages, { add_generation_prompt = ask, bos = tokenizer.bos_text,
    eos = tokenizer.eos_text })
end

-- Ids of a text that begins the cache: the template may have written what begins each text, or left it to the tokenizer, which
-- adds none if it is there.
local function first_ids(text)
  return cli.must(tokenizer:encode(text, { add = false, bos = tokenizer.adds_bos or nil }))
end

local function begins_with(text, start) return text:sub(1, #start) == start end

-- What a chat template adds to the text that the cache holds; nil if it tells the past in another way than before.
local function addition(messages, whole)
  if talk.text == "" then return nil end
  local past = render(table.move(messages, 1, #messages - 1, 1, {}), false)
  if not past or not begins_with(past, talk.text) or not begins_with(whole, past) then return nil end
  -- The reply is in the cache as the model wrote it, with its blanks; what the template puts after it is new.
  local first, last = past:find(messages[#messages - 1].content, #talk.text + 1, true)
  if not first then return nil end
  return past:sub(last + 1) .. whole:sub(#past + 1)
end

local function append(ids, more) return table.move(more, 1, #more, #ids + 1, ids) end

-- A format that ends turns with no token of their own needs a text to end at: what it puts between a reply and a question.
local function turn_end()
  local whole, message = render({ { role = "user", content = "<1>" }, { role = "assistant", content = "<2>" },
    { role = "user", content = "<3>" } }, false)
  if not whole then cli.fail(message, "Name a format with --template, or go without one: --template none.") end
  local between = whole:match "<2>(.-)<3>"
  for _, id in ipairs(between and cli.must(tokenizer:encode(between, { add = false })) or {}) do
    if tokenizer:is_special(id) then return nil end
  end
  return between and chat.trim("|" .. between):sub(2)            -- the blanks before it stay
end

-- The ids to read for a message, and what the cache's text is before the reply to it.
local function new_ids(line)
  if not template then
    local text = cli.unescape(line)
    if talk.cache:tokens() == 0 then return cli.must(model:encode(text)), text end
    return append(append({}, talk.waiting), cli.must(model:encode(text, { special = false }))), text
  end
  local messages = table.move(talk.messages, 1, #talk.messages, 1, {})
  messages[#messages + 1] = { role = "user", content = line }
  local whole = cli.must(render(messages, true))
  local added = addition(messages, whole)
  if added then
    return append(append({}, talk.waiting), cli.must(tokenizer:encode(added, { add = false }))), whole, messages
  end
  if talk.text ~= "" then talk.rereads = talk.rereads + 1 end
  clear()
  return first_ids(whole), whole, messages
end

-- ---- a turn --------------------------------------------------------------------------------------------------------

-- What keeps the conversation from going on is said once, not for each line of a file that is piped in.
local function say_stuck(code, message)
  if talk.stuck ~= code then note(message .. "; /clear forgets the conversation and begins anew") end
  talk.stuck = not interactive and code or nil
end

local function say(line)
  local ids, text, messages = new_ids(line)
  local progress <close> = picture.progress(("reading %d tokens"):format(#ids))
  local first = talk.cache:tokens() == 0
  local run <close>, message, code = model:generate(ids, { cache = talk.cache, sampler = picker, max_tokens = args.max_tokens,
    stop = stops, progress = progress.update, prune = first })
  progress:close()
  if not run then return say_stuck(code, message) end
  local warning = first and target.warning(policy, label, talk.cache:fraction(), #ids)
  if warning and not talk.warned then note(warning) end            -- once is enough
  talk.warned = talk.warned or warning
  local asked = cli.must(talk.cache:fork())                       -- the question is read; pages are shared until written
  local pieces, counted, waiting = {}, 0, {}
  local begun = not template                                       -- the blank between "Answer:" and the answer isn't shown
  for piece, id in run do
    pieces[#pieces + 1] = piece
    if not begun then piece = piece:match "^%s*(.*)$" end
    begun = begun or piece ~= ""
    io.write(piece)
    io.flush()
    if run.stats.generated_tokens > counted then                 -- the last piece may come without a new token
      counted, waiting = run.stats.generated_tokens, { id }      -- and the last token is not in the cache
    end
  end
  print()
  if run.finish == "error" then say_stuck(run.code, run.message)
  elseif run.finish == "context" then
    say_stuck("context", ("the model's context of %d tokens is full"):format(model.config.context))
  else talk.stuck = nil
  end
  local reply = table.concat(pieces)
  if run.finish == "stop" then
    -- The cache holds what the reply ended at, too: go back to the question, and read the reply with the next one.
    talk.cache, asked = asked, talk.cache
    waiting = cli.must(tokenizer:encode(reply, { special = false }))
  elseif run.finish == "eos" then
    waiting = {}                                                  -- all before the end was fed
  end
  asked:close()
  talk.turns, talk.last, talk.waiting, talk.text = talk.turns + 1, run.stats, waiting, text
  if messages then
    messages[#messages + 1] = { role = "assistant", content = chat.trim(reply) }
    talk.messages = messages
  end
end

-- ---- commands ------------------------------------------------------------------------------------------------------

local function show_stats()
  local cache, config = talk.cache, model.config
  local tokens, last = cache:tokens(), talk.last
  print(("%s: %d turn%s, %d tokens seen; %s in %s, %s of the rows%s"):format(label, talk.turns, talk.turns == 1 and "" or "s",
    tokens, cli.bytes(cache:bytes()), args.cache_dtype, cli.percent(cache:fraction()),
    talk.rereads > 0 and ("; read anew %d times"):format(talk.rereads) or ""))
  if last then
    print(("last turn: read %d tokens at %.0f a second, wrote %d at %.0f a second"):format(
      last.prompt_tokens, cli.rate(last.prompt_tokens, last.prefill_seconds),
      last.generated_tokens, cli.rate(last.generated_tokens, last.decode_seconds)))
  end
  for layer, rows in ipairs(cli.layer_rows(cache, config)) do
    print(("%3d  %s %.0f"):format(layer, out:bar(rows / math.max(tokens, 1), 40, (layer - 1) / config.layers), rows))
  end
end

local commands = {
  ["/stats"] = show_stats,
  ["/clear"] = function() forget() note "forgotten" end,
  ["/help"] = function() note "/stats: what the cache holds   /clear: begin anew   /quit: end (so does the end of the input)" end,
}

forget()
if template then stops[#stops + 1] = turn_end() end
if interactive then
  note(err:cut(model.description, err.width))
  note(("policy %s; /help lists commands"):format(label))
end
if not template then
  note "This model has no chat format (--template NAME would give it one): it goes on with each line as a plain text."
end
while true do
  if interactive then io.write(out:paint("> ", "accent")) io.flush() end
  local line = io.read "l"
  local command = line and line:find "^/" and chat.trim(line)
  if not line or command == "/quit" then break end
  if commands[command] then commands[command]()
  elseif command then note(("there is no command %s; /help lists them (a blank before the / makes it a message)"):format(command))
  elseif line:find "%S" then say(line)
  end
end
if interactive then print() end
talk.cache:close()

--- The commands of `pyramid chat`: lines that begin with a slash.
---
---   commands.run(talk, "/set temperature=0.5") -> true; "leave" if it was /exit
---   commands.complete("/te", "")               words that a word could become
---
--- A command that fails says why, and changes nothing.
local chat = require "pyramid.chat"
local cli = require "pyramid.tools.cli"
local picture = require "pyramid.tools.picture"
local policy = require "pyramid.policy"
local screen = require "pyramid.tools.screen"

local commands = {}

---@class pyramid.TalkCommand
---@field usage string    what stands behind its name
---@field text string
---@field run fun(talk: pyramid.Talk, rest: string): any, string?   nil and a message: it failed

local list, aliases = {}, { clear = "reset", quit = "exit" }
local order = { "help", "save", "load", "regen", "undo", "system", "set", "policy", "memory",
  "stats", "reset", "exit" }

-- A file as people write it: ~ is their home.
local function path_of(rest, name)
  if rest == "" then return nil, ("/%s needs the name of a file"):format(name) end
  local home = os.getenv "HOME"
  return home and rest:gsub("^~/", home:gsub("%%", "%%%%") .. "/", 1) or rest
end

-- ---- settings -----------------------------------------------------------------------------------

-- The options that /set knows, and what they are where they are not given.
local settings = { { "temperature", 0 }, { "top_k", 0, "integer" }, { "top_p", 0 }, { "min_p", 0 },
  { "repeat_penalty", 1 }, { "frequency_penalty", 0 }, { "presence_penalty", 0 },
  { "penalty_last", 0, "integer" }, { "seed", 0, "integer" }, { "max_tokens", 256, "integer" } }
local setting_names, by_name = {}, {}
for i, setting in ipairs(settings) do
  setting_names[i], by_name[setting[1]] = setting[1], setting
end

local function show_settings(talk)
  for _, setting in ipairs(settings) do
    local name = setting[1]
    local value = talk.sampling[name] or setting[2]
    if name == "max_tokens" then
      value = talk.max_tokens == math.maxinteger and -1 or talk.max_tokens
    end
    print(("%s = %.14g"):format(name, value))
  end
end

-- A setting's value; nil and what is wrong.
local function value_of(name, text)
  local setting = by_name[name]
  if not setting then
    return nil, ("there is no setting '%s' (known: %s)"):format(name,
      table.concat(setting_names, ", "))
  end
  local value = tonumber(text)
  if setting[3] then value = math.tointeger(value) end
  if value and value == value then return value end
  return nil, ("%s must be %s, not '%s'"):format(name, setting[3] and "an integer" or "a number",
    text)
end

list.set = { usage = "[NAME=VALUE …]", text = "how tokens are picked; alone, it shows that",
  run = function(talk, rest)
    if rest == "" then
      show_settings(talk)
      return true
    end
    local o, most, anew = {}, talk.max_tokens, false
    for key, value in pairs(talk.sampling) do o[key] = value end
    for word in rest:gsub("%s*=%s*", "="):gmatch "%S+" do
      local name, text = word:match "^([%w_]+)=(.+)$"
      if not name then return nil, ("'%s' is not NAME=VALUE"):format(word) end
      local value, wrong = value_of(name, text)
      if not value then return nil, wrong end
      if name ~= "max_tokens" then o[name], anew = value, true
      elseif value < -1 then return nil, "max_tokens must be 0 or more, or -1"
      else most = value == -1 and math.maxinteger or value end
    end
    if anew then
      local ok, message = talk:set_sampling(o)
      if not ok then return nil, message end
    end
    talk.max_tokens = most
    return true
  end }

-- ---- files --------------------------------------------------------------------------------------

list.save = { usage = "FILE", text = "write the conversation to a file, with its cache",
  run = function(talk, rest)
    local path, wrong = path_of(rest, "save")
    if not path then return nil, wrong end
    local ok, message = talk.talk:save(path)
    if not ok then return nil, message end
    talk:note("saved: " .. path)
    return true
  end }

list.load = { usage = "FILE", text = "go on with a conversation that was saved",
  run = function(talk, rest)
    local path, wrong = path_of(rest, "load")
    if not path then return nil, wrong end
    local ok, message = talk:load(path)
    if not ok then return nil, message end
    talk:note(("%d messages, %d tokens in the cache"):format(#talk.talk.messages,
      talk.talk.cache and talk.talk.cache:tokens() or 0))
    return true
  end }

-- ---- turns --------------------------------------------------------------------------------------

list.regen = { usage = "", text = "another answer to the last message",
  run = function(talk) return talk:again() end }

list.undo = { usage = "", text = "take back the last message and its answer",
  run = function(talk)
    local said, message = talk:undo()
    if not said then return nil, message end
    talk:note("taken back: " .. talk.err:cut(said:gsub("%s+", " "), talk.err.width - 12))
    return true
  end }

list.reset = { usage = "", text = "begin anew (also /clear)",
  run = function(talk)
    local ok, message = talk:forget()
    if not ok then return nil, message end
    talk:note "forgotten"
    return true
  end }

list.exit = { usage = "", text = "end (also /quit, Ctrl-D, or Ctrl-C twice)",
  run = function() return "leave" end }

-- ---- what the model is told, and what is kept ---------------------------------------------------

-- Says what a change comes to that the cache's rows know nothing of.
local function reads_anew(talk, ok, message)
  if ok and talk:turns() > 0 then
    talk:note "the conversation is read anew with the next message"
  end
  return ok, message
end

list.system = { usage = "[TEXT | -]", text = "what the model is told first; -: nothing",
  run = function(talk, rest)
    if rest == "" then
      talk.print(talk.told.system or "(nothing)")
      return true
    end
    return reads_anew(talk, talk:set_system(rest ~= "-" and rest or nil))
  end }

list.policy = { usage = "[NAME key=value …]", text = "what of the cache is kept from here on",
  run = function(talk, rest)
    if rest == "" then
      talk.print(talk.label)
      return true
    end
    local found, label, hint = cli.find_policy(rest)
    if not found then return nil, label .. (hint and "\n" .. hint or "") end
    return reads_anew(talk, talk:set_policy(found, label))
  end }

-- The cache; where nothing is read, an empty one, to be closed.
local function cache_of(talk)
  if talk.talk.cache then return talk.talk.cache end
  local empty, message = talk:empty_cache()
  return empty, empty or message
end

local function show_numbers(talk, cache)
  local turns = talk:turns()
  talk.print(("%s: %d turn%s, %d tokens seen; %s in %s, %s of the rows%s"):format(
    talk.label, turns, turns == 1 and "" or "s", cache:tokens(),
    cli.bytes(cache:bytes()), talk.dtype, cli.percent(cache:fraction()), talk.talk.rereads > 0
      and ("; read anew %d times"):format(talk.talk.rereads) or ""))
end

list.stats = { usage = "", text = "what the cache holds, and how fast the last turn was",
  run = function(talk)
    local cache, empty = cache_of(talk)
    if not cache then return nil, empty end
    local _ <close> = empty
    local last, tokens = talk.last, cache:tokens()
    show_numbers(talk, cache)
    if last then
      talk.print(("last turn: read %d tokens at %.0f a second, wrote %d at %.0f a second"):format(
        last.prompt_tokens, cli.rate(last.prompt_tokens, last.prefill_seconds),
        last.generated_tokens, cli.rate(last.generated_tokens, last.decode_seconds)))
    end
    local wide = math.min(40, math.max(4, (screen.width(io.stdout) or 80) - 12))
    for layer, rows in ipairs(cli.layer_rows(cache, talk.model.config)) do
      print(("%3d  %s %.0f"):format(layer, talk.out:bar(rows / math.max(tokens, 1), wide,
        (layer - 1) / talk.model.config.layers), rows))
    end
    return true
  end }

list.memory = { usage = "", text = "which positions are kept, layer by layer, as a picture",
  run = function(talk)
    local cache, empty = cache_of(talk)
    if not cache then return nil, empty end
    local _ <close> = empty
    local tokens, pic = cache:tokens(), picture.new(io.stdout)
    local columns = screen.width(io.stdout) or pic.width
    show_numbers(talk, cache)
    if tokens == 0 then
      print "nothing is read yet"
      return true
    end
    local wide = math.max(4, math.min(columns, 120) - 12)
    local layers = picture.survey(cache, talk.model.config)
    for layer, held in ipairs(layers) do
      print(("%3d %s %6.0f"):format(layer, pic:strip(held.lanes, tokens, wide,
        (layer - 1) / #layers), held.rows))
    end
    print(pic:paint(pic:legend(), "dim"))
    return true
  end }

-- ---- the table ----------------------------------------------------------------------------------

list.help = { usage = "", text = "this list",
  run = function(talk)
    local lines = {}
    for i, name in ipairs(order) do
      local one = list[name]
      lines[i] = ("/%s%s: %s"):format(name, one.usage ~= "" and " " .. one.usage or "", one.text)
    end
    lines[#lines + 1] = "a blank before a / makes it a message"
    if talk.interactive then
      lines[#lines + 1] = "Ctrl-C ends an answer; what is pasted is one message"
    end
    talk:note(table.concat(lines, "\n"))
    return true
  end }

---Whether a text is a command, and no message.
---@param text string
---@return boolean
function commands.is(text) return text:find "^/" ~= nil and not text:find("\n", 1, true) end

---Does what a command says. nil: it failed, and said why.
---@param talk pyramid.Talk
---@param text string
---@return true|"leave"|nil
function commands.run(talk, text)
  text = chat.trim(text)
  local name, rest = text:match "^/(%S*)%s*(.*)$"
  local one = list[aliases[name] or name]
  if not one then
    talk:note(("there is no command %s; /help lists them (a blank before the / makes it a message)")
      :format(text))
    return nil
  end
  local result, message
  if one.usage == "" and rest ~= "" then
    message = ("/%s takes nothing behind it, and there is '%s'"):format(name, rest)
  else
    result, message = one.run(talk, rest)
  end
  if not result then talk:note(message) end
  return result
end

---What a word could become; nil: names of files.
---@param word string
---@param before string  what stands before it in the line
---@return string[]?
function commands.complete(word, before)
  local found = {}
  local function offer(candidates, ending)
    for _, each in ipairs(candidates) do
      if each:sub(1, #word) == word then found[#found + 1] = each .. (ending or "") end
    end
    return found
  end
  if before == "" and word:find "^/" then
    local names = {}
    for i, name in ipairs(order) do names[i] = "/" .. name end
    return offer(names)
  end
  local name = before:match "^/(%a+)%s"
  if name == "save" or name == "load" then return nil end
  if name == "policy" and before:find "^/%a+%s+$" then return offer(policy.list()) end
  if name == "set" and not before:find "=%s*$" then return offer(setting_names, "=") end
  return {}
end

return commands

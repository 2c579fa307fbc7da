--- Chat templates: from messages to the prompt that a chat model was trained on.
---
---   local chat = require "pyramid.chat"
---   local prompt = assert(chat.render(tokenizer.chat_template, { { role = "user", content = "Hello" } },
---     { add_generation_prompt = true, bos = "<s>", eos = "</s>" }))
---   local ids = tokenizer:encode(prompt, { add = false })            -- the prompt has its BOS already
---
--- Models carry their templates as Jinja programs. There is no Jinja here: each family of templates is a Lua function, picked
--- by what the template's text holds, and what differs between its members (a space, a default system message) is read
--- from that text. A template that no family knows is an error, never a guess.
---
--- Templates come with strangers' files and messages from anywhere, so nothing here may raise on either or take more than
--- linear time in them: white space is taken off by `chat.trim`, not by patterns that try every beginning.
local options = require "pyramid.options"

local chat = {}

-- Bytes of a template that is looked at. The longest published ones have some 20 KB; each family looks through it a few times.
local TEMPLATE_MAX = 1 << 17

---@class pyramid.Message
---@field role string      "system", "user" or "assistant"
---@field content string

local function has(text, plain) return text:find(plain, 1, true) ~= nil end

--- Raised inside a family's function: what it cannot render.
local Refusal = {}
local function refuse(format, ...) error(setmetatable({ message = format:format(...) }, Refusal), 0) end

-- What Python's strip() takes away: ASCII white space as bytes, the others as UTF-8 by their length.
local blank, blanks = {}, { [2] = {}, [3] = {} }
for byte = 0x09, 0x0D do blank[byte] = true end
for byte = 0x1C, 0x20 do blank[byte] = true end
for _, cp in ipairs { 0x85, 0xA0, 0x1680, 0x2000, 0x2001, 0x2002, 0x2003, 0x2004, 0x2005, 0x2006, 0x2007, 0x2008, 0x2009, 0x200A,
  0x2028, 0x2029, 0x202F, 0x205F, 0x3000 } do
  local space = utf8.char(cp)
  blanks[#space][space] = true
end

---A text without the white space at its two ends, as Python's strip() leaves it. Each byte is looked at once.
---@param text string
---@return string
function chat.trim(text)
  local first, last = 1, #text
  while first <= last do
    if blank[text:byte(first)] then first = first + 1
    elseif blanks[2][text:sub(first, first + 1)] then first = first + 2
    elseif blanks[3][text:sub(first, first + 2)] then first = first + 3
    else break end
  end
  while last >= first do
    if blank[text:byte(last)] then last = last - 1
    elseif last - first >= 1 and blanks[2][text:sub(last - 1, last)] then last = last - 2
    elseif last - first >= 2 and blanks[3][text:sub(last - 2, last)] then last = last - 3
    else break end
  end
  return text:sub(first, last)
end

local trim = chat.trim

--- A text without the newlines at its end.
local function without_newlines(text)
  local last = #text
  while text:byte(last) == 0x0A do last = last - 1 end
  return text:sub(1, last)
end

--- The template with every newline inside its strings written as Jinja's escape \n: the same program in one spelling. Files
--- hold either, by how often their JSON was escaped; SmolLM2's and Zephyr's hold newlines.
local function canonical(text)
  if not text:find("[\r\n]") then return text end
  text = text:gsub("\r\n?", "\n")
  local out, at, from = {}, 1, 1
  while true do
    local open = text:find("{[{%%#]", at)
    if not open then break end
    local kind = text:sub(open + 1, open + 1)
    at = open + 2
    if kind == "#" then                                  -- a comment
      local _, close = text:find("#}", at, true)
      if not close then break end
      at = close + 1
    else
      while true do                                      -- up to the block's end, string by string
        local i = text:find("['\"}%%]", at)
        if not i then at = #text + 1 break end
        local c = text:sub(i, i)
        at = i + 1
        if c == "'" or c == '"' then
          local last = at
          while true do                                  -- to the closing quote; an escape takes a character along
            local k = text:find("[\\\n" .. c .. "]", last)
            local found = k and text:sub(k, k)
            if not k or found == c then last = k break end
            if found == "\n" then
              out[#out + 1], from = text:sub(from, k - 1) .. "\\n", k + 1
              last = k + 1
            else
              last = k + 2
            end
          end
          at = (last or #text) + 1
        elseif text:sub(at, at) == "}" then
          at = at + 1
          break
        end
      end
    end
  end
  out[#out + 1] = text:sub(from)
  return table.concat(out)
end

local escapes = { n = "\n", t = "\t", r = "\r" }

--- What a Jinja string stands for.
local function unescape(literal)
  return (literal:gsub("\\(.)", function(c) return escapes[c] or c end))
end

--- The string that stands between quotes at `at` (its opening quote) and where it ends; nil if there is none.
local function string_at(text, at)
  local quote = text:match("^['\"]", at)
  local i = at + 1
  while quote do
    local k = text:find("[\\" .. quote .. "]", i)
    if not k then return nil end
    if text:sub(k, k) == quote then return unescape(text:sub(at + 1, k - 1)), k end
    i = k + 2
  end
end

--- The system message if there is one, and the others; refuses those that do not alternate, beginning with the user.
local function split_system(messages)
  local system, first = nil, 1
  if messages[1] and messages[1].role == "system" then system, first = messages[1].content, 2 end
  local rest = table.move(messages, first, #messages, 1, {})
  for i, message in ipairs(rest) do
    if message.role ~= (i % 2 == 1 and "user" or "assistant") then
      refuse("after an optional system message, roles must alternate user, assistant, user, …; message %d is of role '%s'",
        i + first - 1, message.role)
    end
  end
  return system, rest
end

--- Whether the template begins with its BOS, whatever comes then.
local function begins_with_bos(text) return text:find("^%s*{{%-?%s*bos_token%s*%-?}}") ~= nil end

local function wants_prompt(o, text, always)
  if not has(text, "add_generation_prompt") then return always or o.add_generation_prompt end
  return o.add_generation_prompt
end

-- ---- families: find(text) says whether, render(messages, o, text) how ----------------------------------------------------

local families = {}

local llama2 = { name = "llama-2" }
families[#families + 1] = llama2

function llama2.find(text) return has(text, "<<SYS>>") and has(text, "'[INST] ' + content.strip() + ' [/INST]'") end

function llama2.render(messages, o, text)
  local system, rest = split_system(messages)
  local switch = text:find("true == true", 1, true)
  local _, set = text:find("set system_message = '", switch or #text, true)
  local default = set and string_at(text, set)
  if not system and default and not (rest[1] and has(rest[1].content, "<<SYS>>")) then system = default end
  local once, out = begins_with_bos(text), {}
  for i, message in ipairs(rest) do
    local content = message.content
    if i == 1 and system then content = "<<SYS>>\n" .. system .. "\n<</SYS>>\n\n" .. content end
    content = trim(content)
    if message.role == "user" then
      out[i] = (once and i > 1 and "" or o.bos) .. "[INST] " .. content .. " [/INST]"
    else
      out[i] = " " .. content .. " " .. o.eos
    end
  end
  return (once and #rest == 0 and o.bos or "") .. table.concat(out)
end

llama2.default = "'[INST] ' + content.strip() + ' [/INST]' <<SYS>>"

local mistral = { name = "mistral" }
families[#families + 1] = mistral

--- The literal around a word of the template: "[INST]" with the spaces it has there.
local function literal(text, word)
  return text:match("['\"]( ?%[" .. word .. "%] ?)['\"]")
end

function mistral.find(text)
  return has(text, "[INST]") and not has(text, "<<SYS>>") and not has(text, "default_system_message") and not has(text, "strftime")
    and not has(text, "[THINK]") and literal(text, "INST") ~= nil and literal(text, "/INST") ~= nil
end

function mistral.render(messages, o, text)
  local open, close = literal(text, "INST"), literal(text, "/INST")
  local before = text:find("['\"] ['\"] %+ message%[['\"]content['\"]%]") and " " or ""
  local trims = text:find("content['\"]%] *| *trim") ~= nil
  local out = { begins_with_bos(text) and o.bos or has(text, "{{- bos_token }}") and o.bos or "" }
  local function assistant(content) return before .. (trims and trim(content) or content) .. o.eos end
  local open_system = literal(text, "SYSTEM_PROMPT")
  if open_system then                                    -- from v7 on: a turn of its own, anywhere
    local close_system = literal(text, "/SYSTEM_PROMPT")
    if not close_system then refuse("this template opens a system message with [SYSTEM_PROMPT] and never closes it") end
    for i, message in ipairs(messages) do
      if message.role == "user" then out[i + 1] = open .. message.content .. close
      elseif message.role == "system" then out[i + 1] = open_system .. message.content .. close_system
      elseif message.role == "assistant" then out[i + 1] = assistant(message.content)
      else refuse("message %d: role '%s' is not supported", i, message.role) end
    end
    return table.concat(out)
  end
  local system, rest = split_system(messages)
  if system and not has(text, "system_message") then refuse("this template has no place for a system message") end
  local at = has(text, "loop.first and system_message") and 1 or #rest     -- it goes into the first or the last user message
  for i, message in ipairs(rest) do
    if message.role == "user" then
      out[i + 1] = open .. (system and i == at and system .. "\n\n" or "") .. message.content .. close
    else
      out[i + 1] = assistant(message.content)
    end
  end
  return table.concat(out)
end

mistral.default = "{{ bos_token }} loop.first and system_message '[INST] ' + ' [/INST]' ' ' + message['content']"

local llama3 = { name = "llama-3" }
families[#families + 1] = llama3

function llama3.find(text)
  return text:find("['\"]<|start_header_id|>['\"] ?%+ ?message%[['\"]role['\"]%] ?%+ ?['\"]<|end_header_id|>") ~= nil
    and has(text, "<|eot_id|>") and not has(text, "Functionary") and not has(text, "functools")
end

local months = { "Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec" }

--- What strftime says of today with "%d %b %Y", in English whatever the locale.
local function today()
  local now = os.date "*t"
  return ("%02d %s %d"):format(now.day, months[now.month], now.year)
end

function llama3.render(messages, o, text)
  local out, first = { o.bos }, 1
  local function turn(role, content)
    out[#out + 1] = "<|start_header_id|>" .. role .. "<|end_header_id|>\n\n" .. content .. "<|eot_id|>"
  end
  if has(text, "Today Date: ") then                      -- from 3.1 on the system message tells the date
    local system = ""
    if messages[1] and messages[1].role == "system" then system, first = trim(messages[1].content), 2 end
    local date = o.date or (has(text, "strftime_now") and today()) or text:match('date_string = "([^"]*)"')
    if not date then refuse("this template tells today's date and names none; give one (date = \"26 Jul 2024\")") end
    turn("system", "Cutting Knowledge Date: December 2023\nToday Date: " .. date .. "\n\n" .. system)
  end
  for i = first, #messages do turn(messages[i].role, trim(messages[i].content)) end
  if wants_prompt(o, text, true) then out[#out + 1] = "<|start_header_id|>assistant<|end_header_id|>\n\n" end
  return table.concat(out)
end

llama3.default = "add_generation_prompt"

local chatml = { name = "chatml" }
families[#families + 1] = chatml

function chatml.find(text)
  local thinking = has(text, "think>")
  return has(text, "<|im_start|>") and has(text, "<|im_end|>") and not has(text, "<|im_sep|>") and not has(text, "strftime")
    and (not thinking or (has(text, "last_query_index") and has(text, "enable_thinking is false")))
    and not has(text, "<|start_header_id|>") and not has(text, "<|endoftext|>'") and not has(text, "vision_start")
end

--- Qwen3: the reasoning of earlier answers is left out; that of answers behind the last question is kept.
local function without_thoughts(messages)
  local last = #messages
  for i = #messages, 1, -1 do
    local content = messages[i].content
    if messages[i].role == "user" and not (content:find("^<tool_response>") and content:sub(-16) == "</tool_response>") then
      last = i
      break
    end
  end
  local out = {}
  for i, message in ipairs(messages) do
    local content = message.content
    if message.role == "assistant" then
      local thoughts = ""
      if has(content, "</think>") then
        thoughts = without_newlines(content:sub(1, content:find("</think>", 1, true) - 1))
        thoughts = thoughts:match(".*<think>(.*)$") or thoughts
        thoughts = thoughts:gsub("^\n+", "")
        content = content:match(".*</think>(.*)$"):gsub("^\n+", "")
      end
      if i > last and (i == #messages or thoughts ~= "") then
        content = "<think>\n" .. without_newlines((thoughts:gsub("^\n+", ""))) .. "\n</think>\n\n" .. content:gsub("^\n+", "")
      end
    end
    out[i] = { role = message.role, content = content }
  end
  return out
end

--- The system message that the template gives a conversation without one: the first string (or plain text outside of blocks)
--- that holds a whole system turn, or what `system_message` is set to where that is put into one. nil: none.
local function default_system(text)
  local at = 1
  while true do
    local first, last = text:find("<|im_start|>system", at, true)
    if not first then return nil end
    local quoted, close = string_at(text, first - 1)     -- a string that begins with it
    local turn = quoted and quoted:sub(#"<|im_start|>system" + 1)
    if not turn then                                     -- plain text, up to the next block
      close = (text:find("{[{%%#]", last) or #text + 1) - 1
      turn = text:sub(last + 1, close)
    end
    local stop = turn:sub(1, 1) == "\n" and turn:find("<|im_end|>", 1, true)
    if stop then return turn:sub(2, stop - 1) end
    if quoted and turn == "\n" and text:find("^%s*[+~]%s*system_message", close + 1) then
      local from = 1
      while true do                                      -- set to a string somewhere
        local _, set = text:find("set system_message = ", from, true)
        local default = set and string_at(text, set + 1)
        if default or not set then return default end
        from = set + 1
      end
    end
    at = math.max(close, last) + 1
  end
end

function chatml.render(messages, o, text)
  local out = { begins_with_bos(text) and o.bos or "" }
  local default = default_system(text)
  local asked = #messages > 0 or not has(text, "loop.first and")       -- said within the loop over messages
  if default and asked and not (messages[1] and messages[1].role == "system") then
    out[2] = "<|im_start|>system\n" .. default .. "<|im_end|>\n"
  end
  if has(text, "last_query_index") then messages = without_thoughts(messages) end
  local trims = text:find("content['\"%]]* *| *trim") ~= nil
  for _, message in ipairs(messages) do
    local content = trims and trim(message.content) or message.content
    out[#out + 1] = "<|im_start|>" .. message.role .. "\n" .. content .. "<|im_end|>\n"
  end
  if o.add_generation_prompt then
    out[#out + 1] = "<|im_start|>assistant\n"
    if o.thinking == false and has(text, "enable_thinking") then out[#out + 1] = "<think>\n\n</think>\n\n" end
  end
  return table.concat(out)
end

chatml.default = "add_generation_prompt"

local phi3 = { name = "phi-3" }
families[#families + 1] = phi3

function phi3.find(text)
  return has(text, "<|end|>") and has(text, "<|assistant|>") and not has(text, "<|im_start|>") and not has(text, "think")
    and not has(text, "tool") and not has(text, "<|start|>")
end

function phi3.render(messages, o, text)
  local out = { begins_with_bos(text) and o.bos or "" }
  local asked = has(text, "add_generation_prompt")
  local names_all = has(text, "'<|' + message['role'] + '|>'")
  for _, message in ipairs(messages) do
    local role, content = message.role, message.content
    if names_all or (asked and role == "system" and content ~= "") or (asked and (role == "user" or role == "assistant")) then
      out[#out + 1] = "<|" .. role .. "|>\n" .. content .. "<|end|>\n"
    elseif not asked and role == "user" then             -- the first Phi-3: each question asks for its answer at once
      out[#out + 1] = "<|user|>\n" .. content .. "<|end|>\n<|assistant|>\n"
    elseif not asked and role == "assistant" then
      out[#out + 1] = content .. "<|end|>\n"
    end
  end
  local last = messages[#messages]
  local answered = has(text, "messages[-1]['role'] != 'assistant'") and last ~= nil and last.role == "assistant"
  local prompt = o.add_generation_prompt and not answered
  if asked and prompt then out[#out + 1] = "<|assistant|>\n"
  elseif asked and has(text, "{% else %}{{ eos_token }}") then out[#out + 1] = o.eos end
  return table.concat(out)
end

phi3.default = "add_generation_prompt '<|' + message['role'] + '|>'"

local zephyr = { name = "zephyr" }
families[#families + 1] = zephyr

function zephyr.find(text)
  return text:find("<|user|>\\n' %+ message%['content'%] %+ eos_token") ~= nil
    and text:find("<|assistant|>\\n' *%+ message%['content'%] %+ eos_token") ~= nil
end

function zephyr.render(messages, o)
  local out = {}
  for i, message in ipairs(messages) do
    local role = message.role
    out[i] = (role == "user" or role == "system" or role == "assistant")
      and "<|" .. role .. "|>\n" .. message.content .. o.eos .. "\n" or ""
  end
  if o.add_generation_prompt and #messages > 0 then out[#out + 1] = "<|assistant|>\n" end
  return table.concat(out)
end

zephyr.default = ""

-- Our own default model: a document with questions at its end. No token ends an answer.
local question = { name = "question" }
families[#families + 1] = question

function question.find(text) return has(text, "Question: ' + m['content'] + '\\nAnswer:'") end

function question.render(messages, o)
  local out = { o.bos }
  for _, message in ipairs(messages) do
    local role, content = message.role, message.content
    out[#out + 1] = role == "system" and content or role == "user" and "\n\nQuestion: " .. content .. "\nAnswer:" or " " .. content
  end
  return table.concat(out)
end

question.default = ""

-- ---- the public part -----------------------------------------------------------------------------------------------------

---Names of the families that can be rendered.
---@return string[]
function chat.list()
  local out = {}
  for i, family in ipairs(families) do out[i] = family.name end
  return out
end

--- The family and the text that it reads; or nil, message, code.
local function find(template)
  for _, family in ipairs(families) do
    if family.name == template then return family, family.default end
  end
  if #template > TEMPLATE_MAX then
    return nil, ("chat: a template of %d bytes (at most %d are looked at)"):format(#template, TEMPLATE_MAX), "unsupported"
  end
  local text = canonical(template)
  for _, family in ipairs(families) do
    if family.find(text) then return family, text end
  end
  return nil, ("chat: a template of no family that is known (%s)"):format(table.concat(chat.list(), ", ")), "unsupported"
end

---The family of a model's template, or of a family's name itself.
---@param template string
---@return string? name
---@return string? message
---@return string? code
function chat.find(template)
  if type(template) ~= "string" then error("chat.find: a template's text or a family's name is wanted", 2) end
  local family, message, code = find(template)
  if not family then return nil, message, code end
  return family.name
end

local render_keys = { add_generation_prompt = "boolean", bos = "string", eos = "string", date = "string", thinking = "boolean" }

---The prompt of a conversation, as the model's own template renders it. The template is its text
---(tokenizer.chat_template), or a family's name; bos and eos are the texts of those tokens ("" if absent).
---@param template string
---@param messages pyramid.Message[]
---@param given? { add_generation_prompt?: boolean, bos?: string, eos?: string, date?: string, thinking?: boolean }
---@return string?
---@return string? message
---@return string? code
function chat.render(template, messages, given)
  local o = options.check("chat.render", given, render_keys)
  if type(template) ~= "string" then error("chat.render: a template's text or a family's name is wanted", 2) end
  if type(messages) ~= "table" then error("chat.render: a sequence of messages is wanted", 2) end
  for i = 1, #messages do
    local message = messages[i]
    if type(message) ~= "table" or type(message.role) ~= "string" or type(message.content) ~= "string" then
      error(("chat.render: message %d is not { role = text, content = text }"):format(i), 2)
    end
  end
  local family, text, code = find(template)
  if not family then return nil, text, code end
  o = { add_generation_prompt = o.add_generation_prompt or false, bos = o.bos or "", eos = o.eos or "", date = o.date,
    thinking = o.thinking }
  local ok, result = pcall(family.render, messages, o, text)
  if ok then return result end
  if getmetatable(result) == Refusal then return nil, ("chat: %s: %s"):format(family.name, result.message), "argument" end
  error(result, 0)
end

return chat

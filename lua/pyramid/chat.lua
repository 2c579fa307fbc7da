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
local options = require "pyramid.options"

local chat = {}

---@class pyramid.Message
---@field role string      "system", "user" or "assistant"
---@field content string

local function has(text, plain) return text:find(plain, 1, true) ~= nil end

--- Raised inside a family's function: what it cannot render.
local Refusal = {}
local function refuse(format, ...) error(setmetatable({ message = format:format(...) }, Refusal), 0) end

-- What Python's strip() takes away.
local spaces = {}
for _, cp in ipairs { 0x85, 0xA0, 0x1680, 0x2000, 0x2001, 0x2002, 0x2003, 0x2004, 0x2005, 0x2006, 0x2007, 0x2008, 0x2009, 0x200A,
  0x2028, 0x2029, 0x202F, 0x205F, 0x3000 } do spaces[#spaces + 1] = utf8.char(cp) end

local function trim(text)
  repeat
    local shorter = text:match("^[%s\x1c-\x1f]*(.-)[%s\x1c-\x1f]*$")
    for _, space in ipairs(spaces) do
      if shorter:sub(1, #space) == space then shorter = shorter:sub(#space + 1) end
      if #shorter >= #space and shorter:sub(-#space) == space then shorter = shorter:sub(1, -#space - 1) end
    end
    local changed = shorter ~= text
    text = shorter
  until not changed
  return text
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
  local default = text:match("true == true.-set system_message = '(.-)'%s*%%}")
  if not system and default and not (rest[1] and has(rest[1].content, "<<SYS>>")) then
    system = default:gsub("\\n", "\n"):gsub("\\'", "'")
  end
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

function llama3.render(messages, o, text)
  local out, first = { o.bos }, 1
  local function turn(role, content)
    out[#out + 1] = "<|start_header_id|>" .. role .. "<|end_header_id|>\n\n" .. content .. "<|eot_id|>"
  end
  if has(text, "Today Date: ") then                      -- from 3.1 on the system message tells the date
    local system = ""
    if messages[1] and messages[1].role == "system" then system, first = trim(messages[1].content), 2 end
    local date = o.date or (has(text, "strftime_now") and os.date("%d %b %Y")) or text:match('date_string = "(.-)"')
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
    if messages[i].role == "user" and not (content:find("^<tool_response>") and content:find("</tool_response>$")) then
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
        thoughts = content:match("^(.-)</think>"):gsub("\n+$", "")
        thoughts = thoughts:match(".*<think>(.*)$") or thoughts
        thoughts = thoughts:gsub("^\n+", "")
        content = content:match(".*</think>(.*)$"):gsub("^\n+", "")
      end
      if i > last and (i == #messages or thoughts ~= "") then
        content = "<think>\n" .. thoughts:gsub("^\n+", ""):gsub("\n+$", "") .. "\n</think>\n\n" .. content:gsub("^\n+", "")
      end
    end
    out[i] = { role = message.role, content = content }
  end
  return out
end

function chatml.render(messages, o, text)
  local out = { begins_with_bos(text) and o.bos or "" }
  local default = text:match("<|im_start|>system\\n([^'\"{]-)<|im_end|>")
  if default and not (messages[1] and messages[1].role == "system") then
    out[2] = "<|im_start|>system\n" .. default:gsub("\\n", "\n") .. "<|im_end|>\n"
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

function question.find(text) return has(text, "Question: ' + m['content'] + '\nAnswer:'") end

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

local function find(template)
  for _, family in ipairs(families) do
    if family.name == template then return family, family.default end
  end
  for _, family in ipairs(families) do
    if family.find(template) then return family, template end
  end
end

local function unknown()
  return nil, ("chat: a template of no family that is known (%s)"):format(table.concat(chat.list(), ", ")), "unsupported"
end

---The family of a model's template, or of a family's name itself.
---@param template string
---@return string? name
---@return string? message
---@return string? code
function chat.find(template)
  if type(template) ~= "string" then error("chat.find: a template's text or a family's name is wanted", 2) end
  local family = find(template)
  if not family then return unknown() end
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
  for i, message in ipairs(messages) do
    if type(message) ~= "table" or type(message.role) ~= "string" or type(message.content) ~= "string" then
      error(("chat.render: message %d is not { role = text, content = text }"):format(i), 2)
    end
  end
  local family, text = find(template)
  if not family then return unknown() end
  o = { add_generation_prompt = o.add_generation_prompt or false, bos = o.bos or "", eos = o.eos or "", date = o.date,
    thinking = o.thinking }
  local ok, result = pcall(family.render, messages, o, text)
  if ok then return result end
  if getmetatable(result) == Refusal then return nil, ("chat: %s: %s"):format(family.name, result.message), "argument" end
  error(result, 0)
end

return chat

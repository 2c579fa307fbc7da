--- Chat templates: from messages to the prompt that a chat model was trained on.
---
---   local chat = require "pyramid.chat"
---   local prompt = assert(chat.render(tokenizer.chat_template,
---     { { role = "user", content = "Hello" } },
---     { add_generation_prompt = true, bos = "<s>", eos = "</s>" }))
---   local ids = tokenizer:encode(prompt, { add = false })       -- the prompt has its BOS already
---
--- Models carry their templates as Jinja programs; pyramid.jinja runs them as transformers does, or
--- refuses by name what it does not know. A model without one can be given a format by name.
---
--- Templates come with strangers' files and messages from anywhere, so nothing here raises on
--- either, and the work on both is bounded (pyramid/jinja/evaluate.lua says by what).
local core = require "pyramid.core"
local jinja = require "pyramid.jinja"
local json = require "pyramid.json"
local options = require "pyramid.options"
local text = require "pyramid.jinja.text"

local chat = {}

---@class pyramid.Message
---@field role string  "system", "user", "assistant", "tool", …: what the template knows
---@field content? string|table[]      a text, or parts: { type = "text", text = … }, …
---@field tool_calls? table[]
---  of the assistant, as OpenAI's API has them: { type = "function", ["function"] = { name = …,
---  arguments = { … } } }; the content may then be left out
---@field tool_call_id? string         of a tool's answer, where the template asks for it; so may be
---@field name? string                 any other field

--- Formats for models that carry none, in the words of those who have them.
local formats = {}

formats.chatml = [[
{%- for message in messages %}
{{- '<|im_start|>' + message.role + '\n' + message.content + '<|im_end|>\n' }}
{%- endfor %}
{%- if add_generation_prompt %}
{{- '<|im_start|>assistant\n' }}
{%- endif %}]]

formats["llama-2"] = [[
{%- set system = '' %}
{%- if messages and messages[0].role == 'system' %}
{%- set system = '<<SYS>>\n' + messages[0].content + '\n<</SYS>>\n\n' %}
{%- set messages = messages[1:] %}
{%- endif %}
{%- for message in messages %}
{%- if message.role != ('user' if loop.index is odd else 'assistant') %}
{{- raise_exception('after an optional system message, roles alternate: user, assistant, user, …') }}
{%- endif %}
{%- if message.role == 'user' %}
{%- set content = system + message.content if loop.first else message.content %}
{{- bos_token + '[INST] ' + content.strip() + ' [/INST]' }}
{%- else %}
{{- ' ' + message.content.strip() + ' ' + eos_token }}
{%- endif %}
{%- endfor %}]]

formats["llama-3"] = [[
{{- bos_token }}
{%- for message in messages %}
{{- '<|start_header_id|>' + message.role + '<|end_header_id|>\n\n' }}
{{- message.content | trim + '<|eot_id|>' }}
{%- endfor %}
{%- if add_generation_prompt %}
{{- '<|start_header_id|>assistant<|end_header_id|>\n\n' }}
{%- endif %}]]

formats.mistral = [[
{{- bos_token }}
{%- set system = '' %}
{%- if messages and messages[0].role == 'system' %}
{%- set system = messages[0].content + '\n\n' %}
{%- set messages = messages[1:] %}
{%- endif %}
{%- for message in messages %}
{%- if message.role != ('user' if loop.index is odd else 'assistant') %}
{{- raise_exception('after an optional system message, roles alternate: user, assistant, user, …') }}
{%- endif %}
{%- if message.role == 'user' %}
{{- '[INST] ' + (system if loop.first else '') + message.content + ' [/INST]' }}
{%- else %}
{{- ' ' + message.content + eos_token }}
{%- endif %}
{%- endfor %}]]

formats["phi-3"] = [[
{%- for message in messages %}
{{- '<|' + message.role + '|>\n' + message.content + '<|end|>\n' }}
{%- endfor %}
{%- if add_generation_prompt %}
{{- '<|assistant|>\n' }}
{%- endif %}]]

formats.zephyr = [[
{%- for message in messages %}
{{- '<|' + message.role + '|>\n' + message.content + eos_token + '\n' }}
{%- endfor %}
{%- if add_generation_prompt %}
{{- '<|assistant|>\n' }}
{%- endif %}]]

-- Our own default model: a document with questions at its end. No token ends an answer.
formats.question = [[
{{- bos_token }}
{%- for message in messages %}
{%- if message.role == 'system' %}{{ message.content }}
{%- elif message.role == 'user' %}{{ '\n\nQuestion: ' + message.content + '\nAnswer:' }}
{%- else %}{{ ' ' + message.content }}
{%- endif %}
{%- endfor %}]]

---Names of the formats that can be asked for without a template's text.
---@return string[]
function chat.list()
  local out = {}
  for name in pairs(formats) do out[#out + 1] = name end
  table.sort(out)
  return out
end

---A text without the white space at its two ends, as Python's strip() leaves it, in linear time.
---@param s string
---@return string
function chat.trim(s) return text.strip(s, true, true) end

---A template that renders: its text (tokenizer.chat_template), or the name of a format.
---@param template string
---@return pyramid.jinja.Template?
---@return string? message
---@return "format"|"unsupported"|nil code
function chat.compile(template)
  local _ <close> = core.plain_locale()
  if type(template) ~= "string" then
    error("chat.compile: a template's text or a format's name is wanted", 2)
  end
  if not formats[template] and not template:find "[{\n]" then
    return nil, ("chat: '%s' is no template, and no format's name (known: %s)"):format(
      template:sub(1, 60), table.concat(chat.list(), ", ")), "unsupported"
  end
  return jinja.compile(formats[template] or template, "chat template")
end

local render_keys = { add_generation_prompt = "boolean", bos = "string", eos = "string",
  date = "string", thinking = "boolean", tools = "table", documents = "table", variables = "table",
    now = "table" }

---What is wrong with messages that no template could be given; nil: nothing.
---@param messages any
---@return string?
function chat.check(messages)
  if type(messages) ~= "table" then return "a sequence of messages is wanted" end
  for i, message in ipairs(messages) do
    if type(message) ~= "table" or type(message.role) ~= "string" then
      return ("message %d is not { role = text, content = text }"):format(i)
    end
    local content = message.content
    local kind = type(content)
    local none = content == nil or content == json.null
    if kind ~= "string" and kind ~= "table" and not (none and message.tool_calls) then
      return ("the content of message %d is neither a text nor parts"):format(i)
    end
  end
end

-- Templates expect a tool as OpenAI's API describes it, with the function's description within.
-- The description alone, with its parameters, is put there; all else goes as it is.
local function as_tools(tools)
  local out = {}
  for i, tool in ipairs(tools) do
    local bare = type(tool) == "table" and type(tool.name) == "string"
      and type(tool.parameters) == "table" and tool.type == nil and tool["function"] == nil
    out[i] = bare and { type = "function", ["function"] = tool } or tool
  end
  return out
end

---@class pyramid.ChatOptions
---@field add_generation_prompt? boolean   ends with what begins the model's answer
---@field bos? string                      the texts of those tokens ("" if the model has none)
---@field eos? string
---@field tools? table[]
---  functions the model may call: { name = …, description = …, parameters = a JSON schema }, or
---  that within { type = "function", ["function"] = … }, as OpenAI's API has it
---@field documents? table[]
---@field thinking? boolean                templates know it as enable_thinking, or as thinking
---@field date? string                     templates know it as date_string
---@field now? table  the time, as os.date("*t") makes it; the present otherwise
---@field variables? table<string, any>
---  whatever else a template asks for (its text names them): custom_tools, reasoning_effort, …

---The prompt of a conversation, as the template renders it: a template's text, a format's name, or
---what chat.compile made of either.
---@param template string|pyramid.jinja.Template
---@param messages pyramid.Message[]
---@param given? pyramid.ChatOptions
---@return string?
---@return string? message
---@return "argument"|"format"|"unsupported"|nil code   "argument": it refuses these messages
function chat.render(template, messages, given)
  local _ <close> = core.plain_locale()
  local o = options.check("chat.render", given, render_keys)
  local wrong = chat.check(messages)
  if wrong then error("chat.render: " .. wrong, 2) end
  local compiled = template
  if type(template) ~= "table" then
    local message, code
    compiled, message, code = chat.compile(template)
    if not compiled then return nil, message, code end
  end
  local variables = {}
  for name, value in pairs(o.variables or {}) do variables[name] = value end
  variables.messages = messages
  variables.add_generation_prompt = o.add_generation_prompt or false
  variables.bos_token, variables.eos_token = o.bos or "", o.eos or ""
  if o.date then variables.date_string = o.date end
  if o.thinking ~= nil then
    variables.enable_thinking, variables.thinking = o.thinking, o.thinking
  end
  -- The reference hands these two over as None where there are none.
  variables.tools = o.tools and as_tools(o.tools) or jinja.none
  variables.documents = o.documents or jinja.none
  return compiled:render(variables, o.now)
end

return chat

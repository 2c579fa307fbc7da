--- OpenAI's completions of a text, and of a chat: what a request asks for, and what an answer looks
--- like, whole or as a stream.
local answers = require "pyramid.serve.answers"
local asked = require "pyramid.serve.asked"
local chat = require "pyramid.chat"
local conversation = require "pyramid.conversation"
local fields = require "pyramid.serve.fields"
local json = require "pyramid.json"
local options = require "pyramid.options"
local toolcalls = require "pyramid.serve.toolcalls"

local completions = {}

local wrong = asked.wrong

local function known(more)
  local all = {}
  for key, kind in pairs(fields.common) do all[key] = kind end
  for key, kind in pairs(more) do all[key] = kind end
  return all
end

local text_fields = known { prompt = "string|list", max_tokens = "integer", echo = "boolean",
  logprobs = "integer", suffix = "any", add_special_tokens = "boolean" }
local chat_fields = known { messages = "list", max_tokens = "integer",
  max_completion_tokens = "integer", logprobs = "boolean", top_logprobs = "integer",
  response_format = "object", tools = "list", tool_choice = "any", functions = "any",
  function_call = "any", chat_template_kwargs = "object", reasoning_effort = "string" }

-- What engine:submit takes of a request, but for the prompt; nil after an answer.
local function submit_of(server, call, given, grammar)
  local submit = { logprobs = nil, ignore_eos = given.ignore_eos, owner = given.user }
  local ok, message, field = fields.policy(given, submit, server.engine.policy)
  if not ok then return wrong(call, message, field) end
  submit.stop, message, field = fields.stops(given)
  if not submit.stop then return wrong(call, message, field) end
  submit.samplers, message, field = fields.samplers(given, server.engine.model, given.n or 1,
    grammar, server.random)
  if not submit.samplers then return wrong(call, message, field) end
  return submit
end

-- A token as text, with the blank before it. Bytes that form no character become U+FFFD.
local function token_text(server, id)
  local text = server.spellings[id]
  if not text then
    local decoder <close> = assert(server.engine.model.tokenizer:decoder { continues = true })
    text = (decoder:push(id) or "") .. (decoder:finish() or "")
    server.spellings[id] = text
  end
  return text
end

local function common_of(server, kind, id, created)
  return { id = id, object = kind, created = created, model = server.name,
    system_fingerprint = "pyramid-" .. server.version }
end

-- Why a text ended, where OpenAI has one word for several reasons.
local function extension_of(part)
  if part.finish == "context" or part.finish == "budget" then return { finish = part.finish } end
end

-- ---- texts --------------------------------------------------------------------------------------

-- Log-probabilities as OpenAI's completions have them; `from`: of how many bytes of text they
-- begin.
local function legacy_logprobs(server, said, from)
  local out = { tokens = {}, token_logprobs = {}, top_logprobs = {}, text_offset = {} }
  for i, one in ipairs(said) do
    local text = token_text(server, one.id)
    out.tokens[i], out.text_offset[i] = text, from
    out.token_logprobs[i] = one.logprob or json.null
    local top = one.logprob and {} or json.null
    for j, id in ipairs(one.ids or {}) do top[token_text(server, id)] = one.logprobs[j] end
    if one.logprob then
      -- one number for one id: clients compare the two to find out whether it was the best
      top[text] = math.max(one.logprob, top[text] or -math.huge)
      out.token_logprobs[i] = top[text]
    end
    out.top_logprobs[i] = top
    -- the text shows no special tokens
    from = from + (server.engine.model.tokenizer:is_special(one.id) and 0 or #text)
  end
  for key, list in pairs(out) do
    if #list == 0 then out[key] = json.empty_list end
  end
  return out
end

-- What is said of a prompt that is echoed: nothing of its first token.
local function echoed(request)
  local said = { { id = request.ids[1] } }
  for i = 2, #request.ids do said[i] = request.echoed[i] or { id = request.ids[i] } end
  return said
end

---POST /v1/completions
---@param server pyramid.ServeServer
---@param call pyramid.ServeCall
function completions.text(server, call)
  local given = asked.read(server, call, text_fields)
  if not given then return end
  if given.suffix and given.suffix ~= "" then
    return wrong(call, "'suffix' is not supported", "suffix")
  end
  local prompts = asked.prompts(server, call, given, "prompt", given.n or 1)
  if not prompts then return end
  local submits = {}
  for i, ids in ipairs(prompts) do
    local submit = submit_of(server, call, given, nil)
    if not submit then
      for j = 1, i - 1 do
        for _, sampler in ipairs(submits[j].samplers) do sampler:close() end
      end
      return
    end
    submit.id = i == 1 and server.name_of "cmpl" or nil
    submit.ids, submit.max_tokens = ids, given.max_tokens or 16
    submit.logprobs, submit.echo = given.logprobs, given.echo
    submits[i] = submit
  end
  local id, created = submits[1].id, os.time()
  for i = 2, #submits do submits[i].id = ("%s-%d"):format(id, i) end
  local answer = asked.begin(server, call, submits)
  if not answer then return end
  local function prompt_text(part)
    return server.engine.model:decode(part.request.ids, { skip_special = true }) or ""
  end
  local function choice_of(part, index, text, said, from)
    return { index = index - 1, text = text, logprobs = given.logprobs
      and legacy_logprobs(server, said, from) or json.null,
      finish_reason = part.finish and answers.reason(part.finish) or json.null,
      pyramid = part.finish and extension_of(part) }
  end
  local places = {}
  for i, part in ipairs(answer.parts) do places[part], part.texts, part.bytes = i, {}, 0 end
  if not given.stream then
    if not answer:each(function(part, event)
      part.texts[#part.texts + 1] = event.text
      if event.id then part.said[#part.said + 1] = event end
    end) then return end
    local out, list = common_of(server, "text_completion", id, created), {}
    for i, part in ipairs(answer.parts) do
      local before, said = "", part.said
      if given.echo then
        before = prompt_text(part)
        if given.logprobs then
          said = echoed(part.request)
          table.move(part.said, 1, #part.said, #said + 1, said)
        end
      end
      list[i] = choice_of(part, i, before .. table.concat(part.texts), said, 0)
    end
    out.choices, out.usage = list, answer:usage()
    return call:json(200, out)
  end
  if not call:stream_events() then return answer:cancel() end
  local function send(choices, usage)
    local out = common_of(server, "text_completion", id, created)
    out.choices, out.usage = choices, usage
    return call:event(json.encode(out))
  end
  if answer:each(function(part, event)
    local text, said = event.text, event.id and { event } or {}
    if given.echo and not part.begun then
      text = prompt_text(part) .. text
      if given.logprobs then said = table.move(said, 1, #said, #part.request.ids + 1,
        echoed(part.request)) end
    end
    part.begun = true
    local from = part.bytes
    part.bytes = part.bytes + #text
    -- an event whose last part is not told yet is not the end
    if text == "" and not event.finish and not given.logprobs then return true end
    local shown = event.finish and part or { finish = nil }
    return send({ choice_of(shown, places[part], text, said, from) })
  end) then
    if (given.stream_options or {}).include_usage then
      send(json.empty_list, answer:usage())
    end
    call:event "[DONE]"
    call:over()
  end
end

-- ---- chats --------------------------------------------------------------------------------------

-- A message as templates know it: a text instead of parts, arguments of calls as tables.
local function message_of(given, place)
  local function fault(text) return nil, ("message %d: %s"):format(place, text) end
  if type(given) ~= "table" or fields.is_list(given) then return fault "is no object" end
  local out = {}
  for key, value in pairs(given) do
    if value ~= json.null then out[key] = fields.plain(value) end
  end
  if type(out.role) ~= "string" then return fault "has no role" end
  if type(out.content) == "table" then
    local texts = {}
    for i, part in ipairs(out.content) do
      if type(part) ~= "table" or part.type ~= "text" or type(part.text) ~= "string" then
        return fault(("part %d of its content is no text, and nothing else is read"):format(i))
      end
      texts[i] = part.text
    end
    out.content = table.concat(texts)
  end
  if out.tool_calls ~= nil then
    if type(out.tool_calls) ~= "table" then return fault "tool_calls is no list" end
    for _, one in ipairs(out.tool_calls) do
      local f = type(one) == "table" and one["function"]
      if type(f) ~= "table" then return fault "a tool call has no function" end
      if type(f.arguments) == "string" then
        local value = json.decode(f.arguments)
        if type(value) == "table" then f.arguments = value end
      end
    end
  elseif out.content == nil then
    out.content = ""
  end
  return out
end

local function messages_of(call, given)
  if not given.messages or #given.messages == 0 then
    return wrong(call, "'messages' is a list of at least one message", "messages")
  end
  local list = {}
  for i, one in ipairs(given.messages) do
    local message, why = message_of(one, i)
    if not message then return wrong(call, why, "messages") end
    list[i] = message
  end
  local why = chat.check(list)
  if why then return wrong(call, why, "messages") end
  return list
end

-- The grammar that a response_format asks for; false: none.
local function grammar_of(call, given)
  local format = given.response_format
  if not format or format.type == "text" then return false end
  if format.type == "json_object" then return { schema = { type = "object" } } end
  if format.type == "json_schema" then
    local about = format.json_schema
    local schema = type(about) == "table" and about.schema
    if type(schema) ~= "table" then
      return wrong(call, "'response_format.json_schema.schema' is wanted", "response_format")
    end
    return { schema = schema }
  end
  return wrong(call, "'response_format.type' is text, json_object or json_schema",
    "response_format")
end

-- What the template is told of tools; false: nothing.
local function tools_of(call, given)
  if given.functions or given.function_call then
    return wrong(call, "'functions' are called 'tools' now", "functions")
  end
  local choice = given.tool_choice
  if choice ~= nil and choice ~= "none" and choice ~= "auto" then
    return wrong(call, "'tool_choice' may be none or auto", "tool_choice")
  end
  if not given.tools or choice == "none" or #given.tools == 0 then return false end
  for i, tool in ipairs(given.tools) do
    local f = type(tool) == "table" and tool["function"]
    if type(f) ~= "table" or type(f.name) ~= "string" then
      return wrong(call, ("tool %d has no function with a name"):format(i), "tools")
    end
  end
  return given.tools
end

local function chat_logprobs(server, said)
  local function entry(id, logprob)
    local text = token_text(server, id)
    local bytes = { text:byte(1, -1) }
    return { token = text, logprob = logprob, bytes = #bytes > 0 and bytes or json.empty_list }
  end
  local list = {}
  for i, one in ipairs(said) do
    list[i] = entry(one.id, one.logprob)
    local top = {}
    for j, id in ipairs(one.ids or {}) do top[j] = entry(id, one.logprobs[j]) end
    list[i].top_logprobs = #top > 0 and top or json.empty_list
  end
  return { content = #list > 0 and list or json.empty_list }
end

-- A chat's prompt as ids, and texts that end a turn; nil after an answer.
local function prompt_of(server, call, given, messages, tools)
  local engine, template = server.engine, given.chat_template_kwargs or {}
  local how = { tools = tools or nil, sessions = engine.windowed and "" or nil,
    format = server.template, variables = fields.plain(template) }
  if type(template.enable_thinking) == "boolean" then how.thinking = template.enable_thinking end
  if given.reasoning_effort then how.variables.reasoning_effort = given.reasoning_effort end
  local ok, ids, rest, code = pcall(conversation.prompt, "chat", engine.model, messages, how)
  if not ok then return wrong(call, options.without_place(ids), "messages") end
  if not ids then
    return wrong(call, rest, "messages", code ~= "argument" and code or nil)
  end
  return ids, rest
end

---POST /v1/chat/completions
---@param server pyramid.ServeServer
---@param call pyramid.ServeCall
function completions.chat(server, call)
  local given = asked.read(server, call, chat_fields)
  if not given then return end
  local messages = messages_of(call, given)
  local tools = messages and tools_of(call, given)
  local grammar = tools ~= nil and grammar_of(call, given)
  if not messages or tools == nil or grammar == nil then return end
  if given.top_logprobs and not given.logprobs then
    return wrong(call, "'top_logprobs' goes with 'logprobs'", "top_logprobs")
  end
  local ids, rest = prompt_of(server, call, given, messages, tools)
  if not ids then return end
  local submit = submit_of(server, call, given, grammar or nil)
  if not submit then return end
  local stop = rest.stop or {}
  for _, text in ipairs(type(stop) == "string" and { stop } or stop) do
    submit.stop[#submit.stop + 1] = text
  end
  submit.id, submit.ids, submit.boundaries = server.name_of "chatcmpl", ids, rest.boundaries
  submit.max_tokens = given.max_completion_tokens or given.max_tokens or server.max_tokens
  submit.logprobs = given.logprobs and (given.top_logprobs or 0) or nil
  local created = os.time()
  local answer = asked.begin(server, call, { submit })
  if not answer then return end
  local places = {}
  for i, part in ipairs(answer.parts) do
    places[part], part.texts = i, {}
    part.filter = tools and toolcalls.new(function() return server.name_of "call" end) or nil
  end
  local function text_of(part, event)
    if not part.filter then return event.text end
    return part.filter:push(event.text, event.finish ~= nil)
  end
  local function reason(part)
    return part.filter and #part.filter.calls > 0 and "tool_calls" or answers.reason(part.finish)
  end
  if not given.stream then
    if not answer:each(function(part, event)
      part.texts[#part.texts + 1] = text_of(part, event)
      if event.id then part.said[#part.said + 1] = event end
    end) then return end
    local out, list = common_of(server, "chat.completion", submit.id, created), {}
    for i, part in ipairs(answer.parts) do
      local text = table.concat(part.texts)
      local calls = part.filter and #part.filter.calls > 0 and part.filter.calls or nil
      list[i] = { index = i - 1, message = { role = "assistant", tool_calls = calls,
        content = calls and text == "" and json.null or text },
        logprobs = given.logprobs and chat_logprobs(server, part.said) or json.null,
        finish_reason = reason(part), pyramid = extension_of(part) }
    end
    out.choices, out.usage = list, answer:usage()
    return call:json(200, out)
  end
  if not call:stream_events() then return answer:cancel() end
  local function send(choices, usage)
    local out = common_of(server, "chat.completion.chunk", submit.id, created)
    out.choices, out.usage = choices, usage
    return call:event(json.encode(out))
  end
  local function delta(part, what, said, finish)
    return send { { index = places[part] - 1, delta = what, logprobs = given.logprobs and said
      and chat_logprobs(server, said) or json.null, finish_reason = finish or json.null,
      pyramid = finish and extension_of(part) or nil } }
  end
  if answer:each(function(part, event)
    if not part.begun then
      part.begun = true
      if not delta(part, { role = "assistant", content = "" }) then return false end
    end
    local text = text_of(part, event)
    if text ~= "" or event.id and given.logprobs then
      if not delta(part, { content = text }, event.id and { event } or {}) then return false end
    end
    if not event.finish then return true end
    local calls = part.filter and part.filter.calls or {}
    for i, one in ipairs(calls) do one.index = i - 1 end
    return delta(part, #calls > 0 and { tool_calls = calls } or {}, nil, reason(part))
  end) then
    if (given.stream_options or {}).include_usage then send(json.empty_list, answer:usage()) end
    call:event "[DONE]"
    call:over()
  end
end

return completions

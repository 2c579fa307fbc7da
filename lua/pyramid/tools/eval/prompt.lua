--- Prompts as token ids, in three parts, which are read in turn:
---
---   context │ question │ cue
---
--- The context ends where the text that all questions share does; the cue is what calls for the
--- answer: what a chat template begins a turn of the model with, and the answer's first words. Each
--- part is encoded by itself, so that the same ids are read in both modes:
---
---   agnostic  read under the policy: context           after its cut: question, cue
---   aware     read under the policy: context, question after its cut: cue
---
--- Where there is no cue, the question's last token is it.
local chat = require "pyramid.chat"

local prompt = {}

---@class pyramid.PromptParts
---@field context integer[]
---@field question integer[]
---@field cue integer[]       at least one

local function strip(text) return (text:match "^%s*(.-)$") end

-- The template's text around a context and a question: what comes before the context's end, the
-- question, and what comes then.
local function rendered(model, format, case, question)
  local context = strip(case.context)
  local asked = question.text:match "^(.-)%s*$"
  local messages = { { role = "user", content = context .. asked } }
  if case.system then table.insert(messages, 1, { role = "system", content = case.system }) end
  local tokenizer = model.tokenizer
  local whole, message, code = chat.render(format, messages, { add_generation_prompt = true,
    bos = tokenizer.bos_text, eos = tokenizer.eos_text })
  if not whole and case.system then                        -- a template may know no such role
    case = setmetatable({ system = false, context = case.system .. "\n\n" .. context },
      { __index = case })
    return rendered(model, format, case, question)
  end
  if not whole then return nil, message, code end
  local first, last = whole:find(context .. asked, 1, true)
  if not first then
    return nil, "the chat template changes what is said to the model", "unsupported"
  end
  return whole:sub(1, first + #context - 1), asked,
    whole:sub(last + 1) .. strip(question.prefix)
end

-- All but the last ids, and those.
local function split_last(ids)
  local past = #ids - 1
  return table.move(ids, 1, past, 1, {}), { ids[#ids] }
end

---The parts of a question's prompt. `context` may be given: those of another question of the case.
---@param model pyramid.Model
---@param case pyramid.EvalCase
---@param question pyramid.EvalQuestion
---@param format? table       a compiled chat template; nil: none
---@param context? integer[]
---@return pyramid.PromptParts?
---@return string? message
---@return string? code
function prompt.parts(model, case, question, format, context)
  if question.ids then
    return { context = case.ids, question = question.ids, cue = question.rest }
  end
  local texts = { case.context, question.text, question.prefix }
  if case.system then texts[1] = case.system .. "\n\n" .. case.context end
  if format and not case.plain then
    local before, asked, after = rendered(model, format, case, question)
    if not before then return nil, asked, after end
    texts = { before, asked, after }
  end
  local ids = { context }
  for i = context and 2 or 1, 3 do
    local message, code
    local templated = format and not case.plain
    ids[i], message, code = model:encode(texts[i], { add = i == 1 and not templated,
      bos = i == 1 and templated and model.tokenizer.adds_bos or nil })
    if not ids[i] then return nil, message, code end
  end
  local parts = { context = ids[1], question = ids[2], cue = ids[3] }
  if #parts.cue == 0 and #parts.question > 0 then
    parts.question, parts.cue = split_last(parts.question)
  elseif #parts.cue == 0 then
    parts.context, parts.cue = split_last(parts.context)
  end
  return parts
end

---Tokens of the longest prompt of a case, with its answer.
---@param model pyramid.Model
---@param case pyramid.EvalCase
---@param format? table
---@return integer?
---@return string? message
---@return string? code
function prompt.tokens(model, case, format)
  local most, context = 0, nil
  for _, question in ipairs(case.questions) do
    local parts, message, code = prompt.parts(model, case, question, format, context)
    if not parts then return nil, message, code end
    if #parts.question + #parts.cue > 1 then context = parts.context end
    most = math.max(most, #parts.context + #parts.question + #parts.cue + question.most)
  end
  return most
end

---Takes out of a context's middle what makes it too long, so that `room` ids are left. What a chat
---template and a task say first stays, as does its end.
---@param context integer[]
---@param room integer
---@return integer[]
function prompt.cut_middle(context, room)
  if #context <= room then return context end
  local first = room // 2
  return table.move(context, #context - (room - first) + 1, #context, first + 1,
    table.move(context, 1, first, 1, {}))
end

---What is read under the policy, and what after its cut.
---@param parts pyramid.PromptParts
---@param mode "agnostic"|"aware"
---@return integer[] judged
---@return integer[] rest
function prompt.split(parts, mode)
  local function joined(one, other)
    return table.move(other, 1, #other, #one + 1, table.move(one, 1, #one, 1, {}))
  end
  if mode == "agnostic" then return parts.context, joined(parts.question, parts.cue) end
  return joined(parts.context, parts.question), parts.cue
end

return prompt

--- Conversations of several turns whose answers are given: MT-Bench's files (arXiv 2306.05685), as
--- FastChat publishes them. No text is written and no judge asked: what is measured is how probable
--- the given answers are, paired with the full cache.
---
---   mtbench   question.jsonl: question_id, turns. The answers are the line's `reference`, or those
---             of the files in the folders reference_answer or model_answer beside it
---             (question_id, choices: turns)
---
--- A turn is what is read under the policy (the user's message, in the chat template, and what the
--- template puts after the last answer), and the answer, whose tokens are scored after the cut.
local chat = require "pyramid.chat"
local follow = require "pyramid.follow"
local lines = require "pyramid.tools.eval.lines"

local conversations = {}

local readers = {}

-- The given answers of the folders beside a file: by question_id.
local function given_answers(path, given)
  local folder, out = path:match "^(.*)/[^/]*$" or ".", {}
  for _, name in ipairs { "reference_answer", "model_answer" } do
    for _, file in ipairs(given.list(folder .. "/" .. name, "^(.+%.jsonl)$")) do
      local whole = ("%s/%s/%s"):format(folder, name, file)
      local text, message, code = given.read(whole)
      if not text then return nil, message, code end
      local list
      list, message, code = lines.json(whole, text)
      if not list then return nil, message, code end
      for _, entry in ipairs(list) do
        local choice = type(entry.choices) == "table" and entry.choices[1]
        local id = tostring(entry.question_id)
        if type(choice) == "table" and type(choice.turns) == "table" and not out[id] then
          out[id] = choice.turns
        end
      end
    end
  end
  return out
end

local function all_texts(list)
  for _, text in ipairs(list) do
    if type(text) ~= "string" or text == "" then return false end
  end
  return #list > 0
end

function readers.mtbench(path, text, given)
  local list, message, code = lines.json(path, text)
  if not list then return nil, message, code end
  local answers
  answers, message, code = given_answers(path, given)
  if not answers then return nil, message, code end
  local out = {}
  for _, entry in ipairs(list) do
    local reply = type(entry.reference) == "table" and entry.reference
      or answers[tostring(entry.question_id)]
    if type(entry.turns) ~= "table" or not all_texts(entry.turns) then
      return nil, ("%s, line %d: no turns"):format(path, entry.line), "format"
    end
    if reply and #reply >= #entry.turns and all_texts(reply) then
      local questions = {}
      for i, turn in ipairs(entry.turns) do
        questions[i] = { text = turn, prefix = "", answers = { reply[i] }, metric = "likelihood",
          most = 1 }
      end
      out[#out + 1] = { task = "mtbench", name = ("question %s"):format(tostring(
        entry.question_id or entry.line)), context = "", conversation = true,
        questions = questions }
    end
  end
  if #out == 0 then
    return nil, path .. ": no question has an answer for each turn, in `reference`, or in a file of "
      .. "a folder reference_answer or model_answer beside it", "format"
  end
  return out
end

conversations.tasks = readers

-- The conversation up to the i-th user's message, ready for its answer; or with that, too.
local function told(model, format, case, i, answered)
  local messages, plain = {}, {}
  for k = 1, i do
    local q = case.questions[k]
    messages[#messages + 1] = { role = "user", content = q.text }
    plain[#plain + 1] = ("USER: %s\nASSISTANT:"):format(q.text)
    if k < i or answered then
      messages[#messages + 1] = { role = "assistant", content = q.answers[1] }
      plain[#plain + 1] = (" %s\n"):format(q.answers[1])
    end
  end
  if not format then return table.concat(plain) end
  return chat.render(format, messages, { add_generation_prompt = not answered,
    bos = model.tokenizer.bos_text, eos = model.tokenizer.eos_text })
end

---@class pyramid.Turn
---@field read integer[]      under the policy; its last id after the cut
---@field answer integer[]

---The turns of a case as ids.
---@param model pyramid.Model
---@param case pyramid.EvalCase
---@param format? table       a compiled chat template; nil: USER: and ASSISTANT:
---@return pyramid.Turn[]?
---@return string? message
---@return string? code
function conversations.turns(model, case, format)
  local out, before = {}, ""
  local function otherwise()
    return nil, "the chat template tells the past otherwise than it was said", "unsupported"
  end
  for i, question in ipairs(case.questions) do
    local text, message, code = told(model, format, case, i)
    if not text then return nil, message, code end
    local whole
    whole, message, code = told(model, format, case, i, true)
    if not whole then return nil, message, code end
    if text:sub(1, #before) ~= before or whole:sub(1, #text) ~= text then return otherwise() end
    -- what stands between belongs to the answer: most templates have nothing there, some a blank
    local said = question.answers[1]:match "^%s*(.-)%s*$"
    local first, last = whole:find(said, #text + 1, true)
    if not first or whole:sub(#text + 1, first - 1):find "%S" then return otherwise() end
    local answer = whole:sub(#text + 1, last)
    local read
    read, message, code = model:encode(text:sub(#before + 1), { add = i == 1 and not format,
      bos = i == 1 and format and model.tokenizer.adds_bos or nil })
    if not read then return nil, message, code end
    local ids
    ids, message, code = model:encode(answer, { add = false })
    if not ids then return nil, message, code end
    out[i], before = { read = read, answer = ids }, text .. answer
  end
  return out
end

---How probable the given answers are under a policy that reads each turn when it comes.
---@param cache pyramid.Cache
---@param turns pyramid.Turn[]
---@return { sum: number, tokens: integer, share: number, bytes: integer }[]?  of each turn
---@return string? message
---@return string? code
function conversations.score(cache, turns)
  local out = {}
  for i, turn in ipairs(turns) do
    local past = #turn.read - 1
    if past > 0 then
      local ok, message, code = cache:prefill(table.move(turn.read, 1, past, 1, {}))
      if not ok then return nil, message, code end
    end
    local share, bytes = cache:fraction(), cache:bytes()
    local rest = table.move(turn.answer, 1, #turn.answer, 2, { turn.read[past + 1] })
    local all, message, code = follow(cache, rest, { all = true })
    if not all then return nil, message, code end
    local sum = 0
    for k, id in ipairs(turn.answer) do sum = sum + all[k]:logprob(id) end
    out[i] = { sum = sum, tokens = #turn.answer, share = share, bytes = bytes }
  end
  return out
end

return conversations

--- Question answering over documents, as in RULER (arXiv 2404.06654): the documents that hold the
--- answers, among others, and questions about them.
---
---   nq     Natural Questions with gold passages, JSON lines as nelson-liu/lost-in-the-middle
---          publishes them (question, answers, ctxs)
---   qa_1   SQuAD, JSON as published (data, paragraphs, qas)
---   qa_2   HotpotQA, JSON as published (question, answer, context)
---
--- The others are documents of the same file. Several questions are put about one context: each
--- brings the documents that hold its answer.
local haystack = require "pyramid.tools.eval.haystack"
local json = require "pyramid.json"
local lines = require "pyramid.tools.eval.lines"

local passages = {}

---@class pyramid.Passages
---@field documents string[]
---@field questions { text: string, answers: string[], documents: integer[] }[]

local function collection()
  local out, index = { documents = {}, questions = {} }, {}
  local function add(document)
    if not index[document] then
      out.documents[#out.documents + 1] = document
      index[document] = #out.documents
    end
    return index[document]
  end
  return out, add
end

local readers = {}

function readers.nq(path, text)
  local list, message, code = lines.json(path, text)
  if not list then return nil, message, code end
  local out, add = collection()
  for _, entry in ipairs(list) do
    if type(entry.question) ~= "string" or type(entry.answers) ~= "table"
      or type(entry.ctxs) ~= "table" then
      return nil, ("%s, line %d: no question, answers and ctxs"):format(path, entry.line), "format"
    end
    local gold = {}
    for _, passage in ipairs(entry.ctxs) do
      local id = add(("%s\n%s"):format(passage.title or "", passage.text or ""))
      if passage.isgold or #entry.ctxs == 1 then gold[#gold + 1] = id end
    end
    if #gold > 0 and #entry.answers > 0 then
      table.insert(out.questions, { text = entry.question, answers = entry.answers,
        documents = gold })
    end
  end
  return out
end

function readers.qa_1(path, text)
  local data, message, code = json.decode(text)
  if type(data) ~= "table" or type(data.data) ~= "table" then
    return nil, ("%s: %s"):format(path, message or "no SQuAD: it has no data"), code or "format"
  end
  local out, add = collection()
  for _, article in ipairs(data.data) do
    for _, paragraph in ipairs(article.paragraphs or {}) do
      local id = add(paragraph.context)
      for _, qa in ipairs(paragraph.qas or {}) do
        local answers = {}
        for i, answer in ipairs(qa.answers or {}) do answers[i] = answer.text end
        if not qa.is_impossible and #answers > 0 then
          table.insert(out.questions, { text = qa.question, answers = answers,
            documents = { id } })
        end
      end
    end
  end
  return out
end

function readers.qa_2(path, text)
  local data, message, code = json.decode(text)
  if type(data) ~= "table" or type(data[1]) ~= "table" or not data[1].context then
    return nil, ("%s: %s"):format(path, message or "no HotpotQA: no list of questions"),
      code or "format"
  end
  local out, add = collection()
  for _, entry in ipairs(data) do
    local own = {}
    for i, document in ipairs(entry.context) do
      own[i] = add(("%s\n%s"):format(document[1], table.concat(document[2])))
    end
    table.insert(out.questions, { text = entry.question, answers = { entry.answer },
      documents = own })
  end
  return out
end

passages.tasks = readers

---Reads a file.
---@param task string
---@param path string
---@param text string
---@return pyramid.Passages?
---@return string? message
---@return string? code
function passages.read(task, path, text)
  local out, message, code = readers[task](path, text)
  if out and #out.questions == 0 then
    return nil, path .. ": it has no question with an answer", "format"
  end
  return out, message, code
end

local ask = "Answer the question based on the given documents. Only give me the answer and do not "
  .. "output any other words."

---The case of a seed with `size` documents beside those that hold the answers.
---@param task string
---@param seed integer
---@param size integer
---@param given pyramid.TaskGiven
---@return pyramid.EvalCase
function passages.case(task, seed, size, given)
  local from, rng = given.passages, haystack.random(task, seed)
  local chosen, taken, questions = {}, {}, {}
  local function take(id)
    if not taken[id] then chosen[#chosen + 1], taken[id] = id, true end
  end
  for i = 1, given.per_context do
    -- a stride that spreads neighbours, which are often about one matter
    local n = seed * given.per_context + i - 1
    local q = from.questions[n * given.stride % #from.questions + 1]
    for _, id in ipairs(q.documents) do take(id) end
    questions[i] = { text = ("\n\n%s\n\nQuestion: %s"):format(ask, q.text), prefix = " Answer:",
      answers = q.answers, metric = "contains_any", most = 32 }
  end
  local more = math.min(#chosen + size, #from.documents)
  while #chosen < more do take(1 + rng:below(#from.documents)) end
  rng:shuffle(chosen)
  for i, id in ipairs(chosen) do
    chosen[i] = ("Document %d:\n%s"):format(i, from.documents[id])
  end
  return { task = task, name = ("seed %d"):format(seed), questions = questions,
    context = ("%s\n\nThe following are given documents.\n\n%s"):format(ask,
      table.concat(chosen, "\n\n")) }
end

---A step through so many questions that comes by all of them and is no neighbour's.
---@param count integer
---@return integer
function passages.stride(count)
  local function common(a, b) return b == 0 and a or common(b, a % b) end
  local stride = math.max(1, math.floor(count * 0.618))
  while common(stride, count) ~= 1 do stride = stride + 1 end
  return stride
end

return passages

--- MMLU, GSM8K, HumanEval and files of one's own.
---
---   mmlu        a folder with dev/*_dev.csv and test/*_test.csv: five questions with answers, then
---               one without; the letter of the highest probability is the answer
---               (arXiv 2009.03300). The context is the five, so that all questions of a subject
---               are put to one cut cache
---   gsm8k       JSON lines with question and answer: five that are answered, then one; the number
---               after "####", or else the last (arXiv 2110.14168). The five are the first of
---               train.jsonl beside the file, or the file's own first, which are then not asked
---   humaneval   JSON lines with task_id and prompt: the model goes on with the prompt. Nothing is
---               run: what it wrote goes to a file that the official checker reads
---               (arXiv 2107.03374)
---   data        JSON lines: context, question, answers (or answer), metric; max_tokens, prefix,
---               stop, classes and task where wanted. Neighbours with one context share its cache
local lines = require "pyramid.tools.eval.lines"
local metrics = require "pyramid.tools.eval.metrics"

local exams = {}

local shots = 5
local readers = {}

-- ---- MMLU ---------------------------------------------------------------------------------------

local letters = { "A", "B", "C", "D" }

-- Rows of question, four choices, answer: a letter, or a number from 0. A first line of names is no
-- row.
local function mmlu_rows(path, text)
  local rows, message, code = lines.csv(path, text)
  if not rows then return nil, message, code end
  local out = {}
  for i, row in ipairs(rows) do
    local answer = row[6] and (row[6]:match "^%s*([A-D])%s*$"
      or letters[(math.tointeger(tonumber(row[6])) or -1) + 1])
    if #row ~= 6 or not answer and i > 1 then
      return nil, ("%s, row %d: no question, four choices and an answer"):format(path, i), "format"
    end
    if answer then out[#out + 1] = { row = row, answer = answer, number = i } end
  end
  return out
end

local function mmlu_question(of)
  local row = of.row
  return ("%s\nA. %s\nB. %s\nC. %s\nD. %s\nAnswer:"):format(row[1], row[2], row[3], row[4], row[5])
end

function readers.mmlu(path, _, given)
  local out = {}
  local function read(part, subject)
    local file = ("%s/%s/%s_%s.csv"):format(path, part, subject, part)
    local text, message, code = given.read(file)
    if not text then return nil, message, code end
    return mmlu_rows(file, text)
  end
  for _, subject in ipairs(given.list(path .. "/test", "^(.+)_test%.csv$")) do
    local shown, message, code = read("dev", subject)
    if not shown then return nil, message, code end
    local asked
    asked, message, code = read("test", subject)
    if not asked then return nil, message, code end
    local context = { ("The following are multiple choice questions (with answers) about %s.\n\n")
      :format((subject:gsub("_", " "))) }
    for i = 1, math.min(shots, #shown) do
      context[i + 1] = ("%s %s\n\n"):format(mmlu_question(shown[i]), shown[i].answer)
    end
    local case = { task = "mmlu", name = subject, plain = true, context = table.concat(context),
      questions = {} }
    for i, of in ipairs(asked) do
      case.questions[i] = { text = mmlu_question(of), prefix = "", answers = { of.answer },
        options = letters, metric = "choice", most = 1 }
    end
    out[#out + 1] = case
  end
  if #out == 0 then
    return nil, path .. ": it has no folder test with files that end in _test.csv", "io"
  end
  return out
end

-- ---- GSM8K --------------------------------------------------------------------------------------

local function gsm8k_text(entry) return ("Question: %s\nAnswer:"):format(entry.question) end

local function gsm8k_list(path, text)
  local list, message, code = lines.json(path, text)
  for _, entry in ipairs(list or {}) do
    if type(entry.question) ~= "string" or type(entry.answer) ~= "string" then
      return nil, ("%s, line %d: no question and answer"):format(path, entry.line), "format"
    end
  end
  return list, message, code
end

function readers.gsm8k(path, text, given)
  local list, message, code = gsm8k_list(path, text)
  if not list then return nil, message, code end
  local train = path:gsub("[^/]*$", "train.jsonl")
  local shown, first = list, math.min(shots, #list - 1) + 1
  local other = train ~= path and given.read(train)
  if other then
    shown, message, code = gsm8k_list(train, other)
    if not shown then return nil, message, code end
    first = 1
  end
  local parts = {}
  for i = 1, math.min(shots, other and #shown or first - 1) do
    parts[i] = ("%s %s\n\n"):format(gsm8k_text(shown[i]), shown[i].answer)
  end
  local case = { task = "gsm8k", name = "shots", plain = true, context = table.concat(parts),
    questions = {} }
  for i = first, #list do
    table.insert(case.questions, { text = gsm8k_text(list[i]), prefix = "",
      answers = { list[i].answer }, metric = "final_number", most = 256,
      stop = { "\nQuestion:", "\n\n" } })
  end
  return { case }
end

-- ---- HumanEval ----------------------------------------------------------------------------------

function readers.humaneval(path, text)
  local list, message, code = lines.json(path, text)
  if not list then return nil, message, code end
  local out = {}
  for i, entry in ipairs(list) do
    if type(entry.task_id) ~= "string" or type(entry.prompt) ~= "string" then
      return nil, ("%s, line %d: no task_id and prompt"):format(path, entry.line), "format"
    end
    out[i] = { task = "humaneval", name = entry.task_id, plain = true, context = entry.prompt,
      questions = { { text = "", prefix = "", answers = {}, metric = "judged", most = 384,
        raw = true, stop = { "\nclass", "\ndef", "\n#", "\nif", "\nprint", "\n@" } } } }
  end
  return out
end

---What the official checker wrote beside the samples it was given: pass@k, the mean over problems.
---@param path string
---@param text string     JSON lines with task_id and passed
---@param k integer
---@return number? share
---@return string|integer|nil problems   how many, or a message
---@return string? code
function exams.passed(path, text, k)
  local list, message, code = lines.json(path, text)
  if not list then return nil, message, code end
  local tasks, order = {}, {}
  for _, entry in ipairs(list) do
    if type(entry.task_id) ~= "string" or type(entry.passed) ~= "boolean" then
      return nil, ("%s, line %d: no task_id and passed"):format(path, entry.line), "format"
    end
    local task = tasks[entry.task_id]
    if not task then
      task = { n = 0, passed = 0 }
      tasks[entry.task_id] = task
      order[#order + 1] = task
    end
    task.n, task.passed = task.n + 1, task.passed + (entry.passed and 1 or 0)
  end
  local sum = 0
  for _, task in ipairs(order) do
    if task.n < k then
      return nil, ("%s: fewer than %d samples of a problem"):format(path, k), "argument"
    end
    sum = sum + metrics.pass_at_k(task.n, task.passed, k)
  end
  return sum / #order, #order
end

-- ---- one's own ----------------------------------------------------------------------------------

local function strings(value)
  if type(value) == "string" then return { value } end
  if type(value) ~= "table" then return nil end
  for _, each in ipairs(value) do
    if type(each) ~= "string" then return nil end
  end
  return #value > 0 and value or nil
end

function readers.data(path, text)
  local list, message, code = lines.json(path, text)
  if not list then return nil, message, code end
  local out, name = {}, path:match "([^/]*)$":gsub("%.jsonl$", "")
  for _, entry in ipairs(list) do
    local function wrong(what)
      return nil, ("%s, line %d: %s"):format(path, entry.line, what), "format"
    end
    local answers = strings(entry.answers or entry.answer)
    if type(entry.context) ~= "string" or type(entry.question) ~= "string" then
      return wrong "no context and question"
    end
    if not answers then return wrong "no answers: a text, or a list of texts" end
    local metric = entry.metric or "f1"
    if not metrics.known(metric) then
      return wrong(("the metric '%s' is not known (%s)"):format(tostring(metric),
        table.concat(metrics.list(), ", ")))
    end
    local most = entry.max_tokens or 64
    if math.type(most) ~= "integer" or most < 1 then return wrong "max_tokens is no count" end
    local question = { text = "\n" .. entry.question, prefix = entry.prefix or "",
      answers = answers, metric = metric, most = most, stop = strings(entry.stop),
        classes = strings(entry.classes) }
    local task = entry.task or name
    local last = out[#out]
    if last and last.task == task and last.context == entry.context then
      table.insert(last.questions, question)
    else
      out[#out + 1] = { task = task, name = ("line %d"):format(entry.line),
        context = entry.context, questions = { question } }
    end
  end
  return out
end

exams.tasks = readers

return exams

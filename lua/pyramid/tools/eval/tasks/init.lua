--- The tasks of `pyramid eval`, by name: what they ask for, and their cases.
---
--- A case is a context, which is read first, and questions about it. Tasks that make their cases up
--- fill the length asked for: as much haystack as there is room beside the question and its answer.
--- Those that read a file take its texts as they are; what is longer than the length is cut in its
--- middle, as LongBench does.
local files = require "pyramid.files"
local haystack = require "pyramid.tools.eval.haystack"
local passages = require "pyramid.tools.eval.tasks.passages"

local tasks = {}

---@class pyramid.EvalQuestion
---@field text string         follows the context, in the user's turn
---@field prefix string       begins the answer
---@field answers string[]
---@field metric string       of pyramid.tools.eval.metrics
---@field most integer        tokens of an answer
---@field stop? string[]      texts that end it
---@field options? string[]   no text is written: which of these is most probable
---@field classes? string[]
---@field first_line? boolean the answer's first line alone counts
---@field raw? boolean        the answer is kept whole, blanks at its ends too
---@field ids? integer[]      instead of `text` and `prefix`: …
---@field rest? integer[]     … and what is read after the cut in any mode

---@class pyramid.EvalCase
---@field task string
---@field name string         among the cases of its task
---@field context string
---@field ids? integer[]      instead of `context`
---@field system? string      said to the model before
---@field plain? boolean      put without a chat template
---@field conversation? boolean   its questions are turns, whose answers are scored as they are
---@field questions pyramid.EvalQuestion[]

---What a task is made with.
---@class pyramid.TaskGiven
---@field length integer          tokens of the whole prompt with its answer
---@field questions integer       in all
---@field per_context integer     the most about one context
---@field seed integer
---@field text? string            what haystacks are made of
---@field path? string            of the task's file
---@field measure fun(case: pyramid.EvalCase): integer   tokens of the longest prompt with its answer
---@field progress? fun(done: integer, total: integer)
---@field sentences? string[]
---@field passages? pyramid.Passages
---@field stride? integer
---@field read fun(path: string): string?, string?, string?
---@field list fun(folder: string, pattern: string): string[]

local modules = { needles = require "pyramid.tools.eval.tasks.needles",
  tracing = require "pyramid.tools.eval.tasks.tracing", passages = passages,
  facts = require "pyramid.tools.eval.tasks.facts",
  longbench = require "pyramid.tools.eval.tasks.longbench",
  exams = require "pyramid.tools.eval.tasks.exams",
  conversations = require "pyramid.tools.eval.tasks.conversations" }

-- The task's module: { name of the module, the module }.
local function module_of(name)
  for kind, module in pairs(modules) do
    if module.tasks[name] then return kind, module end
  end
end

---Names of all tasks, sorted.
---@return string[]
function tasks.list()
  local names = {}
  for _, module in pairs(modules) do
    for name in pairs(module.tasks) do names[#names + 1] = name end
  end
  table.sort(names)
  return names
end

---Whether there is a task of this name.
---@param name string
---@return boolean
function tasks.known(name) return module_of(name) ~= nil end

---Whether a task reads a file that its user names.
---@param name string
---@return boolean
function tasks.wants_file(name)
  local kind = module_of(name)
  return kind ~= "needles" and kind ~= "tracing" and kind ~= "facts"
end

---Whether a task's cases fill the length asked for; the others are as long as their file has them.
---@param name string
---@return boolean
function tasks.fills(name)
  local kind = module_of(name)
  return kind ~= "longbench" and kind ~= "exams" and kind ~= "conversations"
end

--- RULER's thirteen.
tasks.ruler = { "niah_single_1", "niah_single_2", "niah_single_3", "niah_multikey_1",
  "niah_multikey_2", "niah_multikey_3", "niah_multivalue", "niah_multiquery", "vt", "cwe", "fwe",
  "qa_1", "qa_2" }

-- ---- cases that fill a length -------------------------------------------------------------------

-- The largest haystack with which a case is within the length: doubled, then halved in between.
-- `near` is what another seed needed.
local function largest(make, measure, length, near)
  local sizes = {}
  local function fits(size)
    if sizes[size] == nil then sizes[size] = measure(make(size)) <= length end
    return sizes[size]
  end
  if near and fits(near) and not fits(near + 1) then return near end
  if not fits(0) then return nil end
  local low, high = 0, 8
  if near then
    if fits(near) then low, high = near, near + 8 else low, high = math.max(0, near - 8), near end
    if low > 0 and not fits(low) then low = 0 end
  end
  while fits(high) do
    low, high = high, high * 2
    if high > 1 << 22 then return low end                         -- nothing more goes in
  end
  while high - low > 1 do
    local middle = (low + high) // 2
    if fits(middle) then low = middle else high = middle end
  end
  return low
end

local function filled(name, kind, module, given)
  local per = given.per_context
  if kind == "needles" then per = module.per_case(name, per)
  elseif kind == "tracing" then per = 1 end
  local own = setmetatable({ per_context = per }, { __index = given })
  local count, out, near = (given.questions + per - 1) // per, {}, nil
  for i = 1, count do
    local seed = given.seed + i - 1
    local function make(size) return module.case(name, seed, size, own) end
    near = largest(make, given.measure, given.length, near)
    if not near or kind == "tracing" and near < 4 then
      return nil, ("%s: a length of %d has no room for a case"):format(name, given.length), "length"
    end
    out[i] = make(near)
    if given.progress then given.progress(i, count) end
  end
  -- the last context may have more questions than are wanted
  local over = count * per - given.questions
  for _ = 1, over do table.remove(out[count].questions) end
  return out
end

-- ---- cases of files -----------------------------------------------------------------------------

-- As many questions as are wanted, of cases spread over the file: up to `per` of each case, then,
-- in another reading of its context, up to as many of its others, and so on.
local function chosen(cases, given)
  local per, out, left, taken = given.per_context, {}, given.questions, 0
  local stride = passages.stride(#cases)
  local any = true
  while any and left > 0 do
    any = false
    for i = 1, #cases do
      local case = cases[(given.seed + i - 1) * stride % #cases + 1]
      -- a conversation is not put by halves
      local count = math.min(per, case.conversation and per or left, #case.questions - taken)
      if count > 0 then
        any, left = true, left - count
        out[#out + 1] = setmetatable({ name = taken > 0 and ("%s, from question %d"):format(
          case.name, taken + 1) or case.name, questions = table.move(case.questions, taken + 1,
            taken + count, 1, {}) }, { __index = case })
      end
    end
    taken = taken + per
  end
  return out
end

---The cases of a task; nil and why, if its file is none, or the length has no room for it.
---@param name string
---@param model pyramid.Model
---@param given pyramid.TaskGiven
---@return pyramid.EvalCase[]?
---@return string? message
---@return string? code
function tasks.cases(name, model, given)
  local kind, module = module_of(name)
  if not kind then error(("no task '%s'"):format(tostring(name)), 2) end
  if kind == "facts" then return module.cases(name, model, given) end
  local own = setmetatable({}, { __index = given })
  if tasks.wants_file(name) then
    if not given.path then return nil, ("%s: its file is not named"):format(name), "argument" end
    local text = ""
    if name ~= "mmlu" then
      local found, message, code = given.read(given.path)
      if not found then return nil, message, code end
      text = found
    end
    local message, code
    if kind ~= "passages" then
      local cases
      cases, message, code = module.tasks[name](given.path, text, given)
      if not cases then return nil, message, code end
      return chosen(cases, kind == "conversations"
        and setmetatable({ per_context = math.maxinteger }, { __index = given }) or given)
    end
    own.passages, message, code = passages.read(name, given.path, text)
    if not own.passages then return nil, message, code end
    own.stride = passages.stride(#own.passages.questions)
  end
  if given.text then own.sentences = haystack.sentences(given.text) end
  return filled(name, kind, module, own)
end

---The files of a folder whose names match, as what the pattern captures, sorted.
---@param folder string
---@param pattern string
---@return string[]
function tasks.list_files(folder, pattern)
  local out = {}
  if files.kind(folder) ~= "folder" then return out end
  local pipe = assert(io.popen(("LC_ALL=C ls -- '%s'"):format(folder:gsub("'", "'\\''"))))
  for line in pipe:lines() do out[#out + 1] = line:match(pattern) end
  pipe:close()
  return out
end

return tasks

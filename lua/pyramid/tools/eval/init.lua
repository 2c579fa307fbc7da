--- The field's protocols on a model of one's own: tasks whose answers are judged by published
--- metrics, under policies at budgets, paired with the full cache. docs/protocol.md says what is
--- measured and how it is counted.
---
---   plan      cases as ids; a step is one case in one mode, which every variant takes in turn
---   run       measures what the store does not hold yet (pyramid.engine)
---   summary   one entry for each length, mode and variant: tasks, pooled, paired with the full
---             cache
---   scores    every question's score in a row, for tables of one's own
---   samples   what was written for tasks that another program judges
---
--- A case's context is read once under a policy; its questions go on in forks of that cache,
--- together, a token of each in a pass. In the aware mode each question is read with the context.
--- Whatever answers comes from logits after the cut (pyramid.cut).
local answer = require "pyramid.tools.eval.answer"
local chat = require "pyramid.chat"
local conversations = require "pyramid.tools.eval.tasks.conversations"
local compare = require "pyramid.tools.compare"
local core = require "pyramid.core"
local cut = require "pyramid.tools.cut"
local engine = require "pyramid.tools.engine"
local metrics = require "pyramid.tools.eval.metrics"
local noise = require "pyramid.tools.noise"
local options = require "pyramid.options"
local prompt = require "pyramid.tools.eval.prompt"
local results = require "pyramid.tools.results"
local tasks = require "pyramid.tools.eval.tasks"

local eval = {}

--- How lines of a results file are marked.
eval.format = "pyramid eval 1"

--- A task counts if the full cache reaches this mean score.
eval.counts = 0.8

eval.modes = { "agnostic", "aware" }

-- A step of one token costs about as much as reading this many: for estimates of time.
local step_cost = 6

-- ---- the plan -----------------------------------------------------------------------------------

---@class pyramid.EvalTask
---@field name string
---@field path? string

---@class pyramid.EvalOptions
---@field variants pyramid.Variant[]
---@field circumstances string
---@field tasks pyramid.EvalTask[]
---@field lengths integer[]       tokens of a prompt with its answer
---@field modes string[]
---@field questions integer       of each task, for each length
---@field per_context integer     the most about one context
---@field seed integer
---@field text? string            what haystacks are made of
---@field chat? boolean           false: no chat template, also where the model has one
---@field cache? pyramid.CacheOptions  of every cache, but for its policy; with sessions, what an
---  earlier run has read is not read again; seconds are what is left
---@field read fun(path: string): string?, string?, string?
---@field progress? fun(done: integer, total: integer)

---@class pyramid.EvalPlan
---@field given pyramid.EvalOptions
---@field steps table[]
---@field tasks string[]          names, in order

local plan_keys = { variants = "table", circumstances = "string", tasks = "table",
  lengths = "table", modes = "table", questions = "integer", per_context = "integer",
  seed = "integer", text = "string", chat = "boolean", cache = "table", read = "function",
  progress = "function" }

-- The model's chat template, compiled; nil where there is none or none is wanted.
local function format_of(model, given)
  local template = model.tokenizer.chat_template
  if given.chat == false or not template then return nil end
  return chat.compile(template)
end

-- The one step of a conversation, which has no mode: each turn is read when it comes.
local function conversation_step(model, case, length, given, format, steps)
  local turns, message, code = conversations.turns(model, case, format)
  if not turns then return nil, message, code end
  local tokens, names = 0, {}
  for i, turn in ipairs(turns) do
    tokens = tokens + #turn.read + #turn.answer
    names[i] = table.concat(turn.read, " ") .. "|" .. table.concat(turn.answer, " ")
  end
  if tokens <= length then             -- others are left out: a turn has no middle to be cut
    steps[#steps + 1] = { task = case.task, case = case, turns = turns, length = length,
      mode = given.modes[#given.modes], cost = tokens, name = ("%s, %s, %s"):format(case.task,
        case.name, results.hash(table.unpack(names))) }
  end
  return true
end

-- The step of a case in each mode. Its prompts are made here once, for all rivals.
local function steps_of(model, case, length, given, format, steps)
  if case.conversation then
    return conversation_step(model, case, length, given, format, steps)
  end
  local parts, longest, context = {}, 0, nil
  for i, question in ipairs(case.questions) do
    local made, message, code = prompt.parts(model, case, question, format, context)
    if not made then return nil, message, code end
    parts[i] = made
    if #made.question + #made.cue > 1 then context = context or made.context end
    longest = math.max(longest, #made.question + #made.cue + question.most)
  end
  local room = length - longest
  if room < 2 then
    return nil, ("%s, %s: a length of %d has no room for its question and answer"):format(
      case.task, case.name, length), "length"
  end
  local names = {}
  for i, made in ipairs(parts) do
    made.context = prompt.cut_middle(made.context, room)
    names[i] = table.concat(made.context, " ", 1, i == 1 and #made.context or 0) .. "|"
      .. table.concat(made.question, " ") .. "|" .. table.concat(made.cue, " ")
  end
  for _, mode in ipairs(given.modes) do
    local cost = (#parts[1].context + longest) * (mode == "aware" and #parts or 1)
    for i in ipairs(parts) do cost = cost + step_cost * math.min(24, case.questions[i].most) end
    steps[#steps + 1] = { task = case.task, case = case, parts = parts, length = length,
      mode = mode, cost = cost, name = ("%s, %s, %s"):format(case.task, case.name,
        results.hash(table.unpack(names))) }
  end
  return true
end

---What is to be measured. nil and why, if a file is none of its task's, a length has no room, or
---the chat template cannot be used.
---@param model pyramid.Model
---@param given pyramid.EvalOptions
---@return pyramid.EvalPlan?
---@return string? message
---@return string? code
function eval.plan(model, given)
  local _ <close> = core.plain_locale()
  given = options.check("eval.plan", given, plan_keys)
  local format, message, code = format_of(model, given)
  if message then return nil, message, code end
  local steps, names, seen, turn = {}, {}, {}, {}
  for at, length in ipairs(given.lengths) do
    for _, task in ipairs(given.tasks) do
      if tasks.fills(task.name) or at == #given.lengths then
        local cases
        cases, message, code = tasks.cases(task.name, model, { length = length,
          questions = given.questions, per_context = given.per_context, seed = given.seed,
          text = given.text, path = task.path, progress = given.progress, read = given.read,
          list = tasks.list_files, measure = function(case)
            return assert(prompt.tokens(model, case, format))
          end })
        if not cases then return nil, message, code end
        for i, case in ipairs(cases) do
          if not seen[case.task] then names[#names + 1], seen[case.task] = case.task, true end
          local first, ok = #steps + 1
          ok, message, code = steps_of(model, case, length, given, format, steps)
          if not ok then return nil, message, code end
          for k = first, #steps do turn[steps[k]] = { at, i, k } end
        end
      end
    end
  end
  -- Tasks take turns, so that a run that is ended early has something of each.
  table.sort(steps, function(a, b)
    local x, y = turn[a], turn[b]
    if x[1] ~= y[1] then return x[1] < y[1] end
    if x[2] ~= y[2] then return x[2] < y[2] end
    return x[3] < y[3]
  end)
  return { given = given, steps = steps, tasks = names, chat = format ~= nil }
end

---What a result is found by.
---@param plan pyramid.EvalPlan
---@param step table
---@param variant pyramid.Variant
---@return string
function eval.key(plan, step, variant)
  return table.concat({ plan.given.circumstances, variant.id, step.length, step.mode, step.name },
    " | ")
end

-- ---- measuring ----------------------------------------------------------------------------------

local function new_cache(plan, model, variant)
  return model:cache(engine.cache_options(plan.given.cache, variant))
end

-- What an answer is worth, as its task says.
local function worth(question, text)
  if question.first_line then text = text:gsub("^\n+", ""):match "^[^\n]*" end
  return metrics.score(question.metric, text, question.answers, { classes = question.classes })
end

-- Reads under the policy; what it left.
local function judged(cache, model, ids)
  local made, message, code = cut.judge(cache, ids)
  if not made then return nil, message, code end
  made.share = cut.share(cache, model.config)
  return made
end

-- The questions of a case in the order they are asked, each with what it goes on in.
local function agnostic(plan, model, step, variant, told)
  local blank <close>, message, code = new_cache(plan, model, variant)
  if not blank then return nil, message, code end
  local made
  made, message, code = judged(blank, model, step.parts[1].context)
  if not made then return nil, message, code end
  local asks = {}
  local _ <close> = setmetatable({}, { __close = function()
    for _, ask in ipairs(asks) do ask.cache:close() end
  end })
  for i, question in ipairs(step.case.questions) do
    local fork
    fork, message, code = blank:fork()
    if not fork then return nil, message, code end
    local _, rest = prompt.split(step.parts[i], "agnostic")
    asks[i] = { cache = fork, rest = rest, question = question }
  end
  local ok
  ok, message, code = answer.all(model, asks)
  if not ok then return nil, message, code end
  for i, ask in ipairs(asks) do told(i, ask, made) end
  return true
end

local function aware(plan, model, step, variant, told)
  for i, question in ipairs(step.case.questions) do
    local cache <close>, message, code = new_cache(plan, model, variant)
    if not cache then return nil, message, code end
    local first, rest = prompt.split(step.parts[i], "aware")
    local made
    made, message, code = judged(cache, model, first)
    if not made then return nil, message, code end
    local ask, ok = { cache = cache, rest = rest, question = question }
    ok, message, code = answer.all(model, { ask })
    if not ok then return nil, message, code end
    told(i, ask, made)
  end
  return true
end

-- A conversation under one variant: the mean log-probability of each answer's tokens, and how many.
local function converse(plan, model, step, variant)
  local cache <close>, message, code = new_cache(plan, model, variant)
  if not cache then return nil, message, code end
  local began = core.clock()
  local scored
  scored, message, code = conversations.score(cache, step.turns)
  if not scored then return nil, message, code end
  local record = { scores = {}, weights = {}, answers = {}, fraction = 0, bytes = 0, tokens = 0 }
  for i, turn in ipairs(scored) do
    record.scores[i], record.weights[i], record.answers[i] = turn.sum / turn.tokens, turn.tokens, ""
    record.fraction, record.bytes = record.fraction + turn.share / #scored,
      record.bytes + turn.bytes / #scored
    record.tokens = record.tokens + #step.turns[i].read
  end
  record.seconds = core.clock() - began
  return record
end

-- One case under one variant: scores and answers of its questions, and what the policy left, as
-- means over what was read.
local function measure(plan, model, step, variant)
  local record = { scores = {}, answers = {}, fraction = 0, bytes = 0, tokens = 0, seconds = 0 }
  local n, began = #step.case.questions, core.clock()
  local ok, message, code = (step.mode == "aware" and aware or agnostic)(plan, model, step, variant,
    function(i, ask, made)
      local question = step.case.questions[i]
      record.answers[i] = question.raw and ask.text or ask.text:match "^%s*(.-)%s*$"
      record.scores[i] = worth(question, ask.text)
      record.fraction, record.bytes = record.fraction + made.share / n,
        record.bytes + made.bytes / n
      record.tokens, record.seconds = record.tokens + made.tokens / n,
        record.seconds + made.seconds / n
    end)
  if not ok then return nil, message, code end
  record.whole_seconds = core.clock() - began
  return record
end

---Measures what the store does not hold yet. `report(done, total, what)` counts costs.
---@param plan pyramid.EvalPlan
---@param model pyramid.Model
---@param store pyramid.Results
---@param report? fun(done: number, total: number, what: string)
---@return integer? measured    how many results are new
---@return string? message
---@return string? code
function eval.run(plan, model, store, report)
  local _ <close> = core.plain_locale()
  return engine.run({
    steps = plan.steps, variants = plan.given.variants,
    key = function(step, variant) return eval.key(plan, step, variant) end,
    name = function(step, variant)
      return ("%d tokens, %s, %s: %s"):format(step.length, step.mode, step.task, variant.label)
    end,
    measure = function(step, variant)
      local how = step.turns and converse or measure
      local record, message, code = how(plan, model, step, variant)
      if not record then return nil, message, code end
      record.task, record.case, record.policy, record.options = step.task, step.case.name,
        variant.label, variant.id
      record.length, record.mode = step.length, step.mode
      record.metric = step.case.questions[1].metric
      return record
    end,
  }, store, report)
end

-- ---- what came out ------------------------------------------------------------------------------

---@class pyramid.EvalScore
---@field n integer           questions
---@field contexts integer
---@field score number        mean
---@field half number         of the interval: Wilson's where all are right or wrong, else the mean's
---@field scores number[]
---@field sums number[]       of the questions of each context
---@field counts integer[]
---@field counted boolean     the full cache reaches eval.counts
---@field nats boolean         scores are log-probabilities, and `counts` are tokens
---@field lost? number         nats a token, over what the full cache has
---@field lost_half? number    half of its interval

---@class pyramid.EvalPooled      over the tasks that count, paired with the full cache
---@field n integer
---@field contexts integer
---@field score number            mean
---@field share number            of the full cache's score
---@field half number             of its interval
---@field difference number       of the means
---@field difference_half number
---@field won integer             questions with a higher score than the full cache's
---@field lost integer
---@field p number                McNemar's

---@class pyramid.EvalEntry: pyramid.CompareEntry
---@field tasks table<string, pyramid.EvalScore>
---@field pooled? pyramid.EvalPooled
---@field bytes number            held after the cut, mean
---@field full_bytes number       by the full cache
---@field seconds number          that reading took, mean

-- A ratio of sums over contexts, and half of its interval. Where no context differs from the others
-- the sums know of no error: as many contexts that all are right, or all wrong, have Wilson's.
local function over_contexts(sums, counts)
  local ratio, half = noise.ratio(sums, counts)
  if half == 0 then half = noise.share(#sums, #sums) end
  return ratio, half
end

-- What the store holds of a variant in one length and mode, by task.
local function collect(plan, store, variant, length, mode)
  local by_task, n, fraction, bytes, tokens, seconds = {}, 0, 0, 0, 0, 0
  for _, step in ipairs(plan.steps) do
    local record = step.length == length and step.mode == mode
      and store:get(eval.key(plan, step, variant))
    if record then
      local of = by_task[step.task] or { n = 0, contexts = 0, scores = {}, sums = {}, counts = {},
        nats = record.metric == "likelihood" }
      by_task[step.task] = of
      local at = of.contexts + 1
      of.contexts, of.sums[at], of.counts[at] = at, 0, 0
      for i, score in ipairs(record.scores) do
        local weight = record.weights and record.weights[i] or 1
        of.n = of.n + 1
        of.scores[of.n] = score
        of.sums[at], of.counts[at] = of.sums[at] + score * weight, of.counts[at] + weight
      end
      n = n + 1
      fraction, bytes = fraction + record.fraction, bytes + record.bytes
      tokens, seconds = tokens + record.tokens, seconds + record.seconds
    end
  end
  if n == 0 then return nil end
  for _, of in pairs(by_task) do
    local whole = true
    for _, score in ipairs(of.scores) do whole = whole and (score == 0 or score == 1) end
    of.score, of.half = over_contexts(of.sums, of.counts)
    if whole and of.contexts == of.n then of.half = noise.share(of.score * of.n, of.n) end
  end
  return by_task, { fraction = fraction / n, bytes = bytes / n, tokens = tokens / n,
    seconds = seconds / n }
end

-- What answers that were given lose in probability, a token.
local function mark_lost(of, full)
  for name, mine in pairs(of) do
    local whole = full[name]
    if mine.nats and whole and whole.contexts == mine.contexts then
      local differences = {}
      for i, sum in ipairs(mine.sums) do differences[i] = whole.sums[i] - sum end
      mine.lost, mine.lost_half = noise.ratio(differences, mine.counts)
    end
  end
end

-- Only what both have measured is compared: a run that was ended has more of the full cache.
local function paired(plan, of, full)
  local pooled = { n = 0, contexts = 0, won = 0, lost = 0 }
  local ours, theirs, differences, counts = {}, {}, {}, {}
  for _, name in ipairs(plan.tasks) do
    local mine, whole = of[name], full[name]
    if mine and whole and whole.score >= eval.counts then
      for i = 1, math.min(mine.contexts, whole.contexts) do
        local at = #ours + 1
        ours[at], theirs[at], counts[at] = mine.sums[i], whole.sums[i], mine.counts[i]
        differences[at] = mine.sums[i] - whole.sums[i]
        pooled.n = pooled.n + mine.counts[i]
      end
      for i = 1, math.min(mine.n, whole.n) do
        if mine.scores[i] > whole.scores[i] then pooled.won = pooled.won + 1
        elseif mine.scores[i] < whole.scores[i] then pooled.lost = pooled.lost + 1 end
      end
    end
  end
  if #ours == 0 then return nil end
  pooled.contexts = #ours
  pooled.share, pooled.half = over_contexts(ours, theirs)
  pooled.score = noise.ratio(ours, counts)
  pooled.difference, pooled.difference_half = over_contexts(differences, counts)
  pooled.p = noise.mcnemar(pooled.won, pooled.lost)
  return pooled
end

-- What a report of pyramid.compare shows of an entry: the tasks that count, or all if none does.
local function as_recall(plan, entry)
  local any = false
  for _, of in pairs(entry.tasks) do any = any or of.counted end
  local recall = { asked = 0, right = 0, found = 0, answers = {}, kinds = {} }
  for _, name in ipairs(plan.tasks) do
    local of = entry.tasks[name]
    if of and not of.nats then
      local right = of.score * of.n
      recall.kinds[name] = { asked = of.n, right = right, found = right }
      if of.counted or not any then
        recall.asked, recall.right = recall.asked + of.n, recall.right + right
        table.move(of.scores, 1, of.n, #recall.answers + 1, recall.answers)
      end
    end
  end
  if recall.asked == 0 then return nil end
  recall.accuracy = recall.right / recall.asked
  recall.uncertainty = noise.share(recall.right, recall.asked)
  return recall
end

---One entry for each length, mode and variant, in this order, out of what the store holds for a
---plan; the full cache first.
---@param plan pyramid.EvalPlan
---@param store pyramid.Results
---@return pyramid.EvalEntry[]
function eval.summary(plan, store)
  local _ <close> = core.plain_locale()
  local all = {}
  for _, length in ipairs(plan.given.lengths) do
    for _, mode in ipairs(plan.given.modes) do
      local entries, full, full_bytes = {}, nil, nil
      for _, variant in ipairs(plan.given.variants) do
        local of, means = collect(plan, store, variant, length, mode)
        if of then
          full, full_bytes = full or of, full_bytes or means.bytes
          mark_lost(of, full)
          for name, score in pairs(of) do
            score.counted = full[name] ~= nil and full[name].score >= eval.counts
          end
          local entry = { label = variant.label, series = variant.series, budget = variant.budget,
            length = length, mode = mode, front = false, tasks = of, bytes = means.bytes,
            full_bytes = full_bytes, seconds = means.seconds, fraction = means.fraction,
            tokens = means.tokens, pooled = paired(plan, of, full) }
          entry.recall = as_recall(plan, entry)
          compare.name(entry, variant)
          entry.silent = not engine.keeps_all(variant.policy) and entry.fraction > 1 - 1e-9
            and not engine.reads_less(variant.policy)
          entries[#entries + 1] = entry
        end
      end
      compare.mark_front(entries)
      table.move(entries, 1, #entries, #all + 1, all)
    end
  end
  return all
end

---Every question's score, one row each.
---@param plan pyramid.EvalPlan
---@param store pyramid.Results
---@return string[] columns
---@return any[][] rows
function eval.scores(plan, store)
  local columns = { "policy", "budget", "length", "mode", "task", "metric", "case", "question",
    "score", "full", "rows", "bytes", "tokens", "seconds", "answer" }
  local rows, first = {}, plan.given.variants[1]
  for _, step in ipairs(plan.steps) do
    local full = store:get(eval.key(plan, step, first))
    for _, variant in ipairs(plan.given.variants) do
      local record = store:get(eval.key(plan, step, variant))
      for i, score in ipairs(record and record.scores or {}) do
        rows[#rows + 1] = { variant.series, variant.budget or "", step.length, step.mode, step.task,
          step.case.questions[i].metric, step.case.name, i, score, full and full.scores[i] or "",
          record.fraction, math.floor(record.bytes + 0.5), math.floor(record.tokens + 0.5),
          record.seconds, record.answers[i] }
      end
    end
  end
  return columns, rows
end

---What was written for tasks that another program judges, in its format: for each variant, mode and
---length that has some, a list of { task_id, completion }.
---@param plan pyramid.EvalPlan
---@param store pyramid.Results
---@return { variant: pyramid.Variant, mode: string, length: integer, samples: table[] }[]
function eval.samples(plan, store)
  local out = {}
  for _, variant in ipairs(plan.given.variants) do
    local groups = {}
    for _, step in ipairs(plan.steps) do
      local record = step.task == "humaneval" and store:get(eval.key(plan, step, variant))
      if record then
        local key = step.mode .. step.length
        if not groups[key] then
          groups[key] = { variant = variant, mode = step.mode, length = step.length,
            samples = {} }
          out[#out + 1] = groups[key]
        end
        table.insert(groups[key].samples, { task_id = step.case.name,
          completion = record.answers[1] })
      end
    end
  end
  return out
end

return eval

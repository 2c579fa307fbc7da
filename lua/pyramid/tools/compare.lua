--- Comparing policies: what a model still knows under each of them, against the rows that it holds
--- for that.
---
---   plan       what is to be measured: steps, each of which every variant takes (pyramid.engine)
---   run        measures what is not among the results yet (pyramid.results) and adds it to them
---   summary    one entry for each length, mode and variant
---
--- A step is one of three kinds:
---   recall  the questions of a document are put (pyramid.recall), in one mode
---   text    a context is read under the policy and the true tokens after it are fed one by one, as
---           in generation. Each is scored after the policy's cut (pyramid.cut) by its own
---           probability and by how far the distribution is from the full cache's at the same place
---           (KL(full || policy), and whether the most probable token is the same)
---   kept    what a policy leaves of one document, for a picture
local core = require "pyramid.core"
local cut = require "pyramid.tools.cut"
local engine = require "pyramid.tools.engine"
local noise = require "pyramid.tools.noise"
local options = require "pyramid.options"
local perplexity = require "pyramid.tools.perplexity"
local recall = require "pyramid.tools.recall"
local results = require "pyramid.tools.results"
local target = require "pyramid.tools.target"
local world = require "pyramid.tools.world"

local compare = {}

--- How lines of a results file are marked.
compare.format = "pyramid compare 3"

-- A step of one token costs about as much as reading this many, and an answer is about so long: for
-- estimates of time.
local step_cost, answer_cost = 6, 30 * 6

-- ---- the plan -----------------------------------------------------------------------------------

---@class pyramid.CompareOptions
---@field variants pyramid.Variant[]
---@field circumstances string
---  what else results depend on: the model, its weights, how rows are stored, …
---@field lengths integer[]
---  tokens of a document with its question, or of a context with what follows it
---@field modes string[]            of pyramid.recall
---@field questions integer         of each kind, for each length and mode; 0: none are put
---@field kinds string[]?
---@field documents integer         whose continuation is scored
---@field predict integer           tokens scored after each context
---@field seed integer              the first document, from 0, counted from the first held-out one
---@field text { name: string, text: string, windows: integer }?   scored too
---@field cache? pyramid.CacheOptions  of every cache, but for its policy

---@class pyramid.ComparePlan
---@field given pyramid.CompareOptions
---@field steps table[]

local plan_keys = { variants = "table", circumstances = "string", lengths = "table",
  modes = "table", questions = "integer", kinds = "table", documents = "integer",
    predict = "integer", seed = "integer", text = "table", cache = "table", progress = "function" }

-- Held-out documents, and how they go on after length - predict tokens.
local function document_steps(model, length, given, steps)
  local bodies = 0
  for seed = given.seed, given.seed + given.documents - 1 do
    -- A word is a token at least.
    local document = world.document(world.held_out + seed,
      { words = length, questions = 0, title = true })
    local ids, message, code = model:encode(document.text)
    if not ids then return nil, message, code end
    if #ids >= length then
      bodies = bodies + 1
      steps[#steps + 1] = { kind = "text", source = "document", length = length, seed = seed,
        name = ("document %d"):format(seed), turn = bodies,
        context = table.move(ids, 1, length - given.predict, 1, {}),
        targets = table.move(ids, length - given.predict + 1, length, 1, {}) }
    end
  end
  return true
end

-- Windows spread over a text of the user's.
local function file_steps(model, length, given, steps)
  local text, predict, name = given.text, given.predict, results.hash(given.text.text)
  local ids, message, code = model:encode(text.text, { special = false })
  if not ids then return nil, message, code end
  local bos = model.tokenizer.adds_bos and model.tokenizer.bos or nil
  local room = #ids - (length - (bos and 1 or 0))
  if room < 0 then
    return nil, ("%s has %d tokens, fewer than a length of %d"):format(text.name, #ids, length),
      "length"
  end
  local stride = math.max(predict, text.windows > 1 and room // (text.windows - 1) or 1)
  for i, window in ipairs(perplexity.windows(ids,
    { context = length - predict, predict = predict, stride = stride, limit = text.windows,
      bos = bos })) do
    steps[#steps + 1] = { kind = "text", source = "file", length = length,
      name = ("%s %d"):format(name, window.first), turn = i, context = window.context,
        targets = window.targets }
  end
  return true
end

local function recall_steps(model, length, given, steps)
  if given.questions == 0 then return true end
  local cases, message, code = recall.cases(model, length,
    { questions = given.questions, kinds = given.kinds, seed = given.seed,
      text = given.text and given.text.text, progress = given.progress })
  if not cases then return nil, message, code end
  for i, case in ipairs(cases) do
    local texts = { table.concat(case.ids, " ") }
    for k, q in ipairs(case.questions) do texts[k + 1] = q.question end
    for _, mode in ipairs(given.modes) do
      steps[#steps + 1] = { kind = "recall", length = length, mode = mode, seed = case.seed,
        case = case, turn = i, name = ("document %d, %s"):format(case.seed,
          results.hash(table.unpack(texts))) }
    end
  end
  for _, mode in ipairs(cases[1] and given.modes or {}) do
    steps[#steps + 1] = { kind = "kept", length = length, mode = mode, seed = cases[1].seed,
      case = cases[1], turn = 0, name = ("document %d, %s"):format(cases[1].seed,
        results.hash(table.concat(cases[1].ids, " "), cases[1].questions[1].question)) }
  end
  return #cases > 0
end

local kind_order = { kept = 1, recall = 2, text = 3 }

local function cost_of(step)
  if step.kind == "kept" then return step.length end
  if step.kind == "text" then return #step.context + step_cost * #step.targets end
  local questions = #step.case.questions
  return step.length * (step.mode == "aware" and questions or 1) + questions * answer_cost
end

---What is to be measured. nil and why, if the text is too short for a length, or no questions can
---be put ("questions").
---@param model pyramid.Model
---@param given pyramid.CompareOptions
---@return pyramid.ComparePlan?
---@return string? message
---@return string? code
function compare.plan(model, given)
  local _ <close> = core.plain_locale()
  given = options.check("compare.plan", given, plan_keys)
  local steps = {}
  for at, length in ipairs(given.lengths) do
    local first = #steps + 1
    local ok, message, code = recall_steps(model, length, given, steps)
    if ok == false then
      return nil, ("no document of %d tokens has such questions"):format(length), "questions"
    end
    if not ok then return nil, message, code end
    ok, message, code = document_steps(model, length, given, steps)
    if ok and given.text then ok, message, code = file_steps(model, length, given, steps) end
    if not ok then return nil, message, code end
    for i = first, #steps do
      steps[i].at, steps[i].cost, steps[i].index = at, cost_of(steps[i]), i
    end
  end
  -- Kinds take turns too, so that a run that is ended early has something of each.
  table.sort(steps, function(a, b)
    if a.at ~= b.at then return a.at < b.at end
    if a.turn ~= b.turn then return a.turn < b.turn end
    if a.kind ~= b.kind then return kind_order[a.kind] < kind_order[b.kind] end
    return a.index < b.index
  end)
  return { given = given, steps = steps }
end

---What a result is found by.
---@param plan pyramid.ComparePlan
---@param step table
---@param variant pyramid.Variant
---@return string
function compare.key(plan, step, variant)
  local _ <close> = core.plain_locale()
  return table.concat({ plan.given.circumstances, step.kind, variant.id, step.length,
    step.mode or step.source, step.kind == "text" and plan.given.predict or "-", step.name }, " | ")
end

-- ---- measuring ----------------------------------------------------------------------------------

local function cache_of(plan, model, variant)
  return model:cache(engine.cache_options(plan.given.cache, variant))
end

local measures = {}

function measures.recall(plan, model, step, variant)
  local answers, message, code = recall.ask(model, step.case, step.mode,
    engine.cache_options(plan.given.cache, variant))
  if not answers then return nil, message, code end
  local record = { asked = #answers, answers = {}, kinds = {}, fraction = 0, survival = {} }
  for i, answer in ipairs(answers) do
    record.answers[i] = answer.right and 1 or 0
    local kind = record.kinds[answer.kind] or { asked = 0, right = 0, found = 0 }
    record.kinds[answer.kind] = kind
    kind.asked = kind.asked + 1
    kind.right = kind.right + (answer.right and 1 or 0)
    kind.found = kind.found + (answer.found and 1 or 0)
    record.fraction = record.fraction + answer.fraction / #answers
    for layer, share in ipairs(answer.survival) do
      record.survival[layer] = (record.survival[layer] or 0) + share / #answers
    end
  end
  return record
end

-- Bytes of the text that these ids stand for, in the middle of it.
local function bytes_of(tokenizer, ids)
  local decoder <close>, count = assert(tokenizer:decoder { raw = true, continues = true }), 0
  for _, id in ipairs(ids) do count = count + #assert(decoder:push(id)) end
  return count + #assert(decoder:finish())
end

-- Reads a context and feeds the targets; the logits that foretell each target, and what the clock
-- and the cache say. Nothing but the model's work is between the readings of the clock.
local function feed(plan, model, step, variant)
  local cache <close>, why, what = cache_of(plan, model, variant)
  if not cache then return nil, why, what end
  local all, targets = {}, step.targets
  local logits, made, code = cut.read(cache, step.context)
  if not logits then return nil, made, code end
  all[1] = logits
  local stepping = core.clock()
  for i = 1, #targets - 1 do
    local message
    logits, message, code = cache:step(targets[i])
    if not logits then return nil, message, code end
    all[i + 1] = logits
  end
  local done = core.clock()
  return all, {
    prefill_seconds = made.seconds, prefill_tokens = made.tokens, step_seconds = done - stepping,
      steps = #targets - 1,
    context_fraction = made.share, cache_bytes = made.bytes, fraction = cache:fraction(),
      evicted = cache:evicted(),
    computed = cache:computed() / (cache:tokens() * model.config.layers),
  }
end

---Scores logits against the true tokens and against the full cache's logits of the same places.
---@param targets integer[]
---@param all pyramid.Logits[]
---@param reference pyramid.Logits[]
---@return { sum: number, kl: number, top1: integer }
---  natural logarithm of the targets' probability, KL(reference || all)
---and equal first choices, each summed up
function compare.score(targets, all, reference)
  local sum, kl, top1 = 0, 0, 0
  for i, id in ipairs(targets) do
    sum = sum + all[i]:logprob(id)
    if all[i] == reference[i] then top1 = top1 + 1
    else
      kl = kl + reference[i]:kl(all[i])
      if (all[i]:argmax()) == (reference[i]:argmax()) then top1 = top1 + 1 end
    end
  end
  return { sum = sum, kl = kl, top1 = top1 }
end

-- The full cache comes first, and its logits stay until all its rivals have been compared with
-- them.
function measures.text(plan, model, step, variant)
  local full = variant == plan.given.variants[1]
  local all, record, code
  if not step.reference or full then
    all, record, code = feed(plan, model, step, plan.given.variants[1])
    if not all then return nil, record, code end
    step.reference = all
  end
  if not full then
    all, record, code = feed(plan, model, step, variant)
    if not all then return nil, record, code end
  end
  local scores = compare.score(step.targets, all, step.reference)
  if not (math.abs(scores.sum) < math.huge and scores.kl < math.huge) then
    return nil, ("%s: the model's logits are not finite numbers"):format(variant.label), "numbers"
  end
  for key, value in pairs(scores) do record[key] = value end
  record.source, record.tokens, record.bytes = step.source, #step.targets,
    bytes_of(model.tokenizer, step.targets)
  return record
end

-- Of each of `columns` stretches of a document, the share of a layer's KV heads' positions that are
-- there, as a digit of base 16. Only none is 0, and only all of them f.
local function strip(lanes, total, columns)
  local counts, cells = {}, {}
  for column = 0, columns - 1 do counts[column] = 0 end
  for _, positions in ipairs(lanes) do
    for _, position in ipairs(positions) do
      local column = position * columns // total
      counts[column] = counts[column] + 1
    end
  end
  for column = 0, columns - 1 do
    -- positions p with p * columns // total == column
    local first, past = (column * total + columns - 1) // columns,
      ((column + 1) * total + columns - 1) // columns
    local share = counts[column] / ((past - first) * #lanes)
    local level = share <= 0 and 0 or share >= 1 and 15
      or math.max(1, math.min(14, math.floor(share * 15 + 0.5)))
    cells[column + 1] = ("%x"):format(level)
  end
  return table.concat(cells)
end

local most_columns = 1024

function measures.kept(plan, model, step, variant)
  local case, asked = step.case, step.case.questions
  if step.mode == "aware" then asked = { asked[1] } end
  local ids, rest, code = recall.prompt(model, case, asked[1], step.mode)
  if not ids then return nil, rest, code end
  local cache <close>, message, kind = cache_of(plan, model, variant)
  if not cache then return nil, message, kind end
  local made
  made, message, code = cut.judge(cache, ids)
  if not made then return nil, message, code end
  local columns = math.min(#ids, most_columns)
  local record = { tokens = #ids, columns = columns, layers = {}, rows = {}, marks = {} }
  for layer = 1, model.config.layers do
    local lanes, rows = {}, 0
    for head = 1, model.config.kv_heads do
      lanes[head] = cache:positions(layer, head)
      rows = rows + #lanes[head]
    end
    record.layers[layer], record.rows[layer] = strip(lanes, #ids, columns),
      rows / model.config.kv_heads
  end
  for _, q in ipairs(asked) do
    for _, span in ipairs(q.evidence) do
      local text = assert(model:decode(table.move(case.ids, span[1] + 1, span[2] + 1, 1, {})))
      record.marks[#record.marks + 1] = { first = span[1], last = span[2], kind = q.kind,
        question = q.question, answer = q.answer, text = text:match "^%s*(.-)%s*$" }
    end
  end
  return record
end

---Measures what the store does not hold yet. `report(done, total, what)` counts costs, of what is
---missing only.
---@param plan pyramid.ComparePlan
---@param model pyramid.Model
---@param store pyramid.Results
---@param report? fun(done: number, total: number, what: string)
---@return integer? measured    how many results are new
---@return string? message
---@return string? code
function compare.run(plan, model, store, report)
  local _ <close> = core.plain_locale()
  return engine.run({
    steps = plan.steps, variants = plan.given.variants,
    key = function(step, variant) return compare.key(plan, step, variant) end,
    name = function(step, variant)
      return ("%d tokens, %s: %s"):format(step.length, step.mode or step.kind, variant.label)
    end,
    measure = function(step, variant)
      local record, message, code = measures[step.kind](plan, model, step, variant)
      if not record then return nil, message, code end
      record.kind, record.policy, record.options = step.kind, variant.label, variant.id
      record.length, record.mode, record.document = step.length, step.mode, step.name
      return record
    end,
    done = function(step) step.reference = nil end,  -- as large as the vocabulary for each target
  }, store, report)
end

-- ---- what came out ------------------------------------------------------------------------------

---@param list number[]
---@return number?
local function median(list)
  if #list == 0 then return nil end
  local sorted = table.move(list, 1, #list, 1, {})
  table.sort(sorted)
  local middle = #sorted // 2
  return #sorted % 2 == 1 and sorted[middle + 1] or (sorted[middle] + sorted[middle + 1]) / 2
end

---Half the width of the interval that holds the true share with 95 %.
compare.uncertainty = noise.share

-- Shares of the rows that differ by no more than this are as many rows: policies round, and so do
-- documents' lengths.
local same_rows = 0.005

-- Whether one point is better than another by more than chance: by its answers to the same
-- questions, `answers`, or so many right of so many asked; by its losses on the same documents,
-- `each`; by y alone where nothing is known of errors.
local function better(p, q)
  if p.answers and q.answers and #p.answers == #q.answers then
    local won, lost = 0, 0
    for i, right in ipairs(p.answers) do
      if right > q.answers[i] then won = won + 1 elseif right < q.answers[i] then lost = lost
        + 1 end
    end
    return noise.wins(won, lost)
  end
  if p.asked and q.asked then return noise.greater(p.right, p.asked, q.right, q.asked) end
  if p.each and q.each and #p.each == #q.each then
    local difference, half = noise.paired(p.each, q.each)
    return difference < -half
  end
  return p.y > q.y
end

---Whether an entry's answers are better than another's to the same questions, by more than chance.
---@param one table      recall of an entry
---@param other table
---@return boolean
function compare.answers_better(one, other) return better(one, other) end

---Which of several points are the front: none with as few rows is better, and they are better than
---all of the front with fewer rows. Better is more than chance: within the errors of what was
---measured, fewer rows win.
---@param points { x: number, y: number, answers?: integer[], right?: integer, asked?: integer, each?: number[] }[]  y: more is
---         better; answers: 1 or 0 for each question; each: of each document, less is better
---@return boolean[]
function compare.pareto(points)
  local front, order = {}, {}
  for i in ipairs(points) do order[i], front[i] = i, false end
  table.sort(order, function(i, k)
    if points[i].x ~= points[k].x then return points[i].x < points[k].x end
    return i < k
  end)
  for _, i in ipairs(order) do
    local p, beaten = points[i], false
    local apart = (p.answers or p.asked or p.each) and same_rows or 0
    for k, q in ipairs(points) do
      beaten = beaten or q.x <= p.x + apart and better(q, p)
        -- what has fewer rows is decided already
        or front[k] and q.x < p.x - apart and not better(p, q)
    end
    front[i] = not beaten
  end
  return front
end

local function each(plan, store, variant, kind, wanted, visit)
  for _, step in ipairs(plan.steps) do
    local fits = step.kind == kind
    for key, value in pairs(wanted) do fits = fits and step[key] == value end
    local record = fits and store:get(compare.key(plan, step, variant))
    if record then visit(record) end
  end
end

local function recall_of(plan, store, variant, length, mode)
  local sum = { asked = 0, right = 0, found = 0, answers = {}, kinds = {}, survival = {},
    fraction = 0 }
  each(plan, store, variant, "recall", { length = length, mode = mode }, function(record)
    table.move(record.answers, 1, #record.answers, #sum.answers + 1, sum.answers)
    sum.asked, sum.fraction = sum.asked + record.asked,
      sum.fraction + record.fraction * record.asked
    for name, n in pairs(record.kinds) do
      local kind = sum.kinds[name] or { asked = 0, right = 0, found = 0 }
      sum.kinds[name] = kind
      for key in pairs(kind) do
        kind[key] = kind[key] + n[key]
        if key ~= "asked" then sum[key] = sum[key] + n[key] end
      end
    end
    for layer, share in ipairs(record.survival) do
      sum.survival[layer] = (sum.survival[layer] or 0) + share * record.asked
    end
  end)
  if sum.asked == 0 then return nil end
  sum.fraction, sum.evidence = sum.fraction / sum.asked, 0
  for layer, share in ipairs(sum.survival) do
    sum.survival[layer] = share / sum.asked
    sum.evidence = sum.evidence + sum.survival[layer] / #sum.survival
  end
  sum.accuracy, sum.uncertainty = sum.right / sum.asked, noise.share(sum.right, sum.asked)
  return sum
end

local text_sums = { "sum", "kl", "top1", "tokens", "bytes" }
local text_means = { "fraction", "context_fraction", "cache_bytes", "computed" }

local function text_of(plan, store, variant, length, source)
  local out, count, evicted, prefills, rates, losses, kls = {}, 0, 0, {}, {}, {}, {}
  for _, key in ipairs(text_sums) do out[key] = 0 end
  for _, key in ipairs(text_means) do out[key] = 0 end
  each(plan, store, variant, "text", { length = length, source = source }, function(record)
    count, evicted = count + 1, evicted + record.evicted
    for _, key in ipairs(text_sums) do out[key] = out[key] + record[key] end
    for _, key in ipairs(text_means) do out[key] = out[key] + record[key] end
    prefills[#prefills + 1], losses[count], kls[count] = record.prefill_seconds,
      -record.sum / record.tokens, record.kl / record.tokens
    if record.steps > 0 then rates[#rates + 1] = record.steps / record.step_seconds end
  end)
  if count == 0 then return nil end
  for _, key in ipairs(text_means) do out[key] = out[key] / count end
  return {
    windows = count, tokens = out.tokens, bytes = out.bytes, evicted = evicted,
    perplexity = math.exp(-out.sum / out.tokens),
      bits_per_byte = -out.sum / math.log(2) / out.bytes,
    kl = out.kl / out.tokens, top1 = out.top1 / out.tokens, fraction = out.fraction,
      context_fraction = out.context_fraction,
    cache_bytes = out.cache_bytes, computed = out.computed, prefill_seconds = median(prefills),
      decode_rate = median(rates),
    loss_each = losses, kl_each = kls,
  }
end

---@class pyramid.CompareEntry
---@field label string
---@field series string
---@field budget number?
---@field length integer
---@field mode string
---@field recall table?
---  asked, right, found, accuracy, uncertainty, kinds, survival (by layer), evidence (its mean);
---  answers: 1 or 0 for each question
---@field document table?
---  perplexity, bits_per_byte, kl, top1 of how documents go on, and times; loss_each, kl_each: of
---  each document, nats a token
---@field file table?         the same of the user's text
---@field fraction number?    of the rows of what was read under the policy, the share it kept
---@field asked number?       the share it was asked for, by --budgets or by its option `target`
---@field missed boolean      it was asked for a share and kept another
---@field silent boolean      a policy that should prune pruned nothing at all
---@field front boolean
---  on the front of recall and rows kept, of its length and mode: see compare.pareto

---Marks the entries of one length and mode that are on the front of answers and rows kept.
---@param entries pyramid.CompareEntry[]
function compare.mark_front(entries)
  local points = {}
  for _, entry in ipairs(entries) do
    local asked = entry.recall
    if asked then
      points[#points + 1] = { x = entry.fraction, y = asked.accuracy, right = asked.right,
        asked = asked.asked, answers = asked.answers, entry = entry }
    end
  end
  local front = compare.pareto(points)
  for i, point in ipairs(points) do point.entry.front = front[i] end
end

---Whether an entry kept what was asked for. A label names a share that was asked for only where it
---was kept; else it says what was measured.
---@param entry pyramid.CompareEntry
---@param variant pyramid.Variant
function compare.name(entry, variant)
  entry.asked = variant.budget or target.of(variant.policy)
  entry.missed = entry.fraction ~= nil and target.missed(entry.asked, entry.fraction, entry.length)
  if not entry.missed then return end
  local share = ("%.0f %% kept"):format(100 * entry.fraction)
  entry.label = variant.budget and ("%s, %s"):format(variant.series, share) or ("%s, %s"):format(
    (variant.label:gsub("%s*%f[%w_]target=%S+", "")), share)
end

---One entry for each length, mode and variant, in this order, out of what the store holds for a
---plan.
---@param plan pyramid.ComparePlan
---@param store pyramid.Results
---@return pyramid.CompareEntry[]
function compare.summary(plan, store)
  local _ <close> = core.plain_locale()
  local all = {}
  for _, length in ipairs(plan.given.lengths) do
    for _, mode in ipairs(plan.given.modes) do
      local entries = {}
      for i, variant in ipairs(plan.given.variants) do
        local entry = { label = variant.label, series = variant.series, budget = variant.budget,
          length = length, mode = mode, front = false,
            recall = recall_of(plan, store, variant, length, mode),
              document = text_of(plan, store, variant, length, "document"),
                file = text_of(plan, store, variant, length, "file") }
        local text = entry.document or entry.file
        entry.fraction = entry.recall and entry.recall.fraction or text and text.context_fraction
        compare.name(entry, variant)
        local evicted = (entry.document and entry.document.evicted or 0)
          + (entry.file and entry.file.evicted or 0)
        entry.silent = not engine.keeps_all(variant.policy) and evicted == 0
          and (entry.fraction or 0) > 1 - 1e-9 and not engine.reads_less(variant.policy)
        each(plan, store, variant, "kept", { length = length, mode = mode },
          function(record) entry.kept = record end)
        entries[i] = entry
      end
      compare.mark_front(entries)
      table.move(entries, 1, #entries, #all + 1, all)
    end
  end
  return all
end

return compare

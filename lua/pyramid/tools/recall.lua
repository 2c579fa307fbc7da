--- Recall: whether a model still answers from its context what a policy has left of it.
---
--- A case is a held-out document of the world (pyramid.world) of a given length in tokens, in which
--- each fact is told once, with questions about it. A length counts the document, which is cut to
--- just `length - recall.room` tokens, and the room that its question and answer are given. It is
--- put in one of two modes:
---
---   agnostic  the document is read under the policy, which does not know what will be asked; the
---             question is appended whole, and the answer is generated
---   aware     document and question are read under the policy together, all but the words that
---             call for the answer ("Answer:"), which are read after its cut; see pyramid.cut for
---             why
---
--- An answer is right if the line that is generated, greedily, is the expected answer, letter for
--- letter. For models that know the facts and not the form of the world's answers there is `found`:
--- the value asked for stands in the line. The kind "word" (pyramid.hidden) is for such models:
--- facts of one word in any text; right is that the first word is it. Survival is the share of the
--- evidence's tokens (the sentences the answer stands in) whose rows a layer still holds when the
--- policy has cut.
local cut = require "pyramid.tools.cut"
local hidden = require "pyramid.tools.hidden"
local options = require "pyramid.options"
local world = require "pyramid.tools.world"

local recall = {}

recall.modes = { "agnostic", "aware" }

--- Kinds of questions: the world's, which are asked if nothing else is said, and "word".
recall.kinds = table.move(world.kinds, 1, #world.kinds, 1, {})
table.insert(recall.kinds, hidden.kind)

---@class pyramid.RecallQuestion
---@field kind string
---@field question string
---@field begun string?               what is read in the question's place: a sentence to go on with
---@field answer string               the line expected
---@field value string                what was asked for; the answer ends in it
---@field evidence integer[][]
---  first and last position (from 0) of the tokens of each sentence needed

---@class pyramid.RecallCase
---@field seed integer
---@field ids integer[]               the document, with what begins texts
---@field questions pyramid.RecallQuestion[]

--- Tokens for a question and its answer, beside a document; few need more, and those are left out.
recall.room = 64

local longest_line, longest_word = 96, 24

local cue = "Answer:"

local function asked(question) return ("Question: %s\n"):format(question) .. cue end

-- Where each token of a text ends, in bytes; ids that are special have none.
local function token_ends(tokenizer, ids)
  local ends, at = {}, 0
  local decoder <close> = assert(tokenizer:decoder { raw = true, continues = true })
  for i, id in ipairs(ids) do
    if not tokenizer:is_special(id) then at = at + #assert(decoder:push(id)) end
    ends[i] = at
  end
  return ends
end

-- Positions (from 0) of the first and the last token that holds a byte of first .. last (from 1).
local function token_span(ends, first, last)
  local from, to
  for i, past in ipairs(ends) do
    if not from and past >= first then from = i - 1 end
    if past >= last then
      to = i - 1
      break
    end
  end
  return { from, to or #ends - 1 }
end

-- Leaves as few of the first of `of.ids` out as make `want` of them, but not what begins texts.
-- Sets `from`: bytes of the text that are left out; `ends`: where each token ends.
local function trim(model, of, want)
  local lead = model.tokenizer:is_special(of.ids[1]) and 1 or 0
  local over, ends = #of.ids - want, token_ends(model.tokenizer, of.ids)
  if over < 0 or lead + over >= #of.ids then return false end
  of.ends = table.move(ends, 1 + lead + over, #ends, 1 + lead,
    lead > 0 and { ends[lead + over] } or {})
  of.ids = table.move(of.ids, 1 + lead + over, #of.ids, 1 + lead,
    table.move(of.ids, 1, lead, 1, {}))
  of.from = over > 0 and ends[lead + over] or 0
  return true
end

-- The document of a seed, `want` tokens of its end: it is made a little longer, and as few of its
-- first tokens as that takes are left out.
local function fit(model, seed, want, given)
  local words, best = math.max(30, want * 2 // 3), nil
  for _ = 1, 8 do
    local document = world.document(seed, { words = words, recall = 0, density = 45,
      questions = 24, kinds = given.kinds })
    local body = document.text:sub(1, document.body_bytes) .. "\n\n"
    local ids, message, code = model:encode(body)
    if not ids then return nil, message, code end
    local over = #ids - want
    if over >= 0 and (not best or #ids < #best.ids) then
      best = { document = document, ids = ids }
    end
    if over >= 0 and over < want // 24 then break end
    words = math.max(math.ceil(words * (want + want / 60) / #ids), over < 0 and words + 5 or 1)
  end
  if not best or not trim(model, best, want) then return nil end
  return best
end

---A case: the document of a held-out seed, of `length - recall.room` tokens, and up to `per_kind`
---questions of each kind. nil if no document of that seed fits, and then a message only if
---something failed.
---@param model pyramid.Model
---@param length integer
---@param seed integer                from 0; counted from the first held-out seed
---@param given? { per_kind?: integer, kinds?: string[] }
---@return pyramid.RecallCase?
---@return string? message
---@return string? code
function recall.case(model, length, seed, given)
  given = options.check("recall.case", given, { per_kind = "integer", kinds = "table" })
  local found, message, code = fit(model, world.held_out + seed, length - recall.room, given)
  if not found then return nil, message, code end
  local document, ends = found.document, found.ends
  local questions, count = {}, {}
  for _, q in ipairs(document.questions) do
    local function room()
      return recall.room - #assert(model:encode(asked(q.question) .. " " .. q.answer .. "\n",
        { special = false }))
    end
    local told = true  -- what it asks for stands in what is left
    for _, span in ipairs(q.evidence) do told = told and span[1] > found.from end
    if told and (count[q.kind] or 0) < (given.per_kind or 1) and room() >= 0 then
      count[q.kind] = (count[q.kind] or 0) + 1
      local evidence = {}
      for i, span in ipairs(q.evidence) do evidence[i] = token_span(ends, span[1], span[2]) end
      questions[#questions + 1] = { kind = q.kind, question = q.question, answer = q.answer,
        value = q.value, evidence = evidence }
    end
  end
  return { seed = seed, ids = found.ids, questions = questions }
end

local most_of_a_kind = 2  -- questions of a kind in one document, so that many documents speak

-- How many of `questions` fall to each of the parts that documents are cut into: alike, the first
-- ones one more.
local function quotas(questions)
  local parts, left = {}, questions
  for part = math.min(5, questions), 1, -1 do
    parts[part] = left // part
    left = left - parts[part]
  end
  return parts
end

-- A stretch of a text, from about byte `from` on, that begins with a sentence.
local function stretch(text, from, bytes)
  if from > 1 then from = text:match("[%.!%?]%s+()%u", from) or text:match("%s()", from) or from end
  local past = math.min(#text + 1, from + bytes)
  while past <= #text and text:byte(past) & 0xC0 == 0x80 do past = past + 1 end
  return text:sub(from, past - 1)
end

-- The document of a number with one-word facts in it; nil, if the text is too short, and why.
local function word_case(model, length, document, given)
  local want, count = length - recall.room, (given.questions - 1) // hidden.facts + 1
  local facts, told = hidden.of((given.seed or 0) + document), {}
  for k = 1, math.min(hidden.facts, given.questions - document * hidden.facts) do
    told[k] = facts[k]
  end
  local source = given.text
  if not source then                                                   -- a word is a token at least
    source = world.document(world.held_out + (given.seed or 0) + document,
      { words = want + 40, questions = 0, title = true }).text
  end
  local place = 1
  if given.text then
    place = 1 + math.max(0, #source - want * 8) * document // math.max(1, count)
  end
  local body = stretch(source, place, want * 8)
  local sentences = 0
  for _, fact in ipairs(told) do sentences = sentences + #fact.sentence end
  local ids, message, code = model:encode(body)
  if not ids then return nil, message, code end
  local ends = token_ends(model.tokenizer, ids)
  local bytes = (ends[want] or #body) - sentences
  local made
  for _ = 1, 8 do  -- longer, until it is long enough
    local text, spans = hidden.set(stretch(body, 1, math.max(bytes, 1)), told,
      (document + 0.5) / count)
    ids, message, code = model:encode(text .. "\n\n")
    if not ids then return nil, message, code end
    made = { ids = ids, spans = spans }
    if trim(model, made, want) and made.from < spans[1][1] then break end
    made, bytes = nil, bytes + math.max(16, (want - #ids) * 6)
  end
  if not made then
    if given.text then
      return nil, ("the text is too short for a document of %d tokens"):format(want), "length"
    end
    return nil
  end
  local case = { seed = (given.seed or 0) + document, ids = made.ids, questions = {} }
  for k, fact in ipairs(told) do
    case.questions[k] = { kind = hidden.kind, question = fact.begun .. " …", begun = fact.begun,
      answer = fact.word, value = fact.word, evidence = { token_span(made.ends, made.spans[k][1],
        made.spans[k][2]) } }
  end
  return case
end

---Cases of one length with `questions` questions of each kind in all, at most two of a kind in a
---document. Where the evidence stands is spread evenly: each fifth of the documents' length has as
---many questions of each kind (a chain's place is its first fact's), as far as `questions` can be
---divided so; what a policy that keeps the newest rows can answer is then told by how much it
---keeps. Fewer questions, if 40 documents for each do not hold them; an empty list if no document
---of this length has such questions. Of the kind "word" (pyramid.hidden), four to a document,
---evenly spread: in stretches of `text`, or, without one, in held-out documents.
---@param model pyramid.Model
---@param length integer
---@param given { questions: integer, kinds?: string[], seed?: integer, text?: string, progress?: function }  progress(done, total)
---@return pyramid.RecallCase[]?
---@return string? message
---@return string? code
function recall.cases(model, length, given)
  given = options.check("recall.cases", given, { questions = "integer", kinds = "table",
    seed = "integer", text = "string", progress = "function" })
  local kinds, seed, words = {}, given.seed or 0, false
  for _, kind in ipairs(given.kinds or world.kinds) do
    if kind == hidden.kind then words = true else kinds[#kinds + 1] = kind end
  end
  local cases, room, total = {}, {}, #kinds * given.questions
  local missing, last = total, seed + 40 * given.questions
  for _, kind in ipairs(kinds) do room[kind] = quotas(given.questions) end
  while missing > 0 and seed < last do
    local case = recall.case(model, length, seed, { per_kind = math.maxinteger })
    local chosen, count = {}, {}
    for _, q in ipairs(case and case.questions or {}) do
      local parts = room[q.kind]
      local part = parts and 1 + q.evidence[1][1] * #parts // #case.ids
      if parts and parts[part] > 0 and (count[q.kind] or 0) < most_of_a_kind then
        parts[part], count[q.kind], missing = parts[part] - 1, (count[q.kind] or 0) + 1, missing - 1
        chosen[#chosen + 1] = q
      end
    end
    if #chosen > 0 then
      case.questions = chosen
      cases[#cases + 1] = case
    end
    seed = seed + 1
    if given.progress then given.progress(total - missing, total) end
  end
  for document = 0, words and (given.questions - 1) // hidden.facts or -1 do
    local case, message, code = word_case(model, length, document, given)
    if message then return nil, message, code end
    cases[#cases + 1] = case
  end
  return cases
end

-- The line that a generation begins with, without the white space around it; ends the generation.
local function line_of(run)
  local text = ""
  for piece in run do
    text = text .. piece
    if text:find "%S[^\n]*\n" then break end
  end
  run:close()
  if run.finish == "error" then return nil, run.message, run.code end
  return text:match "^%s*([^\n]*)":match "^(.-)%s*$"
end

---Reads a question (after what the cache holds, no policy asked) and returns the line that answers
---it, greedily.
---@param model pyramid.Model
---@param cache pyramid.Cache
---@param question string             without "Question:"
---@return string? line
---@return string? message
---@return string? code
function recall.answer(model, cache, question)
  local run, message, code = model:generate(asked(question),
    { cache = cache, special = false, prune = false, max_tokens = longest_line })
  if not run then return nil, message, code end
  return line_of(run)
end

-- The share of the evidence's tokens whose rows each layer holds, averaged over KV heads.
local function survival(cache, config, evidence)
  local wanted, total, shares = {}, 0, {}
  for _, span in ipairs(evidence) do
    for position = span[1], span[2] do
      if not wanted[position] then wanted[position], total = true, total + 1 end
    end
  end
  for layer = 1, config.layers do
    local held = 0
    for head = 1, config.kv_heads do
      for _, position in ipairs(cache:positions(layer, head)) do
        if wanted[position] then held = held + 1 end
      end
    end
    shares[layer] = held / (config.kv_heads * total)
  end
  return shares
end

---@class pyramid.RecallResult
---@field kind string
---@field right boolean
---@field found boolean
---@field line string                 what was generated
---@field tokens integer              read under the policy
---@field fraction number             of the rows of that, those it left
---@field survival number[]           by layer

---What is read under a policy to answer a question, and what after its cut.
---@param model pyramid.Model
---@param case pyramid.RecallCase
---@param question pyramid.RecallQuestion
---@param mode "agnostic"|"aware"
---@return integer[]? judged
---@return integer[]|string rest      or a message
---@return string? code
function recall.prompt(model, case, question, mode)
  local whole = question.begun or asked(question.question)
  local ids, message, code = model:encode(whole, { special = false })
  if not ids then return nil, message, code end
  if mode == "agnostic" then return case.ids, ids end
  local last = question.begun and question.begun:match "%s%S+$" or cue
  local ends, words, held = token_ends(model.tokenizer, ids), #whole - #last, 0
  for i = #ids, 2, -1 do
    if ends[i - 1] >= words then held = held + 1 else break end      -- begins within the cue
  end
  local all = table.move(ids, 1, #ids, #case.ids + 1, table.move(case.ids, 1, #case.ids, 1, {}))
  return cut.split(all, math.max(1, held))
end

---Puts every question of a case to a model under a policy.
---@param model pyramid.Model
---@param case pyramid.RecallCase
---@param mode "agnostic"|"aware"
---@param cache_options? pyramid.CacheOptions
---@return pyramid.RecallResult[]?
---@return string? message
---@return string? code
function recall.ask(model, case, mode, cache_options)
  if mode ~= "agnostic" and mode ~= "aware" then
    error("recall.ask: the mode is agnostic or aware", 2)
  end
  local blank <close>, message, code = model:cache(cache_options)
  if not blank then return nil, message, code end
  local made
  if mode == "agnostic" then
    made, message, code = cut.judge(blank, case.ids)
    if not made then return nil, message, code end
  end
  local results = {}
  for i, q in ipairs(case.questions) do
    local fork, problem, kind = blank:fork()
    if not fork then return nil, problem, kind end
    local cache <close> = fork
    local judged, rest, failure = recall.prompt(model, case, q, mode)
    if not judged then return nil, rest, failure end
    if mode == "aware" then
      made, message, code = cut.judge(cache, judged)
      if not made then return nil, message, code end
    end
    local result = { kind = q.kind, tokens = made.tokens, fraction = made.share,
      survival = survival(cache, model.config, q.evidence) }
    local run
    run, message, code = model:generate(rest, { cache = cache, prune = false,
      max_tokens = q.kind == hidden.kind
      and longest_word or longest_line })
    if not run then return nil, message, code end
    result.line, message, code = line_of(run)
    if not result.line then return nil, message, code end
    result.right, result.found = result.line == q.answer, result.line:find(q.value, 1, true) ~= nil
    if q.kind == hidden.kind then
      result.found = hidden.answers(result.line, q.value)
      result.right = result.found
    end
    results[i] = result
  end
  return results
end

return recall

--- RULER's eight needles in a haystack (arXiv 2404.06654, appendix B): sentences "One of the
--- special magic numbers for KEY is: VALUE." hidden in a haystack, and a question for the value.
---
---   task             haystack  keys   values   what is asked for
---   niah_single_1    noise     words  numbers  the one value
---   niah_single_2    text      words  numbers
---   niah_single_3    text      words  uuids
---   niah_multikey_1  text      words  numbers  one of four keys'
---   niah_multikey_2  needles   words  numbers  one key's; all of the haystack is needles
---   niah_multikey_3  needles   uuids  uuids
---   niah_multivalue  text      words  numbers  all four values of a key
---   niah_multiquery  text      words  numbers  the values of four keys
---
--- As published: the sentences, the questions, the noise, 128 tokens of answer, the share of values
--- that stand in it. Ours: the words of keys, the random numbers, and that each case begins at
--- another place of the text. Where several keys could be asked for, several are, of one cut cache.
local haystack = require "pyramid.tools.eval.haystack"
local words = require "pyramid.tools.eval.words"

local needles = {}

local noise = "The grass is green. The sky is blue. The sun is yellow. Here we go. There and back "
  .. "again."

---@class pyramid.NeedleTask
---@field hay "noise"|"text"|"needles"
---@field key "words"|"uuids"
---@field value "numbers"|"uuids"
---@field keys integer      that are hidden in a text
---@field values integer    of each
---@field asked integer     keys that one question asks for

---@type table<string, pyramid.NeedleTask>
needles.tasks = {
  niah_single_1 = { hay = "noise", key = "words", value = "numbers", keys = 1, values = 1,
    asked = 1 },
  niah_single_2 = { hay = "text", key = "words", value = "numbers", keys = 1, values = 1,
    asked = 1 },
  niah_single_3 = { hay = "text", key = "words", value = "uuids", keys = 1, values = 1, asked = 1 },
  niah_multikey_1 = { hay = "text", key = "words", value = "numbers", keys = 4, values = 1,
    asked = 1 },
  niah_multikey_2 = { hay = "needles", key = "words", value = "numbers", keys = 1, values = 1,
    asked = 1 },
  niah_multikey_3 = { hay = "needles", key = "uuids", value = "uuids", keys = 1, values = 1,
    asked = 1 },
  niah_multivalue = { hay = "text", key = "words", value = "numbers", keys = 1, values = 4,
    asked = 1 },
  niah_multiquery = { hay = "text", key = "words", value = "numbers", keys = 4, values = 1,
    asked = 4 },
}

local function hexadecimal(rng, digits)
  local out = {}
  for i = 1, digits do out[i] = ("%x"):format(rng:below(16)) end
  return table.concat(out)
end

local draw = {
  numbers = function(rng) return ("%d"):format(rng:between(1000000, 9999999)) end,
  words = function(rng) return rng:pick(words.adjectives) .. "-" .. rng:pick(words.nouns) end,
  uuids = function(rng)  -- of version 4
    return ("%s-%s-4%s-%s%s-%s"):format(hexadecimal(rng, 8), hexadecimal(rng, 4),
      hexadecimal(rng, 3), rng:pick { "8", "9", "a", "b" }, hexadecimal(rng, 3),
        hexadecimal(rng, 12))
  end,
}

-- One that was not drawn before.
local function fresh(rng, kind, seen)
  local one
  repeat one = draw[kind](rng) until not seen[one]
  seen[one] = true
  return one
end

local function sentence(kind, key, value)
  return ("One of the special magic %s for %s is: %s."):format(kind, key, value)
end

-- "a, b, and c"
local function list(keys)
  if #keys == 1 then return keys[1] end
  return table.concat(keys, ", ", 1, #keys - 1) .. ", and " .. keys[#keys]
end

-- The question for some keys, and how its answer is begun.
local function asking(of, keys, values)
  local kind = of.value
  local one = of.asked * of.values == 1
  if one then kind = kind:sub(1, -2) end
  local said = ("special magic %s for %s mentioned in the provided text"):format(kind, list(keys))
  return { text = ("\nWhat %s the %s?"):format(one and "is" or "are all", said),
    prefix = (" The %s %s"):format(said, one and "is" or "are"), answers = values,
      metric = "contains", most = 128 }
end

-- Facts of a case: keys, each with its values, and their sentences.
local function facts(of, rng, seen, count)
  local all = {}
  for i = 1, count do
    local fact = { key = fresh(rng, of.key, seen), values = {}, sentences = {} }
    for k = 1, of.values do
      fact.values[k] = fresh(rng, of.value, seen)
      fact.sentences[k] = sentence(of.value, fact.key, fact.values[k])
    end
    all[i] = fact
  end
  return all
end

-- A haystack of `size` units with the facts in it.
local function bury(of, rng, given, size, all, seen)
  local things = {}
  for _, fact in ipairs(all) do
    table.move(fact.sentences, 1, #fact.sentences, #things + 1, things)
  end
  rng:shuffle(things)
  if of.hay == "text" then
    local sentences = haystack.stretch(given.sentences, rng, size * 24)
    return haystack.set(sentences, things, haystack.depths(rng, #things))
  end
  local lines = {}
  for i = 1, size do
    lines[i] = of.hay == "noise" and noise
      or sentence(of.value, fresh(rng, of.key, seen), fresh(rng, of.value, seen))
  end
  for _, thing in ipairs(things) do table.insert(lines, 1 + rng:below(#lines + 1), thing) end
  return table.concat(lines, "\n")
end

---The case of a seed with a haystack of so many units: noise and needles in lines, texts in
---stretches of 24 bytes.
---@param task string
---@param seed integer
---@param size integer
---@param given pyramid.TaskGiven
---@return pyramid.EvalCase
function needles.case(task, seed, size, given)
  local of, rng, seen = needles.tasks[task], haystack.random(task, seed), {}
  local count = of.keys
  if of.hay == "needles" then count = math.max(count, given.per_context) end
  local all = facts(of, rng, seen, count)
  local context = bury(of, rng, given, size, all, seen)
  local questions = {}
  for first = 1, #all, of.asked do
    if #questions >= given.per_context then break end
    local keys, values = {}, {}
    for i = first, first + of.asked - 1 do
      keys[#keys + 1] = all[i].key
      table.move(all[i].values, 1, #all[i].values, #values + 1, values)
    end
    questions[#questions + 1] = asking(of, keys, values)
  end
  local one = of.asked * of.values == 1
  local kind = one and of.value:sub(1, -2) or of.value
  return { task = task, name = ("seed %d"):format(seed), questions = questions,
    context = ("%s special magic %s %s hidden within the following text. Make sure to memorize it."
      .. " I will quiz you about the %s afterwards.\n%s"):format(one and "A" or "Some", kind,
        one and "is" or "are", kind, context) }
end

---How many questions a case can have.
---@param task string
---@param per integer     asked for
---@return integer
function needles.per_case(task, per)
  local of = needles.tasks[task]
  if of.hay == "needles" then return per end
  return math.min(per, of.keys // of.asked)
end

return needles

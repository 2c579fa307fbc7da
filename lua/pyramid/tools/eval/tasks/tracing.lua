--- RULER's other tasks without files (arXiv 2404.06654):
---
---   vt    variable tracking: a chain "VAR A = 12345", "VAR B = VAR A", … of five variables in
---         noise; asked for are all that have the value. One example with its answer stands before.
---   cwe   common words: a numbered list in which ten words stand often and all others seldom;
---         asked for are the ten. One example stands before. Below 4,096 tokens the ten stand 6
---         times and the others once, from there 30 and 3 times.
---   fwe   frequent words: coded words of six letters whose counts fall as a zeta distribution of
---         exponent 2; asked for are the three most frequent beside the dots.
---
--- Texts, counts and lengths of answers as published; words and random numbers are ours.
local haystack = require "pyramid.tools.eval.haystack"
local words = require "pyramid.tools.eval.words"

local tracing = {}

local noise = "The grass is green. The sky is blue. The sun is yellow. Here we go. There and back "
  .. "again."
local hops = 4

-- `count` different words of `letters` random letters of an alphabet.
local function coded(rng, count, letters, first)
  local out, seen = {}, {}
  while #out < count do
    local word = {}
    for i = 1, letters do word[i] = string.char(first:byte() + rng:below(26)) end
    word = table.concat(word)
    if not seen[word] then out[#out + 1] = word end
    seen[word] = true
  end
  return out
end

-- A chain of assignments in so many lines of noise: context, question and the variables.
local function chain(rng, lines, letters)
  local names, value = coded(rng, hops + 1, letters, "A"), ("%d"):format(rng:between(10000, 99998))
  local said = { ("VAR %s = %s"):format(names[1], value) }
  for i = 1, hops do said[i + 1] = ("VAR %s = VAR %s "):format(names[i + 1], names[i]) end
  local places, out = {}, {}
  for i = 1, math.max(lines, hops + 1) do places[i] = i - 1 end
  places = rng:sample(places, hops + 1)
  table.sort(places)
  local at = 1
  for line = 0, math.max(lines, hops + 1) - 1 do
    if places[at] == line then
      out[#out + 1] = said[at]
      at = at + 1
    end
    if line < lines then out[#out + 1] = noise end
  end
  return "Memorize and track the chain(s) of variable assignment hidden in the following text.\n\n"
    .. table.concat(out, "\n"), ("\nQuestion: Find all variables that are assigned the value %s in "
      .. "the text above."):format(value), (" Answer: According to the chain(s) of variable "
      .. "assignment in the text above, %d variables are assigned the value %s, they are: ")
      :format(hops + 1, value), names
end

local makers = {}

function makers.vt(rng, size)
  local context, question, prefix, names = chain(rng, 5, 3)
  local example = ("%s%s%s %s\n\n"):format(context, question, prefix, table.concat(names, " "))
  context, question, prefix, names = chain(rng, size, 5)
  return example .. context, { text = question, prefix = prefix, answers = names,
    metric = "contains", most = 30 }
end

-- All words there are, and pairs of them where a list wants more.
local function vocabulary(count)
  local out = {}
  for _, list in ipairs { words.nouns, words.adjectives, words.verbs } do
    table.move(list, 1, #list, #out + 1, out)
  end
  local seen, distinct = {}, {}
  for _, word in ipairs(out) do
    if not seen[word] then distinct[#distinct + 1] = word end
    seen[word] = true
  end
  for _, adjective in ipairs(words.adjectives) do
    if #distinct >= count then break end
    for _, noun in ipairs(words.nouns) do distinct[#distinct + 1] = adjective .. "-" .. noun end
  end
  return distinct
end

local common_words = 10

-- "1. river 2. stone …" of `count` different words, ten of them often.
local function numbered(rng, count, often, seldom)
  local chosen, all = rng:sample(vocabulary(count), count), {}
  for i, word in ipairs(chosen) do
    for _ = 1, i <= common_words and often or seldom do all[#all + 1] = word end
  end
  rng:shuffle(all)
  for i, word in ipairs(all) do all[i] = ("%d. %s"):format(i, word) end
  return table.concat(all, " "), table.move(chosen, 1, common_words, 1, {})
end

function makers.cwe(rng, size, given)
  local lead = "Below is a numbered list of words. In these words, some appear more often than "
    .. "others. Memorize the ones that appear most often.\n"
  local question, prefix = "\nQuestion: What are the 10 most common words in the above list?",
    " Answer: The top 10 words that appear most often in the list are:"
  local short = given.length < 4096
  local shown, common = numbered(rng, short and 20 or 40, short and 3 or 10, short and 1 or 3)
  for i, word in ipairs(common) do common[i] = ("%d. %s"):format(i, word) end
  local example = lead .. shown .. question .. prefix .. " " .. table.concat(common, " ") .. "\n"
  local context, answers = numbered(rng, size + common_words, short and 6 or 30, short and 1 or 3)
  return example .. lead .. context, { text = question, prefix = prefix, answers = answers,
    metric = "contains", most = 120 }
end

function makers.fwe(rng, size, given)
  local vocab = coded(rng, math.max(8, (given.length - 50) // 50), 6, "a")
  vocab[1] = "..."
  local all = {}
  for rank, word in ipairs(vocab) do
    for _ = 1, math.floor(size * rank ^ -2.0 / (math.pi ^ 2 / 6)) do all[#all + 1] = word end
  end
  rng:shuffle(all)
  return "Read the following coded text and track the frequency of each coded word. Find the "
    .. "three most frequently appeared coded words. " .. table.concat(all, " "),
    { text = "\nQuestion: Do not provide any explanation. Please ignore the dots '....'. What are "
      .. "the three most frequently appeared words in the above coded text?",
      prefix = " Answer: According to the coded text above, the three most frequently appeared "
        .. "words are:", answers = { vocab[2], vocab[3], vocab[4] }, metric = "contains",
      most = 50 }
end

tracing.tasks = makers

---The case of a seed with so many lines of noise, different words beside the common ones, or words.
---@param task string
---@param seed integer
---@param size integer
---@param given pyramid.TaskGiven
---@return pyramid.EvalCase
function tracing.case(task, seed, size, given)
  local context, question = makers[task](haystack.random(task, seed), size, given)
  return { task = task, name = ("seed %d"):format(seed), context = context,
    questions = { question } }
end

return tracing

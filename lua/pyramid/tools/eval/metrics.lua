--- Metrics as they were published: what an answer is worth, from 0 to 1.
---
---   contains     RULER: the share of the expected texts that stand in the answer, in any case
---   contains_any RULER's question answering: whether one of them does
---   word         the answer's first word is the expected one
---   line         its first line is, letter for letter
---   exact        SQuAD's exact match: equal without case, punctuation, articles
---   f1           SQuAD's F1 over words, normalised the same way
---   rouge_l      ROUGE-L as Google's `rouge_score` computes it (F)
---   rouge        L-Eval: the geometric mean of rouge_score's ROUGE-1, ROUGE-2 and ROUGE-L
---   rouge_l_sets LongBench: ROUGE-L of the `rouge` package, over sentences, each word once
---   classification, retrieval, count, edit      LongBench
---   choice       the first of A, B, C, D in the answer (L-Eval)
---   letters      L-Eval's form for several right letters
---   number       L-Eval's answer extraction: the number said
---   final_number GSM8K's: the number after "####", or else the last one
---   likelihood   the mean log-probability of a given answer's tokens, in nats (MT-Bench)
---   judged       nothing is scored here: another program judges (HumanEval)
---
--- Several expected answers: the best counts, except for `contains`, which wants them all.
--- spec/fixtures/eval/metrics.json holds what the published code says of made-up answers.
local sequence = require "pyramid.tools.eval.sequence"
local text = require "pyramid.jinja.text"

local metrics = {}

-- ---- normalising --------------------------------------------------------------------------------

-- Lower case of a letter of Latin, Greek or Cyrillic that is not ASCII; other letters stay.
local function lower_letter(character)
  local code = utf8.codepoint(character)
  if code >= 0xC0 and code <= 0xDE and code ~= 0xD7 or code >= 0x391 and code <= 0x3A9
    or code >= 0x410 and code <= 0x42F then return utf8.char(code + 0x20) end
  if code >= 0x400 and code <= 0x40F then return utf8.char(code + 0x50) end
  if (code >= 0x100 and code <= 0x137 and code ~= 0x130 or code >= 0x14A and code <= 0x177)
    and code % 2 == 0 or (code >= 0x139 and code <= 0x148 or code >= 0x179 and code <= 0x17E)
    and code % 2 == 1 then
    return utf8.char(code + 1)
  end
end

local function lower(s)
  if text.lower(s) then return text.lower(s) end
  return utf8.len(s) and s:lower():gsub(utf8.charpattern, function(character)
    return #character > 1 and lower_letter(character) or nil
  end) or s:lower()
end

-- Whether a character can be part of a word, for what stands around "a", "an" and "the".
local function in_word(character)
  if #character == 1 then return character:find "[%w_]" ~= nil end
  local code = utf8.codepoint(character)
  return code >= 0xAA and code ~= 0xAB and code ~= 0xBB and code ~= 0xD7 and code ~= 0xF7
    and code ~= 0xAC and code ~= 0xAE and code ~= 0xAF and code ~= 0xB0 and code ~= 0xB1
    and code ~= 0xB4 and code ~= 0xB6 and code ~= 0xB7 and code ~= 0xB8 and code ~= 0xBF
    and not (code >= 0x2000 and code <= 0x206F) and not (code >= 0x3000 and code <= 0x3004)
    and not (code >= 0x3008 and code <= 0x3020) and not (code >= 0xFF00 and code <= 0xFF0F)
end

local articles = { a = true, an = true, the = true }

-- Articles as whole words become blanks: Python's re.sub(r"\b(a|an|the)\b", " ", s).
local function without_articles(s)
  local out, word = {}, {}
  local function flush()
    local joined = table.concat(word)
    out[#out + 1] = articles[joined] and " " or joined
    word = {}
  end
  for _, character in ipairs(text.characters(s)) do
    if in_word(character) then word[#word + 1] = character
    else
      flush()
      out[#out + 1] = character
    end
  end
  flush()
  return table.concat(out)
end


---SQuAD's normalisation: lower case, no ASCII punctuation, no articles, single blanks.
---@param s string
---@return string
function metrics.normalise(s)
  return table.concat(text.words(without_articles((lower(s):gsub("%p", ""))), -1), " ")
end

local function words(s) return text.words(s, -1) end

local function counts(list)
  local count = {}
  for _, x in ipairs(list) do count[x] = (count[x] or 0) + 1 end
  return count
end

-- F1 of two bags.
local function bag_f1(got, wanted)
  local left, same = counts(wanted), 0
  for _, x in ipairs(got) do
    if (left[x] or 0) > 0 then left[x], same = left[x] - 1, same + 1 end
  end
  if same == 0 then return 0 end
  local precision, recall = same / #got, same / #wanted
  return 2 * precision * recall / (precision + recall)
end

-- ---- ROUGE --------------------------------------------------------------------------------------

-- rouge_score's default tokens: lower case, runs of a-z and 0-9.
local function rouge_tokens(s)
  local out = {}
  for word in lower(s):gmatch "[a-z0-9]+" do out[#out + 1] = word end
  return out
end

local function f_measure(same, got, wanted)
  if got == 0 or wanted == 0 or same == 0 then return 0 end
  local precision, recall = same / got, same / wanted
  return 2 * precision * recall / (precision + recall)
end

local function ngrams(tokens, n)
  local out = {}
  for i = 1, #tokens - n + 1 do out[i] = table.concat(tokens, " ", i, i + n - 1) end
  return out
end

local function rouge_n(got, wanted, n)
  return bag_f1(ngrams(got, n), ngrams(wanted, n))
end

local function rouge_l(got, wanted)
  return f_measure(sequence.common(wanted, got), #got, #wanted)
end

-- The `rouge` package: sentences end at full stops, and only different words count.
local function sentences(s)
  local out = {}
  for part in (s .. "."):gmatch "([^.]*)%." do
    if part ~= "" then out[#out + 1] = table.concat(words(part), " ") end
  end
  return out
end

local function distinct(list)
  local seen, count = {}, 0
  for _, sentence in ipairs(list) do
    for word in (sentence .. " "):gmatch "([^ ]*) " do
      if not seen[word] then seen[word], count = true, count + 1 end
    end
  end
  return count
end

local function pieces(sentence)
  local out = {}
  for word in (sentence .. " "):gmatch "([^ ]*) " do out[#out + 1] = word end
  return out
end

local function rouge_l_sets(got, wanted)
  local ours, theirs = sentences(got), sentences(wanted)
  if #ours == 0 or #theirs == 0 then return 0 end
  local union, size = {}, 0
  for _, their in ipairs(theirs) do
    for _, our in ipairs(ours) do
      for _, word in ipairs(sequence.longest(pieces(their), pieces(our))) do
        if not union[word] then union[word], size = true, size + 1 end
      end
    end
  end
  local recall, precision = size / distinct(theirs), size / distinct(ours)
  return 2 * (precision * recall / (precision + recall + 1e-8))
end

-- ---- what answers say ---------------------------------------------------------------------------

-- Whole numbers of a text, as they are written.
local function numbers(s)
  local out = {}
  for digits in s:gmatch "%d+" do out[#out + 1] = digits end
  return out
end

-- The share of an answer's numbers that are the one wanted.
local function share_of_numbers(answer, wanted)
  local right, all = 0, numbers(answer)
  for _, number in ipairs(all) do right = right + (number == wanted and 1 or 0) end
  return #all == 0 and 0 or right / #all
end

---The number that an answer says: what follows "The answer is", else its last word with a digit in
---its first paragraph; the digits of it, up to a point.
---@param answer string
---@return string
function metrics.number_in(answer)
  local said = answer:match "The answer is (%S+)"
  if not said then
    said = ""
    local first = answer:match "^(.-)\n\n" or answer
    for word in (first .. " "):gmatch "([^ ]*) " do
      if word:find "%d" then said = word end
    end
  end
  return (said:match "^[^.]*":gsub("%D", ""))
end

-- L-Eval's reading of letters: those at the beginning, else those that stand alone.
local function letters_in(answer)
  local lead = answer:match "^[A-D]*"
  if #lead > 1 then
    local seen, out = {}, {}
    for letter in lead:gmatch "." do
      if not seen[letter] then out[#out + 1] = letter end
      seen[letter] = true
    end
    table.sort(out)
    return table.concat(out)
  end
  local rest, found = answer:sub(#lead + 1), {}
  local before = rest:find("Question", 1, true)
  if before then rest = rest:sub(1, before - 1) end
  for letter in lead:gmatch "." do found[letter] = true end
  for letter in rest:gmatch "([A-Z])%f[%s.)]" do
    if letter:find "[A-D]" then found[letter] = true end
  end
  local out = {}
  for _, letter in ipairs { "A", "B", "C", "D" } do
    if found[letter] then out[#out + 1] = letter end
  end
  return #out == 0 and "A" or table.concat(out)
end

---@class pyramid.ScoreContext
---@field classes? string[]       all there are, for `classification`

---@type table<string, fun(answer: string, wanted: string, more: pyramid.ScoreContext): number>
local scores = {}

local function mark(right) return right and 1 or 0 end

function scores.contains_any(answer, wanted)
  return mark(lower(answer):find(lower(wanted), 1, true) ~= nil)
end

function scores.word(answer, wanted)
  return mark((answer:match "^%W*(%w+)" or ""):lower() == wanted:lower())
end

function scores.line(answer, wanted)
  return mark(answer:match "^%s*([^\n]*)":match "^(.-)%s*$" == wanted)
end

function scores.exact(answer, wanted)
  return mark(metrics.normalise(answer) == metrics.normalise(wanted))
end

function scores.f1(answer, wanted)
  return bag_f1(words(metrics.normalise(answer)), words(metrics.normalise(wanted)))
end

function scores.rouge_l(answer, wanted)
  return rouge_l(rouge_tokens(answer), rouge_tokens(wanted))
end

function scores.rouge(answer, wanted)
  local got, asked = rouge_tokens(answer), rouge_tokens(wanted)
  return (rouge_n(got, asked, 1) * rouge_n(got, asked, 2) * rouge_l(got, asked)) ^ (1 / 3)
end

scores.rouge_l_sets = rouge_l_sets

-- As published: classes that are part of the right one's name do not count against an answer, and
-- a list that shrinks while it is walked skips the class after each that is dropped.
function scores.classification(answer, wanted, more)
  local found = {}
  for _, class in ipairs(more.classes or {}) do
    if answer:find(class, 1, true) then found[#found + 1] = class end
  end
  local i = 1
  while i <= #found do
    if found[i] ~= wanted and wanted:find(found[i], 1, true) then
      local gone = found[i]
      for k, class in ipairs(found) do
        if class == gone then table.remove(found, k) break end
      end
    end
    i = i + 1
  end
  for _, class in ipairs(found) do
    if class == wanted then return 1 / #found end
  end
  return 0
end

function scores.retrieval(answer, wanted)
  return share_of_numbers(answer, wanted:match "Paragraph (%d+)")
end

function scores.count(answer, wanted) return share_of_numbers(answer, wanted) end

-- fuzz.ratio, in whole percent, of the first line that is code.
function scores.edit(answer, wanted)
  local line = ""
  for candidate in (answer:gsub("^\n+", "") .. "\n"):gmatch "([^\n]*)\n" do
    if not candidate:find "[`#]" and not candidate:find("//", 1, true) then
      line = candidate
      break
    end
  end
  if line == wanted then return 1 end
  if line == "" or wanted == "" then return 0 end
  local percent = 100 * sequence.ratio(text.characters(line), text.characters(wanted))
  local low = math.floor(percent)                        -- Python rounds halves to even
  local up = percent - low > 0.5 or percent - low == 0.5 and low % 2 == 1
  return (low + (up and 1 or 0)) / 100
end

function scores.choice(answer, wanted)
  return mark((answer:match "[ABCD]" or "A") == (wanted:match "%S*":match "[A-D]" or "A"))
end

function scores.letters(answer, wanted)
  local right = wanted:match "%S*":gsub("[^A-D]", "")
  return mark(letters_in(answer) == (right == "" and "A" or right))
end

function scores.number(answer, wanted)
  return mark(metrics.number_in(answer) == metrics.number_in(wanted))
end

-- Without commas, a currency's sign, a full stop, and what makes 18.00 differ from 18.
local function final_number(s)
  local said = s:match "####%s*%$?(%-?[%d.,]+)"
  if not said then
    for number in s:gmatch "%-?%$?[%d][%d.,]*" do said = number end
  end
  local value = said and tonumber((said:gsub("[,$]", ""):gsub("%.$", "")))
  return value and value + 0.0
end

function scores.final_number(answer, wanted)
  local got, right = final_number(answer), final_number(wanted)
  return mark(got ~= nil and got == right)
end

function scores.judged() return 0 end

function scores.contains(answer, wanted) return scores.contains_any(answer, wanted) end

---Names of all metrics, sorted.
---@return string[]
function metrics.list()
  local names = {}
  for name in pairs(scores) do names[#names + 1] = name end
  table.sort(names)
  return names
end

---Whether there is a metric of this name.
---@param name any
---@return boolean
function metrics.known(name) return scores[name] ~= nil end

---What an answer is worth.
---@param name string
---@param answer string
---@param wanted string[]       what was expected
---@param more? pyramid.ScoreContext
---@return number   from 0 to 1
function metrics.score(name, answer, wanted, more)
  local score = scores[name] or error(("no metric '%s'"):format(tostring(name)), 2)
  local best, sum = 0, 0
  for _, each in ipairs(wanted) do
    local worth = score(answer, each, more or {})
    best, sum = math.max(best, worth), sum + worth
  end
  if name == "contains" then return #wanted == 0 and 0 or sum / #wanted end
  return best
end

---Whether nothing that an answer goes on with could make it worth another score: what contains all
---that is looked for may end.
---@param name string
---@param answer string
---@param wanted string[]
---@return boolean
function metrics.settled(name, answer, wanted)
  if name == "word" then return answer:find "^%W*%w+%W" ~= nil end
  if name ~= "contains" and name ~= "contains_any" then return false end
  return metrics.score(name, answer, wanted) == 1
end

---The chance that one of k samples passes, estimated from n of which `passed` do (Chen et al.
---2021): 1 - C(n - passed, k) / C(n, k).
---@param n integer
---@param passed integer
---@param k integer
---@return number
function metrics.pass_at_k(n, passed, k)
  if n - passed < k then return 1 end
  local none = 1.0
  for i = n - passed + 1, n do none = none * (1 - k / i) end
  return 1 - none
end

return metrics

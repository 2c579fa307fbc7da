--- Facts of one word, hidden in a text: what any language model can be asked for, also one that has
--- never seen the world (pyramid.world), whose questions have a form of their own and things in
--- them that are hard to tell apart.
---
--- Each fact is a sentence about a person who is in no other sentence, set between two sentences of
--- a text of the user's, or of held-out documents of the world. Facts of a document stand evenly
--- spread, and are about different matters. A fact is asked for by beginning its sentence again:
--- "Priya's favourite fruit is the". Its last word is the answer.
local hidden = {}

--- The kind of such questions, beside pyramid.world's.
hidden.kind = "word"

local people = { "Priya", "Mateo", "Aiko", "Kwame", "Ingrid", "Farid", "Lucia", "Dmitri", "Amara",
  "Sven", "Leila", "Pablo", "Noor", "Kofi", "Yuki", "Elena", "Omar", "Marta", "Chen", "Nadia",
    "Ravi", "Anya", "Hassan", "Zofia" }

-- { what is told up to its last word, those words }
local matters = {
  { "%s's favourite fruit is the", { "mango", "cherry", "lemon", "peach", "banana", "melon",
    "apple", "coconut" } },
  { "%s lives in", { "Paris", "Tokyo", "Cairo", "Madrid", "Boston", "Berlin", "Sydney",
    "Vienna" } },
  { "%s likes to play the", { "violin", "piano", "guitar", "trumpet", "harp", "cello", "drums",
    "flute" } },
  { "%s's favourite colour is", { "purple", "orange", "green", "yellow", "blue", "pink", "red",
    "white" } },
  { "%s's pet is a", { "rabbit", "parrot", "turtle", "horse", "snake", "hamster", "goat",
    "monkey" } },
  { "%s works as a", { "doctor", "lawyer", "teacher", "baker", "farmer", "dentist", "pilot",
    "painter" } },
}

--- How many facts one document holds.
hidden.facts = 4

---@class pyramid.HiddenFact
---@field sentence string
---@field begun string          the sentence without its last word, which is what is asked for
---@field word string

---The facts of a document: different people, different matters.
---@param document integer    from 0
---@return pyramid.HiddenFact[]
function hidden.of(document)
  local list = {}
  for i = 1, hidden.facts do
    local n = document * hidden.facts + i - 1
    local who, matter = people[n % #people + 1], matters[(n + n // #matters) % #matters + 1]
    local word = matter[2][(n * 5 + n // #people) % #matter[2] + 1]
    local begun = matter[1]:format(who)
    list[i] = { sentence = ("%s %s."):format(begun, word), begun = begun, word = word }
  end
  return list
end

-- Places of a text where a sentence ends and another begins, as numbers of bytes before them.
local function gaps(text)
  local list = {}
  for past in text:gmatch "[%.!%?][\"')]*()%s+%f[%u\"]" do list[#list + 1] = past - 1 end
  if #list == 0 then
    for past in text:gmatch "()%s" do list[#list + 1] = past - 1 end  -- no sentences: between words
  end
  return list
end

---A text with facts between its sentences, the k-th of n at about the share (k - 1 + shift) / n of
---it. Also where each stands: first and last byte, from 1.
---@param text string
---@param facts pyramid.HiddenFact[]
---@param shift number         from 0 to 1
---@return string
---@return { [1]: integer, [2]: integer }[]
function hidden.set(text, facts, shift)
  local places, parts, spans, at, length = gaps(text), {}, {}, 0, 0
  local function put(part) parts[#parts + 1], length = part, length + #part end
  for k, fact in ipairs(facts) do
    local wanted, best = (k - 1 + shift) / #facts * #text, #text
    for _, place in ipairs(places) do
      if place > at and math.abs(place - wanted) < math.abs(best - wanted) then best = place end
    end
    put(text:sub(at + 1, best))
    put " "
    spans[k] = { length + 1, length + #fact.sentence }
    put(fact.sentence)
    at = best
  end
  put(text:sub(at + 1))
  return table.concat(parts), spans
end

---Whether a line goes on with the word, in whatever case.
---@param line string
---@param word string
---@return boolean
function hidden.answers(line, word)
  return (line:match "^%W*(%w+)" or ""):lower() == word:lower()
end

return hidden

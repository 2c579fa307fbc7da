-- The world generator: endless, seeded documents of simple English in which what was said early is
-- needed later.
--
-- Owns: the document under construction and its layout. Random numbers are tools/random.lua's, the
-- words are in world/words.lua, the scenery in world/frames.lua, what can be true and asked for in
-- world/facts.lua.
--
-- A document is a pure function of (seed, options), the same on every machine: integers of 64 bits,
-- no floats, no order of pairs(). It is a body (paragraphs, in which people also ask and answer)
-- and, after it, questions of the form
--   Question: What was the code of the tin box?
--   Answer: The code of the tin box was 4821.
-- Each paragraph takes a frame and sets facts and recollections between the frame's sentences.

local words = require "pyramid.tools.world.words"
local facts = require "pyramid.tools.world.facts"
local frames = require "pyramid.tools.world.frames"
local random = require "pyramid.tools.random"

local world = {}

--- Seeds from here on are never trained on.
world.held_out = 1000000000

--- The task kinds, in a fixed order.
world.kinds = { "attribute", "code", "gift", "moved", "verse", "chain" }

-- Templates.

local function fill(rng, template, slots)
  local s = template:gsub("%[([^%]]*)%]", function(inner)
    local options = {}
    for o in (inner .. "|"):gmatch("([^|]*)|") do options[#options + 1] = o end
    return rng:pick(options)
  end)
  s = s:gsub("{(%w+_?%w*)}", function(key)
    return slots[key] or error("no slot {" .. key .. "} for: " .. template)
  end)
  return (s:gsub("%f[%w]([Aa]) ([aeio])", "%1n %2"))
end

local function capital(s)
  return (s:gsub('^("?)(%l)', function(quote, letter) return quote .. letter:upper() end))
end

local function article(word)
  return (word:find "^[aeiou]" and "an " or "a ") .. word
end

-- An answer is a statement that ends in the value asked for.
local function statement(rng, fact, ask)
  return capital(fill(rng, ask[2], setmetatable({ value = ask[3] }, { __index = fact.slots })))
end

-- A full stop stands inside a quotation that ends the sentence.
local function stop(s)
  return s:sub(-1) == '"' and s:sub(1, -2) .. '."' or s .. "."
end

-- The document under construction.

local Doc = {}
Doc.__index = Doc

local function new_doc(seed, kinds)
  local rng = random.new(seed * 2 + 1)
  local doc = setmetatable({
    rng = rng, parts = {}, bytes = 0, words = 0,
    cast = {}, names = {}, nouns = {}, told = {}, questions = {}, asked = {},
    box_list = {}, movables = {}, relations = {}, kinds = kinds,
  }, Doc)
  if rng:chance(70) then doc.box = rng:pick(words.boxes) end
  return doc
end

-- Appends text; returns its first and last byte (from 1) in the document.
function Doc:write(s)
  local first = self.bytes + 1
  self.parts[#self.parts + 1] = s
  self.bytes = self.bytes + #s
  for _ in s:gmatch "%S+" do self.words = self.words + 1 end
  return first, self.bytes
end

-- Appends one sentence of a paragraph, with the space before it; returns its bytes without that
-- space.
function Doc:sentence(s)
  if self.fresh then self.fresh = false else self:write " " end
  return self:write(s)
end

function Doc:new_person()
  if #self.cast >= 40 then return nil end
  local female = self.rng:chance(50)
  local name
  repeat name = self.rng:pick(female and words.women or words.men) until not self.names[name]
  self.names[name] = true
  local p = { name = name, known = {} }
  p.he, p.him, p.his = table.unpack(female and { "she", "her", "her" } or { "he", "him", "his" })
  self.cast[#self.cast + 1] = p
  return p
end

function Doc:two_people()
  local p = self.rng:pick(self.cast)
  local q
  repeat q = self.rng:pick(self.cast) until q ~= p
  return p, q
end

local lead_ins = { "", "", "", "", "", "", "people said that ", "it was well known that ",
  "as it happened, ", "that was the year when ", "in those days ", "nobody doubted that ",
    "and then, one day, ", "{hero} knew that " }
local leads = { gift = { "", "", "", "one day ", "on {day} ", "that {season} ", "after supper ",
  "without a word " } }
leads.moved = leads.gift
leads.verse = { "" }

-- Tells a fact for the first time (or, for a moved thing, for the first time since it moved).
function Doc:tell(fact)
  local rng = self.rng
  local slots = setmetatable({ hero = self.hero.name }, { __index = fact.slots })
  slots.day = rng:pick(words.days)
  slots.season = rng:pick(words.seasons)
  local say = rng:pick(fact.say)
  local lead = say:find "^then " and "" or rng:pick(leads[fact.kind] or lead_ins)
  if (lead:find "that was the year" or leads[fact.kind]) and not say:find "^{P}" then lead = "" end
  local s = fill(rng, lead .. say, slots)
  local first, last = self:sentence(capital(stop(s)))
  fact.spans = { { first, last } }
  if not fact.listed then
    fact.listed = true
    self.told[#self.told + 1] = fact
  end
end

local function evidence(fact)
  if not fact.parts then return { fact.spans[1] } end
  local spans = {}
  for i, part in ipairs(fact.parts) do spans[i] = part.spans[1] end
  return spans
end

-- Notes a question whose answer, given as it is asked for at the end, was written from byte `first`
-- on as `written`.
function Doc:note(fact, ask, written, first, inside)
  local from, to = written:find(ask[3], 1, true)
  while true do
    local f, t = written:find(ask[3], from + 1, true)
    if not f then break end
    from, to = f, t
  end
  self.questions[#self.questions + 1] = {
    kind = fact.kind, question = capital(fill(self.rng, ask[1], fact.slots)),
    answer = stop(statement(self.rng, fact, ask)), value = ask[3],
    evidence = evidence(fact), value_bytes = { first + from - 1, first + to - 1 }, inside = inside,
  }
end

local again = {
  "as I said, ", "{A} still remembered: ", "nobody had forgotten it: ", "it was still true that ",
  "{A} said it again: ",
}

local asides = {
  { "\"{question}\" asked {A}.", "\"{reply},\" said {B}." },
  { "{A} asked, \"{question}\"", "\"{reply},\" {B} answered." },
  { "\"Tell me, {B},\" said {A}, \"{lower}\"", "\"{reply},\" said {B}." },
  { "{A} tried to remember: {lower}", "{reply}." },
  { "\"{question}\" {A} wanted to know.",
    "{B} did not have to think. \"{reply},\" {he} said." },
  { "{A} turned to {B}. \"{question}\"", "\"{reply}, as everybody knows,\" said {B}." },
}

-- Recalls something already told, in conversation or by saying it again.
function Doc:recall(fact)
  local rng = self.rng
  if not fact.parts and rng:chance(35) then
    local s = fill(rng, rng:pick(fact.again or fact.say), fact.slots)
    s = rng:pick(again) .. s
    self:sentence(capital(stop(fill(rng, s, { A = rng:pick(self.cast).name }))))
    return
  end
  local ask = rng:pick(fact.asks)
  local a, b = self:two_people()
  local form = rng:pick(asides)
  local question = fill(rng, ask[1], fact.slots)
  local answer = statement(rng, fact, ask)
  local slots = { A = a.name, B = b.name, he = b.he, question = capital(question),
    lower = question, reply = answer }
  -- A quotation within a quotation takes single marks.
  if form[1]:find "\"" then
    for _, k in ipairs { "question", "lower", "reply" } do slots[k] = slots[k]:gsub('"', "'") end
  end
  self:sentence(capital(fill(rng, form[1], slots)))
  local said = fill(rng, form[2], slots)
  self:note(fact, ask, said, self:sentence(said), true)
end

-- Something already told, or a chain of two such things; nil if there is nothing.
function Doc:something_told()
  local rng = self.rng
  if self.kinds.chain and rng:chance(20) then
    local chains = facts.chains(self)
    if #chains > 0 then return rng:pick(chains) end
  end
  return #self.told > 0 and rng:pick(self.told) or nil
end

-- Says something new: a new fact, or an old thing in a new place.
function Doc:something_new()
  local rng = self.rng
  if self.kinds.moved and #self.movables > 0 and rng:chance(20) then
    local fact = rng:pick(self.movables)
    facts.move(self, fact)
    return self:tell(fact)
  end
  for _ = 1, 10 do
    local kind = rng:pick(self.kinds)
    local fact = rng:pick(facts.makers[kind])(self)
    if fact then return self:tell(fact) end
  end
end

function Doc:ask(fact, ask)
  self:write("\n\nQuestion: " .. capital(fill(self.rng, ask[1], fact.slots)) .. "\nAnswer: ")
  local answer = stop(statement(self.rng, fact, ask))
  self:note(fact, ask, answer, self:write(answer), false)
end

-- One paragraph: the sentences of a frame with facts and recollections between them.
function Doc:paragraph(options)
  local rng = self.rng
  local p, q = self:two_people()
  self.hero, self.fresh = p, true
  local animal = rng:pick(words.animals)
  local slots = facts.person_slots(p)
  slots.Q, slots.he2, slots.him2, slots.his2 = q.name, q.he, q.him, q.his
  slots.He, slots.animal, slots.animal_a = capital(p.he), animal, article(animal)
  slots.weather = rng:pick(words.weather)
  slots.season = rng:pick(words.seasons)
  slots.day = rng:pick(words.days)
  slots.at = rng:pick(words.places)
  slots.food = rng:pick(words.foods)
  slots.town = rng:pick(words.towns)
  local scene = rng:pick(frames)
  local first = rng:chance(25) and rng:between(1, 2) or 1
  if first == 2 and scene[2]:find "^{He}" then first = 1 end
  local line, interrupted = first, false
  for _ = 1, rng:between(3, 6) do
    if line > #scene or rng:chance(options.density) then
      local fact = rng:chance(options.recall) and self:something_told()
      if fact then self:recall(fact) else self:something_new() end
      interrupted = true
    else
      -- A pronoun needs its person near: after something else was said, the frame's next sentence
      -- begins with the name.
      local template = scene[line]
      if line > first and interrupted then template = template:gsub("^{He}", "{P}") end
      self:sentence(capital(fill(rng, template, slots)))
      line, interrupted = line + 1, false
    end
  end
end

local known_options = { words = true, kinds = true, density = true, recall = true,
  questions = true, ask = true, title = true }

--- A document. Options (all optional; those left out are drawn from the seed):
---   words      about how many words the body has (default: 100 to 4000, most of them short)
---   kinds      list of task kinds that may occur (default: all)
---   density    percentage of what is said that is a fact or a recollection rather than scenery
---   recall     percentage of those that recall something; 0: every fact is told once
---   questions  how many questions stand at the end
---   ask        which of a fact's questions these are, where it has so many (of a gift 3: what was
---              given); default: any
---   title      whether there is a title line
--- Spans are byte positions in text, from 1, both ends included. A question's evidence is the list
--- of the sentences that it needs: one, or two for a chain. A question's answer is a statement,
--- which ends in its value (what was asked for, at value_bytes; the rest of an answer follows from
--- the question, and a chain's names its first fact). Repetitions in conversation are not evidence;
--- recall = 0 leaves them out.
---@param seed integer
---@param options table?
---@return { seed: integer, text: string, body_bytes: integer, questions: table[] }
function world.document(seed, options)
  options = options or {}
  for key in pairs(options) do
    if not known_options[key] then
      error("unknown option '" .. tostring(key)
        .. "'; known: ask, density, kinds, questions, recall, title, words", 2)
    end
  end
  local kinds = {}
  for _, kind in ipairs(options.kinds or world.kinds) do
    if not facts.makers[kind] then
      error("unknown kind '" .. tostring(kind) .. "'; known: " .. table.concat(world.kinds, ", "),
        2)
    end
    kinds[#kinds + 1], kinds[kind] = kind, true
  end
  local doc = new_doc(seed, kinds)
  local rng = doc.rng
  local length = 100 << rng:below(4)
  local target = options.words or length + rng:below(length * 4 - length // 2)
  local style = {
    density = options.density or rng:between(35, 85),
    recall = options.recall or rng:between(15, 60),
  }
  for _ = 1, rng:between(3, 4) + math.min(6, target // 250) do doc:new_person() end
  local title = options.title
  if title == nil then title = rng:chance(30) end
  if title then
    local p, q = doc:two_people()
    local season = capital(rng:pick(words.seasons))
    local day = rng:pick(words.days)
    doc:write(fill(rng, "[The Story of {P} and {Q}|{P} and {Q}|{P}'s {season}|{day} with {P}]",
      { P = p.name, Q = q.name, season = season, day = day }))
  end
  repeat
    if doc.bytes > 0 then doc:write "\n\n" end
    doc:paragraph(style)
    -- Now and then the narrator himself asks, in the form of the questions at the end.
    if style.recall > 0 and rng:chance(6) then
      for _ = 1, rng:between(1, 3) do
        local fact = doc:something_told()
        if fact then
          doc:ask(fact, rng:pick(fact.asks))
          doc.questions[#doc.questions].inside = true
        end
      end
    end
  until doc.words >= target and #doc.told > 0
  local body_bytes = doc.bytes

  local wanted = options.questions or math.max(3, math.min(20, target // rng:between(14, 45)))
  local asked, times = {}, {}
  for _ = 1, wanted * 4 do
    if wanted == 0 then break end
    local fact = doc:something_told()
    local ask = fact and (fact.asks[options.ask] or rng:pick(fact.asks))
    local question = ask and fill(rng, ask[1], fact.slots)
    -- No question twice, and no fact more than twice.
    if question and not asked[question] and (times[fact] or 0) < 2 then
      asked[question], times[fact] = true, (times[fact] or 0) + 1
      doc:ask(fact, ask)
      wanted = wanted - 1
    end
  end
  doc:write "\n"
  return { seed = seed, text = table.concat(doc.parts), body_bytes = body_bytes,
    questions = doc.questions }
end

--- The prompt that asks one question of a document's body; a right continuation is " " .. answer ..
--- "\n".
---@param document table
---@param question table one of document.questions
---@return string
function world.prompt(document, question)
  return document.text:sub(1, document.body_bytes) .. "\n\nQuestion: " .. question.question
    .. "\nAnswer:"
end

return world

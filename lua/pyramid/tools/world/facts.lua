-- What can be true in a world document: how a fact is made, told and asked for (pyramid.world). A
-- fact is { kind=, say={templates}, asks={ {question, answer, value}, ... }, slots={...} }.
-- Templates start in lower case; the writer capitalises. An answer is a whole statement that ends
-- in {value}, what was asked for. Makers get the document's state and return nil when nothing new
-- of their kind can be said.

local words = require "pyramid.tools.world.words"

local facts = {}

-- Attributes of people: key -> how the value is drawn, told and asked for.
local attributes = {
  { key = "clothes", draw = function(rng) return rng:pick(words.colours),
    rng:pick(words.clothes) end,
    say = { "{P}'s {extra} was {value}", "{P} wore a {extra} that was {value}",
      "{P} had a {value} {extra}" },
    ask = "what colour was {P}'s {extra}?", answer = "{P}'s {extra} was {value}",
    chain = "what colour was the {extra} of {P}'s {kin}?" },
  { key = "trade", draw = function(rng) return rng:pick(words.trades) end,
    say = { "{P} was a {value} by trade", "{P} worked as a {value}",
      "{P} earned {his} bread as a {value}" },
    ask = "what was {P}'s trade?", answer = "{P} worked as a {value}",
      chain = "what was the trade of {P}'s {kin}?" },
  { key = "town", draw = function(rng) return rng:pick(words.towns) end,
    say = { "{P} lived in {value}", "{P} had a house in {value}",
      "the home of {P} was in {value}" },
    ask = "where did {P} live?", answer = "{P} lived in {value}",
      chain = "where did {P}'s {kin} live?" },
  { key = "food", draw = function(rng) return rng:pick(words.foods) end,
    say = { "{P} liked {value} best of all", "the favourite food of {P} was {value}",
      "there was nothing that {P} liked better than {value}" },
    ask = "what was {P}'s favourite food?", answer = "{P}'s favourite food was {value}",
    chain = "what was the favourite food of {P}'s {kin}?" },
  { key = "pet", draw = function(rng) return rng:pick(words.pet_names), rng:pick(words.pets) end,
    say = { "{P} had a {extra} named {value}", "{P}'s {extra} was called {value}",
      "{P} owned a {extra}, and its name was {value}" },
    ask = "what was {P}'s {extra} called?", answer = "{P}'s {extra} was called {value}",
    chain = "what was the {extra} of {P}'s {kin} called?" },
  { key = "age", draw = function(rng) return rng:pick(words.ages) end,
    say = { "{P} was {value} years old", "that year {P} turned {value}",
      "{P} had reached the age of {value}" },
    ask = "how old was {P}?", answer = "the age of {P} was {value}",
      chain = "how old was {P}'s {kin}?" },
  { key = "instrument", draw = function(rng) return rng:pick(words.instruments) end,
    say = { "{P} played the {value}", "{P} had learned to play the {value}",
      "{P} was good at playing the {value}" },
    ask = "what did {P} play?", answer = "{P} played the {value}",
      chain = "what did {P}'s {kin} play?" },
}

--- Slots for a person as hero.
function facts.person_slots(p)
  return { P = p.name, he = p.he, him = p.him, his = p.his }
end

local function thing_name(doc)
  local rng, names = doc.rng, doc.names
  for _ = 1, 12 do
    -- Four times in ten a noun that is already in use, of another stuff: a distractor.
    local noun = #doc.nouns > 0 and rng:chance(40) and rng:pick(doc.nouns) or rng:pick(words.things)
    local name = rng:pick(words.stuffs) .. " " .. noun
    if not names[name] then
      names[name] = true
      doc.nouns[#doc.nouns + 1] = noun
      return name
    end
  end
end

--- A person (of the cast or new) of whom `key` is not yet known.
local function free_person(doc, key)
  for _ = 1, 4 do
    local p = doc.rng:pick(doc.cast)
    if not p.known[key] then return p end
  end
  local p = doc:new_person() or doc.rng:pick(doc.cast)
  return not p.known[key] and p or nil
end

local function attribute(doc)
  local rng = doc.rng
  local a = rng:pick(attributes)
  local p = free_person(doc, a.key)
  if not p then return nil end
  local value, extra = a.draw(rng)
  local slots = facts.person_slots(p)
  slots.value, slots.extra = value, extra
  local fact = { kind = "attribute", say = a.say, slots = slots,
    asks = { { a.ask, a.answer, value } } }
  p.known[a.key] = { fact = fact, chain = a.chain, answer = a.answer, value = value, extra = extra }
  return fact
end

local function kin(doc)
  local rng = doc.rng
  local relation = rng:pick(words.kin)
  local p = free_person(doc, relation)
  local q = rng:pick(doc.cast)
  if not p or p == q then return nil end
  local slots = facts.person_slots(p)
  slots.kin, slots.Q = relation, q.name
  local fact = { kind = "attribute", slots = slots, relative = q,
    say = { "{P}'s {kin} was {Q}", "the {kin} of {P} was {Q}", "{P} had {Q} as {his} {kin}" },
    asks = { { "who was {P}'s {kin}?", "{P}'s {kin} was {value}", q.name } } }
  p.known[relation] = { fact = fact }
  doc.relations[#doc.relations + 1] = fact
  return fact
end

local function paint(doc)
  local rng = doc.rng
  local part, building = rng:pick(words.painted), rng:pick(words.buildings)
  local name = part .. " of the " .. building
  if doc.names[name] then return nil end
  doc.names[name] = true
  local colour = rng:pick(words.colours)
  return { kind = "attribute", slots = { name = name, colour = colour },
    say = { "the {name} was painted {colour}", "somebody had painted the {name} {colour}",
      "the {name} was {colour}" },
    asks = { { "what colour was the {name}?", "the {name} was {value}", colour } } }
end

local function code(doc)
  local rng = doc.rng
  local name
  for _ = 1, 8 do
    local n = rng:pick(words.stuffs) .. " " .. (doc.box or rng:pick(words.boxes))
    if not doc.names[n] then name = n break end
  end
  if not name then return nil end
  doc.names[name] = true
  local digits = ""
  for _ = 1, 4 do digits = digits .. rng:below(10) end
  local fact = { kind = "code", slots = { box = name, code = digits, P = rng:pick(doc.cast).name },
    box = name, say = { "the code of the {box} was {code}",
      "the {box} opened with the code {code}", "the lock of the {box} had the code {code}",
        "{P} set the code of the {box} to {code}",
          "on the {box} was a lock, and its code was {code}" },
            asks = { { "what was the code of the {box}?", "the code of the {box} was {value}",
              digits } } }
  doc.box_list[#doc.box_list + 1] = fact
  return fact
end

local function hide(doc)
  local rng = doc.rng
  local thing = rng:pick(words.hidden)
  local box = #doc.box_list > 0 and rng:pick(doc.box_list)
  if not box or doc.names[thing] then return nil end
  doc.names[thing] = true
  local fact = { kind = "attribute", slots = { thing = thing, box = box.box,
    P = rng:pick(doc.cast).name }, holds = box,
      say = { "the {thing} was hidden in the {box}", "{P} hid the {thing} in the {box}",
        "the {box} held the {thing}" }, asks = { { "where was the {thing} hidden?",
          "the {thing} was hidden in the {value}", box.box } } }
  doc.relations[#doc.relations + 1] = fact
  return fact
end

local function gift(doc)
  local p, q = doc:two_people()
  local pair = p.name .. ">" .. q.name
  if doc.names[pair] then return nil end
  local thing = thing_name(doc)
  if not thing then return nil end
  doc.names[pair] = true
  local slots = facts.person_slots(p)
  slots.Q, slots.thing = q.name, thing
  return { kind = "gift", slots = slots,
    say = { "{P} gave the {thing} to {Q}", "{Q} got the {thing} from {P}",
      "the {thing} was a gift from {P} to {Q}", "{P} gave {Q} the {thing}" },
    asks = { { "who gave the {thing} to {Q}?", "{Q} got the {thing} from {value}", p.name },
      { "who got the {thing} from {P}?", "{P} gave the {thing} to {value}", q.name },
      { "what did {P} give to {Q}?", "{P} gave {Q} the {value}", thing } } }
end

local function moved(doc)
  local thing = thing_name(doc)
  if not thing then return nil end
  local fact = { kind = "moved", slots = { thing = thing }, moves = 0,
    asks = { { "where is the {thing} now?", "the {thing} is now {value}" } } }
  doc.movables[#doc.movables + 1] = fact
  facts.move(doc, fact)
  return fact
end

--- Puts a movable thing somewhere else; the next telling says so and makes the last one out of
--- date.
function facts.move(doc, fact)
  local rng = doc.rng
  local place = rng:pick(words.places)
  while place == fact.place do place = rng:pick(words.places) end
  fact.place, fact.moves = place, fact.moves + 1
  fact.spans = nil
  fact.asks[1][3] = place
  local p = rng:pick(doc.cast)
  local slots = facts.person_slots(p)
  slots.thing, slots.at = fact.slots.thing, place
  fact.slots = slots
  fact.say = fact.moves == 1
    and { "{P} put the {thing} {at}", "{P} left the {thing} {at}", "{P} kept the {thing} {at}",
      "the {thing} was {at}" }
    or { "{P} moved the {thing}, and now it was {at}", "{P} took the {thing} away and put it {at}",
      "{P} carried the {thing} off and left it {at}", "then {P} put the {thing} {at}" }
  fact.again = { "the {thing} was {at}" }
end

local verse_order = { "adjectives", "nouns", "verbs", "adjectives", "nouns" }

local function verse_line(rng)
  local line = "the"
  for _, class in ipairs(verse_order) do
    line = line .. " " .. rng:pick(words["verse_" .. class]) .. (class == "verbs" and " the" or "")
  end
  return line
end

local function verse(doc)
  local p = free_person(doc, "verse")
  if not p then return nil end
  local lines = {}
  for i = 1, doc.rng:between(2, 4) do lines[i] = verse_line(doc.rng) end
  local whole = table.concat(lines, ", "):gsub("^t", "T")
  local slots = facts.person_slots(p)
  slots.verse = whole
  local asks = { { "what was {P}'s verse?", '{P}\'s verse was this: "{value}"', whole } }
  for i = 2, #lines do
    local before = i == 2 and lines[1]:gsub("^t", "T") or lines[i - 1]
    asks[i] = { 'in {P}\'s verse, what comes after "' .. before .. '"?',
      'after "' .. before .. '" comes "{value}"', lines[i] }
  end
  local fact = { kind = "verse", slots = slots, asks = asks,
    say = { '{P} knew a verse: "{verse}"', '{P} often said this verse: "{verse}"',
      '{P} had learned a verse by heart: "{verse}"',
      '{P}\'s verse went like this: "{verse}"' } }
  p.known.verse = { fact = fact }
  return fact
end

--- Two-fact questions that can be answered from what has been told.
function facts.chains(doc)
  local found = {}
  for _, r in ipairs(doc.relations) do
    if r.spans and r.relative then
      for _, a in ipairs(attributes) do
        local known = r.relative.known[a.key]
        if known and known.fact.spans then
          found[#found + 1] = { kind = "chain", parts = { r, known.fact },
            slots = { P = r.slots.P, kin = r.slots.kin, extra = known.extra },
            asks = { { known.chain, "{P}'s {kin} was " .. r.relative.name .. ", and "
              .. known.answer:gsub("{P}", r.relative.name), known.value } } }
        end
      end
    elseif r.spans and r.holds and r.holds.spans then
      found[#found + 1] = { kind = "chain", parts = { r, r.holds },
        slots = { thing = r.slots.thing, noun = r.slots.box:match("%S+$"), box = r.slots.box },
        asks = { { "what was the code of the {noun} that held the {thing}?",
          "the {thing} was hidden in the {box}, and the code of the {box} was {value}",
            r.holds.slots.code } } }
    end
  end
  return found
end

-- kind -> makers, one of which is drawn. A chain is not made but found; its parts are.
facts.makers = {
  attribute = { attribute, attribute, attribute, paint },
  code = { code },
  gift = { gift },
  moved = { moved },
  verse = { verse },
  chain = { kin, kin, hide, attribute },
}

return facts

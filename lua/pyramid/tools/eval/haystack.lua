--- What needles are hidden in: sentences of a text, and where in them something stands.
local random = require "pyramid.tools.random"
local world = require "pyramid.tools.world"

local haystack = {}

---The sentences of a text, white space in it as single blanks.
---@param text string
---@return string[]
function haystack.sentences(text)
  local out, at = {}, 1
  text = text:gsub("%s+", " "):match "^ ?(.-) ?$"
  for past, following in text:gmatch "[%.!%?][\"')]*() ()%f[%u\"'%d(]" do
    out[#out + 1] = text:sub(at, past - 1)
    at = following
  end
  if at <= #text then out[#out + 1] = text:sub(at) end
  return out
end

---Sentences for a case: those of a text, from a place that differs from seed to seed, over its end
---to its beginning; without a text those of a held-out document of the world.
---@param sentences string[]?
---@param rng pyramid.Random
---@param bytes integer       at least so many, if the text has so many at all or is repeated
---@return string[]
function haystack.stretch(sentences, rng, bytes)
  if not sentences then
    sentences = haystack.sentences(world.document(world.held_out + rng:below(1 << 20),
      { words = bytes // 4 + 50, questions = 0, title = false }).text)
  end
  local out, size, at = {}, 0, rng:below(#sentences)
  while size < bytes do
    local one = sentences[at % #sentences + 1]
    out[#out + 1], size, at = one, size + #one + 1, at + 1
  end
  return out
end

---Sentences with things set between them, the k-th at about the share depths[k] of them.
---@param sentences string[]
---@param things string[]
---@param depths number[]     ascending, 0 to 1
---@return string
function haystack.set(sentences, things, depths)
  local parts, at = {}, 1
  for k, thing in ipairs(things) do
    local past = math.floor(#sentences * depths[k])
    for i = at, past do parts[#parts + 1] = sentences[i] end
    parts[#parts + 1], at = thing, math.max(at, past + 1)
  end
  for i = at, #sentences do parts[#parts + 1] = sentences[i] end
  return table.concat(parts, " ")
end

---`count` of RULER's forty depths, ascending: shares from 0 to 1.
---@param rng pyramid.Random
---@param count integer
---@return number[]
function haystack.depths(rng, count)
  local all = {}
  for i = 0, 39 do all[i + 1] = math.floor(i * 100 / 39 + 0.5) / 100 end
  local chosen = rng:sample(all, count)
  table.sort(chosen)
  return chosen
end

---Numbers that a case's draws begin with: task, seed and what more tells cases apart.
---@param task string
---@param seed integer
---@return pyramid.Random
function haystack.random(task, seed)
  local state = seed
  for i = 1, #task do state = state * 31 + task:byte(i) end
  return random.new(state)
end

return haystack

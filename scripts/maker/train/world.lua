-- Writes world documents to standard output, for the trainer.
--   lua5.4 scripts/maker/train/world.lua FIRST_SEED COUNT [MIN_WORDS MAX_WORDS]
--     [kind=KIND] [recall=N] [density=N] [questions=N] [ask=N] [--json]
-- Seeds FIRST_SEED .. FIRST_SEED + COUNT - 1. Without word counts each seed draws its own length.
-- Documents are followed by a zero byte; with --json each is one line { seed, text, body_bytes,
-- questions }.
--   lua5.4 scripts/maker/train/world.lua --lexicon
-- writes every word of the lexicon once, one a line, sorted.
-- Run from the repository's root.

package.path = "lua/?.lua;" .. package.path
local world = require "pyramid.tools.world"

if arg[1] == "--lexicon" then
  local seen, all = {}, {}
  for _, list in pairs(require "pyramid.tools.world.words") do
    for _, entry in ipairs(list) do
      for word in entry:gmatch "%S+" do
        if not seen[word] then seen[word], all[#all + 1] = true, word end
      end
    end
  end
  table.sort(all)
  return print(table.concat(all, "\n"))
end

local json, numbers, options = false, {}, {}
for _, a in ipairs(arg) do
  local key, value = a:match "^(%l+)=(.+)$"
  if a == "--json" then json = true
  elseif key == "kind" then
    options.kinds = options.kinds or {}
    table.insert(options.kinds, value)
  elseif key then options[key] = assert(math.tointeger(tonumber(value)), a)
  else numbers[#numbers + 1] = assert(math.tointeger(tonumber(a)), "not an integer: " .. a) end
end
local first, count = assert(numbers[1], "first seed?"), assert(numbers[2], "how many?")
local low, high = numbers[3], numbers[4]

local function encode(v)
  if type(v) == "table" then
    local parts = {}
    if #v > 0 or next(v) == nil then
      for i, x in ipairs(v) do parts[i] = encode(x) end
      return "[" .. table.concat(parts, ",") .. "]"
    end
    local keys = {}
    for k in pairs(v) do keys[#keys + 1] = k end
    table.sort(keys)
    for i, k in ipairs(keys) do parts[i] = encode(k) .. ":" .. encode(v[k]) end
    return "{" .. table.concat(parts, ",") .. "}"
  elseif type(v) == "string" then
    return '"' .. v:gsub('[%c"\\]', function(c) return ("\\u%04x"):format(c:byte()) end) .. '"'
  end
  return tostring(v)
end

for seed = first, first + count - 1 do
  if low then options.words = low + (seed * 7919) % (high - low + 1) end
  local document = world.document(seed, options)
  io.write(json and encode(document) or document.text, json and "\n" or "\0")
end

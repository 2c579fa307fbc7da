-- speculation.lua: how much sooner the same text comes with guesses, by task, rounds in turns.
--
--   build/pyramid scripts/examples/speculation.lua MODEL [ROUNDS] [TEXT FILE]
--
-- Edits and summaries say again much of what they read; a story says nothing twice. The text of the
-- tasks is a file of one's own, or a paragraph.
local pyramid = require "pyramid"

local path, rounds, file = arg[1], tonumber(arg[2]) or 5, arg[3]
local text = "The old owl sat on the branch of a tall oak, watching the younger birds. A small deer "
  .. "came out of the bushes and looked around, but nobody noticed it. Then the wind began to blow, "
  .. "and the leaves fell down on the water. In the evening all of the animals of the forest "
  .. "gathered by the river to drink, and the owl told them about the winter of the great snow."
if file then
  local f <close> = assert(io.open(file))
  text = f:read "a"
end
local tasks = {
  { "edit", "Correct the spelling of this text, and give all of it back:\n" .. text },
  { "summary", "Summarise this text in two sentences that quote it:\n" .. text },
  { "story", "Tell a story about a sailor who finds an island." },
}

local model <close> = assert(pyramid.model(path, { threads = 2 }))

local function median(list)
  table.sort(list)
  return list[(#list + 1) // 2]
end

local function write(prompt, speculate)
  local run <close> = assert(model:generate({ { role = "user", content = prompt } },
    { max_tokens = 200, speculate = speculate }))
  local ids = {}
  for _, id in run do ids[#ids + 1] = id end
  return table.concat(ids, " "), run.stats
end

print "task      tokens  guessed   held  tok/s plain  guessed   ratio (lowest .. highest)"
for _, task in ipairs(tasks) do
  local plain, guessed, ratios, stats = {}, {}, {}, nil
  for round = 1, rounds do
    local told = {}
    for turn = 0, 1 do                          -- who goes first changes from round to round
      local speculate = (round + turn) % 2 == 0
      local ids, found = write(task[2], speculate or nil)
      told[speculate] = { ids = ids, seconds = found.decode_seconds }
      if speculate then stats = found end
    end
    assert(told[true].ids == told[false].ids, "the text is the same")
    plain[round], guessed[round] = told[false].seconds, told[true].seconds
    ratios[round] = told[false].seconds / told[true].seconds
  end
  local n, middle = stats.generated_tokens, median(ratios)
  print(("%-8s %7d %8d %6d %12.0f %8.0f   %5.2f (%.2f .. %.2f)"):format(task[1], n, stats.drafted,
    stats.accepted, n / median(plain), n / median(guessed), middle, ratios[1], ratios[#ratios]))
end

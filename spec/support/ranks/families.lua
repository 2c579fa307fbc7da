-- families.lua FIXTURE…: run by a launcher on each of several ranks. Every fixture's golden logits,
-- however its tokens come, and 200 greedy ids. Rank 0 writes a line for each: its name, and "ok" or
-- what was wrong. Turns that a family scales by the length of a text are those that the golden ones
-- were made with where a model is opened for that length.
package.path = (arg[0]:match "^(.*)spec/" or "") .. "./?.lua;" .. package.path

local files = require "pyramid.files"
local helper = require "spec.helper"
local pyramid = require "pyramid"

local function check(fixture)
  local folder = helper.fixture(fixture)
  local golden = helper.json(folder .. "/golden.json")
  local bytes = helper.read(folder .. "/golden.bin")
  local file = folder .. "/model.gguf"
  local function open(context)
    return assert(pyramid.model(files.exists(file) and file or folder,
      { threads = 1, precision = "f32", ranks = os.getenv "RANKS", context = context }))
  end
  local function near(logits, sequence, i, what)
    local vocab = sequence.shape[2]
    helper.assert_near(logits, helper.floats(bytes, sequence.offset + 4 * vocab * (i - 1), vocab),
      ("%s, position %d of %d"):format(what, i, #sequence.ids))
  end
  for _, sequence in ipairs(golden.sequences) do
    local ids = sequence.ids
    local model <close> = open(#ids)
    local cache <close> = assert(model:cache { dtype = "f32" })
    for i, logits in ipairs(assert(cache:prefill(ids, { all = true }))) do
      near(logits, sequence, i, "at once")
    end
    local steps <close> = assert(model:cache { dtype = "f32" })
    near(assert(steps:prefill { ids[1] }), sequence, 1, "first")
    for i = 2, #ids do near(assert(steps:step(ids[i])), sequence, i, "one by one") end
    local parts <close> = assert(model:cache { dtype = "f32" })
    local first = math.max(#ids // 3, 1)
    near(assert(parts:prefill(helper.slice(ids, 1, first))), sequence, first, "first part")
    if first < #ids then
      near(assert(parts:prefill(helper.slice(ids, first + 1))), sequence, #ids, "last part")
    end
  end
  local prompt, ids = golden.greedy.prompt, golden.greedy.ids
  local model = open(#prompt + #ids)
  -- scaled by the length: the golden ids began with the turns of short texts
  local short = (model.warnings[1] or ""):match "for shorter ones open it with context = (%d+)$"
  if short then
    model:close()
    model = open(tonumber(short))
    ids = helper.slice(ids, 1, short - #prompt)
  end
  local owned <close> = model
  local cache <close> = assert(owned:cache { dtype = "f32" })
  local logits = assert(cache:prefill(prompt))
  for i, id in ipairs(ids) do
    local best = (logits:argmax())
    assert(best == id, ("greedy id %d is %d, not %d"):format(i, best, id))
    logits = assert(cache:step(best))
  end
  return model:runtime():ranks().rank
end

for _, fixture in ipairs(arg) do
  local ok, rank = pcall(check, fixture)
  if not ok or rank == 0 then print(fixture, ok and "ok" or rank) end
end

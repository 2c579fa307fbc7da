-- families.lua FIXTURE…: run by a launcher on each of several ranks. Every fixture's golden logits,
-- however its tokens come, and 200 greedy ids. Rank 0 writes a line for each: its name, and "ok" or
-- what was wrong.
package.path = (arg[0]:match "^(.*)spec/" or "") .. "./?.lua;" .. package.path

local files = require "pyramid.files"
local helper = require "spec.helper"
local pyramid = require "pyramid"

local function check(fixture)
  local folder = helper.fixture(fixture)
  local golden = helper.json(folder .. "/golden.json")
  local bytes = helper.read(folder .. "/golden.bin")
  local file = folder .. "/model.gguf"
  local model <close> = assert(pyramid.model(files.exists(file) and file or folder,
    { threads = 1, precision = "f32", ranks = "tensor" }))
  local function near(logits, sequence, i, what)
    local vocab = sequence.shape[2]
    helper.assert_near(logits, helper.floats(bytes, sequence.offset + 4 * vocab * (i - 1), vocab),
      ("%s, position %d of %d"):format(what, i, #sequence.ids))
  end
  for _, sequence in ipairs(golden.sequences) do
    local ids = sequence.ids
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
  local cache <close> = assert(model:cache { dtype = "f32" })
  local logits = assert(cache:prefill(golden.greedy.prompt))
  for i, id in ipairs(golden.greedy.ids) do
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

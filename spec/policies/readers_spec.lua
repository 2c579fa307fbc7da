-- The policies whose steps read less than is held, against plain Lua in double precision: the
-- papers' formulas for what a page ranks by, pages chosen lane by lane, and a transformer over the
-- rows of those.
local helper = require "spec.helper"
local plain = require "support.plain_llama"
local pyramid = require "pyramid"
local random_model = require "pyramid.tools.random_model"
local reading = require "support.plain_reading"
local shell = require "support.shell"

local SHAPE = { layers = 4, width = 32, heads = 4, kv_heads = 2, ff = 48, vocab = 272,
  context = 1024 }
local PAGE, HEAD = 32, 8

-- By policy: its options, and what each layer reads under them.
local cases = {
  quest = { options = { rows = 4 * PAGE, whole = 2 },
    reads = { rows = 4 * PAGE, by = "bound", first = 4, last = 32 }, whole = 2 },
  signs = { options = { rows = 4 * PAGE, whole = 1, sinks = 4, recent = 40 },
    reads = { rows = 4 * PAGE, by = "signs", first = 4, last = 40 }, whole = 1 },
  arkvale = { options = { rows = 3 * PAGE, whole = 1, sinks = 32, recent = 33 },
    reads = { rows = 3 * PAGE, by = "ball", first = 32, last = 33 }, whole = 1 },
  infllm = { options = { rows = 6 * PAGE, sinks = 40, recent = 70 },
    reads = { rows = 6 * PAGE, by = "mean", first = 40, last = 70 }, whole = 0 },
  rocketkv = { options = { ratio = 0.6, read = 3 * PAGE, window = 16 },
    reads = { rows = 3 * PAGE, by = "bound", first = 4, last = 16 }, whole = 0 },
}

describe("what a policy's steps read", function()
  local folder, model, llama
  setup(function()
    folder = shell.folder()
    assert(random_model.write(folder .. "/model", { shape = SHAPE, dtype = "f32", seed = 21 }))
    model = assert(pyramid.model(folder .. "/model", { threads = 2 }))
    llama = plain.open(folder .. "/model")
  end)
  teardown(function()
    model:close()
    shell.remove(folder)
  end)

  for name, case in pairs(cases) do
    it("is what its paper says: " .. name, function()
      local ids, more = helper.ids(333, SHAPE.vocab, 31), helper.ids(36, SHAPE.vocab, 32)
      local p = assert(pyramid.policy(name, case.options))
      local cache <close> = assert(model:cache { policy = p, dtype = "f32" })
      assert(cache:prefill(ids))
      local lanes = llama:lanes()
      for _, id in ipairs(ids) do llama:step(lanes, id) end
      for layer = 1, SHAPE.layers do
        for head = 1, SHAPE.kv_heads do
          plain.keep(lanes[layer][head], cache:positions(layer, head))
        end
      end
      assert.equal(name == "rocketkv" and 200 or 333, cache:rows(SHAPE.layers))
      local o = { scale = HEAD ^ -0.5 }
      for key, value in pairs(case.reads) do o[key] = value end
      local less = 0
      llama.reads = function(lane, queries, layer, position)
        if layer <= case.whole then return lane end
        local rows = reading.rows(o, lane, queries, position)
        less = less + (#rows < #lane and 1 or 0)
        return rows
      end
      local want = {}
      for i, id in ipairs(more) do want[i] = llama:step(lanes, id) end
      llama.reads = nil
      assert.equal(#more * SHAPE.kv_heads * (SHAPE.layers - case.whole), less)
      for i, id in ipairs(more) do
        helper.assert_near(assert(cache:step(id)), want[i], ("%s, step %d"):format(name, i))
      end
    end)
  end
end)

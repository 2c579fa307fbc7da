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

  it("is of all tiers: offload", function()
    local ids, more = helper.ids(333, SHAPE.vocab, 41), helper.ids(40, SHAPE.vocab, 42)
    local function cache_of(policy, options, tiers)
      local cache = assert(model:cache { policy = assert(pyramid.policy(policy, options)),
        tiers = tiers, dtype = not tiers and "f32" or nil })
      assert(cache:prefill(ids))
      return cache
    end
    local tiers = { hot = "f32", warm = "f32" }
    local full <close> = cache_of("full")
    local all <close> = cache_of("offload", { ratio = 0.3, read = 4096 }, tiers)
    local some <close> = cache_of("offload", { ratio = 0.3, read = 2 * PAGE, whole = 0,
      recent = 32 }, tiers)
    assert.equal(0, all:rows(2, 1, "warm"))                   -- the first layers stay whole
    for _, cache in ipairs { all, some } do
      local hot, kept = cache:positions(3, 1, "hot"), {}
      for i = 0, 3 do kept[#kept + 1] = i end                 -- sinks, and the newest
      for i = 333 - 96, 332 do kept[#kept + 1] = i end
      assert.same(kept, hot)
      assert.equal(333 - #kept, cache:rows(3, 1, "warm"))
      assert.equal(1, cache:fraction())
    end
    assert.equal(1, all:reading())
    assert.is_true(some:reading() < 0.6)
    local apart = 0
    for i, id in ipairs(more) do
      local want = assert(full:step(id)):totable()
      helper.assert_near(assert(all:step(id)), want, "step " .. i)
      apart = math.max(apart, helper.distance(assert(some:step(id)):totable(), want))
    end
    assert.is_true(apart > 1e-3)                              -- less was read
    assert.equal(373, all:rows(4, 2, "hot") + all:rows(4, 2, "warm"))
    local alone <close> = cache_of("offload", { ratio = 0.3 })          -- without tiers
    local window <close> = cache_of("streaming", { ratio = 0.3 })
    assert.same(window:positions(3, 1), alone:positions(3, 1))
  end)
end)

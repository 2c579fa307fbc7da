-- Learned maps: what is learned from texts, the files that hold it, and the policy that goes by it.
-- Ridge regression and score.learned are in spec/policies/learned_spec.lua.
local helper = require "spec.helper"
local learn = require "pyramid.tools.learn"
local maps = require "pyramid.maps"
local pyramid = require "pyramid"
local random_models = require "spec.support.random_models"
local score = require "pyramid.score"
local shell = require "spec.support.shell"
local vector = require "pyramid.vector"

local SHAPE = { layers = 3, width = 32, heads = 4, kv_heads = 2, ff = 48, vocab = 272,
  context = 512 }
local LANES = SHAPE.layers * SHAPE.kv_heads
local models = random_models(SHAPE)

local function texts(count, length)
  local list = {}
  for i = 1, count do list[i] = helper.ids(length, SHAPE.vocab, 40 + i) end
  return list
end

describe("learning what will be looked at", function()
  local learned, folder
  setup(function()
    learned = assert(learn.map(models.cpu, texts(5, 120)))
    folder = shell.folder()
    for name, bytes in pairs(learn.folder(learned, "a spec's.")) do
      helper.write(folder .. "/" .. name, bytes)
    end
  end)
  teardown(function() shell.remove(folder) end)

  it("makes a map and budgets for each layer and head", function()
    assert.same({ LANES, SHAPE.width + 1 }, { #learned.map, learned.map:columns() })
    assert.equal(LANES, #learned.budgets)
    assert.same({ 5, 1, 4 * 116 }, { learned.texts, learned.held_out, learned.rows })
    local levels = learned.budgets:columns()
    for level = 1, levels do
      local mean = 0.0
      for head = 1, LANES do mean = mean + learned.budgets[head][level] / LANES end
      assert.near(level / levels, mean, 2 / 116)
    end
    for head = 1, LANES do
      assert.equal(1, learned.budgets[head][levels])
      for level = 2, levels do
        assert.truthy(learned.budgets[head][level] >= learned.budgets[head][level - 1])
      end
    end
    assert.same({ 1, levels }, { #learned.thresholds, learned.thresholds:columns() })
    for level = 2, levels do
      assert.truthy(learned.thresholds[1][level] <= learned.thresholds[1][level - 1])
    end
  end)

  -- The teacher once more, by hand: what a repetition gives each row, as its logarithm. The map is
  -- the least squares fit of that, so that no map nearby has a smaller error.
  it("fits the logarithm of what a repetition gives each row", function()
    local model, ids = models.cpu, texts(1, 120)[1]
    local cache <close> = assert(model:cache())
    assert(cache:prefill(ids))
    assert(cache:probe(ids, score.attention { reduce = "max", heads = "max" }))
    local one = assert(learn.map(model, { ids, texts(2, 120)[2] }))
    local errors, count, flat = 0.0, 0, 0.0
    local seen = {}
    local watching <close> = assert(model:cache { policy = { name = "watch",
      prefill = function(_, l)
        return { keep = l.rows - 1, guard = { first = 4 }, share = "head",
          score = score.custom(function(lane)
            seen[#seen + 1] = { lane.layer, lane.head, lane.said:totable() }
            return lane.positions
          end, { said = score.learned(one.map) }) }
      end } })
    assert(watching:prefill(ids))
    assert.equal(LANES, #seen)
    for _, lane in ipairs(seen) do
      local given = cache:scores(score.probed(), { layer = lane[1], head = lane[2] })
      local truth = (given:slice(5, #ids) + 1e-5):log()
      local mean = truth:mean()
      for i, said in ipairs(lane[3]) do
        errors, flat = errors + (said - truth[i]) ^ 2, flat + (mean - truth[i]) ^ 2
        count = count + 1
      end
    end
    assert.equal(LANES * 116, count)
    assert.truthy(errors < flat * 0.8, ("%g is not much less than %g"):format(errors, flat))
  end)

  it("says how it goes, and what it cannot do", function()
    local told = {}
    assert(learn.map(models.cpu, texts(4, 40), { progress = function(done, total)
      told[#told + 1] = done .. "/" .. total
    end }))
    assert.same({ "1/4", "2/4", "3/4", "4/4" }, told)
    assert.has_error(function() learn.map(models.cpu, texts(1, 40)) end)
    local map, message, code = learn.map(models.cpu, texts(2, 400))
    assert.is_nil(map)
    assert.equal("context", code, message)
  end)

  describe("a file of maps", function()
    it("holds what was written, to the bit", function()
      local read = assert(maps.read(folder .. "/map.safetensors"))
      for head = 1, LANES do
        assert.same(learned.map[head]:totable(), read.map[head]:totable())
        assert.same(learned.budgets[head]:totable(), read.budgets[head]:totable())
      end
      assert.same(learned.thresholds[1]:totable(), read.thresholds[1]:totable())
      for layer = 1, SHAPE.layers do
        assert.same(learned.tokens[layer]:totable(), read.tokens[layer]:totable())
      end
      assert.equal("a spec's.", read.metadata.about)
      for _, share in ipairs { 0, 0.025, 0.5, 1 } do
        local level = math.max(1, math.floor(share * read.levels + 0.5))
        assert.near(learned.thresholds[1][level], maps.threshold(read, share), 1e-6)
      end
      assert.equal(maps.learned(folder .. "/map.safetensors"),
        maps.learned(folder .. "/map.safetensors"))
    end)

    it("that is broken is refused by name", function()
      local good = helper.read(folder .. "/map.safetensors")
      local function with(map, budgets, thresholds, tokens)
        return maps.bytes { map = map or learned.map, budgets = budgets or learned.budgets,
          thresholds = thresholds or learned.thresholds, tokens = tokens or learned.tokens,
          metadata = {} }
      end
      local rows = {}
      for head = 1, LANES do rows[head] = { 0.5, 0.4 } end
      local falling = vector(rows)
      for head = 1, LANES do rows[head] = { 0.5, 1.5 } end
      local beyond = vector(rows)
      for wanted, bytes in pairs {
        ["too few"] = "", ["data_offsets"] = good:sub(1, #good // 2), ["header"] = good:sub(9),
        ["not finite at number 1"] = with(learned.map * (0 / 0)),
        ["budgets of head 1 are no rising shares"] = with(nil, falling),
        ["no rising"] = with(nil, beyond),
        ["budgets are of 2 heads, map of 6"] = with(nil, vector { { 0.5, 1 }, { 0.5, 1 } }),
        ["thresholds are not of as many levels"] = with(nil, nil, vector { { 0.5, 0.4 } }),
        ["tokens are 1 x 2, which does not go"] = with(nil, nil, nil, vector { { 0.5, 1 } }),
        ["map is no matrix of f32"] = good:gsub('"map"', '"nap"'),
      } do
        local path <const> = folder .. "/broken"
        helper.write(path, bytes)
        local read, message, code = maps.read(path)
        assert.is_nil(read, wanted)
        assert.equal("format", code, message)
        assert.truthy(message:find(path, 1, true), message)
        assert.truthy(message:find(wanted, 1, true), message)
      end
      assert.equal("io", select(3, maps.read(folder .. "/none")))
    end)
  end)

  describe("dms", function()
    local map
    setup(function() map = folder .. "/map.safetensors" end)

    it("keeps what passes a threshold, so that the share follows the text", function()
      local p = assert(pyramid.policy("dms", { map = map, ratio = 0.4, window = 8, sinks = 2,
        every = 4 }))
      local shares = {}
      for _, kind in ipairs { "cpu", "device" } do
        local cache <close> = assert(models[kind]:cache { policy = p, dtype = "f32" })
        local ids = helper.ids(120, SHAPE.vocab, 9)
        assert(cache:prefill(ids))
        for i = 1, 40 do assert(cache:step(ids[i])) end
        local read = maps.learned(map)
        local least = maps.threshold(read, 0.4)
        for layer = 1, SHAPE.layers do
          for head = 1, SHAPE.kv_heads do
            local said = assert(cache:scores(read.score, { layer = layer, head = head }))
            local kept = cache:positions(layer, head)
            assert.same({ 0, 1 }, helper.slice(kept, 1, 2))
            assert.same({ 152, 159 }, { kept[#kept - 7], kept[#kept] })
            for _, position in ipairs(kept) do
              assert.truthy(position < 2 or position >= 152 or said[position + 1] >= least)
            end
          end
        end
        shares[#shares + 1] = cache:fraction()
        assert.truthy(shares[#shares] > 0.1 and shares[#shares] < 0.9)
      end
      assert.near(shares[1], shares[2], 0.02)
    end)

    it("takes a threshold of one's own, and does without a map as keydiff does", function()
      local ids = helper.ids(100, SHAPE.vocab, 3)
      for above, rows in pairs { [-99] = 100, [99] = 5 + 4 } do
        local cache <close> = assert(models.cpu:cache { policy = assert(pyramid.policy("dms",
          { map = map, above = above, window = 5 })) })
        assert(cache:prefill(ids))
        assert.equal(rows, cache:rows(2, 1))
      end
      local cache <close> = assert(models.cpu:cache { policy = "dms" })
      assert(cache:prefill(ids))
      local like <close> = assert(models.cpu:cache { policy = assert(pyramid.policy("keydiff",
        { ratio = 0.3, sinks = 4, recent = 128 })) })
      assert(like:prefill(ids))
      assert.same(like:positions(1, 1), cache:positions(1, 1))
      assert(cache:step(5))
    end)
  end)

  -- Of 300 tokens so many rows, not the same number of each head, the first four and the last
  -- `recent` among them.
  local function assert_share(p, target, recent)
    local cache <close> = assert(models.cpu:cache { policy = p:with { target = target } })
    assert(cache:prefill(helper.ids(300, SHAPE.vocab, 9)))
    assert.near(target, cache:fraction(), 0.02)
    local counts = {}
    for layer = 1, SHAPE.layers do
      for head = 1, SHAPE.kv_heads do
        local kept = cache:positions(layer, head)
        counts[#kept] = true
        assert.same({ 0, 1, 2, 3 }, helper.slice(kept, 1, 4))
        assert.same({ 300 - recent, 299 }, { kept[#kept - recent + 1], kept[#kept] })
      end
    end
    assert.truthy(next(counts, next(counts)), "all heads keep as many")
  end

  describe("the folder", function()
    it("is pyramid_plus with the map, whose recent rows grow with the budget", function()
      local p = assert(pyramid.policy(folder .. "/policy.lua"))
      assert.equal("pyramid_plus", p.name)
      for target, recent in pairs { [0.1] = 3, [0.4] = 11, [0.9] = 32 } do
        assert_share(p, target, recent)
      end
    end)
  end)

  describe("narrow", function()
    local map
    setup(function() map = folder .. "/map.safetensors" end)

    -- By hand: the tokens' numbers of the layer's hidden states, averaged over neighbours that are
    -- judged, and of the rest the highest.
    local function wanted(model, ids, layer, kernel, keep)
      local said
      local watch = score.custom(function(lane)
        if lane.head == 1 then
          local row = learned.tokens[layer]
          said = (lane.hidden:dot(row:slice(1, SHAPE.width)) + row[SHAPE.width + 1]):pool("avg",
            kernel):totable()
        end
        return lane.positions
      end, nil, { hidden = true })
      local cache <close> = assert(model:cache { policy = { name = "watch", prefill = function(_, l)
        if l.index ~= layer then return end
        return { keep = l.rows - 1, guard = { first = 2, last = 8 }, share = "head", score = watch }
      end } })
      assert(cache:prefill(ids))
      local order, kept = {}, { 0, 1 }
      for i = 1, #said do order[i] = i end
      table.sort(order, function(a, b) return said[a] > said[b] end)
      for i = 1, keep - 10 do kept[#kept + 1] = order[i] + 1 end
      for i = #ids - 8, #ids - 1 do kept[#kept + 1] = i end
      table.sort(kept)
      return kept
    end

    it("computes what the map asks for, and in the last layers the newest tokens", function()
      local ids = helper.ids(120, SHAPE.vocab, 9)
      local p = assert(pyramid.policy("narrow", { map = map, at = 0.4, handed = 0.5, late = 0.7,
        kernel = 3, sinks = 2, recent = 8 }))
      for _, kind in ipairs { "cpu", "device" } do
        local cache <close> = assert(models[kind]:cache { policy = p, dtype = "f32" })
        assert(cache:prefill(ids))
        assert.equal(120, cache:rows(1, 1))
        assert.same(wanted(models[kind], ids, 1, 3, 60), cache:positions(2, 1))
        assert.same({ 0, 1, 112, 113, 114, 115, 116, 117, 118, 119 }, cache:positions(3, 1))
        assert.equal(120 + 60 + 10, cache:computed())
        assert(cache:step(7))
      end
    end)

    it("comes with the folder, and does without a map", function()
      assert.equal("narrow", assert(pyramid.policy(folder .. "/narrow.lua")).name)
      local cache <close> = assert(models.cpu:cache { policy = "narrow" })
      assert(cache:prefill(helper.ids(120, SHAPE.vocab, 9)))
      assert.equal(90, cache:rows(2, 1))
    end)
  end)

  describe("kvzap", function()
    it("keeps the share asked for, by budgets of its own for each head", function()
      local p = assert(pyramid.policy("kvzap", { map = folder .. "/map.safetensors" }))
      for _, target in ipairs { 0.3, 0.6 } do
        assert_share(p, target, 32)
      end
    end)

    it("judges only a prompt's own rows, in a conversation", function()
      local cache <close> = assert(models.cpu:cache {
        policy = assert(pyramid.policy("kvzap", { map = folder .. "/map.safetensors",
          ratio = 0.4 })) })
      assert(cache:prefill(helper.ids(150, SHAPE.vocab, 3)))
      local before = cache:positions(2, 1)
      assert(cache:prefill(helper.ids(150, SHAPE.vocab, 4)))
      assert.same(before, helper.slice(cache:positions(2, 1), 1, #before))
      assert.near(0.4, cache:fraction(), 0.03)
    end)

    it("keeps what keydiff does without a map, and says what is wrong with one", function()
      local ids = helper.ids(100, SHAPE.vocab, 3)
      local cache <close> = assert(models.cpu:cache { policy = "kvzap" })
      assert(cache:prefill(ids))
      local like <close> = assert(models.cpu:cache { policy = assert(pyramid.policy("keydiff",
        { ratio = 0.3, sinks = 4, recent = 32 })) })
      assert(like:prefill(ids))
      assert.near(#like:positions(1, 1), #cache:positions(1, 1), 1)
      local other <close> = assert(models.cpu:cache { policy = assert(pyramid.policy("kvzap",
        { map = folder .. "/none" })) })
      local ok, message, code = other:prefill(helper.ids(100, SHAPE.vocab, 3))
      assert.is_nil(ok)
      assert.equal("policy", code)
      assert.truthy(message:find(folder .. "/none", 1, true), message)
    end)
  end)
end)

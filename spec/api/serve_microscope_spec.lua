-- What the page is told of a cache, against positions that are counted plainly: every lane is read
-- out, position by position.
local helper = require "spec.helper"
local json = require "pyramid.json"
local microscope = require "pyramid.serve.microscope"
local policy = require "pyramid.policy"
local pyramid = require "pyramid"
local random_model = require "pyramid.tools.random_model"
local score = require "pyramid.score"
local shell = require "spec.support.shell"

local COLUMNS, WINDOW = 256, 8192
local TIERS = { "hot", "warm", "cold" }

-- How many lanes hold each position (from 1), of all layers or one, in all tiers or one.
local function counted(cache, config, only, tier)
  local counts = {}
  for i = 1, cache:tokens() do counts[i] = 0 end
  for layer = only or 1, only or config.layers do
    for head = 1, config.kv_heads do
      for _, position in ipairs(cache:positions(layer, head, tier)) do
        counts[position + 1] = counts[position + 1] + 1
      end
    end
  end
  return counts
end

local function percent(count, all)
  if count == 0 or count == all then return 100 * count // all end
  return math.max(1, math.min(99, math.floor(100 * count / all + 0.5)))
end

-- The whole answer, the slow way.
local function expect(cache, ids, model, seen, first, past)
  local config, tokens = model.config, cache:tokens()
  local lanes = config.layers * config.kv_heads
  assert.equal(config.layers, seen.layers)
  assert.equal(config.kv_heads, seen.heads)
  assert.equal(tokens, seen.tokens)
  local all, rows = counted(cache, config), 0
  for _, count in ipairs(all) do rows = rows + count end
  assert.equal(rows, seen.rows)
  assert.equal(cache:evicted(), seen.evicted)
  assert.near(tokens > 0 and rows / (tokens * lanes) or 1, seen.fraction, 1e-12)
  assert.equal(cache:bytes(), seen.bytes.total)
  local tiered, in_tiers = 0, 0
  for _, tier in ipairs(TIERS) do
    assert.equal(cache:has_tier(tier) and cache:bytes(tier) or nil, seen.bytes[tier])
    tiered = tiered + (seen.bytes[tier] or 0)
    if seen.tiers then
      local here
      if cache:has_tier(tier) then
        here = 0
        for _, count in ipairs(counted(cache, config, nil, tier)) do here = here + count end
        in_tiers = in_tiers + here
      end
      assert.equal(here, seen.tiers[tier])
    end
  end
  assert.equal(seen.bytes.total, tiered)
  if seen.tiers then assert.equal(rows, in_tiers) end
  -- the picture
  local bin = seen.map.bin
  assert.is_true(bin >= 1 and bin * COLUMNS >= tokens)
  assert.is_true(bin == 1 or (bin - 1) * COLUMNS < tokens)
  assert.equal(config.layers, #seen.map.shares)
  for layer = 1, config.layers do
    local counts, row = counted(cache, config, layer), {}
    for from = 1, tokens, bin do
      local sum, to = 0, math.min(tokens, from + bin - 1)
      for i = from, to do sum = sum + counts[i] end
      row[#row + 1] = percent(sum, (to - from + 1) * config.kv_heads)
    end
    assert.same(row, seen.map.shares[layer])
  end
  -- the tokens
  first, past = first or 0, past or tokens
  assert.equal(first, seen.text.first)
  assert.same(table.move(ids, first + 1, past, 1, {}), seen.text.ids)
  assert.same(table.move(all, first + 1, past, 1, {}), seen.text.held)
  assert.equal(past - first, #seen.text.texts)
  if model.tokenizer and first == 0 then
    assert.equal(model:decode(table.move(ids, 1, past, 1, {})), table.concat(seen.text.texts))
  end
end

-- Keeps other rows in each layer and head: the heads of a layer differ in how many and in which.
local by_head = policy { name = "by_head",
  prefill = function(_, l)
    local keep = {}
    for head = 1, l.kv_heads do
      keep[head] = math.min(l.rows, 3 + 7 * head + 2 * l.index)
    end
    return { keep = keep, guard = { first = 1, last = 1 }, share = "head",
      score = score.random(l.index) }
  end,
  trigger = function() return { over = 20, window = 4 } end,
  decode = function(_, l)
    return { keep = math.min(l.rows, 12), guard = { last = 4 }, share = "head",
      score = score.key_norm() }
  end }

-- Losers go down a tier.
local function downward(rows, to)
  local function plan(_, l)
    return { keep = math.min(rows, l.rows), guard = { first = 2, last = 4 }, share = "head",
      score = score.key_norm(), losers = { to = to } }
  end
  return policy { name = "downward", prefill = plan, decode = plan,
    trigger = function() return { over = rows + 5, window = 4 } end }
end

describe("the microscope", function()
  local folder, models
  local SHAPES = {
    gqa = { layers = 3, width = 96, heads = 6, kv_heads = 3, ff = 48, vocab = 272, context = 2048 },
    one = { layers = 5, width = 64, heads = 4, kv_heads = 1, ff = 32, vocab = 272, context = 512 },
    all = { layers = 2, width = 128, heads = 4, kv_heads = 4, ff = 48, vocab = 272,
      context = 512 },
  }

  setup(function()
    folder, models = shell.folder(), {}
    for name, shape in pairs(SHAPES) do
      local path = folder .. "/" .. name
      assert(random_model.write(path, { shape = shape, dtype = "f32", seed = 11 }))
      models[name] = assert(pyramid.model(path, { threads = 2 }))
    end
  end)
  teardown(function()
    for _, model in pairs(models) do model:close() end
    shell.remove(folder)
  end)

  for _, name in ipairs { "full", "pyramidinfer", "snapkv", "streaming", "h2o", "adakv",
    "pyramidkv", "tova", "cake" } do
    for shape in pairs(SHAPES) do
      it(("counts what %s keeps (%s)"):format(name, shape), function()
        local model, seed = models[shape], math.random(1000)
        local n = math.random(70, 400)
        local ids = helper.ids(n, 272, seed)
        local cache <close> = assert(model:cache { policy = name })
        assert(cache:prefill(ids))
        expect(cache, ids, model, assert(microscope(cache, ids, model)))
        for i = 1, 40 do
          ids[n + i] = (seed + i * 7) % 272
          assert(cache:step(ids[n + i]))
        end
        expect(cache, ids, model, assert(microscope(cache, ids, model)))
      end)
    end
  end

  it("counts heads that keep different rows", function()
    for _, shape in ipairs { "gqa", "all" } do
      local model, ids = models[shape], helper.ids(120, 272, 3)
      local cache <close> = assert(model:cache { policy = by_head })
      assert(cache:prefill(ids))
      local seen = assert(microscope(cache, ids, model))
      expect(cache, ids, model, seen)
      local between = 0
      for _, row in ipairs(seen.map.shares) do
        for _, share in ipairs(row) do
          if share > 0 and share < 100 then between = between + 1 end
        end
      end
      assert.is_true(between > 10)           -- some heads of a layer, not all
      assert.is_true(#cache:positions(1, 1) ~= #cache:positions(1, 2))
    end
  end)

  it("counts all tiers, and tells their bytes apart", function()
    local model, ids = models.gqa, helper.ids(300, 272, 5)
    for _, tiers in ipairs { { hot = "f32", warm = "f16" }, { hot = "f32", cold = "f32" },
      { hot = "f32", warm = { dtype = "f32", rows = 40 }, cold = "f32" } } do
      local cache <close> = assert(model:cache { tiers = tiers,
        policy = downward(50, tiers.warm and "warm" or "cold") })
      assert(cache:prefill(ids))
      local seen = assert(microscope(cache, ids, model))
      expect(cache, ids, model, seen)
      assert.is_table(seen.tiers)
      assert.is_true(seen.tiers.hot > 0 and (seen.tiers.warm or 0) + (seen.tiers.cold or 0) > 0)
      assert.equal(0, seen.evicted)          -- they only moved
      for _, count in ipairs(seen.text.held) do assert.equal(9, count) end
    end
    local cache <close> = assert(model:cache {})
    assert(cache:prefill(ids))
    assert.is_nil(microscope(cache, ids, model).tiers)
  end)

  it("counts what lies on a device", function()
    local device = helper.device == "cpu" and "emulated" or helper.device
    local model <close> = assert(pyramid.model(folder .. "/gqa", { device = device }))
    local ids = helper.ids(90, 272, 12)
    local cache <close> = assert(model:cache { policy = by_head })
    assert(cache:prefill(ids))
    expect(cache, ids, model, assert(microscope(cache, ids, model)))
  end)

  it("says which lanes hold a token: cache:held", function()
    local model, ids = models.gqa, helper.ids(150, 272, 9)
    local cache <close> = assert(model:cache { tiers = { hot = "f32", warm = "f32" },
      policy = downward(40, "warm") })
    assert.equal(0, #cache:held())
    assert(cache:prefill(ids))
    for _, tier in ipairs { false, "hot", "warm" } do
      for layer = 0, 3 do
        local held = cache:held(layer > 0 and layer or nil, tier or nil)
        local lanes = layer > 0 and 3 or 9
        for i, count in ipairs(counted(cache, model.config, layer > 0 and layer or nil,
          tier or nil)) do
          assert.near(count / lanes, held[i], 1e-7)
          if count == lanes then assert.equal(1.0, held[i]) end
          if count == 0 then assert.equal(0.0, held[i]) end
        end
      end
    end
    for _, bin in ipairs { 1, 2, 7, 149, 150, 151, 0x7fffffff } do
      local binned, plain = cache:held(2, "hot", bin), counted(cache, model.config, 2, "hot")
      assert.equal((150 + bin - 1) // bin, #binned)
      for i = 1, #binned do
        local sum, to = 0, math.min(150, i * bin)
        for at = (i - 1) * bin + 1, to do sum = sum + plain[at] end
        assert.near(sum / (3 * (to - (i - 1) * bin)), binned[i], 1e-7)
      end
    end
    for _, wrong in ipairs { 0, -1, 1 << 40, "many" } do
      assert.error_matches(function() cache:held(1, "hot", wrong) end, "#3")
    end
    for _, wrong in ipairs { 0, -1, 4, 1 << 40, "two", 1.5 } do
      assert.has_error(function() cache:held(wrong) end)
    end
    assert.error_matches(function() cache:held(1, "cold") end, "no such tier")
    assert.error_matches(function() cache:held(1, "tepid") end, "tepid")
    cache:close()
    assert.has_error(function() cache:held() end)
  end)

  it("bins long contexts, and shows a window of their tokens", function()
    local model = models.gqa
    for _, n in ipairs { 255, 256, 257, 511, 513, 1500 } do
      local ids = helper.ids(n, 272, n)
      local cache <close> = assert(model:cache { policy = "snapkv" })
      assert(cache:prefill(ids))
      expect(cache, ids, model, assert(microscope(cache, ids, model)))
      local first, count = math.random(0, n - 1), math.random(1, n)
      expect(cache, ids, model, assert(microscope(cache, ids, model,
        { first = first, count = count })), first, math.min(n, first + count))
      expect(cache, ids, model, assert(microscope(cache, ids, model, { count = 10 })), n - 10, n)
      for _, odd in ipairs { { first = n + 5 }, { first = -3, count = 0 }, { count = -1 },
        { first = math.maxinteger, count = math.maxinteger } } do
        local seen = assert(microscope(cache, ids, model, odd))
        assert.equal(#seen.text.ids, #seen.text.held)
        assert.is_true(#seen.text.ids <= n)
      end
    end
  end)

  it("reads an empty cache, ids that were not read yet, and rows without ids", function()
    local model, ids = models.one, helper.ids(30, 272, 2)
    local cache <close> = assert(model:cache {})
    expect(cache, {}, model, assert(microscope(cache, {}, model)))
    assert(json.encode(microscope(cache, {}, model)))
    assert(cache:prefill(ids))
    ids[31] = 17                             -- picked, and not read
    expect(cache, ids, model, assert(microscope(cache, ids, model)), 0, 30)
    local seen = assert(microscope(cache, { 1, 2 }, model, { policy = "full", prompt = 2 }))
    assert.equal("full", seen.policy)
    assert.equal(2, seen.prompt)
    assert.same({ 1, 2 }, seen.text.ids)
    assert.equal(30, #seen.text.held)
    assert.equal(30, #seen.text.texts)
    assert.error_matches(function() microscope(cache, ids, model, { last = 3 }) end, "last")
  end)

  it("may look while a prompt is read, and sees what was there before", function()
    local model, ids = models.gqa, helper.ids(700, 272, 6)
    local cache <close> = assert(model:cache { policy = "pyramidinfer" })
    assert(cache:prefill(table.move(ids, 1, 40, 1, {})))
    local looks = 0
    assert(cache:prefill(table.move(ids, 41, 700, 1, {}), { progress = function()
      looks = looks + 1
      local seen = assert(microscope(cache, ids, model))
      assert.equal(cache:tokens(), #seen.text.held)
      for _, count in ipairs(seen.text.held) do assert.is_true(count >= 0 and count <= 9) end
    end }))
    assert.is_true(looks > 2)
    expect(cache, ids, model, assert(microscope(cache, ids, model)))
  end)

  it("gives each token the text that it completes", function()
    local model <close> = assert(pyramid.model "models/tiny")
    local text = "Größe, 🐘 und 漢字: <b>bold</b> \"quoted\" & done"
    local ids = assert(model:encode(text))
    local cache <close> = assert(model:cache {})
    assert(cache:prefill(ids))
    local seen = assert(microscope(cache, ids, model))
    expect(cache, ids, model, seen)
    local empty = 0
    for _, piece in ipairs(seen.text.texts) do
      assert.is_truthy(utf8.len(piece))
      empty = empty + (piece == "" and 1 or 0)
    end
    assert.is_true(empty > 0)                -- bytes of the elephant
    local back = assert(json.decode(json.encode(seen)))
    assert.same(seen.text.texts, back.text.texts)
    assert.same(seen.map.shares, back.map.shares)
  end)

  it("knows the windows of layers that look back only so far", function()
    local path = folder .. "/window"
    local shape = { layers = 4, width = 64, heads = 4, kv_heads = 2, ff = 32, vocab = 272,
      context = 2048 }
    assert(random_model.write(path, { shape = shape, dtype = "f32", seed = 3 }))
    local config = helper.read(path .. "/config.json"):gsub('"llama"', '"mistral"')
      :gsub("LlamaForCausalLM", "MistralForCausalLM"):gsub("^{", '{"sliding_window": 24,')
    helper.write(path .. "/config.json", config)
    local model <close> = assert(pyramid.model(path, { threads = 2 }))
    assert.same({ 24, 24, 24, 24 }, model.config.window)
    local ids = helper.ids(1200, 272, 8)
    local cache <close> = assert(model:cache {})
    for from = 1, 1200, 300 do assert(cache:prefill(table.move(ids, from, from + 299, 1, {}))) end
    local seen = assert(microscope(cache, ids, model))
    assert.same({ 24, 24, 24, 24 }, seen.window)
    expect(cache, ids, model, seen)
    assert.equal(0, seen.text.held[1])       -- given back: no later query sees it
  end)

  it("stays small and quick at 8,000 tokens in 30 layers", function()
    local path = folder .. "/deep"
    local shape = { layers = 30, width = 24, heads = 3, kv_heads = 3, ff = 8, vocab = 272,
      context = 16384 }
    assert(random_model.write(path, { shape = shape, dtype = "f32", seed = 3 }))
    local model <close> = assert(pyramid.model(path, { threads = 2 }))
    local cache <close> = assert(model:cache { dtype = "f16" })
    local ids, best = helper.ids(8500, 272, 1), math.huge
    assert(cache:read(ids))
    for _ = 1, 5 do
      local began = os.clock()               -- of this process: others may be at work, too
      assert(microscope(cache, ids, model))
      best = math.min(best, os.clock() - began)
    end
    assert.is_true(best < 0.1, ("%.0f ms"):format(1000 * best))
    local seen = assert(microscope(cache, ids, model))
    assert.equal(WINDOW, #seen.text.ids)
    assert.equal(8500 - WINDOW, seen.text.first)
    assert.is_true(#json.encode(seen) < 200000)
    assert.equal(250, #seen.map.shares[30])
    assert.equal(34, seen.map.bin)
  end)
end)

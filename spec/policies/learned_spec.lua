-- Scores that read what a layer read: score.learned, and hidden states in score.custom. The oracle
-- is the model itself: a row's value is W_v times its hidden state, so the one tells the other.
local core = require "pyramid.core"
local helper = require "spec.helper"
local random_models = require "spec.support.random_models"
local score = require "pyramid.score"
local transformer = require "spec.support.transformer"
local vector = require "pyramid.vector"

describe("what a layer read", function()
  local models, folder = random_models { layers = 3, heads = 4, kv_heads = 2,
    width = 64, ff = 80, vocab = 272, context = 2048 }
  local model, plain, width, heads
  setup(function()
    model, plain = models.cpu, transformer.load(folder() .. "/model")
    width, heads = model.config.width, model.config.kv_heads
  end)

  local function prompt(n, from)
    return helper.ids(n, model.config.vocab, from or 7)
  end

  -- One map for each layer and head, of fresh numbers.
  local function random_map(of, columns)
    local rows = {}
    for i = 1, of do
      rows[i] = {}
      for j = 1, columns do rows[i][j] = math.random() * 2 - 1 end
    end
    return vector(rows)
  end

  -- What `fn` sees of each lane, judged but for the guards, of which one row goes.
  local function watch(fn, inputs, given)
    given = given or {}
    return { name = "watch", prefill = function(_, l)
      if given.only and l.index ~= given.only then return given.before and given.before(l) end
      return { keep = l.rows - 1, share = given.share or "head",
        guard = { first = given.first or 2, last = given.last or 3 },
        score = score.custom(fn, inputs, { hidden = given.hidden ~= false }) }
    end }
  end

  it("makes a row's value, in every layer, also over chunks", function()
    for _, tokens in ipairs { 7, 40, 600 } do
      local lanes = 0
      local cache <close> = assert(model:cache { dtype = "f32", policy = watch(function(lane)
        local d = model.config.head_dim
        assert.equal(width, lane.hidden:columns())
        for i = 1, lane.rows, math.max(1, lane.rows // 9) do
          for j = 1, d do
            local w = vector(plain.layers[lane.layer].v[(lane.head - 1) * d + j])
            assert.near(lane.values[i][j], lane.hidden[i]:dot(w), 1e-4)
          end
        end
        lanes = lanes + 1
        return lane.positions
      end) })
      assert(cache:prefill(prompt(tokens)))
      assert.equal(model.config.layers * heads, lanes)
    end
  end)

  it("is mapped as the sums say, whoever shares a set", function()
    for _, share in ipairs { "head", "layer" } do
      for _, tokens in ipairs { 7, 33, 1100 } do
        local map = random_map(model.config.layers * heads, width + 1)
        local learned, first = score.learned(map), math.min(500, tokens - 5)
        local cache <close> = assert(model:cache { dtype = "f32", policy = watch(function(lane)
          for i = 1, lane.rows, math.max(1, lane.rows // 5) do
            local sum, from = 0.0, share == "head" and lane.head or 1
            for head = from, share == "head" and lane.head or heads do
              local row = map[(lane.layer - 1) * heads + head]
              sum = sum + lane.hidden[i]:dot(row:slice(1, width)) + row[width + 1]
            end
            assert.near(sum / (share == "head" and 1 or heads), lane.said[i], 2e-4)
          end
          return lane.positions
        end, { said = learned }, { share = share, first = first }) })
        assert(cache:prefill(prompt(tokens)))
      end
    end
  end)

  it("is of the tokens that are left, where earlier layers dropped some", function()
    local map = random_map(model.config.layers * heads, width + 1)
    local half = function(l)
      if l.index > 1 then return nil end
      return { keep = l.rows // 2, prune = "hidden", score = score.random(5) }
    end
    local cache <close> = assert(model:cache { dtype = "f32", policy = watch(function(lane)
      assert.equal(550 - 5, lane.rows)
      for i = 1, lane.rows, 31 do
        local row = map[(lane.layer - 1) * heads + lane.head]
        assert.near(lane.hidden[i]:dot(row:slice(1, width)) + row[width + 1], lane.said[i], 2e-4)
        local w = vector(plain.layers[lane.layer].v[(lane.head - 1) * model.config.head_dim + 1])
        assert.near(lane.values[i][1], lane.hidden[i]:dot(w), 1e-4)
      end
      return lane.positions
    end, { said = score.learned(map) }, { only = 2, before = half }) })
    assert(cache:prefill(prompt(1100)))
  end)

  it("guards the rows of earlier prompts, which it does not know, lane by lane", function()
    local map = random_map(model.config.layers * heads, width + 1)
    local cache <close> = assert(model:cache { dtype = "f32", policy = { name = "few",
      prefill = function(_, l)
        return { keep = { l.past + 10, l.past + 4 }, score = score.learned(map), share = "head" }
      end } })
    assert(cache:prefill(prompt(40)))
    local before = { cache:positions(1, 1), cache:positions(1, 2) }
    assert.same({ 10, 4 }, { #before[1], #before[2] })
    assert(cache:prefill(prompt(30, 99)))
    for head, rows in ipairs { 10, 4 } do
      local after = cache:positions(1, head)
      assert.equal(2 * rows, #after)
      assert.same(before[head], helper.slice(after, 1, rows))
      assert.truthy(after[rows + 1] >= 40)
    end
  end)

  it("ranks the same on the processor and on a device", function()
    local map = random_map(model.config.layers * heads, width + 1)
    local kept = {}
    for name, one in pairs(models) do
      local cache <close> = assert(one:cache { dtype = "f32", policy = { name = "few",
        prefill = function(_, l)
          return { keep = l.rows // 3, score = score.learned(map), share = "head" }
        end } })
      assert(cache:prefill(prompt(90)))
      kept[name] = {}
      for layer = 1, one.config.layers do
        for head = 1, heads do table.insert(kept[name], cache:positions(layer, head)) end
      end
    end
    assert.same(kept.cpu, kept.device)
  end)

  it("is refused where it is not known, and then nothing is lost", function()
    local fit = random_map(model.config.layers * heads, width + 1)
    for _, case in ipairs {
      { random_map(model.config.layers * heads, width), "learned for a model of other" },
      { random_map(model.config.layers * heads + 1, width + 1), "learned for a model of other" },
    } do
      local cache <close> = assert(model:cache { policy = { name = "wrong",
        prefill = function() return { keep = 9, score = score.learned(case[1]) } end } })
      local ok, message, code = cache:prefill(prompt(20))
      assert.is_nil(ok)
      assert.truthy(message:find(case[2], 1, true), message)
      assert.equal("policy", code)
      assert.equal(0, #cache:positions(1, 1))
    end
    local cache <close> = assert(model:cache())
    assert(cache:prefill(prompt(20)))
    local ok, message = cache:evict { name = "later",
      prefill = function() return { keep = 9, score = score.learned(fit) } end }
    assert.is_nil(ok)
    assert.truthy(message:find("known in prefill only", 1, true), message)
    assert.equal(20, #cache:positions(1, 1))
    local told <close> = assert(model:cache { policy = watch(function(lane) return lane.hidden
      end, nil, { hidden = false }) })
    ok, message = told:prefill(prompt(20))
    assert.is_nil(ok)
    assert.truthy(message:find("unless score.custom is told", 1, true), message)
    for _, bad in ipairs { 7, {}, vector { 1, 2 }, "map" } do
      assert.has_error(function() score.learned(bad) end)
    end
  end)
end)

describe("a ridge", function()
  it("finds the map that made its rows, and holds weights back as it is told", function()
    local inputs, outputs = math.random(1, 9), math.random(1, 4)
    local truth, fit = {}, core.ridge(inputs, outputs)
    for o = 1, outputs do
      truth[o] = {}
      for i = 1, inputs + 1 do truth[o][i] = math.random() * 4 - 2 end
    end
    local listed = core.ridge(inputs, outputs)
    for _, rows in ipairs { 1, 63, 64, 65, 200 } do
      local x, y, columns = {}, {}, {}
      for o = 1, outputs do columns[o] = {} end
      for r = 1, rows do
        x[r], y[r] = {}, {}
        for i = 1, inputs do x[r][i] = (math.random() - 0.5) * i end
        for o = 1, outputs do
          y[r][o] = truth[o][inputs + 1]
          for i = 1, inputs do y[r][o] = y[r][o] + truth[o][i] * x[r][i] end
          columns[o][r] = y[r][o]
        end
      end
      fit:add(vector(x), vector(y))
      for o = 1, outputs do columns[o] = vector(columns[o]) end
      listed:add(vector(x), columns)
    end
    assert.equal(393, fit:count())
    local found, again, held = assert(fit:solve(0)), assert(listed:solve(0)), assert(fit:solve(1e6))
    for o = 1, outputs do
      for i = 1, inputs + 1 do assert.near(truth[o][i], found[o][i], 1e-3) end
      assert.same(found[o]:totable(), again[o]:totable())
      for i = 1, inputs do assert.near(0, held[o][i], 1e-3) end
    end
  end)

  it("says what it cannot do", function()
    local fit = core.ridge(3, 1)
    local map, message, code = fit:solve(0.1)
    assert.is_nil(map)
    assert.truthy(message:find("0 rows do not tell 3 inputs apart", 1, true))
    assert.equal("argument", code)
    fit:add(vector { { 1, 2, 3 } }, vector { { 1 } })
    assert.is_nil((fit:solve(0)))
    assert(fit:solve(0.1))
    for _, f in ipairs { function() core.ridge(0, 1) end, function() core.ridge(1, 1 << 20) end,
      function() fit:add(vector { { 1, 2 } }, vector { { 1 } }) end,
      function() fit:add(vector { { 1, 2, 3 } }, vector { { 1, 2 } }) end,
      function() fit:add(vector { { 1, 2, 3 } }, { vector { 1, 2 } }) end,
      function() fit:add(vector { 1, 2, 3 }, {}) end, function() fit:solve(-1) end,
      function() fit:solve(0 / 0) end } do
      assert.has_error(f)
    end
  end)
end)

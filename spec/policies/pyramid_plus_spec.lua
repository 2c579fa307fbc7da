-- pyramid_plus: its shape, its two kinds of rows, and what it does to the layers behind.
local calibrate = require "pyramid.tools.calibrate"
local policy = require "pyramid.policy"
local pyramid = require "pyramid"

describe("pyramid_plus", function()
  local plus = assert(pyramid.policy "pyramid_plus")
  local config = { layers = 8, heads = 4, kv_heads = 2, head_dim = 64 }

  local function rows_of(p, tokens)
    local rows, sum = {}, 0
    for i, layer in ipairs(policy.forecast(p, config, tokens)) do
      rows[i], sum = layer.rows, sum + layer.rows
    end
    return rows, sum / (tokens * config.layers)
  end

  it("is a pyramid that holds any share of the rows", function()
    for _, target in ipairs { 0.2, 0.35, 0.45, 0.6, 0.9 } do
      local rows, fraction = rows_of(plus:with { target = target }, 1000)
      assert.near(target, fraction, 0.002)
      assert.equal(1000, rows[2])
      for i = 4, 8 do assert.is_true(rows[i] <= rows[i - 1]) end
      rows, fraction = rows_of(plus:with { ratio = target, whole = 0 }, 1000)
      assert.near(target, fraction, 0.002)
      for i = 2, 8 do assert.is_true(rows[i] <= rows[i - 1]) end
    end
    for preset, target in pairs { ["45"] = 0.45, ["35"] = 0.35, ["20"] = 0.2 } do
      assert.near(target, select(2, rows_of(plus:with { preset = preset }, 1000)), 0.002)
    end
  end)

  it("keeps rows that are looked at, head by head, and rows unlike others", function()
    local model <close> = assert(pyramid.model("models/tiny", { threads = 1 }))
    local ids = assert(calibrate.texts(model, { length = 200, count = 1 }))[1]
    local function kept(given)
      local cache <close> = assert(model:cache { policy = plus:with(given), dtype = "f32" })
      assert(cache:prefill(ids))
      local lanes = {}
      for layer = 1, model.config.layers do
        lanes[layer] = {}
        for head = 1, model.config.kv_heads do lanes[layer][head] = cache:positions(layer, head) end
      end
      return lanes, cache:computed()
    end
    local keydiff = assert(pyramid.policy("keydiff", { ratio = 0.4, sinks = 4, recent = 16 }))
    local cache <close> = assert(model:cache { policy = keydiff, dtype = "f32" })
    assert(cache:prefill(ids))
    local rare = kept { ratio = 0.4, slope = 0, whole = 0, seen = 0, recent = 16 }
    local both, computed = kept { ratio = 0.4, slope = 0, whole = 0, seen = 0.5, recent = 16 }
    assert.equal(200 * model.config.layers, computed)
    local common, different = 0, 0
    for layer, heads in ipairs(rare) do
      for head, positions in ipairs(heads) do
        assert.same(cache:positions(layer, head), positions)           -- nothing but KeyDiff
        local set = {}
        for _, position in ipairs(positions) do set[position] = true end
        assert.equal(80, #both[layer][head])
        for _, position in ipairs(both[layer][head]) do
          if set[position] then common = common + 1 else different = different + 1 end
        end
      end
    end
    assert.is_true(common > different and different > 0)
  end)

  it("prunes hidden states where it is told to", function()
    local model <close> = assert(pyramid.model("models/tiny", { threads = 1 }))
    local cache <close> = assert(model:cache { policy = plus:with { ratio = 0.4, hidden = 0.25 } })
    local ids = assert(calibrate.texts(model, { length = 200, count = 1 }))[1]
    assert(cache:prefill(ids))
    local layers = policy.forecast(plus:with { ratio = 0.4, hidden = 0.25 }, model.config, 200)
    local computed = 0
    for layer, one in ipairs(layers) do
      assert.equal(one.rows, cache:rows(layer, 1))
      computed = computed + one.computed
    end
    assert.equal(computed, cache:computed())
    assert.is_true(computed < 200 * model.config.layers)
    assert.same(cache:positions(3, 1), cache:positions(3, 2))
  end)
end)

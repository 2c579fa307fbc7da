-- pyramid_plus without a map: its two kinds of rows, and its window. With one: tools/learn_spec.
local calibrate = require "pyramid.tools.calibrate"
local policy = require "pyramid.policy"
local pyramid = require "pyramid"
local testing = require "pyramid.testing"

describe("pyramid_plus", function()
  local plus = assert(pyramid.policy "pyramid_plus")
  local config = { layers = 8, heads = 4, kv_heads = 2, head_dim = 64 }

  local function share(p, tokens)
    local sum = 0
    for _, layer in ipairs(policy.forecast(p, config, tokens)) do sum = sum + layer.rows end
    return sum / (tokens * config.layers)
  end

  it("holds any share of the rows", function()
    for _, target in ipairs { 0.05, 0.2, 0.35, 0.45, 0.6, 0.9 } do
      assert.near(target, share(plus:with { target = target }, 1000), 0.002)
    end
    for preset, target in pairs { ["45"] = 0.45, ["35"] = 0.35, ["20"] = 0.2 } do
      assert.near(target, share(plus:with { preset = preset }, 1000), 0.002)
    end
  end)

  it("keeps heavy hitters for a part of its budget, and first and last rows", function()
    local run = testing.run(plus:with { ratio = 0.25, seen = 1 }, { prompt = 160, layers = 1,
      attention = { [30] = 50, [31] = 40, [90] = 30 } })
    local kept = {}
    for _, position in ipairs(run[1][1]) do kept[position] = true end
    assert.equal(40, #run[1][1])
    for _, position in ipairs { 0, 3, 30, 31, 90, 155, 159 } do assert.truthy(kept[position]) end
  end)

  it("keeps rows unlike all others for the rest", function()
    local model <close> = assert(pyramid.model("models/tiny", { threads = 1 }))
    local ids = assert(calibrate.texts(model, { length = 200, count = 1 }))[1]
    local function kept(p)
      local cache <close> = assert(model:cache { policy = p, dtype = "f32" })
      assert(cache:prefill(ids))
      local lanes = {}
      for layer = 1, model.config.layers do
        for head = 1, model.config.kv_heads do
          lanes[#lanes + 1] = cache:positions(layer, head)
        end
      end
      return lanes
    end
    local unlike = kept(assert(pyramid.policy("keydiff", { ratio = 0.4, sinks = 4, recent = 10 })))
    assert.same(unlike, kept(plus:with { ratio = 0.4, seen = 0 }))
    local common, different = 0, 0
    for lane, positions in ipairs(kept(plus:with { ratio = 0.4 })) do
      assert.equal(80, #positions)
      local set = {}
      for _, position in ipairs(unlike[lane]) do set[position] = true end
      for _, position in ipairs(positions) do
        if set[position] then common = common + 1 else different = different + 1 end
      end
    end
    assert.truthy(common > 2 * different and different > 0)
  end)
end)

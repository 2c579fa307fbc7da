-- A model that caps and slopes its scores, tempers its queries and has sinks says over prompt and
-- steps what plain Lua says, and its rows' history is the true attention: prefill, steps and the
-- score pass are told.
local core = require "pyramid.core"
local helper = require "spec.helper"
local ops = require "pyramid_specs"
local plain = require "spec.support.plain_llama"
local policy = require "pyramid.policy"
local pyramid = require "pyramid"
local random_model = require "pyramid.tools.random_model"
local reference = require "spec.support.ops_reference"
local score = require "pyramid.score"
local shell = require "spec.support.shell"

local SHAPE = { layers = 2, width = 32, heads = 4, kv_heads = 2, ff = 32, vocab = 272,
  context = 64 }
local SINKS = { { 1.5, -1, 0, 2 }, { 0.5, 3, -2, 1 } }
local SLOPES = { 0.5, 0.25, 0.0625, 0.01 }
local LENGTH = 5                    -- positions that queries are tempered by

-- Opens the folder's model with what no Llama's configuration says.
local function open(folder, o)
  local path, real = folder .. "/sinks", core.model_new
  helper.write(path, ops.floats(SINKS[1]) .. ops.floats(SINKS[2]))
  core.model_new = function(rt, config)
    config.score_cap, config.slopes = o.cap, o.slopes
    config.temper, config.temper_length = o.temper, o.temper and LENGTH
    local handle = assert(real(rt, config))
    local file <close> = assert(core.file_open(rt, path))
    for layer = 1, o.sinks and SHAPE.layers or 0 do
      assert(handle:bind("sinks", layer, { name = "sinks", file = file, offset = 16 * (layer - 1),
        bytes = 16, dtype = "f32", shape = { SHAPE.heads } }))
    end
    return handle
  end
  local ok, model = pcall(pyramid.model, folder .. "/model", { threads = 1, device = o.device })
  core.model_new = real
  return assert(ok and model, model)
end

local watching = policy {
  name = "watching", defaults = {},
  prefill = function(_, l) return { keep = l.rows, share = "head" } end,
  trigger = function() return { every = 1000, window = 4, track = score.history() } end,
  decode = function(_, l) return { keep = l.rows, share = "head" } end,
}

describe("a model with caps, slopes and sinks", function()
  local folder

  setup(function()
    folder = shell.folder()
    assert(random_model.write(folder .. "/model", { shape = SHAPE, dtype = "f32", seed = 11 }))
  end)
  teardown(function() shell.remove(folder) end)

  for name, o in pairs {
    ["has capped scores"] = { cap = 0.3 },
    ["has slopes"] = { slopes = SLOPES },
    ["has sinks"] = { sinks = SINKS },
    ["has tempered queries"] = { temper = 0.7 },
    ["has all of them"] = { cap = 0.5, slopes = SLOPES, sinks = SINKS, temper = 0.4 },
    ["has all of them on a device"] = { cap = 0.5, slopes = SLOPES, sinks = SINKS, temper = 0.4,
      device = "emulated" },
  } do
    it(name, function()
      local model <close> = open(folder, o)
      local cache <close> = assert(model:cache { policy = watching, dtype = "f32" })
      local llama = plain.open(folder .. "/model")
      llama.cap, llama.slopes, llama.sinks = o.cap, o.slopes, o.sinks
      llama.temper, llama.temper_length = o.temper, LENGTH
      local lanes, ids, expected = llama:lanes(), helper.ids(24, SHAPE.vocab, 3), nil
      for _, id in ipairs(ids) do expected = llama:step(lanes, id) end
      local function check(logits, what)
        reference.near(ops.floats(logits:totable()), expected, 1e-5, error, what)
      end
      check(assert(cache:prefill(ids)), "after the prompt")
      for i = 1, 4 do
        expected = llama:step(lanes, 40 + i)
        check(assert(cache:step(40 + i)), "after step " .. i)
      end
      for layer = 1, SHAPE.layers do
        for head = 1, SHAPE.kv_heads do
          local seen, history = assert(cache:scores(nil, { layer = layer, head = head })), {}
          for j, row in ipairs(lanes[layer][head]) do history[j] = row.history end
          reference.near(ops.floats(seen:totable()), history, 1e-5, error, "history")
        end
      end
    end)
  end

  -- What a query is turned to is all that its layer knows of its position.
  it("tempers queries by their places where keys are turned to places within the cache", function()
    local model <close> = open(folder, { temper = 0.7 })
    local cache <close> = assert(model:cache { dtype = "f32",
      policy = assert(policy.load("streaming", { rows = 12, rotate = true })) })
    local llama = plain.open(folder .. "/model")
    llama.temper, llama.temper_length = 0.7, LENGTH
    local lanes = llama:lanes()
    local function step(id)
      return llama:step(lanes, id, function(lane) return lane.compact and #lane or lanes.tokens end)
    end
    local function follow()
      for layer = 1, SHAPE.layers do
        for head = 1, SHAPE.kv_heads do
          local lane, before = lanes[layer][head], #lanes[layer][head]
          plain.keep(lane, cache:positions(layer, head))
          lane.compact = lane.compact or #lane < before
          for j, row in ipairs(lane.compact and lane or {}) do
            row.turned = llama:rotated(row.k, j - 1)
          end
        end
      end
    end
    local expected
    for _, id in ipairs(helper.ids(30, SHAPE.vocab, 4)) do expected = step(id) end
    helper.assert_near(assert(cache:prefill(helper.ids(30, SHAPE.vocab, 4))), expected, "prompt")
    follow()
    assert.is_true(lanes[1][1].compact)
    for i = 1, 30 do
      helper.assert_near(assert(cache:step(40 + i)), step(40 + i), "step " .. i)
      follow()
    end
  end)

  -- Slopes go by the positions at which rows were read, so that none can be placed anew.
  it("cannot turn keys to places within the cache where it has slopes", function()
    local model <close> = open(folder, { slopes = SLOPES })
    local cache <close> = assert(model:cache { policy = assert(policy.load("streaming",
      { rows = 16, rotate = true })) })
    local logits, message, code = cache:prefill { 1, 2, 3 }
    assert.is_nil(logits)
    assert.equal("policy", code)
    assert.equal("policy streaming, layer 1, prefill: rotate cannot be \"compact\" in a model that "
      .. "slopes scores by distance (ALiBi)", message)
  end)
end)

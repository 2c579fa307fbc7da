-- A prefill that fails puts older rows back, and what it needs for that lies outside the budget:
-- reading on under a policy takes no more than the rows held and one layer's new ones.
local helper = require "spec.helper"
local policy = require "pyramid.policy"
local pyramid = require "pyramid"
local random_models = require "spec.support.random_models"
local score = require "pyramid.score"

local SHAPE = { layers = 3, width = 32, heads = 4, kv_heads = 2, ff = 48, vocab = 272,
  context = 4096 }
local PAGE = 32
local models = random_models(SHAPE)

local function prompt(n, seed) return helper.ids(n, SHAPE.vocab, seed) end

local function state_of(cache)
  local all = { cache:tokens(), cache:evicted(), cache:computed(), cache:bytes() }
  for layer = 1, SHAPE.layers do
    for head = 1, SHAPE.kv_heads do all[#all + 1] = cache:positions(layer, head) end
  end
  return all
end

--- Policies whose later prompts evict older rows in every way: moved, ragged, tracked, merged,
--- turned.
local function policies()
  local function by(name, fields)
    return policy { name = name, prefill = function(_, l)
      local plan = {}
      for key, value in pairs(fields) do plan[key] = value end
      plan.keep = math.min(plan.keep, l.rows)
      return plan
    end }
  end
  return {
    knorm = assert(pyramid.policy("knorm", { rows = 64, sinks = 4 })),
    streaming = assert(pyramid.policy("streaming", { rows = 64 })),
    h2o = assert(pyramid.policy("h2o", { rows = 64 })),
    tova = assert(pyramid.policy("tova", { rows = 64 })),
    pool = by("pool", { keep = 50, share = "pool", least = 5, score = score.value_norm() }),
    united = by("united", { keep = 50, share = "model", least = 5, score = score.value_norm() }),
    mass = by("mass", { keep = 70, mass = 0.6, share = "head", score = score.key_norm() }),
    shrinks = by("shrinks", { keep = 20, share = "head", score = score.random(4) }),
    d2o = assert(pyramid.policy("d2o", { rows = 64 })),
    compact = assert(pyramid.policy("streaming", { rows = 64, rotate = true })),
  }
end

describe("a prefill that fails", function()
  for _, kind in ipairs { "cpu", "device" } do
    it("leaves older rows as they were, wherever it ends, on the " .. kind, function()
      local model = models[kind]
      local all = policies()
      -- kernels that a processor runs are slow
      if kind == "device" then all = { pool = all.pool, tova = all.tova, compact = all.compact,
          united = all.united } end
      for name, p in pairs(all) do
        for _, forked in ipairs(kind == "cpu" and { false, true } or { false }) do
          local cache <close> = assert(model:cache { policy = p, dtype = "f32" })
          assert(cache:prefill(prompt(90, 1)))
          assert(cache:prefill(prompt(20, 2)))
          assert(cache:step(5))
          local twin <close> = assert(model:cache { policy = p, dtype = "f32" })
          assert(twin:prefill(prompt(90, 1)))
          assert(twin:prefill(prompt(20, 2)))
          assert(twin:step(5))
          local fork = forked and assert(cache:fork())
          local before, calls = state_of(cache), 0
          for stop = 1, SHAPE.layers + 1 do
            calls = 0
            local logits, message, code = cache:prefill(prompt(30, 3), { progress = function()
              calls = calls + 1
              return calls == stop
            end })
            if logits then break end
            assert.equal("cancelled", code, message)
            assert.same(before, state_of(cache), ("%s, stopped at %d"):format(name, stop))
          end
          for i = 1, 3 do
            assert.same(assert(twin:step(i)):totable(), assert(cache:step(i)):totable(), name)
          end
          assert.same(assert(twin:prefill(prompt(40, 9))):totable(),
            assert(cache:prefill(prompt(40, 9))):totable(), name)
          assert.same(state_of(twin), state_of(cache), name)
          if fork then fork:close() end
        end
      end
    end)
  end
end)

describe("a budget", function()
  it("of the rows held and one layer's new ones is enough to read on under a policy", function()
    local model, chunk = models.cpu, 16
    for name, p in pairs(policies()) do
      -- they write keys anew, or cut layers again: their older pages are kept meanwhile
      if name ~= "d2o" and name ~= "compact" and name ~= "united" then
        local function read(budget)
          local cache <close> = assert(model:cache { policy = p, dtype = "f32", budget = budget })
          local most = 0
          for i = 1, 12 do
            local logits, message, code = cache:prefill(prompt(i == 1 and 64 or chunk, i))
            if not logits then return nil, message, code end
            most = math.max(most, cache:bytes())
          end
          return most
        end
        local most = assert(read())
        local lane = (64 + chunk + PAGE - 1) // PAGE * PAGE * (2 * 4 * SHAPE.width // SHAPE.heads
          + 8)
        local done, message = read(most + lane)
        assert.truthy(done, ("%s: %s"):format(name, message))
      end
    end
  end)
end)

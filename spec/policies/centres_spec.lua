-- What is known of a model's queries: lane.queries of custom scores, held to W_q times the hidden
-- state; score.centres, held to the sum of cosines over distances (TriAttention, arXiv 2604.04921),
-- written out; score.along; and the tool that takes both from text.
local centres = require "pyramid.tools.centres"
local helper = require "spec.helper"
local maps = require "pyramid.maps"
local policy = require "pyramid.policy"
local random_models = require "spec.support.random_models"
local score = require "pyramid.score"
local shell = require "spec.support.shell"
local transformer = require "spec.support.transformer"
local vector = require "pyramid.vector"

describe("a model's queries", function()
  local models, folder = random_models { layers = 3, heads = 4, kv_heads = 2,
    width = 64, ff = 80, vocab = 272, context = 2048 }
  local model, plain, d, group, heads, theta
  setup(function()
    model, plain = models.cpu, transformer.load(folder() .. "/model")
    d, heads = model.config.head_dim, model.config.kv_heads
    group = model.config.heads // heads
    theta = helper.json(folder() .. "/model/config.json").rope_theta
  end)

  local function prompt(n, from) return helper.ids(n, model.config.vocab, from or 7) end

  local function random_map(rows, columns, least)
    local list = {}
    for i = 1, rows do
      list[i] = {}
      for j = 1, columns do list[i][j] = math.random() * 2 + (least or -1) end
    end
    return vector(list)
  end

  -- A cache that has read `ids` under a policy that shows each lane to `fn`.
  local function watched(ids, fn, inputs, o, share)
    local cache <close> = assert(model:cache { dtype = "f32", policy = { name = "watch",
      prefill = function(_, l)
        return { keep = l.rows - 1, share = share or "head", guard = { first = 2, last = 3 },
          score = score.custom(fn, inputs, o) }
      end } })
    assert(cache:prefill(ids))
  end

  -- x, a table of head_dim values, turned to a position.
  local function turn(x, position)
    local out = {}
    for p = 1, d // 2 do
      local angle = position * theta ^ (-2 * (p - 1) / d)
      local a, b = x[p], x[p + d // 2]
      out[p] = a * math.cos(angle) - b * math.sin(angle)
      out[p + d // 2] = b * math.cos(angle) + a * math.sin(angle)
    end
    return out
  end

  it("are W_q times the hidden state, and turned as RoPE does, in every layer", function()
    for _, tokens in ipairs { 7, 40, 600 } do
      local lanes = 0
      watched(prompt(tokens), function(lane)
        assert.equal(group * d, lane.queries:columns())
        for i = 1, lane.rows, math.max(1, lane.rows // 7) do
          for h = 0, group - 1 do
            local own = {}
            for j = 1, d do
              local w = vector(plain.layers[lane.layer].q[((lane.head - 1) * group + h) * d + j])
              own[j] = lane.hidden[i]:dot(w)
              assert.near(own[j], lane.queries[i][h * d + j], 1e-4)
            end
            for j, x in ipairs(turn(own, lane.positions[i])) do
              assert.near(x, lane.turned[i][h * d + j], 2e-4)
            end
          end
        end
        lanes = lanes + 1
        return lane.positions
      end, nil, { hidden = true, queries = true })
      assert.equal(model.config.layers * heads, lanes)
    end
    local cache <close> = assert(model:cache { policy = { name = "mine", prefill = function(_, l)
      return { keep = l.rows - 1, share = "head", score = score.custom(function(lane)
        return lane.queries
      end) }
    end } })
    local _, message = cache:prefill(prompt(9))
    assert.matches("a lane has no queries unless score.custom is told `queries = true`", message)
  end)

  -- TriAttention's sum, of one query head: keys turned back, one distance after the other.
  local function trigonometric(keys, positions, centre, next_position, far)
    local all, half = {}, d // 2
    for i, key in ipairs(keys) do
      local k, sum, count = turn(key, -positions[i]), 0.0, 0
      local t = 1
      while t <= far do
        for p = 1, half do
          local omega = theta ^ (-2 * (p - 1) / d)
          local q = (centre[p] ^ 2 + centre[p + half] ^ 2) ^ 0.5
          local size = (k[p] ^ 2 + k[p + half] ^ 2) ^ 0.5
          local phase = math.atan(centre[p + half], centre[p]) - math.atan(k[p + half], k[p])
          sum = sum + q * size * math.cos(omega * (next_position - positions[i] + t) + phase)
        end
        t, count = t * 2, count + 1
      end
      all[i] = sum / count
      for p = 1, half do
        local q = (centre[p] ^ 2 + centre[p + half] ^ 2) ^ 0.5
        all[i] = all[i] + (centre[d + p] - q) * (k[p] ^ 2 + k[p + half] ^ 2) ^ 0.5
      end
    end
    local mean, square = 0.0, 0.0
    for _, x in ipairs(all) do mean = mean + x / #all end
    for _, x in ipairs(all) do square = square + (x - mean) ^ 2 / #all end
    for i, x in ipairs(all) do all[i] = (x - mean) / square ^ 0.5 end
    return all
  end

  it("around a centre look at keys as the sum over distances says", function()
    local map = random_map(model.config.layers * model.config.heads, d + d // 2)
    for _, how in ipairs { { far = 65536, heads = "max" }, { far = 100, heads = "mean" } } do
      watched(prompt(60), function(lane)
        local keys, at, want = lane.keys:totable(), lane.positions:totable(), {}
        for h = 1, group do
          local row = (lane.layer - 1) * model.config.heads + (lane.head - 1) * group + h
          for i, x in ipairs(trigonometric(keys, at, map[row]:totable(), 60, how.far)) do
            if how.heads == "max" then want[i] = math.max(want[i] or -math.huge, x)
            else want[i] = (want[i] or 0.0) + x / group end
          end
        end
        for i, x in ipairs(want) do assert.near(x, lane.said[i], 2e-4) end
        return lane.positions
      end, { said = score.centres(map, how) })
    end
  end)

  it("and along a vector as a product says, whoever shares a set", function()
    local map = random_map(model.config.layers * heads, d)
    for _, share in ipairs { "head", "layer" } do
      local seen = {}
      watched(prompt(40), function(lane)
        local own = lane.keys:dot(map[(lane.layer - 1) * heads + lane.head])
        seen[lane.layer] = seen[lane.layer] or {}
        seen[lane.layer][lane.head] = { own:totable(), lane.said:totable() }
        return lane.positions
      end, { said = score.along(map) }, nil, share)
      for _, lanes in ipairs(seen) do
        for i in ipairs(lanes[1][1]) do
          local mean = (lanes[1][1][i] + lanes[2][1][i]) / 2
          for head, lane in ipairs(lanes) do
            assert.near(share == "head" and lane[1][i] or mean, lane[2][i], 1e-5, "head " .. head)
          end
        end
      end
    end
  end)

  it("weigh layers that divide a budget", function()
    local map, weights, rows = random_map(model.config.layers * heads, d), {}, {}
    for layer = 1, model.config.layers do weights[layer], rows[layer] = 0, heads end
    watched(prompt(60), function(lane)
      for _, x in ipairs(lane.keys:dot(map[(lane.layer - 1) * heads + lane.head]):totable()) do
        weights[lane.layer] = weights[lane.layer] + (x > 0 and 1 or 0)
      end
      return lane.positions
    end)
    local cache <close> = assert(model:cache { dtype = "f32", policy = { name = "mine",
      prefill = function()
        return { keep = 20, share = "head", guard = { first = 2, last = 3 },
          score = score.position(), weight = score.along(map):above(0) }
      end } })
    assert(cache:prefill(prompt(60)))
    -- One row after the other to whom it is worth most; a row a lane is promised.
    for _ = 1, (20 - 5 - 1) * heads * model.config.layers do
      local best = 1
      for layer, weight in ipairs(weights) do
        if weight / (rows[layer] + 1) > weights[best] / (rows[best] + 1) then best = layer end
      end
      rows[best] = rows[best] + 1
    end
    for layer, count in ipairs(rows) do
      local held = 0
      for head = 1, heads do held = held + cache:rows(layer, head) - 5 end
      assert.is_true(math.abs(held - count) <= 1, "but for ties it is " .. count)
    end
  end)

  it("rank in generation, too, and a cache at rest", function()
    local map = random_map(model.config.layers * model.config.heads, d + d // 2)
    local by = score.centres(map)
    local cache <close> = assert(model:cache { dtype = "f32", policy = policy.scorer {
      name = "mine", generates = true, slack = 3, defaults = { rows = 20, sinks = 0, recent = 0 },
      score = function() return by end } })
    assert(cache:prefill(prompt(30)))
    for i = 1, 10 do assert(cache:step(i)) end
    assert.is_true(cache:rows(1, 1) >= 20 and cache:rows(1, 1) <= 23)
    local said = assert(cache:scores(by, { layer = 2, head = 1 }))
    assert.equal(40, #said)
  end)

  it("are refused where they are of another model", function()
    for _, by in ipairs { score.along(random_map(5, d)), score.along(random_map(6, d + 1)),
      score.centres(random_map(6, d + d // 2)), score.centres(random_map(12, d)) } do
      local cache <close> = assert(model:cache { policy = { name = "mine", prefill = function(_, l)
        return { keep = l.rows - 1, score = by }
      end } })
      local ok, message, code = cache:prefill(prompt(9))
      assert.is_nil(ok)
      assert.matches("vectors for a model of other layers, heads or dimensions", message)
      assert.equal("policy", code)
      assert.equal(0, cache:rows(1, 1))
    end
    assert.is_false(pcall(score.centres, random_map(12, 24), { far = 0 }))
    assert.is_false(pcall(score.centres, random_map(12, 24), { heads = "some" }))
    assert.is_false(pcall(score.along, { 1, 2 }))
  end)

  describe("taken from texts", function()
    local learned
    setup(function() learned = assert(centres.learn(model, { prompt(80), prompt(50, 3) })) end)

    it("are means before RoPE and of pairs, of all rows but the first", function()
      local sums, lengths, count = {}, {}, 0
      for i = 1, d do sums[i] = 0.0 end
      for p = 1, d // 2 do lengths[p] = 0.0 end
      for _, ids in ipairs { prompt(80), prompt(50, 3) } do
        local cache <close> = assert(model:cache { policy = { name = "watch",
          prefill = function(_, l)
          return { keep = l.rows - 1, guard = { first = 4 }, share = "head",
            score = score.custom(function(lane)
              if lane.layer == 2 and lane.head == 2 then
                for _, q in ipairs(lane.queries:totable()) do
                  count = count + 1
                  for i = 1, d do sums[i] = sums[i] + q[i + d] end
                  for p = 1, d // 2 do
                    lengths[p] = lengths[p] + (q[d + p] ^ 2 + q[d + p + d // 2] ^ 2) ^ 0.5
                  end
                end
              end
              return lane.positions
            end, nil, { queries = true }) }
        end } })
        assert(cache:prefill(ids))
      end
      local row = learned.centres[model.config.heads + 4]:totable()   -- layer 2, the last head
      for i = 1, d do assert.near(sums[i] / count, row[i], 1e-4) end
      for p = 1, d // 2 do assert.near(lengths[p] / count, row[d + p], 1e-4) end
    end)

    it("have filters of length 1 on which no other direction gains", function()
      assert.equal(model.config.layers * heads, #learned.filters)
      local sample = {}
      watched(prompt(80), function(lane)
        sample[(lane.layer - 1) * heads + lane.head] = lane.turned:totable()
        return lane.positions
      end, nil, { queries = true })
      local one = assert(centres.learn(model, { prompt(80) }))
      for lane, rows in ipairs(sample) do
        local filter = one.filters[lane]
        assert.near(1, filter:norm(), 1e-5)
        -- of the rows that both saw
        local function energy(u)
          local sum = 0.0
          for i = 3, #rows do
            for h = 0, group - 1 do
              sum = sum + vector(rows[i]):slice(h * d + 1, h * d + d):dot(u) ^ 2
            end
          end
          return sum
        end
        local best = energy(filter)
        for _ = 1, 20 do
          local other = random_map(1, d)[1]
          assert.is_true(energy(other / other:norm()) <= best * 1.1)
        end
      end
    end)

    it("become a folder that is a policy, and a file for qfilter", function()
      local at = shell.folder()
      for file, bytes in pairs(centres.folder(learned, "made for a spec.")) do
        helper.write(at .. "/" .. file, bytes)
      end
      local map = at .. "/centres.safetensors"
      local read = assert(maps.centres(map))
      assert.same(learned.centres:totable(), read.centres:totable())
      assert.same(learned.filters:totable(), read.filters:totable())
      for _, p in ipairs { assert(policy.load(at .. "/policy.lua", { rows = 20 })),
        assert(policy.load("qfilter", { map = map, rows = 20 })) } do
        local cache <close> = assert(model:cache { policy = p })
        assert(cache:prefill(prompt(60)))
        assert.equal(20, cache:rows(2, 1))
        for i = 1, 3 do assert(cache:step(i)) end
      end
      for name in pairs { qfilter = 1, triattention = 1 } do
        local cache <close> = assert(model:cache { policy = policy.load(name,
          { map = at .. "/none.safetensors" }) })
        local ok, message = cache:prefill(prompt(60))
        assert.is_nil(ok)
        assert.matches("none%.safetensors", message)
      end
    end)
  end)
end)

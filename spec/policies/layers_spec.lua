-- cake, lava and simlayerkv, which look at whole layers, against their authors' formulas, spelled
-- out over the full attention of a float64 transformer: who is ranked how, what each layer weighs,
-- and what it keeps. Also weights in general: how a budget is divided, and what is refused.
local helper = require "spec.helper"
local policy = require "pyramid.policy"
local pyramid = require "pyramid"
local random_model = require "pyramid.tools.random_model"
local score = require "pyramid.score"
local shell = require "spec.support.shell"
local transformer = require "spec.support.transformer"

local LAYERS, HEADS, TOKENS, WINDOW = 4, 4, 90, 8
local models, folder = {}, nil

setup(function()
  folder = shell.folder()
  for kind, kv_heads in pairs { MHA = 4, GQA = 2 } do
    local path = folder .. "/" .. kind
    assert(random_model.write(path, { dtype = "f32", seed = 11,
      shape = { layers = LAYERS, width = 32, heads = HEADS, kv_heads = kv_heads, ff = 48,
        vocab = 272, context = 512 } }))
    models[kind] = { path = path, kv_heads = kv_heads, plain = transformer.load(path),
      cpu = assert(pyramid.model(path, { device = "cpu", threads = 2 })),
      device = assert(pyramid.model(path,
        { device = helper.device == "cpu" and "emulated" or helper.device })) }
  end
end)

teardown(function()
  for _, m in pairs(models) do
    m.cpu:close()
    m.device:close()
  end
  shell.remove(folder)
end)

-- attention[layer][head][query][position], from the last WINDOW queries; values[layer][kv head]
-- [position].
local function read(m, ids)
  if m.read then return m.read, m.values end
  local source, attention, values = transformer.source(m.plain, ids), {}, {}
  for layer = 1, LAYERS do
    attention[layer], values[layer] = {}, {}
    local positions = {}
    for query = 0, #ids - 1 do
      positions[#positions + 1] = query
      for head = 1, HEADS do
        local given, sum = source.attend(layer, head, query, positions, {}), 0.0
        for _, x in ipairs(given) do sum = sum + x end
        local row = {}
        for i = 1, #ids do row[i] = (given[i] or 0.0) / sum end
        if query >= #ids - WINDOW then
          attention[layer][head] = attention[layer][head] or {}
          table.insert(attention[layer][head], row)
        end
      end
    end
    for head = 1, m.kv_heads do
      values[layer][head] = {}
      for i = 1, #ids do values[layer][head][i] = source.values(layer, head, i - 1) end
    end
  end
  m.read, m.values = attention, values
  return attention, values
end

local function pooled(list, width, maximum)
  local out = {}
  for i = 1, #list do
    local x, count = maximum and -math.huge or 0.0, 0
    for j = math.max(1, i - width // 2), math.min(#list, i + width // 2) do
      x, count = maximum and math.max(x, list[j]) or not maximum and x + list[j] or x, count + 1
    end
    out[i] = maximum and x or x / count
  end
  return out
end

-- The positions of the k highest, ascending, and the last WINDOW.
local function top(list, k)
  local order, kept = {}, {}
  for i = 1, #list do order[i] = i end
  table.sort(order, function(a, b) return list[a] > list[b] end)
  for i = 1, k do kept[i] = order[i] - 1 end
  for i = #list, TOKENS - 1 do kept[#kept + 1] = i end
  table.sort(kept)
  return kept
end

local function ids() return helper.ids(TOKENS, 272, 3) end

-- What the policy keeps: the rows of each lane, and of each layer beside the window.
local function kept_by(model, p, kv_heads)
  local cache <close> = assert(model:cache { policy = p, dtype = "f32" })
  assert(cache:prefill(ids()))
  local rows, counts = {}, {}
  for layer = 1, LAYERS do
    rows[layer], counts[layer] = {}, 0
    for head = 1, kv_heads do
      rows[layer][head] = cache:positions(layer, head)
      counts[layer] = counts[layer] + #rows[layer][head] - WINDOW
    end
  end
  return rows, counts
end

-- Rows are whole: each layer has its part of all rows but for one row a layer, none is beyond what
-- it holds, and all together are the budget.
local function assert_parts(weights, counts, budget, room, slack)
  local sum, held = 0.0, 0
  for layer, weight in ipairs(weights) do sum, held = sum + weight, held + counts[layer] end
  assert.equal(budget, held)
  for layer, weight in ipairs(weights) do
    local part = weight / sum * budget
    assert.is_true(part < room - LAYERS, "the case has layers that are full")
    assert.is_true(math.abs(counts[layer] - part) <= slack,
      ("layer %d has %d rows, its part is %.2f"):format(layer, counts[layer], part))
  end
end

for kind, kv_heads in pairs { MHA = 4, GQA = 2 } do
  for _, device in ipairs { "cpu", "device" } do
    local where = (" (%s, %s)"):format(kind, device)
    local judged, group = TOKENS - WINDOW, HEADS // kv_heads

    it("cake: mean and variance of attention, entropy and variance of layers" .. where, function()
      local m, gamma, tau1, tau2 = models[kind], 200, 1.6, 2.5
      local attention, weights, by = read(m, ids()), {}, {}
      for layer = 1, LAYERS do
        local entropy, variance, each = 0.0, 0.0, {}
        for head = 1, HEADS do
          each[head] = {}
          for i = 1, judged do
            local sum, squares = 0.0, 0.0
            for _, row in ipairs(attention[layer][head]) do
              sum, entropy = sum + row[i], entropy - row[i] * math.log(row[i] + 1e-10)
            end
            for _, row in ipairs(attention[layer][head]) do
              squares = squares + (row[i] - sum / WINDOW) ^ 2
            end
            variance = variance + squares / (WINDOW - 1)
            each[head][i] = sum / WINDOW + gamma * squares / (WINDOW - 1)
          end
          each[head] = pooled(each[head], 5, false)
        end
        weights[layer], by[layer] = entropy ^ (1 / tau1) * variance ^ (1 / tau2), {}
        for head = 1, kv_heads do
          by[layer][head] = {}
          for i = 1, judged do
            local sum = 0.0
            for h = 1, group do sum = sum + each[(head - 1) * group + h][i] / group end
            by[layer][head][i] = sum
          end
        end
      end
      local p = assert(policy.load("cake", { ratio = 0.3, window = WINDOW, gamma = gamma,
        tau1 = tau1, tau2 = tau2 }))
      local rows, counts = kept_by(m[device], p, kv_heads)
      local budget = (math.ceil(0.3 * TOKENS) - WINDOW) * LAYERS * kv_heads
      assert_parts(weights, counts, budget, judged * kv_heads, 1.5)
      for layer = 1, LAYERS do
        for head = 1, kv_heads do
          local own = counts[layer] // kv_heads + (head <= counts[layer] % kv_heads and 1 or 0)
          assert.same(top(by[layer][head], own), rows[layer][head])
        end
      end
    end)

    it("lava: attention times the largest value, entropy of layers" .. where, function()
      local m = models[kind]
      local attention, values = read(m, ids())
      local weights, by = {}, {}
      for layer = 1, LAYERS do
        local all, sum = {}, 0.0
        by[layer] = {}
        for head = 1, kv_heads do
          local largest, best = 0.0, {}
          for i = 1, judged do
            local norm = 0.0
            for _, x in ipairs(values[layer][head][i]) do norm = norm + math.abs(x) end
            largest, best[i] = math.max(largest, norm), 0.0
          end
          for h = (head - 1) * group + 1, head * group do
            local mean = {}
            for i = 1, judged do
              mean[i] = 0.0
              for _, row in ipairs(attention[layer][h]) do mean[i] = mean[i] + row[i] / WINDOW end
            end
            for i, x in ipairs(pooled(mean, 7, true)) do
              best[i] = math.max(best[i], x * largest)
            end
          end
          by[layer][head] = best
          for i = 1, judged do
            all[#all + 1] = { x = best[i], head = head, at = i }
            sum = sum + best[i]
          end
        end
        weights[layer] = 0.0
        for _, row in ipairs(all) do
          weights[layer] = weights[layer] - row.x / sum * math.log(row.x / sum)
        end
        table.sort(all, function(a, b)
          if a.x ~= b.x then return a.x > b.x end
          return a.head < b.head or a.head == b.head and a.at < b.at
        end)
        by[layer].all = all
      end
      local p = assert(policy.load("lava", { ratio = 0.3, window = WINDOW }))
      local rows, counts = kept_by(m[device], p, kv_heads)
      assert_parts(weights, counts, (math.ceil(0.3 * TOKENS) - WINDOW) * LAYERS * kv_heads,
        judged * kv_heads, 1.5)
      for layer = 1, LAYERS do
        local held, last = 0.0, by[layer].all[counts[layer]].x
        for head = 1, kv_heads do                  -- equals, as pools leave them, may be told apart
          for _, position in ipairs(rows[layer][head]) do
            local x = by[layer][head][position + 1]
            if x then
              held = held + x
              assert.is_true(x >= last * (1 - 1e-5))
            end
          end
        end
        local best = 0.0
        for i = 1, counts[layer] do best = best + by[layer].all[i].x end
        assert.near(best, held, 1e-4 * best)
      end
    end)

    it("simlayerkv: lazy layers keep the first rows and the last" .. where, function()
      local m, sinks, recent, shares = models[kind], 3, 20, {}
      local attention = read(m, ids())
      for layer = 1, LAYERS do
        shares[layer] = 0.0
        for head = 1, HEADS do
          for _, row in ipairs(attention[layer][head]) do
            for i = 1, TOKENS do
              if i <= sinks or i > TOKENS - recent then
                shares[layer] = shares[layer] + row[i] / HEADS / WINDOW
              end
            end
          end
        end
      end
      local order = table.move(shares, 1, LAYERS, 1, {})
      table.sort(order)
      for cut = 0, LAYERS do                       -- so many are not lazy
        local lazy = cut == 0 and 0 or cut == LAYERS and 1 or (order[cut] + order[cut + 1]) / 2
        local p = assert(policy.load("simlayerkv", { window = WINDOW, sinks = sinks,
          recent = recent, lazy = lazy }))
        local rows = kept_by(m[device], p, kv_heads)
        for layer = 1, LAYERS do
          local expected = {}
          for i = 0, TOKENS - 1 do
            if shares[layer] <= lazy or i < sinks or i >= TOKENS - recent then
              expected[#expected + 1] = i
            end
          end
          for head = 1, kv_heads do assert.same(expected, rows[layer][head]) end
        end
      end
    end)
  end
end

describe("weights", function()
  -- Layers that weigh so much, by a table; `more` of their plans.
  local function weighing(weights, more)
    local by = { by = "head" }
    for layer = 1, LAYERS do by[layer] = { weights[layer], weights[layer] } end
    local weight = score.table(by)
    return policy { name = "weighing", prefill = function(_, l)
      local plan = { keep = l.rows // 3, share = "pool", score = score.key_norm(),
        weight = weight }
      for key, value in pairs(more and more(l, weight) or {}) do plan[key] = value or nil end
      return plan
    end }
  end

  local function counts_of(p)
    local cache <close> = assert(models.GQA.cpu:cache { policy = p, dtype = "f32" })
    assert(cache:prefill(ids()))
    local counts = {}
    for layer = 1, LAYERS do counts[layer] = cache:rows(layer, 1) + cache:rows(layer, 2) end
    return counts
  end

  it("divide the budget, least and rows there are respected", function()
    assert.same({ 60, 60, 60, 60 }, counts_of(weighing { 7, 7, 7, 7 }))
    assert.same({ 24, 48, 72, 96 }, counts_of(weighing { 1, 2, 3, 4 }))
    -- all that the first has, and one row a lane of the last
    assert.same({ 180, 56, 2, 2 }, counts_of(weighing { 1000, 1e-3, 0, 0 }))
    local function least() return { least = 10 } end
    assert.same({ 20, 20, 20, 180 }, counts_of(weighing({ 0, 0, 0, 1 }, least)))
    assert.same({ 60, 60, 60, 60 }, counts_of(weighing { 0, 0, 0, 0 }))
    assert.same({ 60, 60, 60, 60 }, counts_of(weighing { -3, -3, -3, -3 }))
    assert.same({ 24, 48, 72, 96 }, counts_of(weighing({ 1, 2, 3, 4 }, function()
      return { share = "head" }
    end)))
  end)

  it("are refused by name where they cannot be", function()
    local function refused(words, more, weights)
      local cache <close> = assert(models.GQA.cpu:cache { dtype = "f32",
        policy = weighing(weights or { 1, 2, 3, 4 }, more) })
      local done, message, code = cache:prefill(ids())
      assert.is_nil(done)
      assert.equal("policy", code)
      assert.truthy(message:find("policy weighing, layer " .. words, 1, true), message)
      assert.equal(0, cache:tokens())
    end
    local function with(plan) return function() return plan end end
    refused('1, prefill: weight needs share = "head" or share = "pool"', with { share = "model" })
    refused('1, prefill: weight needs share = "head" or share = "pool"', with { share = "layer" })
    refused("1, prefill: weight divides one number of rows",
      with { share = "head", keep = { 5, 6 } })
    refused("1, prefill: mass cannot be said where layers share", with { mass = 0.5 })
    refused("1, prefill: merge cannot be said where layers share", with { merge = true })
    refused("1, prefill: weight has a function of its own",
      with { weight = score.custom(function(l) return l.positions end) })
    refused("1, prefill: weight asks for what a probe tracked", with { weight = score.probed() })
    local long = score.key_norm()
    for _ = 1, 10 do long = long + score.position() end
    refused("1, prefill: weight has, with the score, too many operations",
      with { weight = long, score = long })
    refused("3, prefill: weight must be said by all layers that share a budget", function(l)
      return l.index == 3 and { share = "model", weight = false } or {}
    end)
    refused("2, prefill: score (position * 1e+38) is NaN or infinite", function(l, weight)
      return { weight = l.index == 2 and score.position() * 1e38 or weight }
    end)
    local at_rest <close> = assert(models.GQA.cpu:cache())
    assert(at_rest:prefill(ids()))
    local message = select(2, at_rest:evict(weighing { 1, 2, 3, 4 }))
    assert.truthy(message:find("weight divides a budget over layers while a prompt is read only", 1,
      true), message)
  end)
end)

-- Layers that share one budget while a prompt is read (share = "model"): each time another layer
-- has read, those before it are cut again. What is left equals one choice in plain Lua among all
-- rows; the peak is the budget and one layer; a read that fails changes nothing.
local chosen = require "spec.support.one_budget"
local helper = require "spec.helper"
local policy = require "pyramid.policy"
local random_models = require "spec.support.random_models"
local score = require "pyramid.score"

local SHAPE = { layers = 5, width = 32, heads = 4, kv_heads = 2, ff = 48, vocab = 272,
  context = 4096 }
local models = random_models(SHAPE)

local function prompt(n, seed) return helper.ids(n, SHAPE.vocab, seed) end

local function each_lane(f)
  for layer = 1, SHAPE.layers do
    for head = 1, SHAPE.kv_heads do f(layer, head) end
  end
end

local function positions(cache)
  local all = {}
  each_lane(function(layer, head) all[#all + 1] = cache:positions(layer, head) end)
  return all
end

local function rows_of(cache)
  local rows = 0
  each_lane(function(layer, head) rows = rows + cache:rows(layer, head) end)
  return rows
end

local function new(kind, p, given)
  given = given or {}
  given.policy, given.dtype = p, given.dtype or "f32"
  return assert(models[kind]:cache(given))
end

-- A third of what comes, by a score; all layers share, but those of `apart`.
local function sharing(by, apart)
  return policy { name = "sharing", prefill = function(_, l)
    return { keep = math.min(l.rows, l.past + math.max(1, l.prompt // 3)),
      guard = { first = 2, last = 3 }, score = by or score.attention { queries = 7 },
      share = (apart or {})[l.index] or "model" }
  end, trigger = function() return { over = 60 } end,
    decode = function(_, l) return { keep = l.rows - 5, share = "pool" } end }
end

for _, kind in ipairs { "cpu", "device" } do
  describe("layers that share a budget while they read, on the " .. kind, function()
    it("are left with the best rows of all of them, ties to the lower", function()
      local state = os.time()
      local function draw(n)
        state = (state * 1103515245 + 12345) % 2147483648
        return state // 65536 % n
      end
      for round = 1, kind == "cpu" and 20 or 6 do
        local levels, n, past = 1 + draw(40), 40 + draw(60), draw(2) * (10 + draw(30))
        local values = {}                       -- few levels: many ties
        local by = score.custom(function(lane)
          local out = {}
          for i = 1, lane.rows do
            out[i] = values[lane.layer * 10 + lane.head][math.tointeger(lane.positions[i])]
          end
          return out
        end)
        local plans, apart = {}, draw(3) == 0 and 1 + draw(SHAPE.layers) or nil
        for layer = 1, SHAPE.layers do
          local keep = 1 + draw((n + past) * 3 // 4)
          plans[layer] = { keep = keep, guard = { first = draw(5), last = draw(5) },
            least = draw(2) * math.min(keep, 1 + draw(9)), share = "model", score = by }
          if layer == apart then plans[layer] = { keep = n // 3, share = "head", score = by } end
        end
        local reads = false
        local p = policy { name = "shared", prefill = function(_, l)
          if not reads then                     -- what lies there before, of unequal lanes
            return { keep = math.max(1, l.rows * 2 // 3), share = "pool",
              score = score.key_norm() }
          end
          local plan = plans[l.index]
          plan.keep = math.min(plan.keep, l.rows)
          plan.least = plan.least and math.min(plan.least, plan.keep)
          return plan
        end }
        local cache <close> = new(kind, p)
        if past > 0 then assert(cache:prefill(prompt(past, round + 50))) end
        reads = true
        local lanes = {}
        each_lane(function(layer, head)
          local key, rows = layer * 10 + head, cache:positions(layer, head)
          values[key] = {}
          for position = 0, past + n - 1 do
            values[key][position] = draw(levels) - levels // 2
            if position >= past then rows[#rows + 1] = position end
          end
          if layer == apart then return end
          lanes[#lanes + 1] = { layer = layer, head = head, x = values[key], rows = rows }
        end)
        local longest = {}
        for _, lane in ipairs(lanes) do
          longest[lane.layer] = math.max(longest[lane.layer] or 0, #lane.rows)
        end
        for layer, rows in pairs(longest) do
          plans[layer].keep = math.min(plans[layer].keep, rows)
          plans[layer].least = plans[layer].least and math.min(plans[layer].least,
            plans[layer].keep)
        end
        local kept = chosen(lanes, function(layer) return plans[layer] end)
        assert(cache:prefill(prompt(n, round)))
        for i, lane in ipairs(lanes) do
          local expected = {}
          for _, position in ipairs(lane.rows) do
            if kept[i][position] then expected[#expected + 1] = position end
          end
          assert.same(expected, cache:positions(lane.layer, lane.head),
            ("round %d, layer %d, head %d"):format(round, lane.layer, lane.head))
        end
      end
    end)

    it("keep what cutting all of them at rest keeps", function()
      for _, dtype in ipairs { "f32", "f16", "fp8_e4m3" } do
        local by = score.value_norm() - score.key_similarity()
        local cut <close> = new(kind, nil, { dtype = dtype })
        local at_once <close> = new(kind, sharing(by), { dtype = dtype })
        assert(at_once:prefill(prompt(131, 4)))
        assert(cut:prefill(prompt(131, 4)))
        assert(cut:evict(sharing(by)))
        assert.same(positions(cut), positions(at_once))
        assert.equal(SHAPE.layers * SHAPE.kv_heads * (131 // 3), rows_of(at_once))
      end
    end)
  end)
end

describe("layers that share a budget while they read", function()
  it("hold no more than the budget and one layer at a time", function()
    -- pages count: 2 planes of 32 rows, and 8 bytes beside each row
    local n, page = 600, 32 * (2 * 4 * SHAPE.width // SHAPE.heads + 8)
    local p, lanes = sharing(), SHAPE.layers * SHAPE.kv_heads
    local function read(budget)
      local cache <close> = new("cpu", p, { budget = budget })
      local logits, message, code = cache:prefill(prompt(n, 1))
      return logits and rows_of(cache), message, code
    end
    local layer = SHAPE.kv_heads * math.ceil(n / 32) * page
    -- a lane's last page may hold one row
    assert.equal(lanes * n // 3, read((lanes * n // 3 + lanes * 31) // 32 * page + layer))
    local done, _, code = read(layer * 2)
    assert.is_nil(done)
    assert.equal("budget", code)
  end)

  it("may have others among them that do not share", function()
    local all = { { [1] = "head" }, { [3] = "layer", [4] = "pool" }, { [5] = "head" } }
    for _, apart in ipairs(all) do
      local cache <close> = new("cpu", sharing(nil, apart))
      assert(cache:prefill(prompt(90, 2)))
      local shared, rows = 0, 0
      each_lane(function(layer, head)
        if apart[layer] then return end
        shared, rows = shared + 1, rows + cache:rows(layer, head)
      end)
      assert.equal(30 * shared, rows)
    end
  end)

  it("go on as any cache: steps, forks, files, batches", function()
    local p, path = sharing(), helper.tmp()
    local cache <close> = new("cpu", p)
    assert(cache:prefill(prompt(90, 3)))
    local fork <close> = assert(cache:fork())
    local before = positions(fork)
    assert(cache:save(path))
    local loaded <close> = assert(models.cpu:load_cache(path, { policy = p, dtype = "f32" }))
    os.remove(path)
    assert.same(before, positions(loaded))
    local twin <close> = assert(fork:fork())
    local more = assert(cache:prefill(prompt(40, 4))):totable()
    assert.same(before, positions(fork))
    assert.same(more, assert(loaded:prefill(prompt(40, 4))):totable())
    assert.same(positions(cache), positions(loaded))
    for i = 1, 30 do
      assert.same(assert(fork:step(i)):totable(), assert(twin:step(i)):totable())
    end
    local batch <close> = assert(models.cpu:batch { policy = p, dtype = "f32" })
    for i, n in ipairs { 90, 7, 33 } do
      local handle = assert(batch:add(prompt(n, 2 + i)))
      assert(batch:step())
      local alone <close> = new("cpu", p)
      assert(alone:prefill(prompt(n, 2 + i)))
      assert.same(positions(alone), positions(handle))
      assert(batch:push(handle, 3))
    end
  end)

  it("leave everything as it was where a read fails", function()
    for _, empty in ipairs { true, false } do
      local p, say = sharing(), nil
      local cache <close> = new("cpu", p, { trace = function(r) return say and say(r) end })
      if not empty then assert(cache:prefill(prompt(90, 3))) end
      local before, tokens, bytes = positions(cache), cache:tokens(), cache:bytes()
      for stop = 1, SHAPE.layers + 1 do
        local calls = 0
        local done, message, code = cache:prefill(prompt(50, 4), { progress = function()
          calls = calls + 1
          return calls == stop
        end })
        assert.is_nil(done)
        assert.equal("cancelled", code, message)
        assert.same(before, positions(cache))
      end
      function say(r) if r.layer == 4 then error("no more room", 0) end end
      local done, message = cache:prefill(prompt(50, 4))
      assert.is_nil(done)
      assert.equal("trace, layer 4, prefill: no more room", message)
      assert.same({ before, tokens, bytes }, { positions(cache), cache:tokens(), cache:bytes() })
      local told = {}
      function say(r) told[r.layer] = { r.kept.mean * r.heads, r.why } end
      assert(cache:prefill(prompt(50, 4)))
      for layer = 1, SHAPE.layers do
        assert.same({ cache:rows(layer, 1) + cache:rows(layer, 2), "attention" }, told[layer])
      end
    end
  end)

  it("are refused by name what they cannot do, or say anew", function()
    local function refused(words, plans, n)
      local asked = {}
      local p = policy { name = "wrong", prefill = function(_, l)
        asked[l.index] = (asked[l.index] or 0) + 1
        local plan = plans[l.index] or { keep = l.rows // 2, share = "model",
          score = score.key_norm() }
        return type(plan) == "function" and plan(l, asked[l.index]) or plan
      end }
      local cache <close> = new("cpu", p)
      local done, message, code = cache:prefill(prompt(n or 40, 1))
      assert.is_nil(done)
      assert.equal("policy", code)
      assert.truthy(message:find("policy wrong, " .. words, 1, true), message)
      assert.equal(0, cache:tokens())
    end
    refused('layer 1, prefill: mass cannot be said where layers share a budget while they read',
      { { mass = 0.5, share = "model", score = score.key_norm() } })
    refused('layer 1, prefill: above cannot be said where layers share a budget while they read',
      { { above = 0.5, share = "model", score = score.key_norm() } })
    refused('layer 2, prefill: merge cannot be said where layers share a budget while they read',
      { [2] = { keep = 5, share = "model", score = score.key_norm(), merge = true } })
    refused('layer 3, prefill: prune drops hidden states, but a layer above shares a budget',
      { [3] = { keep = 20, score = score.key_norm(), prune = "both" } })
    refused('layer 2, prefill: share is of a budget that layers share, but layers above have dropped',
      { { keep = 20, score = score.key_norm(), prune = "both" } })
    refused('layer 3, prefill: score ((position * 1e+38) * 1e+38) is NaN or infinite',
      { [3] = { keep = 5, share = "model", score = score.position() * 1e38 * 1e38 } })
    local function changes(_, times)
      return { keep = 5 + times, share = "model", score = score.key_norm() }
    end
    refused("layer 4, prefill: keep is another than before the prompt was read", { [4] = changes })
    refused("layer 4, prefill: keep is another than before the prompt was read",
      { [4] = function(_, times)
        return { keep = 5, share = times == 1 and "model" or "head" }
      end })
    refused("layer 4, prefill: keep is another than before the prompt was read",
      { [4] = function(_, times)
        return { keep = 5, share = times > 1 and "model" or "head" }
      end })
  end)

  it("keep all rows where the budget has room for all", function()
    local p = policy { name = "roomy", prefill = function(_, l)
      return { keep = l.rows, share = "model", score = score.key_norm() }
    end }
    local cache <close> = new("cpu", p)
    local full <close> = new("cpu")
    assert.same(assert(full:prefill(prompt(50, 1))):totable(),
      assert(cache:prefill(prompt(50, 1))):totable())
    assert.equal(1, cache:fraction())
  end)
end)

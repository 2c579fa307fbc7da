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

describe("a learned score that is tracked", function()
  local models, folder = random_models { layers = 3, heads = 4, kv_heads = 2,
    width = 64, ff = 80, vocab = 272, context = 512 }
  local model, heads, width, map, learned, oracle
  local ids = {}

  -- By layer, head and position: what the sums say of the hidden states of a prompt.
  local function worked_out(all)
    local out = {}
    local function fn(lane)
      local row = map[(lane.layer - 1) * heads + lane.head]
      out[lane.layer] = out[lane.layer] or {}
      local own = {}
      for i = 1, lane.rows do
        own[i] = lane.hidden[i]:dot(row:slice(1, width)) + row[width + 1]
      end
      out[lane.layer][lane.head] = own
      return lane.positions
    end
    local cache <close> = assert(model:cache { dtype = "f32", policy = { name = "watch",
      prefill = function(_, l)
        return { keep = l.rows - 1, share = "head",
          score = score.custom(fn, nil, { hidden = true }) }
      end } })
    assert(cache:prefill(all))
    return out
  end

  setup(function()
    model = models.cpu
    width, heads = model.config.width, model.config.kv_heads
    local rows = {}
    for i = 1, model.config.layers * heads do
      rows[i] = {}
      for j = 1, width + 1 do rows[i][j] = math.random() * 2 - 1 end
    end
    map = vector(rows)
    learned, ids = score.learned(map), helper.ids(90, model.config.vocab, 4)
    oracle = worked_out(ids)
    assert.truthy(folder)
  end)

  local function policy(fields)
    local p = { name = "tracked", decode = function() return nil end,
      trigger = function() return { every = 1000, track = learned } end }
    for key, value in pairs(fields or {}) do p[key] = value end
    return p
  end

  local function new(one, p) return assert(one:cache { dtype = "f32", policy = p }) end

  local function each_lane(f)
    for layer = 1, model.config.layers do
      for head = 1, heads do f(layer, head) end
    end
  end

  local function assert_scores(cache)
    each_lane(function(layer, head)
      local given = assert(cache:scores(learned, { layer = layer, head = head }))
      for _, position in ipairs(cache:positions(layer, head)) do
        assert.near(oracle[layer][head][position + 1], given[position + 1], 5e-4,
          ("layer %d, head %d, position %d"):format(layer, head, position))
      end
    end)
  end

  it("is a row's own from the step or prompt that makes it, wherever the row goes", function()
    for _, kind in ipairs { "cpu", "device" } do
      local cache <close> = new(models[kind], policy())
      assert(cache:prefill(helper.slice(ids, 1, 33)))
      for i = 34, 50 do assert(cache:step(ids[i])) end
      assert(cache:prefill(helper.slice(ids, 51, 60), { prune = false }))
      assert(cache:prefill(helper.slice(ids, 61, 70)))
      local fork <close> = assert(cache:fork())
      for i = 71, 80 do
        assert(cache:step(ids[i]))
        assert(fork:step(ids[i]))
      end
      assert_scores(cache)
      assert_scores(fork)
      local path = helper.tmp()
      assert(fork:save(path))
      local loaded <close> = assert(models[kind]:load_cache(path, { dtype = "f32",
        policy = policy() }))
      for i = 81, 90 do assert(loaded:step(ids[i])) end
      assert_scores(loaded)
      assert(loaded:truncate(75))
      for i = 76, 79 do assert(loaded:step(ids[i])) end
      assert_scores(loaded)
      local without = { name = "tracked", decode = function() end,
        trigger = function() return { every = 1000 } end }
      local ok, message, code = models[kind]:load_cache(path, { dtype = "f32", policy = without })
      os.remove(path)
      assert.is_nil(ok)
      assert.truthy(message:find("tracks a learned score, and the policy none", 1, true), message)
      assert.equal("format", code)
    end
  end)

  it("is each sequence's own in a batch of caches with and without it", function()
    local all, other = {}, score.learned(map)
    for i, p in ipairs { policy(), { name = "none" }, policy(),
      policy { trigger = function() return { every = 1000, track = other } end } } do
      all[i] = assert(model:cache { dtype = "f32", policy = p })
    end
    for _, cache in ipairs(all) do assert(cache:prefill(helper.slice(ids, 1, 20))) end
    for i = 21, 30 do
      local same = {}
      for k in ipairs(all) do same[k] = ids[i] end
      assert(core.step(all, same))
    end
    assert_scores(all[1])
    assert_scores(all[3])
    for _, cache in ipairs(all) do cache:close() end
  end)

  it("says in decode which rows leave, once and behind a window", function()
    local window, from, to = 6, 30, 80
    for _, kind in ipairs { "cpu", "device" } do
      for _, every in ipairs { 1, 4 } do
        local function plan() return { above = 0.25, share = "head", score = learned } end
        local cache <close> = new(models[kind], policy { prefill = function()
          return { above = 0.25, share = "head", score = learned, guard = { last = window } }
        end, decode = plan, trigger = function()
          return { every = every, window = window, once = true, track = learned }
        end })
        assert(cache:prefill(helper.slice(ids, 1, from)))
        for i = from + 1, to do assert(cache:step(ids[i])) end
        -- rows pass on that no plan has judged: those of the window when one fired last
        local judged = from + (to - from) // every * every - window
        -- Later tokens see fewer rows than the oracle's: hidden states differ from there on.
        each_lane(function(layer, head)
          local given = assert(cache:scores(learned, { layer = layer, head = head }))
          local held = {}
          for _, position in ipairs(cache:positions(layer, head)) do held[position] = true end
          for position = 0, to - 1 do
            if position >= judged then assert.is_true(held[position])
            elseif held[position] then
              assert.is_true(given[position + 1] >= 0.25)
            elseif position < from then
              assert.is_true(oracle[layer][head][position + 1] < 0.25 + 1e-3)
            end
          end
          if layer > 1 then return end               -- a first layer's input is the token alone
          for position = 0, judged - 1 do
            local x = oracle[layer][head][position + 1]
            if math.abs(x - 0.25) > 1e-3 then assert.equal(x > 0.25, held[position] or false) end
          end
        end)
      end
    end
  end)

  it("ranks earlier prompts' rows and rows at rest", function()
    local best = {}
    for i = 1, 60 do best[i] = i - 1 end
    local function at(i) return oracle[1][1][best[i] + 1] end
    table.sort(best, function(a, b) return oracle[1][1][a + 1] > oracle[1][1][b + 1] end)
    local most = 8                                 -- rows, none of which is near the next one
    for i = 9, 16 do
      if at(i) - at(i + 1) > at(most) - at(most + 1) then most = i end
    end
    local function few(l)
      return { keep = math.min(most, l.rows), share = "head", score = learned }
    end
    local p = policy { prefill = function(_, l) return few(l) end }
    local cache <close> = new(model, p)
    assert(cache:prefill(helper.slice(ids, 1, 30)))
    local before = cache:positions(1, 1)
    assert.equal(most, #before)
    assert(cache:prefill(helper.slice(ids, 31, 60)))
    best = helper.slice(best, 1, most)
    table.sort(best)
    assert.same(best, cache:positions(1, 1))
    local rest <close> = new(model, policy())
    assert(rest:prefill(helper.slice(ids, 1, 60)))
    assert(rest:evict { name = "few", prefill = function(_, l) return few(l) end })
    assert.same(best, rest:positions(1, 1))
  end)

  it("is refused by name where it cannot be, and nothing is lost", function()
    local function refused(p, pattern, first)
      local cache <close> = new(model, p)
      if first then assert(cache:prefill(first)) end
      local held = cache:rows(1, 1)
      local ok, message, code = cache:prefill(helper.slice(ids, 1, 20))
      assert.is_nil(ok)
      assert.truthy(message:find(pattern, 1, true), message)
      assert.equal("policy", code)
      assert.equal(held, cache:rows(1, 1))
      assert.equal(held, cache:tokens())
    end
    refused(policy { trigger = function()
      return { every = 9, track = score.learned(vector { { 1, 2 }, { 3, 4 } }) }
    end }, "policy tracked, layer 1, trigger: track is learned for a model of other layers")
    refused(policy { trigger = function(_, l)
      return { every = 9, track = l.index == 2 and score.learned(map) or learned }
    end }, "policy tracked: tracks another learned score than before")
    refused(policy { trigger = function(_, l)
      return { every = 9, track = l.past == 0 and learned or score.history() }
    end, prefill = function(_, l) return { keep = l.rows, score = learned } end },
      "layer 1, prefill: score is a learned one that the trigger tracked and tracks no more",
      helper.slice(ids, 1, 9))
    refused(policy { trigger = function() return { every = 9, track = learned + 1 } end },
      "track must be a single attention, history or learned signal")
    local cache <close> = new(model, policy { trigger = function()
      return { every = 1, track = score.history() }
    end, decode = function(_, l) return { keep = l.rows, score = learned } end })
    assert(cache:prefill(helper.slice(ids, 1, 20)))
    local ok, message = cache:step(5)
    assert.is_nil(ok)
    assert.truthy(message:find("or where the trigger tracks that learned score", 1, true), message)
    assert.equal(20, cache:rows(1, 1))
    assert.is_nil((cache:scores(learned)))
  end)

  it("leaves sums to start anew when a trigger turns to them", function()
    local p = policy { trigger = function(_, l)
      return { every = 1000, track = l.past == 0 and learned or score.history() }
    end }
    local cache <close> = new(model, p)
    local fresh <close> = new(model, policy { trigger = function(_, l)
      return l.past > 0 and { every = 1000, track = score.history() } or nil
    end })
    for _, one in ipairs { cache, fresh } do
      assert(one:prefill(helper.slice(ids, 1, 20)))
      assert(one:prefill(helper.slice(ids, 21, 40)))
    end
    each_lane(function(layer, head)
      assert.same(assert(fresh:scores(nil, { layer = layer, head = head })):totable(),
        assert(cache:scores(nil, { layer = layer, head = head })):totable())
    end)
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

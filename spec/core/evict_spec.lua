-- Caches that are cut at rest: by a policy (cache:evict), at a token (cache:truncate). What is left
-- equals a prompt read under that policy, a cache that never read the rest, and what plain lists of
-- positions say after any series of calls. And scores that are no numbers, which no call takes for
-- ranks.
local helper = require "spec.helper"
local policy = require "pyramid.policy"
local pyramid = require "pyramid"
local random_model = require "pyramid.tools.random_model"
local random_models = require "spec.support.random_models"
local score = require "pyramid.score"

local SHAPE = { layers = 3, width = 32, heads = 4, kv_heads = 2, ff = 48, vocab = 272,
  context = 512 }
local models, folder = random_models(SHAPE)

local function prompt(n, seed) return helper.ids(n, SHAPE.vocab, seed) end

local function positions(cache)
  local all = {}
  for layer = 1, SHAPE.layers do
    for head = 1, SHAPE.kv_heads do all[#all + 1] = cache:positions(layer, head) end
  end
  return all
end

local function new(model, p, given)
  given = given or {}
  given.policy, given.dtype = p, given.dtype or "f32"
  return assert(model:cache(given))
end

local function plan(name, fields)
  return policy { name = name, prefill = function(_, l)
    local keep = {}
    for key, value in pairs(fields) do keep[key] = value end
    keep.keep = math.min(keep.keep, l.rows)
    return keep
  end }
end

--- What a call that failed must not have changed: rows, counters, and the logits of the next step,
--- read on a fork.
local function state_of(cache)
  local fork <close> = assert(cache:fork())
  return { positions(cache), cache:tokens(), cache:evicted(), assert(fork:step(7)):totable() }
end

describe("cache:evict", function()
  local by_rows = {
    streaming = { keep = 40, guard = { first = 4, last = 36 } },
    compact = { keep = 40, guard = { first = 4, last = 30 }, rotate = "compact",
      score = score.random(3) },
    ["by head"] = { keep = 40, guard = { first = 2, last = 5 }, share = "head",
      score = -score.key_norm() },
    pool = { keep = 40, guard = { first = 2, last = 5 }, share = "pool",
      score = -score.key_similarity() },
    mass = { keep = 60, mass = 0.5, least = 9, share = "head", score = score.value_norm() },
    above = { keep = 90, above = 0.5, share = "head", guard = { first = 2 },
      score = score.key_norm() },
    merge = { keep = 40, guard = { last = 5 }, share = "head", merge = { threshold = 0.1 },
      score = score.key_norm() },
    lag = { keep = 40, guard = { first = 2 }, share = "head", score = score.lag { lag = 16 } },
    custom = { keep = 40, share = "head",
      score = score.custom(function(lane) return lane.positions end) },
    table = { keep = 40, score = score.table(prompt(90, 8)) },
  }

  for _, kind in ipairs { "cpu", "device" } do
    it("leaves what a prompt read under that policy leaves, on the " .. kind, function()
      local model, ids = models[kind], prompt(90, 2)
      for name, fields in pairs(by_rows) do
        local p = plan(name, fields)
        local cut <close> = new(model)
        local read <close> = new(model, p)
        assert(cut:prefill(ids))
        assert(read:prefill(ids))
        local before = cut:bytes()
        assert.is_true(assert(cut:evict(p)))
        assert.same(positions(read), positions(cut), name)
        assert.equal(read:evicted(), cut:evicted(), name)
        assert.is_true(cut:bytes() < before or name == "compact" or name == "mass"
          or name == "above", name)
        for i = 1, 3 do
          helper.assert_near(assert(cut:step(ids[i])), assert(read:step(ids[i])):totable(),
            name .. ", step " .. i, 1e-5)
        end
      end
    end)
  end

  it("leaves a saved cache, loaded under another policy, as that would", function()
    local model, ids, path = models.cpu, prompt(90, 4), helper.tmp()
    local p = assert(pyramid.policy("knorm", { ratio = 0.3 }))
    local full <close> = new(model)
    assert(full:prefill(ids))
    assert(full:save(path))
    local loaded <close> = assert(model:load_cache(path, { policy = p, dtype = "f32" }))
    os.remove(path)
    assert.is_true(assert(loaded:evict()))
    local read <close> = new(model, p)
    assert(read:prefill(ids))
    assert.same(positions(read), positions(loaded))
    local message, code = select(2, full:evict())
    assert.equal("argument", code)
    assert.truthy(message:find("no policy of its own", 1, true), message)
  end)

  it("refuses by name what only a running prefill knows, and changes nothing", function()
    local cache <close> = new(models.cpu)
    assert(cache:prefill(prompt(90, 5)))
    local before = state_of(cache)
    local wrong = {
      snapkv = "policy snapkv, layer 1, evict: score ranks by attention that the cache does not "
        .. "track",
      expected_attention = "policy expected_attention, layer 1, evict: score expects attention "
        .. "from the queries of a prompt",
      pyramidinfer = "policy pyramidinfer, layer 1, evict: prune drops hidden states",
    }
    for name, words in pairs(wrong) do
      local done, message, code = cache:evict(name)
      assert.is_nil(done)
      assert.equal("policy", code)
      assert.truthy(message:find(words, 1, true), message)
      assert.same(before, state_of(cache), name)
    end
    local late = policy { name = "late", prefill = function(_, l)
      if l.index == 3 then error "not here" end
      return { keep = 20 }
    end }
    local done, message, code = cache:evict(late)
    assert.is_nil(done)
    assert.equal("policy", code)
    assert.truthy(message:find("policy late, layer 3", 1, true), message)
    assert.same(before, state_of(cache))
    assert.has_error(function() cache:evict(7) end)
    assert.equal("policy", select(3, cache:evict("no such policy")))
  end)

  it("turns keys as exactly in hundreds of cuts as in one, bit for bit, in rows of any dtype",
    function()
    local path = folder() .. "/wide"
    assert(random_model.write(path, { dtype = "f32", seed = 4,
      shape = { layers = 2, width = 64, heads = 2, kv_heads = 1, ff = 48, vocab = 272,
        context = 512 } }))
    local function to(keep)
      return policy { name = "ends", prefill = function()
        return { keep = keep, guard = { first = 4, last = keep - 4 }, rotate = "compact" }
      end }
    end
    for _, device in ipairs { "cpu", helper.device == "cpu" and "emulated" or helper.device } do
      local model <close> = assert(pyramid.model(path, { device = device }))
      local cuts = device == "cpu" and 300 or 40
      for _, dtype in ipairs { "f32", "f16", "bf16", "q8_0", "fp8_e4m3" } do
        local often <close> = assert(model:cache { dtype = dtype })
        assert(often:prefill(prompt(cuts + 40, 3)))
        local once <close> = assert(often:fork())
        assert(once:evict(to(40)))
        for keep = cuts + 39, 40, -1 do assert(often:evict(to(keep))) end
        assert.same(once:positions(1), often:positions(1))
        for i = 1, 3 do
          assert.same(assert(once:step(i)):totable(), assert(often:step(i)):totable(), dtype)
        end
      end
    end
  end)

  it("leaves turned keys that a file holds whole: saved again, it is the same", function()
    local cache <close> = new(models.cpu, assert(pyramid.policy("streaming",
      { rows = 40, rotate = true })))
    assert(cache:prefill(prompt(70, 3)))
    for i = 1, 20 do assert(cache:step(i)) end
    local one, other = helper.tmp(), helper.tmp()
    assert(cache:save(one))
    local p = assert(pyramid.policy("streaming", { rows = 40, rotate = true }))
    local loaded <close> = assert(models.cpu:load_cache(one, { policy = p, dtype = "f32" }))
    assert(loaded:save(other))
    assert.equal(helper.read(one), helper.read(other))
    os.remove(one)
    os.remove(other)
  end)

  it("ranks by attention that the cache tracks", function()
    local tracking = policy { name = "tracking",
      trigger = function() return { every = 1000, track = score.history() } end,
      decode = function(_, l) return { keep = l.rows } end }
    local cache <close> = new(models.cpu, tracking)
    assert(cache:prefill(prompt(90, 6)))
    local h2o = plan("by history", { keep = 30, share = "head", score = score.history() })
    local read <close> = new(models.cpu, h2o)
    assert(read:prefill(prompt(90, 6)))
    assert.is_true(assert(cache:evict(h2o)))
    assert.same(positions(read), positions(cache))
  end)

  it("leaves forks as they were, and either whole where the budget is too small", function()
    local model, ids = models.cpu, prompt(200, 7)
    for _, name in ipairs { "by head", "merge", "compact" } do
      local p = plan(name, by_rows[name])
      local alone <close> = new(model)
      assert(alone:prefill(ids))
      local full = alone:bytes()
      local served, refused = 0, 0
      for more = 0, full, full // 7 do
        local cache <close> = new(model, nil, { budget = full + more })
        assert(cache:prefill(ids))
        local fork = cache:fork()
        if fork then
          local before = positions(cache)
          local done, message, code = fork:evict(p)
          if done then
            served = served + 1
            for _, lane in ipairs(positions(fork)) do assert.is_true(#lane <= 40) end
          else
            refused = refused + 1
            assert.equal("budget", code, message)
            assert.same(before, positions(fork))
          end
          assert.same(before, positions(cache))
          cache:close()
          if not done then
            helper.assert_near(assert(fork:step(3)),
              assert(assert(alone:fork()):step(3)):totable(), name, 1e-6)
          end
          fork:close()
        end
      end
      assert.is_true(served > 0 and refused > 0, ("%s: %d, %d"):format(name, served, refused))
    end
  end)
end)

describe("cache:truncate", function()
  for _, kind in ipairs { "cpu", "device" } do
    it("leaves a whole cache as one that never read the rest, bit for bit, on the " .. kind,
      function()
      local model, ids = models[kind], prompt(150, 3)
      for _, dtype in ipairs { "f32", "f16" } do
        local cache <close> = new(model, nil, { dtype = dtype })
        assert(cache:prefill(helper.slice(ids, 1, 61)))
        local short <close> = new(model, nil, { dtype = dtype })
        assert(short:prefill(helper.slice(ids, 1, 61)))
        for i = 62, 70 do
          assert(cache:step(ids[i]))
          if i <= 65 then assert(short:step(ids[i])) end
        end
        assert(cache:prefill(helper.slice(ids, 71, 150)))
        assert.is_true(assert(cache:truncate(65)))
        assert.equal(65, cache:tokens())
        assert.equal(0, cache:evicted())
        assert.same(positions(short), positions(cache))
        assert.equal(short:bytes(), cache:bytes())
        for i = 1, 4 do
          assert.same(assert(short:step(ids[i])):totable(), assert(cache:step(ids[i])):totable())
        end
        local more = helper.slice(ids, 90, 140)
        assert.same(assert(short:prefill(more)):totable(), assert(cache:prefill(more)):totable())
      end
    end)
  end

  it("takes any number of tokens that were read, none and all", function()
    local cache <close> = new(models.cpu)
    assert(cache:prefill(prompt(40, 1)))
    for _, n in ipairs { -1, 41, 1 << 40 } do
      local done, message, code = cache:truncate(n)
      assert.is_nil(done)
      assert.equal("argument", code, message)
    end
    assert.has_error(function() cache:truncate "x" end)
    assert.is_true(assert(cache:truncate(40)))
    assert.equal(40, cache:tokens())
    assert.is_true(assert(cache:truncate(0)))
    assert.equal(0, cache:tokens())
    assert.equal(0, cache:bytes())
    assert(cache:prefill(prompt(20, 2)))
  end)

  it("says so where attention is tracked or nothing is left, and changes nothing", function()
    local cache <close> = new(models.cpu, assert(pyramid.policy("h2o", { ratio = 0.5 })))
    assert(cache:prefill(prompt(60, 1)))
    local before = state_of(cache)
    local done, message, code = cache:truncate(50)
    assert.is_nil(done)
    assert.equal("policy", code)
    assert.truthy(message:find("policy h2o tracks attention", 1, true), message)
    assert.same(before, state_of(cache))
    local recent <close> = new(models.cpu, plan("recent", { keep = 10, guard = { last = 10 } }))
    assert(recent:prefill(prompt(60, 1)))
    before = state_of(recent)
    done, message, code = recent:truncate(30)
    assert.is_nil(done)
    assert.equal("policy", code)
    assert.truthy(message:find("holds no row of the first 30 tokens", 1, true), message)
    assert.same(before, state_of(recent))
    assert.is_true(assert(recent:truncate(55)))
    assert.same({ 50, 51, 52, 53, 54 }, recent:positions(1))
    assert.equal(55 * SHAPE.layers * SHAPE.kv_heads - 5 * SHAPE.layers * SHAPE.kv_heads,
      recent:evicted())
  end)
end)

-- ---- any series of calls ------------------------------------------------------------------------

describe("a cache", function()
  --- The positions that a plan { keep, guard = { first, last } } by position leaves of a list.
  local function kept(list, first, keep)
    if #list <= keep then return list end
    local out = {}
    for i, position in ipairs(list) do
      if i <= first or i > #list - (keep - first) then out[#out + 1] = position end
    end
    return out
  end

  local function run(seed, compact)
    local model, state = models.cpu, seed * 7919 + 1
    local function draw(n)
      state = (state * 1103515245 + 12345) % 2147483648
      return state // 65536 % n
    end
    local cache, list, tokens, path = new(model), {}, 0, helper.tmp()
    local twin  -- a fork, a copy from a file: the same logits from here on
    for _ = 1, 40 do
      local what = draw(7)
      if what <= 1 and tokens < 300 or tokens == 0 then
        local n = 1 + draw(40)
        assert(cache:prefill(prompt(n, seed)))
        if twin then assert(twin:prefill(prompt(n, seed))) end
        for p = tokens, tokens + n - 1 do list[#list + 1] = p end
        tokens = tokens + n
      elseif what == 2 then
        local first, keep = draw(4), 5 + draw(60)
        local p = policy { name = "ends", prefill = function(_, l)
          local rows = math.min(keep, l.rows)
          return { keep = rows, guard = { first = math.min(first, rows),
            last = math.max(rows - first, 0) }, rotate = compact and "compact" or "keep" }
        end }
        assert(cache:evict(p))
        if twin then assert(twin:evict(p)) end
        list = kept(list, first, keep)
      elseif what == 3 then
        local n = draw(tokens + 1)
        local left = {}
        for _, position in ipairs(list) do if position < n then left[#left + 1] = position end end
        local done, message, code = cache:truncate(n)
        if #left == 0 and n > 0 then
          assert.is_nil(done)
          assert.equal("policy", code, message)
        else
          assert.is_true(done, message)
          list, tokens = left, n
          if twin then assert(twin:truncate(n)) end
        end
      elseif what == 4 then
        if twin then twin:close() end
        if draw(2) == 0 then
          twin = assert(cache:fork())
        else
          assert(cache:save(path))
          twin = assert(model:load_cache(path, { dtype = "f32" }))
        end
      elseif tokens > 0 then
        for i = 1, 1 + draw(6) do
          local logits = assert(cache:step((seed + i) % SHAPE.vocab)):totable()
          if twin then
            assert.same(logits, assert(twin:step((seed + i) % SHAPE.vocab)):totable())
          end
          list[#list + 1], tokens = tokens, tokens + 1
        end
      end
      assert.equal(tokens, cache:tokens())
      for _, lane in ipairs(positions(cache)) do assert.same(list, lane) end
      local lanes = SHAPE.layers * SHAPE.kv_heads
      assert.equal(lanes * (tokens - #list), cache:evicted())
    end
    if twin then twin:close() end
    cache:close()
    os.remove(path)
  end

  it("holds what plain lists say, after any series of prompts, steps, forks, cuts, truncations "
    .. "and files", function()
    for seed = 1, 12 do run(seed, seed % 2 == 0) end
  end)
end)

-- ---- scores that are no numbers -----------------------------------------------------------------

describe("a score that is NaN or infinite", function()
  local bad = {
    ["custom(NaN)"] = score.custom(function(lane)
      local out = {}
      for i = 1, lane.rows do out[i] = i == 3 and 0 / 0 or i end
      return out
    end),
    ["(key_norm * 1e+38)"] = score.key_norm() * 1e38 * 1e38,
    ["pool("] = (score.key_norm() * 1e38 * 1e38 - score.key_norm() * 1e38 * 1e38):pool("max", 3),
    ["top("] = (score.key_norm() * 1e38 * 1e38 - score.key_norm() * 1e38 * 1e38):top(5),
    ["/"] = score.const(1) / (score.key_norm() * 1e38 * 1e38),
    ["softmax("] = (score.key_norm() * -1e38 * 1e38):softmax(),
  }

  for _, kind in ipairs { "cpu", "device" } do
    it("is an error that names policy, layer and score, and loses nothing, on the " .. kind,
      function()
      local model, ids = models[kind], prompt(60, 3)
      for words, by in pairs(bad) do
        for _, share in ipairs { "layer", "head", "pool" } do
          local p = policy { name = "no number", prefill = function(_, l)
            if l.index == 2 then return { keep = 20, score = by, share = share } end
          end }
          local cache <close> = new(model, p)
          local logits, message, code = cache:prefill(ids)
          assert.is_nil(logits, words)
          assert.equal("policy", code, message)
          assert.truthy(message:find("policy no number, layer 2, prefill: score ", 1, true),
            message)
          assert.truthy(message:find("NaN or infinite", 1, true), message)
          if not words:find("^custom") then assert.truthy(message:find(words, 1, true), message) end
          assert.equal(0, cache:tokens())
          assert(cache:prefill(ids, { prune = false }))
          local before = state_of(cache)
          assert.is_nil((cache:prefill(ids)))
          assert.same(before, state_of(cache))
          local done, why, how = cache:evict()
          assert.is_nil(done)
          assert.equal("policy", how)
          assert.truthy(why:find("policy no number, layer 2, evict: score ", 1, true), why)
          assert.same(before, state_of(cache))
        end
      end
    end)

    it("ends the step that would rank by it, alone and in a batch, on the " .. kind, function()
      local model = models[kind]
      local p = policy { name = "late", trigger = function() return { over = 40 } end,
        decode = function() return { keep = 20, share = "head",
          score = score.key_norm() * 1e38 * 1e38 } end }
      local cache <close> = new(model, p)
      assert(cache:prefill(prompt(38, 3)))
      for i = 1, 2 do assert(cache:step(i)) end
      local rows = positions(cache)
      for _ = 1, 2 do
        local logits, message, code = cache:step(9)
        assert.is_nil(logits)
        assert.equal("policy", code, message)
        local words = "policy late, layer 1, decode: score ((key_norm * 1e+38) * 1e+38) is NaN "
          .. "or infinite"
        assert.truthy(message:find(words, 1, true), message)
        assert.same(rows, positions(cache))
        assert.equal(40, cache:tokens())
      end
      local batch <close> = assert(model:batch { policy = p, dtype = "f32" })
      local handle = assert(batch:add(prompt(38, 3)))
      local results, message, code
      for _ = 1, 4 do
        results, message, code = batch:step()
        if not results then break end
      end
      assert.is_nil(results)
      assert.equal("policy", code)
      assert.truthy(message:find("policy late, layer 1, decode", 1, true), message)
      assert.same(rows, positions(handle))
    end)
  end
end)

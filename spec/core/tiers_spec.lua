-- Caches of several tiers. The oracle: where a tier has the hot one's dtype, and losers go to it
-- instead of leaving, queries see every row, and logits are those of the cache that keeps all.
local helper = require "spec.helper"
local pyramid = require "pyramid"
local policy = require "pyramid.policy"
local random_models = require "spec.support.random_models"
local saved_rows = require "spec.support.saved_rows"
local score = require "pyramid.score"

local SHAPE = { layers = 3, width = 128, heads = 4, kv_heads = 2, ff = 48, vocab = 272,
  context = 512 }
local models = random_models(SHAPE)

local function prompt(n, seed) return helper.ids(n, SHAPE.vocab, seed) end

-- Keeps `rows` rows of each lane; the others go to a tier, or leave.
local function keeper(rows, to, share, by)
  local losers = to and { to = to } or "drop"
  local function plan(_, l)
    return { keep = math.min(rows, l.rows), guard = { first = 2, last = 6 },
      share = share or "head", score = by or score.key_norm(), losers = losers }
  end
  return policy { name = "keeper", prefill = plan, decode = plan,
    trigger = function() return { over = rows + 5, window = 6 } end }
end

local function near(one, other, limit, what)
  local a, b = one:totable(), other:totable()
  local worst = 0
  for i = 1, #a do worst = math.max(worst, math.abs(a[i] - b[i])) end
  assert.is_true(worst <= limit, ("%s: off by %g"):format(what, worst))
  return worst
end

-- Reads the same in two caches: a prompt, steps, a second prompt, steps.
local function compare(full, tiered, limit, what)
  local function both(n, seed)
    near(assert(full:prefill(prompt(n, seed))), assert(tiered:prefill(prompt(n, seed))), limit,
      what .. ": prompt")
  end
  both(90, 1)
  for i = 1, 20 do
    near(assert(full:step(i)), assert(tiered:step(i)), limit, what .. ": step " .. i)
  end
  both(70, 2)
  for i = 1, 10 do near(assert(full:step(i)), assert(tiered:step(i)), limit, what .. ": step") end
end

local ALL = { { hot = "f32", warm = "f32" }, { hot = "f32", cold = "f32" },
  { hot = "f32", warm = { dtype = "f32", rows = 40 }, cold = "f32" } }

local function lower(tiers) return tiers.warm and "warm" or "cold" end

-- What a call that failed must not have changed.
local function state_of(cache, tiers)
  local all = { cache:tokens(), cache:evicted(), cache:computed(), cache:fraction() }
  for _, tier in ipairs { "hot", "warm", "cold" } do
    for layer = 1, tiers[tier] and SHAPE.layers or 0 do
      for head = 1, SHAPE.kv_heads do
        all[#all + 1] = cache:positions(layer, head, tier)
      end
    end
  end
  local fork <close> = assert(cache:fork())
  local logits = fork:step(7)                        -- none where its row finds no room
  all[#all + 1] = logits and logits:totable() or false
  return all
end

-- A path that nothing has.
local function fresh_path()
  local path = helper.tmp()
  os.remove(path)
  return path
end

local function tiered(tiers, by, given)
  given = given or {}
  given.tiers, given.policy = tiers, by
  return assert(models.cpu:cache(given))
end

describe("tiers", function()
  it("compute what a full cache does, where all is demoted and nothing rounded", function()
    for _, share in ipairs { "layer", "head", "pool" } do
      for _, tiers in ipairs(ALL) do
        local full <close> = assert(models.cpu:cache { dtype = "f32" })
        local cache <close> = tiered(tiers, keeper(20, lower(tiers), share))
        compare(full, cache, 2e-4, share)
        assert.equal(full:rows(1), cache:rows(1))
        assert.same(full:positions(2, 2), cache:positions(2, 2))
        assert.is_true(cache:rows(1, 1, "hot") <= 25)
        assert.is_true(cache:rows(1, 1, lower(tiers)) > 0)
        assert.equal(0, cache:evicted())
        assert.equal(1.0, cache:fraction())
      end
    end
  end)

  it("hold rows of every dtype, in memory and in files, and count their bytes", function()
    local limits = { f32 = 2e-4, f16 = 0.02, bf16 = 0.1, q8_0 = 0.1, fp8_e4m3 = 0.5 }
    for dtype, limit in pairs(limits) do
      for _, file in ipairs { false, true } do
        local tiers = { hot = "f32", cold = { dtype = dtype, file = file and fresh_path() or nil,
          bytes = file and "4 MiB" or nil } }
        local full <close> = assert(models.cpu:cache { dtype = "f32" })
        local cache <close> = tiered(tiers, keeper(20, "cold"))
        compare(full, cache, limit, dtype)
        local sum, beside = 0, 0
        for layer = 1, SHAPE.layers do
          for head = 1, SHAPE.kv_heads do
            local pages = (cache:rows(layer, head, "cold") + 31) // 32
            sum = sum + pages * 32
            beside = beside + helper.lane_beside(pages)
          end
        end
        local value = ({ f32 = 4, f16 = 2, bf16 = 2, q8_0 = 34 / 32, fp8_e4m3 = 1 })[dtype]
        local d = SHAPE.width // SHAPE.heads
        assert.equal(math.floor(sum * (2 * d * value + 4)) + beside, cache:bytes "cold")
        assert.equal(cache:bytes(), cache:bytes "hot" + cache:bytes "cold")
      end
    end
  end)

  it("give tracked rows what they get of all rows", function()
    local function all(_, l) return { keep = l.rows } end
    local watch = policy { name = "watch", prefill = all, decode = all, trigger = function()
      return { over = 9999, track = score.history() }
    end }
    local function cut(_, l)
      return { keep = math.min(20, l.rows), guard = { first = 2, last = 6 }, share = "head",
        score = score.history(), losers = { to = "warm" } }
    end
    local full <close> = assert(models.cpu:cache { dtype = "f32", policy = watch })
    local cache <close> = tiered({ hot = "f32", warm = "f32" }, policy { name = "cut",
      prefill = cut, decode = cut, trigger = function()
        return { over = 25, window = 6, track = score.history() }
      end })
    compare(full, cache, 2e-4, "tracked")
    for layer = 1, SHAPE.layers do
      for head = 1, SHAPE.kv_heads do
        local wanted = assert(full:scores(nil, { layer = layer, head = head }))
        local got = assert(cache:scores(nil, { layer = layer, head = head }))
        for _, position in ipairs(cache:positions(layer, head, "hot")) do
          local x, y = wanted[position + 1], got[position + 1]
          assert.is_true(math.abs(x - y) < 1e-4 * (1 + math.abs(x)),
            ("layer %d, head %d, row %d: %g, not %g"):format(layer, head, position, y, x))
        end
      end
    end
  end)

  it("are shared by forks, kept by files, cut by truncate, and stepped in batches", function()
    for _, tiers in ipairs { ALL[3], { hot = "f16", warm = { dtype = "fp8_e4m3", rows = 40 },
      cold = { dtype = "bf16", file = "", bytes = "4 MiB" } } } do
      local function declared()
        local copy = {}
        for name, tier in pairs(tiers) do copy[name] = tier end
        if type(copy.cold) == "table" then
          copy.cold = { dtype = "bf16", file = fresh_path(), bytes = "4 MiB" }
        end
        return copy
      end
      local by = keeper(20, "warm")
      local cache <close> = tiered(declared(), by)
      assert(cache:prefill(prompt(90, 1)))
      for i = 1, 9 do assert(cache:step(i)) end
      local fork <close> = assert(cache:fork())
      local path = helper.tmp()
      assert(cache:save(path))
      local loaded <close> = assert(models.cpu:load_cache(path, { tiers = declared(),
        policy = by }))
      assert.same(state_of(cache, tiers), state_of(loaded, tiers))
      local none, message, code = models.cpu:load_cache(path, { dtype = tiers.hot, policy = by })
      assert.is_nil(none)
      assert.equal("format", code)
      assert.matches("tiers", message)
      os.remove(path)
      for i = 1, 20 do
        local one, two = assert(cache:step(i)):totable(), assert(loaded:step(i)):totable()
        assert.same(one, two)
        assert.same(one, assert(fork:step(i)):totable())
      end
      assert.same(state_of(cache, tiers), state_of(fork, tiers))
      local tokens = cache:tokens()
      assert(cache:truncate(tokens - 15))
      assert(fork:truncate(tokens - 15))
      assert.equal(tokens - 15, cache:tokens())
      assert.same(state_of(cache, tiers), state_of(fork, tiers))
      for _, position in ipairs(cache:positions(1, 1)) do
        assert.is_true(position < tokens - 15)
      end
      assert(cache:clear())
      assert.equal(0, cache:bytes())

      local batch <close> = assert(models.cpu:batch { tiers = declared(), policy = by })
      local a, b = assert(batch:add(prompt(70, 3))), assert(batch:add(prompt(40, 4)))
      local alone <close> = tiered(declared(), by)
      assert(alone:prefill(prompt(70, 3)))
      assert(batch:step())
      for i = 1, 12 do
        batch:push(a, i)
        batch:push(b, 2 * i)
        local entries = assert(batch:step())
        assert.same(assert(alone:step(i)):totable(), entries[1][2]:totable())
      end
    end
  end)

  it("hand their oldest rows on where they are full", function()
    local full <close> = assert(models.cpu:cache { dtype = "f32" })
    local cache <close> = tiered({ hot = "f32", warm = { dtype = "f32", bytes = "96 KiB" },
      cold = "f32" }, keeper(20, "warm", "head"))
    compare(full, cache, 2e-4, "bytes")
    assert.is_true(cache:bytes "warm" <= 96 * 1024)
    assert.is_true(cache:rows(1, 1, "cold") > 0)
    local oldest = cache:positions(1, 1, "warm")[1]
    assert.is_true(cache:positions(1, 1, "cold")[1] < oldest)
  end)

  it("that are full end a call, and nothing is lost", function()
    local kinds = {
      rows = { hot = "f32", warm = { dtype = "f32", rows = 50 } },
      bytes = { hot = "f32", warm = { dtype = "f32", bytes = "96 KiB" } },
      file = { hot = "f32", cold = { dtype = "f32", file = true, bytes = "150 KiB" } },
    }
    for kind, tiers in pairs(kinds) do
      if kind == "file" then tiers.cold.file = fresh_path() end
      local cache <close> = tiered(tiers, keeper(20, lower(tiers), "head"))
      assert(cache:prefill(prompt(50, 1)))
      local failed
      for round = 1, 9 do
        local before = state_of(cache, tiers)
        local ok, _, code = cache:prefill(prompt(40, round))
        if not ok then
          failed = code
          assert.same(before, state_of(cache, tiers), kind)
          break
        end
      end
      assert.equal("budget", failed, kind)
      for i = 1, 30 do
        local before = state_of(cache, tiers)
        local ok, _, code = cache:step(i)
        if not ok then
          assert.equal("budget", code)
          assert.same(before, state_of(cache, tiers), kind)
          break
        end
      end
      assert(cache:prefill(prompt(3, 5), { prune = false }))
    end
  end)

  it("in a file need a path of their own, and no name", function()
    local path = helper.tmp()
    local file = assert(io.open(path, "w"))
    file:write "somebody's"
    file:close()
    local function try(at)
      return models.cpu:cache { tiers = { cold = { file = at, bytes = "1 MiB" } } }
    end
    local none, message, code = try(path)
    assert.is_nil(none)
    assert.equal("io", code)
    assert.matches(path, message, 1, true)
    assert.equal("somebody's", helper.read(path))
    os.remove(path)
    local cache, other = assert(try(path)), assert(try(path))
    assert.is_nil(io.open(path))
    cache:close()
    other:close()
    none, message, code = try(path .. "/no/folder")
    assert.is_nil(none)
    assert.equal("io", code)
    assert.matches("no/folder", message, 1, true)
    local _
    none, _, code = models.cpu:cache { tiers = { cold = { file = path, bytes = 10 } } }
    assert.is_nil(none)
    assert.equal("argument", code)
    assert.has_error(function() models.cpu:cache { tiers = { tepid = "f16" } } end)
    assert.has_error(function() models.cpu:cache { tiers = { warm = "f17" } } end)
    assert.has_error(function() models.cpu:cache { pressure = "demote" } end)
    assert.has_error(function() models.cpu:cache { tiers = { hot = { bytes = 3 } } } end)
    none, message, code = models.device:cache { tiers = { warm = "f16" } }
    assert.is_nil(none)
    assert.equal("unsupported", code)
    assert.matches("no tiers", message)
  end)

  it("are asked for by plans that a cache can carry out", function()
    local plans = {
      ["go to tier \"cold\", which the cache has not"] = { losers = { to = "cold" } },
      ["are merged"] = { losers = { to = "warm" }, merge = true },
      ["where keys are turned"] = { losers = { to = "warm" }, rotate = "compact",
        share = "layer" },
      ["is neither \"drop\" nor a table"] = { losers = "warm" },
      ["losers.to is 'hot'"] = { losers = { to = "hot" } },
    }
    for words, fields in pairs(plans) do
      local cache <close> = tiered({ hot = "f32", warm = "f32" }, policy { name = "bad",
        prefill = function(_, l)
          local plan = { keep = math.min(9, l.rows), share = "head" }
          for key, value in pairs(fields) do plan[key] = value end
          return plan
        end })
      local ok, message, code = cache:prefill(prompt(30, 1))
      assert.is_nil(ok)
      assert.equal("policy", code, message)
      assert.matches(words, message, 1, true)
    end
    local h2o = assert(pyramid.policy("h2o", { rows = 20, slack = 31 }))
    local dropping <close> = assert(models.cpu:cache { dtype = "f32", policy = h2o })
    local without <close> = assert(models.cpu:cache { dtype = "f32",
      policy = assert(pyramid.policy("demote", { rows = 20 })) })
    assert(dropping:prefill(prompt(90, 1)))
    assert(without:prefill(prompt(90, 1)))
    assert.same(dropping:positions(1, 1), without:positions(1, 1))
    local with <close> = tiered({ hot = "f32", cold = "f32" },
      assert(pyramid.policy("demote", { rows = 20 })))
    assert(with:prefill(prompt(90, 1)))
    assert.equal(90, with:rows(1, 1))
    assert.equal(20, with:rows(1, 1, "hot"))
  end)

  it("make room where memory is short, and compute the same", function()
    for _, file in ipairs { false, true } do
      local tiers = { hot = "f32", cold = { dtype = "f32", file = fresh_path(),
        bytes = "4 MiB" } }
      if not file then tiers.warm = "f16" end
      local budget = 300 * 1024
      local full <close> = assert(models.cpu:cache { dtype = "f32" })
      local fails <close> = assert(models.cpu:cache { tiers = tiers, budget = budget })
      tiers.cold.file = fresh_path()
      local cache <close> = assert(models.cpu:cache { tiers = tiers, budget = budget,
        pressure = "demote" })
      local limit = file and 2e-4 or 0.05
      local function both(n, seed)
        near(assert(full:prefill(prompt(n, seed))), assert(cache:prefill(prompt(n, seed))), limit,
          "under pressure")
      end
      both(100, 1)
      both(100, 2)
      both(60, 3)
      for i = 1, 70 do near(assert(full:step(i)), assert(cache:step(i)), limit, "step") end
      assert.equal(full:rows(1), cache:rows(1))
      assert.equal(1.0, cache:fraction())
      assert.is_true(cache:bytes "hot" <= budget)
      assert(fails:prefill(prompt(100, 1)))
      local code
      for i = 2, 3 do code = code or select(3, fails:prefill(prompt(100, i))) end
      assert.equal("budget", code)
    end
  end)

  it("take prompts that are shorter than a chunk, and longer than the budget", function()
    local full <close> = assert(models.cpu:cache { dtype = "f32" })
    for _, n in ipairs { 330, 400, 512 } do
      local logits = assert(full:prefill(prompt(n, n)))
      local budget = full:bytes() * 55 // 100
      local function limited(pressure)
        return assert(models.cpu:cache { budget = budget, pressure = pressure,
          tiers = { hot = "f32", cold = { dtype = "f32", file = fresh_path(), bytes = "4 MiB" } } })
      end
      local fails <close> = limited()
      local cache <close> = limited "demote"
      assert.equal("budget", (select(3, fails:prefill(prompt(n, n)))))
      near(logits, assert(cache:prefill(prompt(n, n))), 2e-4, "in pieces")
      assert.same({ n, n }, { cache:tokens(), cache:rows(1) })
      assert.is_true(cache:bytes "hot" <= budget)
      -- logits of all positions are those of one call
      cache:clear()
      assert.equal("budget", (select(3, cache:prefill(prompt(n, n), { all = true }))))
      full:clear()
    end
  end)

  it("give rows back by a score", function()
    local cache <close> = tiered(ALL[3], keeper(20, "warm", "head"))
    local full <close> = assert(models.cpu:cache { dtype = "f32" })
    assert(cache:prefill(prompt(120, 1)))
    assert(full:prefill(prompt(120, 1)))
    local below = {}
    for _, tier in ipairs { "warm", "cold" } do
      for _, position in ipairs(cache:positions(2, 1, tier)) do below[position] = true end
    end
    local by = assert(full:scores(score.value_norm(), { layer = 2, head = 1 }))
    local best = {}
    for position in pairs(below) do best[#best + 1] = position end
    table.sort(best, function(a, b) return by[a + 1] > by[b + 1] end)
    assert(cache:promote { by = score.value_norm(), rows = 12 })
    assert.equal(32, cache:rows(2, 1, "hot"))
    assert.equal(120, cache:rows(2, 1))
    local hot = {}
    for _, position in ipairs(cache:positions(2, 1, "hot")) do hot[position] = true end
    for i = 1, 12 do assert.is_true(hot[best[i]]) end
    near(assert(full:step(3)), assert(cache:step(3)), 2e-4, "after a promotion")
    assert(cache:promote { by = score.position(), rows = 9999 })
    assert.equal(0, cache:rows(1, 1, "warm") + cache:rows(1, 1, "cold"))
    near(assert(full:step(4)), assert(cache:step(4)), 2e-4, "with all rows hot")
    local ok, _, code = cache:promote { by = score.attention { queries = 3 }, rows = 1 }
    assert.is_nil(ok)
    assert.equal("argument", code)
    assert.has_error(function() cache:promote { by = 3, rows = 1 } end)
  end)

  -- What rows of a saved copy were given, by lane and position, and the tier that each lies in.
  local function tracked(cache)
    local path = helper.tmp()
    assert(cache:save(path))
    local lanes = saved_rows.read(helper.read(path)).lanes
    os.remove(path)
    local given, tier = {}, {}
    for i, lane in ipairs(lanes) do
      given[i], tier[i] = {}, {}
      for _, row in ipairs(lane) do
        given[i][row.position], tier[i][row.position] = row.history or 0, row.tier
      end
    end
    return given, tier
  end

  it("are tracked where a trigger recalls, and what was given most comes up", function()
    for _, max in ipairs { false, true } do
      for _, tiers in ipairs(ALL) do
        local track = max and score.attention { reduce = "max", heads = "max" } or score.history()
        local function trigger(recall)
          return function() return { every = 15, track = track, recall = recall } end
        end
        local full <close> = assert(models.cpu:cache { dtype = "f32", policy = policy {
          name = "watch", prefill = function(_, l) return { keep = l.rows } end,
          decode = function(_, l) return { keep = l.rows } end, trigger = trigger() } })
        local cache <close> = tiered(tiers, policy { name = "recalls",
          prefill = function(_, l)
            return { keep = math.min(20, l.rows), share = "head", score = score.key_norm(),
              losers = { to = lower(tiers) } }
          end, decode = function(_, l) return { keep = l.rows } end, trigger = trigger(7) })
        for _, c in ipairs { full, cache } do assert(c:prefill(prompt(90, 1))) end
        assert.equal(0, cache:verifiable())
        local was, had = tracked(full), tracked(cache)
        for i = 1, 14 do near(assert(full:step(i)), assert(cache:step(i)), 2e-4, "step") end
        local wanted = tracked(full)
        local got, tier = tracked(cache)
        for lane = 1, #got do
          local below = {}
          for position, x in pairs(got[lane]) do
            local y = max and math.max(wanted[lane][position], had[lane][position] or 0)
              or wanted[lane][position] - (was[lane][position] or 0) + (had[lane][position] or 0)
            -- a maximum of the prompt's own queries is not told of rows that went down by them
            if not max or (was[lane][position] or 0) < wanted[lane][position] then
              assert.is_true(math.abs(x - y) < 1e-4 * (1 + math.abs(y)),
                ("lane %d, row %d: %g, not %g"):format(lane, position, x, y))
            end
            if tier[lane][position] > 0 then below[#below + 1] = position end
          end
          table.sort(below, function(a, b) return got[lane][a] > got[lane][b] end)
          got[lane].best = table.move(below, 1, 7, 1, {})
          assert.equal(70, #below)
        end
        local fork <close> = assert(cache:fork())
        near(assert(full:step(99)), assert(cache:step(99)), 2e-4, "the step that recalls")
        assert(fork:step(99))
        for i = 1, 3 do
          assert.same(assert(cache:step(i)):totable(), assert(fork:step(i)):totable())
        end
        for lane = 1, #got do
          local layer, head = (lane - 1) // SHAPE.kv_heads + 1, (lane - 1) % SHAPE.kv_heads + 1
          local hot = {}
          for _, position in ipairs(cache:positions(layer, head, "hot")) do hot[position] = true end
          for _, position in ipairs(got[lane].best) do assert.is_true(hot[position]) end
          assert.equal(20 + 18 + 7, cache:rows(layer, head, "hot"))
          assert.equal(108, cache:rows(layer, head))
        end
      end
    end
  end)

  it("come back as they were where a call is stopped, or a listener says no", function()
    local no = false
    for _, tiers in ipairs(ALL) do
      local cache <close> = tiered(tiers, keeper(20, lower(tiers), "head"), { trace = function()
        if no then error "no" end
      end })
      assert(cache:prefill(prompt(60, 1)))
      local before, calls = state_of(cache, tiers), 0
      for stop = 1, SHAPE.layers + 1 do
        calls = 0
        local ok = cache:prefill(prompt(30, 2), { progress = function()
          calls = calls + 1
          return calls == stop
        end })
        if ok then break end
        assert.same(before, state_of(cache, tiers))
      end
      no = true
      for i = 1, 10 do
        before = state_of(cache, tiers)
        no = true
        local ok = cache:step(i)
        no = false
        if not ok then assert.same(before, state_of(cache, tiers)) end
        if not ok then break end
      end
      before = state_of(cache, tiers)
      no = true
      assert.is_nil((cache:evict(keeper(9, lower(tiers), "head"))))
      no = false
      assert.same(before, state_of(cache, tiers))
      assert(cache:evict(keeper(9, lower(tiers), "head")))
      assert.equal(9, cache:rows(1, 1, "hot"))
      assert.equal(0, cache:evicted())
    end
  end)

  it("run out of memory at any point without harm", function()
    local function task(limit)
      local model <close>, message, code = pyramid.model("spec/fixtures/families/llama-gqa-llama3",
        { threads = 2, memory = limit })
      if not model then return nil, message, code end
      local tiers = { hot = "f16", warm = { dtype = "fp8_e4m3", rows = 30 },
        cold = { dtype = "fp8_e4m3", file = fresh_path(), bytes = "4 MiB" } }
      local cache <close>, why, what = model:cache { tiers = tiers, policy = keeper(20, "warm") }
      if not cache then return nil, why, what end
      local function did(ok, text, kind)
        if ok then return ok end
        error({ text, kind }, 0)
      end
      local ok, failure = pcall(function()
        local ids = {}
        for i = 1, 70 do ids[i] = i * 37 % model.config.vocab end
        did(cache:prefill(ids))
        for i = 1, 12 do did(cache:step(i)) end
        local fork <close> = did(cache:fork())
        did(fork:prefill(ids))
        did(fork:promote { by = score.key_norm(), rows = 5 })
        did(cache:evict(keeper(10, "cold")))
        local path = helper.tmp()
        local saved, text, kind = cache:save(path)
        local loaded, worse, wrong
        if saved then
          loaded, worse, wrong = model:load_cache(path, { policy = keeper(20, "warm"),
            tiers = { hot = "f16", warm = { dtype = "fp8_e4m3", rows = 30 },
              cold = { dtype = "fp8_e4m3", file = fresh_path(), bytes = "4 MiB" } } })
        end
        os.remove(path)
        if loaded then loaded:close() end
        did(saved, text, kind)
        did(loaded, worse, wrong)
      end)
      if ok then return true end
      if type(failure) == "table" then return nil, failure[1], failure[2] end
      error(failure, 0)
    end
    local limit, failures = 1024, 0
    while true do
      local ok, message, code = task(limit)
      if ok then break end
      assert.equal("memory", code, message)
      failures = failures + 1
      limit = limit + math.max(1024, limit // 48)
      assert.is_true(limit < 1 << 28, "it should have succeeded by now")
    end
    assert.is_true(failures > 30, failures .. " failures only")
  end)
end)

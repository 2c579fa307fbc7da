-- Policies, scores, schedules as values; and what happens to policies that misbehave. No model for
-- the first half.
local helper = require "spec.helper"
local plans = require "pyramid.testing.plans"
local policy = require "pyramid.policy"
local pyramid = require "pyramid"
local schedule = require "pyramid.schedule"
local score = require "pyramid.score"

describe("scores", function()
  it("print as the expression that made them, and compare by it", function()
    local a = score.attention { queries = 32, heads = "max" }:pool("max", 7) * score.value_norm()
      + 2
    assert.equal("((attention{queries=32, ramp=1, reduce=mean, heads=max}:pool(max, 7) * "
      .. "value_norm()) + 2)", tostring(a))
    assert.equal(a, score.attention { queries = 32, heads = "max" }:pool("max",
      7) * score.value_norm() + 2)
    assert.are_not.equal(a, score.attention { queries = 31, heads = "max" }:pool("max",
      7) * score.value_norm() + 2)
    assert.equal(2 / score.key_norm(), score.const(2) / score.key_norm())
  end)

  it("are immutable", function()
    assert.has_error(function() score.position().x = 1 end, "scores are immutable")
  end)

  it("refuse mistakes where they are built", function()
    local wrong = {
      function() score.attention { querys = 3 } end,
        function() score.attention { queries = -1 } end,
      function() score.attention { queries = 1.5 } end,
        function() score.attention { heads = "median" } end,
      function() score.attention { ramp = 0 / 0 } end, function() score.history { decay = 2 } end,
      function() score.const(math.huge) end, function() score.random("x") end,
        function() return score.position() + {} end,
      function() score.position():pool("max", 4) end,
        function() score.position():pool("median", 3) end,
      function() score.position():pool(nil, 3) end,
      function()
        local s = score.position()
        for _ = 1, 40 do s = s + 1 end
      end,
    }
    for i, f in ipairs(wrong) do assert.is_false(pcall(f), "case " .. i) end
  end)
end)

describe("schedules", function()
  it("go where they say", function()
    for _, kind in ipairs { "linear", "cosine" } do
      local s = schedule[kind](1, 0.6)
      assert.near(1, s(0), 1e-12)
      assert.near(0.8, s(0.5), 1e-12)
      assert.near(0.6, s(1), 1e-12)
      for i = 0, 9 do assert.is_true(s(i / 10) > s((i + 1) / 10)) end
    end
    assert.equal(0.9, schedule.constant(0.9)(0.3))
    assert.equal(1, schedule.step(1, 0.5, 0.5)(0.49))
    assert.equal(0.5, schedule.step(1, 0.5, 0.5)(0.5))
    local t = schedule.table { 0.1, 0.2, 0.3 }
    assert.same({ 0.1, 0.2, 0.3 }, { t(0), t(1 / 3), t(2 / 3) })
  end)
end)

describe("unknown schedules", function()
  it("are named, with those that are known", function()
    local ok, message = pcall(function() return schedule.foo end)
    assert.is_false(ok)
    assert.truthy(message:find("'foo' (known: constant, cosine,", 1, true), message)
  end)
end)

describe("policies", function()
  it("load by name, by path, from a table; with options", function()
    assert.equal("snapkv", assert(pyramid.policy "snapkv").name)
    assert.equal(0.25, assert(pyramid.policy("snapkv", { ratio = 0.25 })).options.ratio)
    assert.equal(0.5, assert(pyramid.policy "snapkv").options.ratio)
    assert.equal("mine", assert(pyramid.policy { name = "mine" }).name)
    local path = helper.tmp ".lua"
    helper.write(path, "return require 'pyramid.policy' { name = 'filed', defaults = { a = 1 } }")
    assert.equal(2, assert(pyramid.policy(path, { a = 2 })).options.a)
    helper.write(path, "syntax error here")
    assert.same({ nil, "policy" }, { (pyramid.policy(path)), select(3, pyramid.policy(path)) })
    helper.write(path, "return 42")
    assert.equal("policy", select(3, pyramid.policy(path)))
    os.remove(path)
    assert.equal("io", select(3, pyramid.policy(path)))
    assert.equal(0.8, assert(pyramid.policy("pyramidinfer", { preset = "13b" })).options.ratio)
  end)

  it("say what is known when something is not", function()
    local function message(...) return select(2, pyramid.policy(...)) end
    assert.truthy(message("snapvk"):find("snapkv", 1, true))
    assert.truthy(message("snapkv", { windw = 3 }):find("window", 1, true))
    assert.truthy(message("snapkv", { window = "x" }):find("number", 1, true))
    assert.truthy(message("pyramidinfer", { preset = "3b" }):find("13b", 1, true))
    assert.truthy(message({ name = "x", prefil = function() end }):find("prefill", 1, true))
    assert.truthy(message({ name = "x", decode = 5 }):find("function", 1, true))
  end)

  it("refuse values outside an option's limits, in options and in presets", function()
    for name, wrong in pairs {
      pyramidinfer = { { mode = "bogus" }, { ratio = -1 }, { ratio = 7 }, { ratio = 0 / 0 },
        { interval = 0 }, { interval = 1.5 }, { floor = -5 }, { target = 3 }, { decay = "bogus" },
          { gen_ratio = 5 }, { heads = "median" } },
      h2o = { { rows = -5 }, { slack = -5 } }, streaming = { { rows = -5 }, { slack = -5 },
        { sinks = -1 } },
      snapkv = { { kernel = 4 }, { pool = "median" } },
    } do
      for _, given in ipairs(wrong) do
        local p, message, code = pyramid.policy(name, given)
        assert.is_nil(p)
        assert.equal("policy", code)
        assert.truthy(message:find(("policy %s: option '%s'"):format(name, next(given)), 1, true),
          message)
      end
    end
    assert.truthy(select(2, pyramid.policy("pyramidinfer",
      { mode = "x" })):find("one of code, paper", 1, true))
    assert.equal("integer", math.type(assert(pyramid.policy("snapkv",
      { kernel = 5.0 })).options.kernel))
    local p = policy { name = "x", defaults = { a = 1 }, limits = { a = { 1, 3 } },
      presets = { big = { a = 4 } } }
    assert.truthy(select(2, pyramid.policy(p, { preset = "big" })):find("from 1 to 3", 1, true))
  end)

  it("are wanted as names, paths or tables; presets may be numbers", function()
    for _, value in ipairs { 5, true,
      print } do assert.has_error(function() pyramid.policy(value) end) end
    assert.has_error(function() pyramid.policy(nil) end)
    assert.has_error(function() policy { name = "" } end)
    assert.equal(0.45, assert(pyramid.policy("pyramidinfer", { preset = 45 })).options.target)
    assert.truthy(select(2, pyramid.policy("pyramidinfer", { presett = 1 })):find("preset,", 1,
      true))
  end)

  it("are immutable, and leave their definition alone", function()
    local defaults = { ratio = 0.5 }
    local p = policy { name = "x", defaults = defaults, fit = "ratio" }
    local text = tostring(p)
    p.options.ratio = 0.1
    defaults.ratio = 0.2
    assert.equal(text, tostring(p))
    assert.is_nil(defaults.target)
    assert.equal(0.5, p:with({ target = 0 }).options.ratio)
  end)

  it("forecast refuses what the core refuses, by the same words", function()
    local p = policy { name = "x", prefill = function(_, l) return { keep = l.rows + 1 } end }
    local config = { layers = 2, heads = 2, kv_heads = 1, head_dim = 8 }
    assert.has_error(function() policy.forecast(p, config, 9) end,
      "policy x, layer 1, prefill: keep asks for more rows than there are")
  end)

  it("read options from text by the type of their default", function()
    assert.same({ ratio = 0.3, rejudge = true, decay = "linear" },
      policy.parse_options("pyramidinfer", { "ratio=0.3", "rejudge=true", "decay=linear" }))
    assert.is_nil((policy.parse_options("pyramidinfer", { "ratio=much" })))
    assert.is_nil((policy.parse_options("pyramidinfer", { "ratio" })))
  end)

  it("are short", function()
    for _, name in ipairs(policy.list()) do
      local lines = select(2, require("pyramid.core").bundled("policy", name):gsub("\n", ""))
      assert.is_true(lines <= 60, name)
    end
  end)

  it("forecast the published share of rows (72 to 78 % over layers, settings of a 7B)", function()
    local config = { layers = 32, heads = 32, kv_heads = 32, head_dim = 128 }
    for _, tokens in ipairs { 512, 2048, 8192 } do
      local rows = 0
      for _, layer in ipairs(policy.forecast(assert(pyramid.policy "pyramidinfer"), config,
        tokens)) do
        rows = rows + layer.rows
      end
      local share = rows / (tokens * config.layers)
      assert.is_true(share > 0.71 and share < 0.79, ("%d tokens: %.3f"):format(tokens, share))
    end
  end)

  it("find the ratio that keeps a target share, whatever the depth", function()
    local function share(p, layers, tokens)
      local rows, config = 0, { layers = layers, heads = 32, kv_heads = 32, head_dim = 128 }
      for _, layer in ipairs(policy.forecast(p, config, tokens)) do rows = rows + layer.rows end
      return rows / (tokens * layers)
    end
    for _, layers in ipairs { 8, 32, 40, 80 } do
      for _, tokens in ipairs { 512, 2048, 4096 } do
        assert.near(0.45, share(assert(pyramid.policy("pyramidinfer", { preset = "45" })), layers,
          tokens), 0.01)
        assert.near(0.75, share(assert(pyramid.policy("pyramidinfer", { target = 0.75 })), layers,
          tokens), 0.01)
      end
    end
  end)
end)

describe("policies at work", function()
  local model, vocab

  setup(function()
    model = assert(pyramid.model(helper.fixture "families/llama-gqa-llama3", { threads = 2 }))
    vocab = model.config.vocab
  end)
  teardown(function() model:close() end)

  local function prompt(n)
    local ids = {}
    for i = 1, n do ids[i] = (i * i * 31 + i * 7) % vocab end
    return ids
  end

  local function forecast_matches(p, n)
    local cache <close> = assert(model:cache { policy = p, dtype = "f32" })
    assert(cache:prefill(prompt(n)))
    local computed, held, foretold, shared = 0, 0, 0, false
    for index, layer in ipairs(policy.forecast(p, model.config, n)) do
      local rows, l = 0, plans.shape(index, model.config, { prompt = n, past = 0, rows = n,
        tokens = n })
      for head = 1, model.config.kv_heads do rows = rows + cache:rows(index, head) end
      rows = rows / model.config.kv_heads
      local plan = p.definition.prefill and p.definition.prefill(p:fitted(l), l)
      shared = shared or plan and (plan.share == "model" or plan.weight ~= nil)
      if not shared then
        assert.equal(layer.rows, rows, ("%s, %d tokens, layer %d"):format(p.name, n, index))
      end
      computed, held, foretold = computed + layer.computed, held + rows, foretold + layer.rows
    end
    assert.near(foretold, held, 1e-9, p.name)
    -- the texts of passes are the model's to count
    if p.definition.prepare then assert.is_true(computed <= cache:computed())
    else assert.equal(computed, cache:computed()) end
  end

  it("keep what their forecast says", function()
    for _, name in ipairs(policy.list()) do
      for _, n in ipairs { 1, 2, 5, 33, 64, 65, 200, 300 } do
        forecast_matches(assert(pyramid.policy(name)), n)
      end
    end
    forecast_matches(assert(pyramid.policy("pyramidinfer", { mode = "paper", floor = 8 })), 300)
    forecast_matches(assert(pyramid.policy("pyramidinfer", { preset = "45" })), 300)
  end)

  it("keep guards, and ascending positions, also in decode", function()
    for _, name in ipairs { "streaming", "h2o", "snapkv" } do
      local p = assert(pyramid.policy(name, { rows = 24 }))
      local cache <close> = assert(model:cache { policy = p, dtype = "f16" })
      assert(cache:prefill(prompt(100)))
      for i = 1, 50 do
        assert(cache:step(i))
        for head = 1, model.config.kv_heads do
          local positions = cache:positions(2, head)
          for j = 2, #positions do assert.is_true(positions[j - 1] < positions[j]) end
          assert.equal(99 + i, positions[#positions])
          if name == "h2o" then assert.equal(24, #positions) end
          if name == "streaming" then
            assert.is_true(#positions <= 24 + 15)
            assert.same({ 0, 1, 2, 3 }, helper.slice(positions, 1, 4))
          end
        end
      end
    end
  end)

  it("rank by position, and by a seed, where asked to", function()
    local function kept(s)
      local cache <close> = assert(model:cache { dtype = "f32",
        policy = { name = "probe", prefill = function()
        return { keep = 20, guard = { first = 2, last = 3 }, score = s }
      end } })
      assert(cache:prefill(prompt(60)))
      return cache:positions(1, 1)
    end
    local newest = { 0, 1 }
    for i = 42, 59 do newest[#newest + 1] = i end
    assert.same(newest, kept(score.position()))
    assert.same(newest, kept(nil))
    local oldest = {}
    for i = 0, 16 do oldest[#oldest + 1] = i end
    assert.same({ 57, 58, 59 }, helper.slice(kept(-score.position()), 18))
    assert.same(oldest, helper.slice(kept(-score.position()), 1, 17))
    assert.same(kept(score.random(5)), kept(score.random(5)))
    assert.are_not.same(kept(score.random(5)), kept(score.random(6)))
    assert.same(oldest, helper.slice(kept(score.const(1)), 1, 17))  -- ties go to the lower row
  end)

  it("that misbehave in a prefill are named, with layer and field, and nothing is lost", function()
    local cases = {
      { function() error("boom", 0) end, "boom" },
      { function() error({}) end, "not a string" },
      { function() return 7 end, "not a table" },
      { function() return {} end, "keep" },
      { function() return { keep = 2.5 } end, "keep" },
      { function() return { keep = 0 } end, "keep" },
      { function() return { keep = -3 } end, "keep" },
      { function(_, l) return { keep = l.rows + 1 } end, "more rows than there are" },
      { function() return { keep = 5, kep = 3 } end, "kep" },
      { function() return { keep = 5, guard = 3 } end, "guard" },
      { function() return { keep = 5, guard = { first = -1 } } end, "guard.first" },
      { function() return { keep = 5, guard = { last = "x" } } end, "guard.last" },
      { function() return { keep = 5, share = "all" } end, "share" },
      { function() return { keep = 5, prune = "everything" } end, "prune" },
      { function() return { keep = 5, share = "head", prune = "hidden" } end, "share" },
      { function() return { keep = 5, score = 3 } end, "score" },
      { function() return { keep = 0 / 0 } end, "keep" },
      { function(_, l) if l.index == 2 then error("late", 0) end end, "layer 2" },
      { function() local t = setmetatable({}, { __index = function() error("trap",
        0) end }) return t end, "trap" },
    }
    for i, case in ipairs(cases) do
      local cache <close> = assert(model:cache { dtype = "f32",
        policy = { name = "naughty", prefill = case[1] } })
      local logits, message, code = cache:prefill(prompt(40))
      assert.is_nil(logits, "case " .. i)
      assert.equal("policy", code)
      assert.truthy(message:find("naughty", 1, true), message)
      assert.truthy(message:find("layer %d"), message)
      assert.truthy(message:find(case[2], 1, true), message)
      assert.equal(0, cache:rows(1))
      assert.equal(0, cache:bytes())
      assert(cache:prefill(prompt(40), { prune = false }))
    end
  end)

  it("that misbehave in decode lose nothing either", function()
    local function naughty(trigger, decode)
      local armed = { false }
      local cache = assert(model:cache { dtype = "f32", policy = { name = "naughty",
        trigger = function() return trigger end,
        decode = function(o, l) if armed[1] then return decode(o, l) end end } })
      assert(cache:prefill(prompt(40)))
      return cache, armed
    end
    for _, decode in ipairs { function() error("boom", 0) end,
      function(_, l) return { keep = l.rows + 1 } end,
      function() return { keep = 3, score = score.attention { queries = 3 } } end } do
      local cache, armed = naughty({ every = 1 }, decode)
      assert(cache:step(1))
      armed[1] = true
      local logits, message, code = cache:step(2)
      assert.is_nil(logits)
      assert.equal("policy", code, message)
      assert.truthy(message:find("naughty, layer 1, decode", 1, true), message)
      assert.equal(41, cache:rows(1))
      assert.equal(41, cache:tokens())
      armed[1] = false
      assert(cache:step(2))
      cache:close()
    end
    for _, trigger in ipairs { { every = -1 }, { over = 0.5 }, { once = true }, { evry = 3 },
      { every = 1, track = score.position() }, { every = 1,
        track = score.attention { reduce = "max" } } } do
      local cache <close> = assert(model:cache { dtype = "f32", policy = { name = "naughty",
        trigger = function() return trigger end, decode = function() end } })
      local logits, message, code = cache:prefill(prompt(10))
      assert.is_nil(logits)
      assert.equal("policy", code)
      assert.truthy(message:find("trigger", 1, true) or message:find("track", 1, true), message)
    end
  end)

  it("see logits of every position only where every token gets through", function()
    local cache <close> = assert(model:cache { dtype = "f32",
      policy = pyramid.policy("pyramidinfer", { floor = 4, ratio = 0.5 }) })
    local logits, message, code = cache:prefill(prompt(60), { all = true })
    assert.is_nil(logits)
    assert.equal("argument", code, message)
    assert.equal(60, #assert(cache:prefill(prompt(60), { all = true, prune = false })))
  end)

  it("judge the same on any number of threads", function()
    local kept
    for threads = 1, 3 do
      local own <close> = assert(pyramid.model(helper.fixture "families/llama-gqa-llama3",
        { threads = threads }))
      local rows = {}
      for _, name in ipairs(policy.list()) do
        local cache <close> = assert(own:cache { policy = name, dtype = "f16" })
        local logits = assert(cache:prefill(prompt(300)))
        for i = 1, 20 do logits = assert(cache:step(i)) end
        rows[name] = { logits:tostring() }
        for layer = 1, own.config.layers do
          table.insert(rows[name], table.concat(cache:positions(layer, 2), " "))
        end
      end
      kept = kept or rows
      assert.same(kept, rows)
    end
  end)

  it("track anew with each prompt: how it was cut does not matter to queries that no longer count",
    function()
    local recent = { name = "recent",
      trigger = function() return { every = 16, window = 8,
        track = score.attention { queries = 24 } } end,
      decode = function() return { keep = 60 } end }
    local ids, kept = prompt(120), {}
    for parts = 1, 2 do
      local cache <close> = assert(model:cache { dtype = "f32", policy = recent })
      for part = 1, parts do
        assert(cache:prefill(helper.slice(ids, (part - 1) * 120 // parts + 1, part * 120 // parts)))
      end
      for i = 1, 16 do assert(cache:step(i)) end
      kept[parts] = cache:positions(2, 1)
      assert.equal(60, #kept[parts])
    end
    assert.same(kept[1], kept[2])
  end)

  it("keep sinks where rows are judged again and again", function()
    local p = assert(pyramid.policy("pyramidinfer", { rejudge = true, floor = 8, recent = 0.1 }))
    local cache <close> = assert(model:cache { policy = p, dtype = "f32" })
    assert(cache:prefill(prompt(100)))
    for i = 1, 160 do assert(cache:step(i % vocab)) end
    for layer = 1, model.config.layers do
      assert.same({ 0, 1, 2, 3 }, helper.slice(cache:positions(layer, 1), 1, 4))
    end
  end)

  it("leave their triggers alone when a prompt is appended without them", function()
    local asked = 0
    local cache <close> = assert(model:cache { dtype = "f32", policy = { name = "counted",
      trigger = function() asked = asked + 1 return { every = 4 } end, decode = function() end } })
    assert(cache:prefill(prompt(20)))
    assert.equal(model.config.layers, asked)
    assert(cache:prefill(prompt(20), { prune = false }))
    assert.equal(model.config.layers, asked)
  end)

  it("prompts that continue are pruned without losing what was kept before", function()
    local p = assert(pyramid.policy("pyramidinfer", { floor = 4, ratio = 0.5 }))
    local cache <close> = assert(model:cache { policy = p, dtype = "f32" })
    assert(cache:prefill(prompt(100)))
    local before = cache:positions(3, 1)
    assert(cache:prefill(prompt(100)))
    local after = cache:positions(3, 1)
    assert.same(before, helper.slice(after, 1, #before))
    assert.is_true(#after < #before + 100)
    assert.equal(199, after[#after])
    for i = 1, 40 do assert(cache:step(i)) end
  end)
end)

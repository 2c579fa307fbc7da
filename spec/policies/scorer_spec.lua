-- policy.scorer: what follows of what a scorer says, held to policies that are written out.
local helper = require "helper"
local maps = require "pyramid.maps"
local policy = require "pyramid.policy"
local pyramid = require "pyramid"
local score = require "pyramid.score"

-- Shapes of a prompt (rows are all there are) and of a decode step.
local function shapes()
  local list = {}
  for _, prompt in ipairs { 1, 2, 7, 40, 300 } do
    for _, past in ipairs { 0, 1, 50 } do
      for _, rows in ipairs { past + prompt, math.max(1, (past + prompt) // 3) } do
        for index = 1, 4 do
          list[#list + 1] = policy.shape(index, 4, prompt, past, rows, rows // 2, past + prompt, 8,
            2, 64)
        end
      end
    end
  end
  return list
end

local function assert_same(want, got)
  assert.equal(want == nil, got == nil)
  for key, value in pairs(want or {}) do
    if score.is(value) then assert.equal(tostring(value), tostring(got[key]))
    else assert.same(value, got[key]) end
  end
  for key in pairs(got or {}) do assert.is_not_nil(want[key], key) end
end

-- Fails unless two policies ask for the same everywhere, under each of some options.
local function assert_same_policy(want, got, options)
  assert.same(want.options, got.options)
  for _, given in ipairs(options) do
    local o = want:with(given).in_force
    for _, l in ipairs(shapes()) do
      for _, part in ipairs { "prefill", "trigger", "decode" } do
        local f, g = want.definition[part], got.definition[part]
        assert.equal(f == nil, g == nil)
        if f then assert_same(f(o, l), g(o, l)) end
      end
    end
  end
end

describe("headkv", function()
  it("keeps what its budget says on average over heads, of later prompts, too", function()
    local p = assert(policy.load("headkv", { window = 4, scores = "1,3,2,2", ratio = 0.25 }))
    for _, past in ipairs { 0, 20 } do
      local sum = 0
      for index = 1, 2 do
        local l = policy.shape(index, 2, 80, past, past + 80, 0, past + 80, 4, 2, 16)
        for _, rows in ipairs(p.definition.prefill(p.in_force, l).keep) do sum = sum + rows end
      end
      assert.near(4 * (past + 20), sum, 2)
    end
  end)

  it("does not hold on to all scores that it was ever told", function()
    local shape = policy.shape(1, 20000, 80, 0, 80, 0, 80, 1, 1, 16)
    local function told(i) maps.head_shares(("1 "):rep(19999) .. i, "", shape, 1) end
    told(1)
    collectgarbage()
    local before = collectgarbage "count"
    for i = 2, 20 do told(i) end
    collectgarbage()
    assert.is_true(collectgarbage "count" - before < 1000)                -- KiB; a list has 312
  end)
end)

describe("policy.scorer", function()
  it("cuts by a window of last queries, in a prompt and every so many tokens", function()
    local function looks(o, queries)
      return score.attention { queries = queries, heads = o.heads }
    end
    local got = policy.scorer { name = "windowed", defaults = { window = 8, heads = "mean" },
      looks = looks, score = function(_, _, _, seen) return seen * 2 end,
      each = function(_, l, rows)
        return { math.min(l.rows, rows), math.max(1, math.min(l.rows, rows) // 2) }
      end }
    local function plan(o, l, queries)
      local last = math.min(o.window, l.rows)
      local rows = math.max(o.rows > 0 and o.rows or l.past + math.ceil(o.ratio * l.prompt), last,
        1)
      local keep = math.min(l.rows, rows)
      return { keep = { keep, math.max(1, keep // 2) }, guard = { last = last }, share = "head",
        score = looks(o, queries) * 2 }
    end
    local want = policy { name = "windowed", fit = "ratio",
      defaults = { ratio = 0.5, rows = 0, window = 8, heads = "mean", every = 0 },
      prefill = function(o, l) return plan(o, l, math.min(o.window, l.rows)) end,
      trigger = function(o)
        return o.every > 0 and { every = o.every, track = looks(o, o.window) } or nil
      end,
      decode = function(o, l) return plan(o, l, o.window) end }
    assert_same_policy(want, got, { {}, { every = 5 }, { ratio = 0.1, every = 1 }, { rows = 9,
      window = 3 } })
    assert.error_matches(function()
      policy.scorer { name = "both", looks = looks, generates = true }
    end, "goes without `generates`", 1, true)
  end)

  it("has the options, the budget, the clamps and the guards of most policies", function()
    local got = policy.scorer { name = "short", doc = "the shortest keys",
      defaults = { sinks = 2, recent = 3 }, score = function() return -score.key_norm() end }
    local want = policy { name = "short", doc = "the shortest keys",
      defaults = { ratio = 0.5, rows = 0, sinks = 2, recent = 3 }, fit = "ratio",
      prefill = function(o, l)
        local budget = math.max(o.rows > 0 and o.rows or l.past + math.ceil(o.ratio * l.prompt),
          o.sinks + o.recent, 1)
        return { keep = math.min(budget, l.rows), guard = { first = o.sinks, last = o.recent },
          score = -score.key_norm(), share = "head" }
      end }
    assert.equal("the shortest keys", got.definition.doc)
    assert_same_policy(want, got, { {}, { ratio = 0.0 }, { ratio = 1.0 }, { rows = 5 },
      { rows = 1000 }, { sinks = 0, recent = 0, ratio = 0.0 }, { sinks = 100 } })
  end)

  it("cuts in generation by a trigger, and ranks by what that tracks", function()
    local function recent(o, _, budget) return budget // o.part end
    local got = policy.scorer { name = "heavy", generates = true, slack = 4, share = "layer",
      defaults = { part = 3 }, floor = function() return 6 end,
      guard = function(o, l, budget) return { last = recent(o, l, budget) } end, window = recent,
      score = function() return score.attention { reduce = "sum" } end,
      track = function() return score.history() end,
      more = function(_, l, keep) return { least = keep // 2, mass = l.index / 10 } end }
    local function budget(o, l)
      return math.max(o.rows > 0 and o.rows or l.past + math.ceil(o.ratio * l.prompt), 6)
    end
    local function plan(o, l, by)
      local keep = math.min(budget(o, l), l.rows)
      return { keep = keep, guard = { last = budget(o, l) // o.part }, score = by,
        share = "layer", least = keep // 2, mass = l.index / 10 }
    end
    local want = policy { name = "heavy", fit = "ratio",
      defaults = { ratio = 0.5, rows = 0, part = 3, slack = 4 },
      prefill = function(o, l) return plan(o, l, score.attention { reduce = "sum" }) end,
      trigger = function(o, l)
        return { over = budget(o, l) + o.slack, window = budget(o, l) // o.part,
          track = score.history() }
      end,
      decode = function(o, l) return plan(o, l, score.history()) end }
    assert_same_policy(want, got, { {}, { slack = 0, rows = 9 }, { part = 1, ratio = 0.9 } })
  end)

  it("limits what is named as in the catalogue, and lets a scorer say otherwise", function()
    local p = policy.scorer { name = "limited", generates = true,
      defaults = { window = 8, kernel = 5, pool = "avg", heads = "max", recent = 0.5, other = 1 },
      limits = { recent = { 0, 1 }, window = { 4, 8 } } }
    for _, wrong in ipairs { { ratio = 1.1 }, { rows = -1 }, { slack = -1 }, { window = 9 },
      { kernel = 4 }, { pool = "min" }, { heads = "median" }, { recent = 1.5 } } do
      assert.has_error(function() p:with(wrong) end)
    end
    assert.equal(-7, p:with { other = -7 }.options.other)
    assert.equal(15, p.options.slack)
    p = policy.scorer { name = "odd", defaults = { pool = 3, heads = true } }
    assert.equal(4, p:with { pool = 4 }.options.pool)      -- no text: the catalogue's is not meant
  end)

  it("lets the first layers be, and budgets that depend on the layer", function()
    local p = policy.scorer { name = "deep", defaults = { whole = 2, sinks = 0, recent = 0 },
      budget = function(o, l) return l.index * math.floor(o.ratio * 10) end }
    local function keep(index)
      local plan = p.definition.prefill(p.in_force, policy.shape(index, 4, 100, 0, 100, 0, 100, 8,
        2, 64))
      return plan and plan.keep
    end
    assert.is_nil(keep(1))
    assert.is_nil(keep(2))
    assert.equal(15, keep(3))
    assert.equal(20, keep(4))
  end)

  it("finds the ratio for a target, and runs", function()
    local model <close> = assert(pyramid.model("models/tiny", { device = helper.device,
      threads = 1 }))
    local p = policy.scorer { name = "mine", defaults = { sinks = 1, recent = 1 },
      score = function() return score.value_norm() end }
    local cache <close> = assert(model:cache { policy = p:with { target = 0.3 } })
    assert(cache:prefill(helper.ids(200, model.config.vocab, 3)))
    assert.is_true(math.abs(cache:fraction() - 0.3) < 0.01, cache:fraction())
    assert.equal(0, cache:positions(1, 1)[1])
    assert.equal(199, cache:positions(1, 1)[cache:rows(1, 1)])
  end)

  it("says what is wrong where it is made", function()
    assert.error_matches(function() policy.scorer { name = "x", scores = 1 } end,
      "policy.scorer: unknown option 'scores'")
    assert.error_matches(function() policy.scorer { name = "x", score = score.position() } end,
      "must be function")
    assert.error_matches(function()
      policy.scorer { name = "x", track = function() return score.history() end }
    end, "generates")
    assert.error_matches(function() policy.scorer {} end, "name")
  end)
end)

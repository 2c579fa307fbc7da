-- pyramid.testing itself: runs that can be followed by hand, checks that find faults, assertions
-- that say what is wrong. That its runs are what the core does is what matrix_spec.lua shows.
local helper = require "spec.helper"
local policy = require "pyramid.policy"
local score = require "pyramid.score"
local shell = require "spec.support.shell"
local testing = require "pyramid.testing"

-- A policy that keeps `keep` rows of a prompt under a plan with more fields.
local function keeping(keep, more)
  return policy { name = "keeping", doc = "for specs", defaults = { keep = keep },
    prefill = function(o, l)
    local plan = { keep = math.min(o.keep, l.rows) }
    for key, value in pairs(more or {}) do plan[key] = value end
    return plan
  end }
end

describe("testing.layer", function()
  it("is a shape with what is not given filled in", function()
    local l = testing.layer { index = 3, past = 10 }
    assert.same({ 3, 8, 0.25, 256, 10, 266, 0, 266, 4, 2, 16 },
      { l.index, l.layers, l.depth, l.prompt, l.past, l.rows, l.waiting, l.tokens, l.heads,
        l.kv_heads, l.head_dim })
    assert.error_matches(function() testing.layer { layer = 3 } end, "unknown option 'layer'")
  end)
end)

describe("testing.run", function()
  it("keeps what is looked at, within guards that take no part in it", function()
    local p = keeping(6, { guard = { first = 1, last = 2 },
      score = score.attention { queries = 1 } })
    local run = testing.run(p, { prompt = 12, layers = 2, heads = 1,
      attention = { [0] = 0, [4] = 9, [7] = 5, [11] = 100 } })
    assert.keeps(run, { 0, 1, 4, 7, 10, 11 })                       -- of equal rows the lower
    assert.keeps(run[2], { 0, 1, 4, 7, 10, 11 })
    assert.keeps(run[2][1], { 0, 1, 4, 7, 10, 11 })
    assert.keeps(p, { 0, 1, 2, 3, 10, 11 }, { prompt = 12, attention = {} })
  end)

  it("lets heads differ where they share nothing", function()
    local p = keeping(2, { share = "head", score = score.attention {} })
    local run = testing.run(p, { prompt = 8, layers = 1, heads = 2,
      attention = function(_, head, _, position)
      return position == head and 50 or 1
    end })
    assert.keeps(run[1][1], { 0, 1 })
    assert.keeps(run[1][2], { 0, 2 })
    run = testing.run(keeping(3, { score = score.attention { heads = "max" } }),
      { prompt = 8, layers = 1, heads = 2,
      attention = function(_, head, _, position) return position == head and 50 or 1 end })
    assert.keeps(run, { 0, 1, 2 })
  end)

  it("passes survivors on where hidden states are pruned", function()
    local p = keeping(4, { prune = "hidden", score = score.attention {} })
    local run = testing.run(p, { prompt = 10, layers = 3, heads = 1,
      attention = { [3] = 9, [5] = 9 } })
    assert.keeps(run[1], { 0, 1, 2, 3, 4, 5, 6, 7, 8, 9 })
    assert.keeps(run[2], { 0, 3, 5, 9 })
    assert.keeps(run[3], { 0, 3, 5, 9 })
    assert.equal(18, run:computed())
    assert.equal(12, run:evicted())
    assert.near(18 / 30, run:fraction(), 1e-12)
  end)

  it("tracks what queries give in generation", function()
    local p = policy { name = "tracking", trigger = function()
      return { every = 4, window = 2, track = score.attention { queries = 3 } }
    end, decode = function() return { keep = 5 } end }
    local seen = {}
    local run = testing.run(p, { prompt = 6, steps = 8, layers = 1, heads = 1,
      watch = function(now, step) seen[step] = now:rows(1) end,
      attention = function(_, _, query, position) return position == (query < 10 and 5 or 8) and 20
        or 1 end })
    assert.same({ [0] = 6, 7, 8, 9, 5, 6, 7, 8, 5 }, seen)
    assert.equal(2, #run.fired)
    assert.keeps(run, { 0, 1, 8, 12, 13 })  -- what was given to 5 no longer counts
  end)

  it("ranks by keys and values, as lengths or as vectors", function()
    local by_value, by_key = keeping(1, { score = score.value_norm() }),
      keeping(1, { score = -score.key_norm() })
    assert.keeps(by_value, { 4 }, { prompt = 9, values = { [4] = -2 } })
    assert.keeps(by_key, { 6 }, { prompt = 9, keys = function(_, _, position)
      return position == 6 and { 0.1, 0.2 } or { 3, 4 }
    end })
  end)

  it("judges the rows of earlier prompts again, unless they are guarded", function()
    local values = function(_, _, position) return position >= 8 and position + 1 or 1 end
    local function by_value(guard)
      return policy { name = "later", prefill = function(_, l)
        return { keep = l.past + 2, guard = guard and { first = l.past },
          score = score.value_norm() }
      end }
    end
    local given = { prompt = { 4, 8 }, layers = 1, heads = 1, values = values }
    assert.keeps(testing.run(by_value(false), given), { 8, 9, 10, 11 })
    assert.keeps(testing.run(by_value(true), given), { 0, 1, 10, 11 })
  end)

  it("adds in f32, as the core does: a large sum swallows what is small beside it", function()
    local pyramid = require "pyramid"
    local model <close> = assert(pyramid.model("models/tiny", { device = "cpu", threads = 1 }))
    local config, n, norms = model.config, 48, {}
    local ids = helper.ids(n, config.vocab, 11)
    local whole <close> = assert(model:cache { dtype = "f32" })
    assert(whole:prefill(ids))
    for layer = 1, config.layers do
      norms[layer] = {}
      for head = 1, config.kv_heads do
        norms[layer][head] = assert(whole:scores(score.key_norm(), { layer = layer, head = head }))
      end
    end
    -- Beside 1e9 nothing is left of a norm, and the lower rows stay; beside 1e6 sixteenths are.
    for _, large in ipairs { 1e9, 1e6, 1 } do
      local p = keeping(n // 4, { share = "head",
        score = score.place():top(n // 2) * large + score.key_norm() })
      local cache <close> = assert(model:cache { dtype = "f32", policy = p })
      assert(cache:prefill(ids))
      local run = testing.run(p, { prompt = n, layers = config.layers, heads = config.heads,
        kv_heads = config.kv_heads,
        keys = function(layer, head, position) return norms[layer][head][position + 1] end })
      for layer = 1, config.layers do
        for head = 1, config.kv_heads do
          assert.keeps(run[layer][head], cache:positions(layer, head))
        end
      end
      if large == 1e9 then
        local lower = {}
        for i = 1, n // 4 do lower[i] = n // 2 + i - 1 end
        assert.keeps(run, lower)
      end
    end
  end)

  it("lets heads compete for one budget, and counts rows by the share of scores that they hold",
    function()
    local values = function(_, head, position) return head == 1 and position < 5 and 10
      or 1 + position / 100 end
    local run = testing.run(keeping(4, { share = "pool", least = 2, guard = { last = 1 },
      score = score.value_norm() }), { prompt = 9, layers = 1, heads = 2, values = values })
    assert.keeps(run[1][1], { 0, 1, 2, 3, 4, 8 })
    assert.keeps(run[1][2], { 7, 8 })
    run = testing.run(keeping(9, { share = "head", mass = 0.5, score = score.value_norm() }),
      { prompt = 9, layers = 1, heads = 2, values = values })
    assert.keeps(run[1][1], { 0, 1, 2 })                            -- 30 of 54.26
    assert.keeps(run[1][2], { 4, 5, 6, 7, 8 })
    run = testing.run(keeping(9, { share = "head", above = 1.06, guard = { last = 1 },
      score = score.value_norm() }), { prompt = 9, layers = 1, heads = 2, values = values })
    assert.keeps(run[1][1], { 0, 1, 2, 3, 4, 6, 7, 8 })
    assert.keeps(run[1][2], { 6, 7, 8 })
    run = testing.run(keeping(9, { keep = { 2, 3 }, share = "head" }),
      { prompt = 9, layers = 1, heads = 2 })
    assert.keeps(run[1][1], { 7, 8 })
    assert.keeps(run[1][2], { 6, 7, 8 })
  end)

  it("merges losers into the most similar survivor, and ranks by what they became", function()
    local p = policy { name = "merging", prefill = function() return { keep = 3,
      merge = { threshold = 0.5 } } end,
      trigger = function() return { every = 1, window = 1 } end,
      decode = function() return { keep = 2, score = score.value_norm() } end }
    local run = testing.run(p, { prompt = 6, steps = 1, layers = 1, heads = 1,
      keys = function(_, _, position) return position % 3 == 1 and { 0, 1 } or position == 5
        and { -1, -1 } or { 1, 0 } end,
      values = { [1] = 9, [0] = 2, [2] = 1, [3] = 3, [4] = 1, [5] = 4 } })
    assert.keeps(run.prefill[1][1], { 3, 4, 5 })
    assert.keeps(run[1][1], { 4, 6 })  -- 4 and 1 hold (1 + 9) / 2; 3, 0 and 2 hold 2
  end)

  it("tells original positions where keys are rotated to their places", function()
    local places = {}
    local run = testing.run("streaming", { prompt = 20, steps = 14, layers = 1, heads = 1,
      attend = function(_, _, query, positions, held)
        if query > 19 then places[query] = held.compact end
        local out = {}
        for i in ipairs(positions) do out[i] = 1 end
        return out
      end })
    assert.keeps(run.prefill[1], { 0, 1, 2, 3, 14, 15, 16, 17, 18, 19 })
    assert.is_false(places[20])
    run = testing.run(assert(policy.load("streaming", { rotate = true })),
      { prompt = 20, steps = 2, layers = 1, heads = 1,
      attend = function(_, _, query, positions, held)
        if query > 19 then places[query] = held.compact end
        return table.move(positions, 1, #positions, 1, {})
      end })
    assert.is_true(places[20])
    assert.keeps(run, { 0, 1, 2, 3, 14, 15, 16, 17, 18, 19, 20, 21 })
  end)

  it("ranks by tables, functions and what queries to come should look at", function()
    local how = { prompt = 8, layers = 2, heads = 2, kv_heads = 1 }
    assert.keeps(keeping(2, { score = score.table { 0, 0, 7, 0, 0, 8 } }), { 2, 5 }, how)
    local by_key = score.custom(function(lane) return lane.keys:norm() * lane.twice end,
      { twice = score.const(2) })
    how.keys = function(_, _, position) return position == 4 and { 3, 0 } or position == 6
      and { 0, 4 } or { 1, 0 } end
    assert.keeps(keeping(2, { score = by_key }), { 4, 6 }, how)
    local expected = keeping(2, { score = score.expected { sinks = 3, future = 5,
      covariance = false } })
    assert.error_matches(function() testing.run(expected, how) end,
      "not simulated: expected attention, unless `expected` is given")
    assert.error_matches(function() testing.run(keeping(2, { score = score.output_norm() }),
      how) end, "unless `outputs` is given")
    local asked
    how.expected = function(_, _, keys, given)
      asked = given
      local out = {}
      for i, key in ipairs(keys) do out[i] = key[2] + i / 100 end
      return out
    end
    how.outputs = function(_, head, value) return head * value end
    assert.keeps(expected, { 6, 7 }, how)
    assert.same({ queries = { 3, 4, 5, 6, 7 }, next = 8, future = 5, covariance = false }, asked)
    how.values = { [1] = 5, [2] = 4 }
    assert.keeps(keeping(2, { score = score.output_norm() }), { 1, 2 }, how)
    assert.error_matches(function() testing.run(keeping(2,
      { score = score.custom(function() error("boom", 0) end) }), how) end,
      "policy keeping, layer 1, prefill: boom")
  end)

  it("reads prompts one after another", function()
    local run = testing.run("streaming", { prompt = { 20, 10 }, layers = 2 })
    assert.equal(30, run:tokens())
    assert.keeps(run, { 0, 1, 2, 3, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 29 })
  end)

  it("is the same for the same seed", function()
    local how = { prompt = 50, heads = 4, kv_heads = 2 }
    local p = policy.load("snapkv", { window = 4 })
    assert.same(testing.run(p, how), testing.run(p, how))
    assert.not_same(testing.run(p, how), testing.run(p,
      { prompt = 50, heads = 4, kv_heads = 2, seed = 5 }))
  end)

  it("raises what a cache would say of a policy that misbehaves, and of what is not simulated",
    function()
    for pattern, p in pairs {
      ["policy keeping, layer 1, prefill: keep is less than 1"] = keeping(0),
      ["policy keeping, layer 1, prefill: share must be \"layer\" where"] = keeping(5,
        { share = "head", prune = "hidden" }),
      ["policy keeping, layer 1, prefill: keep is a list, which needs share"] = keeping(9,
        { keep = { 2, 2 } }),
      ["policy keeping, layer 1, prefill: least needs mass, above, share"] = keeping(5, { least = 2 }),
      ["policy keeping, layer 1, prefill: least is more than keep"] = keeping(5,
        { least = 6, mass = 0.5 }),
      ["policy keeping, layer 1, prefill: rotate \"compact\" needs prune"] = keeping(5,
        { share = "pool", rotate = "compact" }),
      ["policy keeping, layer 1, prefill: plan.kep is not a field"] = keeping(5, { kep = 5 }),
    } do
      assert.error_matches(function() testing.run(p) end, pattern)
    end
    local untracked = policy { name = "untracked", trigger = function() return { every = 1 } end,
      decode = function() return { keep = 3, score = score.history() } end }
    assert.error_matches(function() testing.run(untracked, { steps = 1 }) end,
      "policy untracked, layer 1, decode: score ranks by attention that the trigger does not track")
    local scores = require "pyramid.testing.scores"
    assert.error_matches(function() scores.evaluate(string.pack("<BBBxi4f", 200, 0, 0, 0, 0),
      {}) end,
      "not simulated: the score operation 'code 200'")
    assert.error_matches(function() testing.run("snapkv",
      { prompt = 40, attention = { a = 1 } }) end, "'a' is no position")
    assert.error_matches(function()
      testing.run(keeping(5, { score = score.attention {} }),
        { attention = function() return -1 end })
    end, "attention at layer 1, head 1, query 0, position 0 is %-1, not a number")
    assert.error_matches(function() testing.run("snapkv", { heads = 3, kv_heads = 2 }) end,
      "3 heads cannot share 2 KV heads")
    assert.error_matches(function() testing.run("snapvk") end, "unknown policy 'snapvk'")
  end)
end)

describe("assertions", function()
  local run = testing.run(keeping(3), { prompt = 6, layers = 2, heads = 1 })

  it("draw what was kept and what was wanted", function()
    local ok, message = pcall(assert.keeps, run, { 0, 4, 5 })
    assert.is_false(ok)
    assert.truthy(tostring(message):find("-··+## layer 1, head 1 keeps 3-5", 1, true),
      tostring(message))
    assert.truthy(tostring(message):find("should keep 0 4-5", 1, true))
  end)

  it("may be negated", function()
    assert.does_not.keep(run, { 0, 4, 5 })
    assert.is_not.budget(keeping(500), 0.7)
    local ok, message = pcall(assert.does_not.keep, run, { 3, 4, 5 })
    assert.is_false(ok)
    assert.truthy(tostring(message):find("which was not expected", 1, true), tostring(message))
  end)

  it("measure budgets by forecast or run, layer by layer", function()
    assert.budget(keeping(500), 0.5)
    assert.budget("snapkv", 0.5, 0.001, { prompt = 2000, layers = 3 })
    assert.budget(run, 0.5)
    local ok, message = pcall(assert.budget, policy.from(keeping(100), 2), 0.5)
    assert.is_false(ok)
    assert.truthy(tostring(message):find("keeps 21.2 % of the rows", 1, true), tostring(message))
    assert.truthy(tostring(message):find("layer  1 " .. ("#"):rep(40) .. "  1000 of 1000", 1,
      true), tostring(message))
  end)

  it("say what they want where they get something else", function()
    assert.error_matches(function() assert.keeps(run, 3) end, "a list of positions")
    assert.error_matches(function() assert.keeps(5, {}) end,
      "a run, a layer of it, a lane or a policy is wanted")
    assert.error_matches(function() assert.budget("snapvk", 0.5) end, "unknown policy 'snapvk'")
  end)
end)

describe("testing.check", function()
  -- A sound policy but for what `more` replaces.
  local function with(more)
    local d = { name = "fine", doc = "keeps half", defaults = { ratio = 0.5 },
      limits = { ratio = { 0, 1 } },
      prefill = function(o, l) return { keep = math.max(1, math.floor(o.ratio * l.rows)) } end }
    for key, value in pairs(more) do d[key] = value end
    return policy(d)
  end

  it("finds nothing wrong with a sound policy", function()
    local report = assert(testing.check(with {}))
    assert.is_false(report.keeps_everything)
    assert.same({}, report.notes)
    assert.matches("policy fine: sound, %d+ plans", tostring(report))
  end)

  it("finds plans that are not pure", function()
    local calls = 0
    local _, message = testing.check(with { prefill = function()
      calls = calls + 1
      return { keep = 1, guard = { last = calls % 2 } }
    end })
    assert.matches("two plans for one shape", message)
    _, message = testing.check(with { prefill = function(_, l) l.rows = 1 return { keep = 1 } end })
    assert.matches("changes the shape it is given", message)
  end)

  it("finds shapes and options at which plans are not valid", function()
    local _, message = testing.check(with { prefill = function(o,
      l) return { keep = math.floor(o.ratio * l.rows) } end })
    assert.matches("keep is less than 1 %(1 layers, 4 KV heads, a prompt of 1 on 0 rows, and %d+ "
      .. "shapes more%)", message)
    _, message = testing.check(with { prefill = function() return { keep = 64 } end })
    assert.matches("keep asks for more rows than there are", message)
    _, message = testing.check(with { prefill = function(o,
      l) return { keep = math.ceil(o.ratio * l.rows) } end })
    assert.matches("ratio=0: policy fine, layer 1, prefill: keep is less than 1", message)
    _, message = testing.check(with { presets = { big = { ratio = 2 } } })
    assert.matches("option 'ratio' is 2", message)
    _, message = testing.check(with { trigger = function() return { every = 8 } end,
      decode = function(_, l) return { keep = l.rows - 20 } end })
    assert.matches("layer 1, decode: keep is less than 1", message)
  end)

  it("wants a doc and a file's name", function()
    local _, message = testing.check(policy { name = "bare", prefill = function() end },
      { name = "other" })
    assert.matches("problem: it has no doc", message)
    assert.matches("note: it has no defaults", message)                  -- legal, and better known
    assert.matches("its name should be 'other'", message)
    local report = assert(testing.check(with { limits = {} }))
    assert.matches("note: option 'ratio' has no limits", tostring(report))
  end)

  it("takes a policy without defaults", function()
    local report = assert(testing.check { name = "half", doc = "every half",
      prefill = function(_, l)
      return { keep = (l.rows + 1) // 2 }
    end })
    assert.is_false(report.keeps_everything)
  end)

  it("says nothing of what is kept where no plan was valid", function()
    local _, message, report = testing.check(with { prefill = function() return { keep = 0 } end })
    assert.matches("keep is less than 1", message)
    assert.not_matches("keeps everything", message)
    assert.is_false(report.keeps_everything)
  end)

  it("checks a model's own policy in that model's shape", function()
    local own = with { prefill = function(_, l)
      if l.layers ~= 6 or l.kv_heads ~= 3 then error(("made for 6 layers of 3 K/V heads"), 0) end
      return { keep = { l.rows, (l.rows + 1) // 2, 1 }, share = "head" }
    end }
    assert.matches("made for 6 layers of 3", select(2, testing.check(own)))
    local report = assert(testing.check(own, { config = { layers = 6, heads = 9, kv_heads = 3,
      head_dim = 64 } }))
    assert.is_true(report.plans > 100)
    assert.matches("made for 6 layers", select(2,
      testing.check(own, { config = { layers = 5, heads = 9, kv_heads = 3, head_dim = 64 } })))
  end)

  it("says so of a policy that keeps everything", function()
    local lazy = with { prefill = function(_, l) return { keep = l.rows } end }
    local report = assert(testing.check(lazy))
    assert.is_true(report.keeps_everything)
    assert.matches("note: keeps everything", tostring(report))
    assert.matches("problem: keeps everything", select(2, testing.check(lazy, { prunes = true })))
  end)

  it("names an option that changes no plan", function()
    local d = { defaults = { ratio = 0.5, sink = 4, merge = false, near = 0.5 },
      limits = { ratio = { 0, 1 }, sink = { 0, 9 }, near = { 0, 1 } },
      prefill = function(o, l)
        return { keep = math.max(1, math.floor(o.ratio * l.rows)),
          merge = o.merge and { threshold = o.near } or nil }
      end }
    local report = assert(testing.check(with(d)))        -- `near` counts where `merge` is on
    assert.same({ "option 'sink' changes no plan at any shape that was tried" }, report.notes)
    d.prefill = function(o, l)                           -- only in a deep layer of a long prompt
      local first = l.index == 5 and l.prompt > 9999 and o.sink or 0
      return { keep = math.max(1, math.floor(o.ratio * l.rows)), guard = { first = first },
        merge = o.merge and { threshold = o.near } or nil }
    end
    assert.same({}, assert(testing.check(with(d))).notes)
  end)

  it("holds a policy to budgets that fall with depth, where that is claimed", function()
    assert(testing.check(with {}, { falls = true }))
    local rising = with { prefill = function(_,
      l) return { keep = math.ceil((0.5 + l.depth / 2) * l.rows) } end }
    assert.matches("should fall or hold with depth, but layer 2 of 2 keeps 150 rows, and the one "
      .. "before 100", select(2, testing.check(rising, { falls = true })))
  end)

  it("checks a folder, and names the file", function()
    local folder = shell.folder()
    assert.matches("holds no policy files", select(2, testing.check_folder(folder)))
    for _, name in ipairs { "streaming", "full" } do
      local path = ("%s/%s.lua"):format(folder, name)
      helper.write(path, helper.read(("policies/%s.lua"):format(name)))
    end
    local reports = assert(testing.check_folder(folder))
    assert.same({ "full", "streaming" }, { reports[1].name, reports[2].name })
    helper.write(folder .. "/one.lua", "return { name = 'two', doc = 'misnamed' }")
    helper.write(folder .. "/three.lua", "return 3")
    local _, message = testing.check_folder(folder)
    shell.remove(folder)
    assert.matches("one.lua: policy two: 1 problem, .*its name should be 'one'", message)
    assert.matches("three.lua: policy .*the file returns no policy", message)
  end)
end)

-- Every policy in policies/ against everything a cache does: heads, dtypes, batches, prompts
-- shorter than a guard, budgets of a page, forks, files, threads. A policy that joins the folder
-- joins this file.
local cli = require "pyramid.tools.cli"
local helper = require "spec.helper"
local ops = require "pyramid_specs"
local plans = require "pyramid.testing.plans"
local plain_digests = require "spec.support.digests"
local policy = require "pyramid.policy"
local pyramid = require "pyramid"
local random_model = require "pyramid.tools.random_model"
local random_policy = require "spec.support.random_policy"
local score = require "pyramid.score"
local shell = require "spec.support.shell"
local testing = require "pyramid.testing"
local transformer = require "spec.support.transformer"

local page_rows = ops.page_rows
local value_bytes = { f32 = 4, f16 = 2, q8_0 = 34 / 32, fp8_e4m3 = 1 }

-- 271 is a prime: no id comes twice, so no two rows of a layer are alike and no score is decided by
-- rounding.
local ids = {}
for i = 1, 270 do ids[i] = i * 37 % 271 end

local function prompt(n) return helper.slice(ids, 1, n) end

local names = helper.policies()

local folder = shell.folder()
local small, models = {}, {}       -- by kind: small ones to be worked out in Lua, others to be run

setup(function()
  for kind, kv_heads in pairs { MHA = 4, GQA = 2 } do
    local path = folder .. "/" .. kind
    local function write(to, dtype, width, ff)
      assert(random_model.write(to, { dtype = dtype, seed = 3,
        shape = { layers = 3, width = width, heads = 4, kv_heads = kv_heads, ff = ff, vocab = 272,
          context = 512 } }))
    end
    write(path, "f32", 32, 48)
    small[kind] = { model = assert(pyramid.model(path, { threads = 2 })),
      weights = transformer.load(path) }
    write(path .. ".gguf", "f16", 128, 128)
    models[kind] = assert(pyramid.model(path .. ".gguf", { threads = 2 }))
  end
end)

teardown(function()
  for kind in pairs(models) do
    small[kind].model:close()
    models[kind]:close()
  end
  shell.remove(folder)
end)

-- ---- what must hold of any cache ----------------------------------------------------------------

local function each_lane(model, visit)
  for layer = 1, model.config.layers do
    for head = 1, model.config.kv_heads do visit(layer, head) end
  end
end

local function all_positions(cache, model)
  local out = {}
  each_lane(model, function(layer, head) out[#out + 1] = table.concat(cache:positions(layer, head),
    " ") end)
  return table.concat(out, "\n")
end

-- Whether a layer's rows carry a number each for what their policy tracks.
local function tracks(p, config, n)
  local l = plans.shape(1, config, { prompt = n, past = 0, rows = n, tokens = n })
  local d = p.definition
  local trigger = d.decode and d.trigger and d.trigger(p:fitted(l), l)
  return trigger and trigger.track ~= nil or false
end

-- A prompt's plan; of a policy that prepares, as it is after passes.
local function plan_of(p, asker, config, layer, n, alive)
  local none = p.definition.prepare and {}
  for head = 1, none and config.kv_heads or 0 do none[head] = 0 end
  return asker:prefill(plans.shape(layer, config,
    { prompt = n, past = 0, rows = alive, tokens = n }), none or nil)
end

-- Bytes beside each full page of a layer's lanes whose steps read by digests.
local function digest_bytes(p, config, n, layer)
  local asker, d = plans.asker(p), p.definition
  local plan = plan_of(p, asker, config, layer, n, n)
  if d.decode and not d.trigger then
    local l = plans.shape(layer, config, { prompt = n, past = 0, rows = n, tokens = n })
    plan = asker:decode(l, { window = 0 })
  end
  if not plan.read then return 0 end
  for _, by in ipairs { "bound", "ball", "mean", "signs" } do
    if plan.read.by == score.digest(score[by]()) then
      return 4 * plain_digests.width(by, config.head_dim)
    end
  end
end

-- Whether a prompt's plan guards its last row: then the newest is always there.
local function guards_last(p, config, n)
  return not p.definition.prefill or plan_of(p, plans.asker(p), config, 1, n, n).last > 0
end

-- Looks at a cache after each step: rows ascend, end in the newest where that is guarded, and never
-- come back; bytes are those of the pages that the rows fill; what is held and what was dropped add
-- up.
local function observer(cache, model, p, dtype, n)
  local had, config = {}, model.config
  local ends = guards_last(p, config, n)
  local row_bytes = 4 + (tracks(p, config, n) and 4 or 0)
  local page_bytes = page_rows * (2 * config.head_dim * value_bytes[dtype] + row_bytes)
  local digests = {}
  for layer = 1, config.layers do digests[layer] = digest_bytes(p, config, n, layer) end
  return function(tokens, what)
    local pages, held, beside = 0, 0, 0
    each_lane(model, function(layer, head)
      local key, now, last = layer * 100 + head, {}, -1
      for _, position in ipairs(cache:positions(layer, head)) do
        if position <= last or had[key] and position < tokens - 1 and not had[key][position] then
          error(("%s, layer %d, head %d: row %d is out of order or came back"):format(what, layer,
            head, position), 2)
        end
        last, now[position] = position, true
      end
      if ends and last ~= tokens - 1 or last >= tokens then
        error(("%s, layer %d, head %d: the newest row is gone"):format(what, layer, head), 2)
      end
      had[key] = now
      local rows = cache:rows(layer, head)
      pages, held = pages + (rows + page_rows - 1) // page_rows, held + rows
      beside = beside + rows // page_rows * digests[layer]
        + helper.lane_beside((rows + page_rows - 1) // page_rows, row_bytes // 4)
    end)
    local lanes = config.layers * config.kv_heads
    assert.equal(tokens, cache:tokens(), what)
    assert.equal(lanes * tokens, held + cache:evicted(), what)
    assert.near(held / (lanes * tokens), cache:fraction(), 1e-12, what)
    assert.equal(pages * page_bytes + beside, cache:bytes(), what)
  end
end

-- Rows of each layer after the prompt [0] and after each step, by the plans alone: whatever the
-- scores, as many survive.
local function counts(p, config, n, steps)
  local found = {}
  testing.run(p, { prompt = n, steps = steps, layers = config.layers, heads = config.heads,
    kv_heads = config.kv_heads,
    head_dim = config.head_dim, scores = false,
      watch = function(run, i) found[i] = cli.layer_rows(run, config) end })
  return found
end

-- The guards of a prompt's plans: the first rows and the last of those that reach a layer are
-- there.
local function assert_guards(p, cache, config, n)
  local asker, alive, lead, trail = plans.asker(p), n, n, n
  for layer, forecast in ipairs(policy.forecast(p, config, n)) do
    local plan = plan_of(p, asker, config, layer, n, alive)
    local first, last = math.min(plan.first, lead, alive), math.min(plan.last, trail, alive)
    for head = 1, config.kv_heads do
      local positions = cache:positions(layer, head)
      for i = 1, first do
        assert.equal(i - 1, positions[i], ("layer %d, head %d: a first row is gone"):format(layer,
          head))
      end
      for i = 1, last do
        assert.equal(n - i, positions[#positions + 1 - i],
          ("layer %d, head %d: a last row is gone"):format(layer, head))
      end
    end
    assert.equal(alive, p.definition.prepare and alive or forecast.computed)
    if plan.prune ~= "cache" then
      alive, lead, trail = plans.left(plan, { alive })[1], math.min(lead, plan.first),
        math.min(trail, plan.last)
    end
  end
end

local function start(model, p, dtype, n, more)
  local cache = assert(model:cache { policy = p, dtype = dtype, budget = more and more.budget })
  return cache, assert(cache:prefill(prompt(n)))
end

local function steps_on(cache, from, to)
  local logits
  for i = from, to do logits = assert(cache:step(ids[i])) end
  return logits
end

-- ---- the matrix ---------------------------------------------------------------------------------

-- Skips what the simulation does not know yet, by name.
local function simulated(call)
  local ok, result = pcall(call)
  if ok then return result end
  if plans.is_not_simulated(result) then pending(result) end
  error(result, 0)
end

-- What the passes of a policy that prepares looked at, as the core tracked it: { [layer] = { [head]
-- = { [position] = number } } }; nil for others. A score of zeros beside the plan's own sees it.
local function probed_by(p, model, prompts)
  if not p.definition.prepare then return nil end
  local seen, d = {}, {}
  for key, value in pairs(p.definition) do d[key] = value end
  local look = score.custom(function(lane)
    local numbers, none = lane.seen, {}
    seen[lane.layer] = seen[lane.layer] or {}
    seen[lane.layer][lane.head] = seen[lane.layer][lane.head] or {}
    for i = 1, lane.rows do
      seen[lane.layer][lane.head][math.tointeger(lane.positions[i])], none[i] = numbers[i], 0
    end
    return none
  end, { seen = score.probed() })
  local passes = false
  function d.prepare(o, l)
    local how = p.definition.prepare(o, l)
    passes = how ~= nil
    return how
  end
  function d.prefill(o, l)
    local plan = p.definition.prefill(o, l)
    if plan and passes then plan.score = (plan.score or score.position()) + look end
    return plan
  end
  local cache <close> = assert(model:cache { policy = policy.define(d):with(p.options),
    dtype = "f32" })
  local at = 0
  for _, n in ipairs(prompts) do
    assert(cache:prefill(helper.slice(ids, at + 1, at + n)))
    at = at + n
  end
  return function(layer, head, position) return seen[layer][head][position] or 0.0 end
end

-- The core keeps what the simulation keeps with a float64 transformer's attention, keys and values.
local function assert_simulated(p, kind, prompts, steps)
  local model, source = small[kind].model, transformer.source(small[kind].weights, ids)
  local config, what = model.config, ("%s, %s"):format(p.name, kind)
  local run = simulated(function()
    return testing.run(p, { prompt = prompts, steps = steps, layers = config.layers,
      heads = config.heads, kv_heads = config.kv_heads, head_dim = config.head_dim,
        attend = source.attend, keys = source.keys, values = source.values,
          outputs = source.outputs, expected = source.expected,
            tokens = function(position) return ids[position + 1] end,
            probed = probed_by(p, model, prompts) })
  end)
  local cache <close> = assert(model:cache { policy = p, dtype = "f32" })
  local at = 0
  for _, n in ipairs(prompts) do
    assert(cache:prefill(helper.slice(ids, at + 1, at + n)))
    at = at + n
  end
  local function compare(want, when)
    each_lane(model, function(layer, head)
      helper.assert_positions(want[layer][head], cache:positions(layer, head),
        ("%s, %s, layer %d, head %d"):format(what, when, layer, head))
    end)
  end
  compare(run.prefill, "prompt")
  steps_on(cache, at + 1, at + steps)
  compare(run, "generation")
  assert.equal(run:evicted(), cache:evicted(), what)
  assert.equal(run:computed(), cache:computed(), what)
  assert.near(run:fraction(), cache:fraction(), 1e-12, what)
end

for _, name in ipairs(names) do
  describe("matrix, " .. name, function()
    local p = helper.squeezed(name)

    for _, kind in ipairs { "MHA", "GQA" } do
      it("keeps the top of true scores, head by head: " .. kind, function()
        assert_simulated(p, kind, kind == "MHA" and { 60 } or { 30, 15 }, 24)
      end)

      for _, dtype in ipairs { "f32", "f16", "q8_0", "fp8_e4m3" } do
        it(("holds guards, order, budgets and bytes: %s, %s"):format(kind, dtype), function()
          local model, n, steps = models[kind], 150, 40
          local want = simulated(function() return counts(p, model.config, n, steps) end)
          local cache <close> = start(model, p, dtype, n)
          local look = observer(cache, model, p, dtype, n)
          look(n, "prompt")
          for layer, forecast in ipairs(policy.forecast(p, model.config, n)) do
            assert.equal(forecast.rows, want[0][layer])
          end
          assert.same(want[0], cli.layer_rows(cache, model.config))
          simulated(function() assert_guards(p, cache, model.config, n) end)
          for i = 1, steps do
            assert(cache:step(ids[n + i]))
            look(n + i, "step " .. i)
            assert.same(want[i], cli.layer_rows(cache, model.config), "step " .. i)
          end
        end)
      end
    end

    it("takes prompts shorter than its guards, and one token", function()
      for _, one in ipairs { p, assert(policy.load(name)) } do
        for n = 1, 5 do
          local cache <close> = start(models.GQA, one, "f16", n)
          local look = observer(cache, models.GQA, one, "f16", n)
          look(n, "prompt")
          for i = 1, 12 do
            assert(cache:step(ids[n + i]))
            look(n + i, "step " .. i)
          end
        end
      end
    end)

    it("treats ragged sequences of a batch as if they were alone", function()
      local model, lengths, steps = models.GQA, { 1, 7, 150, 64, 65 }, 20
      local batch <close> = assert(model:batch { policy = p, dtype = "f16" })
      local length_of = {}
      for _, n in ipairs(lengths) do length_of[assert(batch:add(prompt(n)))] = n end
      assert(batch:step())
      for i = 1, steps do
        for handle, n in pairs(length_of) do assert(batch:push(handle, ids[n + i])) end
        assert(batch:step())
      end
      for handle, n in pairs(length_of) do
        local alone <close> = start(model, p, "f16", n)
        steps_on(alone, n + 1, n + steps)
        assert.equal(all_positions(alone, model), all_positions(handle, model), n .. " tokens")
        assert.equal(alone:evicted(), handle:evicted())
      end
    end)

    it("stops at a budget of one page a lane, exactly when a page more is needed, and loses "
      .. "nothing", function()
      local model, n = models.MHA, page_rows - 12
      local one <close> = start(model, p, "f16", 1)
      local budget = one:bytes()
      each_lane(model, function(layer)
        budget = budget + digest_bytes(p, model.config, n, layer)
      end)
      local cache <close> = assert(model:cache { policy = p, dtype = "f16", budget = budget })
      -- passes take room of their own
      assert(cache:prefill(prompt(n), { prune = not p.definition.prepare }))
      for i = 1, 40 do
        local fits = true
        each_lane(model, function(layer, head) fits = fits
          and cache:rows(layer, head) < page_rows end)
        local before = all_positions(cache, model)
        local logits, message, code = cache:step(ids[n + i])
        assert.equal(fits, logits ~= nil, ("step %d: %s"):format(i, message))
        assert.is_true(cache:bytes() <= budget)
        if not fits then
          assert.equal("budget", code)
          assert.equal(before, all_positions(cache, model))
          assert.equal(n + i - 1, cache:tokens())
          break
        end
      end
    end)

    it("forks: both go on alike, and neither disturbs the other", function()
      local model = models.GQA
      local cache <close> = start(model, p, "f16", 100)
      steps_on(cache, 101, 110)
      local before = all_positions(cache, model)
      local other <close> = assert(cache:fork())
      local same <close> = assert(cache:fork())
      for i = 1, 40 do assert(other:step(i)) end
      assert.equal(before, all_positions(cache, model))
      local logits, copy = steps_on(cache, 111, 150), steps_on(same, 111, 150)
      assert.equal(logits:tostring(), copy:tostring())
      assert.equal(all_positions(cache, model), all_positions(same, model))
      assert.equal(cache:evicted(), same:evicted())
    end)

    for _, dtype in ipairs { "f16", "q8_0", "fp8_e4m3" } do
      it("goes on from a file as if nothing had been: " .. dtype, function()
        local model, path = models.GQA, helper.tmp()
        local cache <close> = start(model, p, dtype, 100)
        steps_on(cache, 101, 110)
        assert(cache:save(path))
        local loaded <close> = assert(model:load_cache(path, { policy = p, dtype = dtype }))
        os.remove(path)
        assert.equal(all_positions(cache, model), all_positions(loaded, model))
        local logits, again = steps_on(cache, 111, 150), steps_on(loaded, 111, 150)
        assert.equal(logits:tostring(), again:tostring())
        assert.equal(all_positions(cache, model), all_positions(loaded, model))
        for _, question in ipairs { "evicted", "computed", "tokens", "fraction", "bytes" } do
          assert.equal(cache[question](cache), loaded[question](loaded), question)
        end
      end)
    end

    it("demotes over tiers of few bits, and loses nothing", function()
      local model, down = models.GQA, policy.demote(p, "warm")
      local function declared()
        local path = helper.tmp()
        os.remove(path)
        return { hot = "f16", warm = { dtype = "q4", rows = 70 },
          cold = { dtype = "q2", file = path, bytes = "4 MiB" } }
      end
      local cache <close> = assert(model:cache { policy = down, tiers = declared() })
      local logits, message, code = cache:prefill(prompt(150))
      if not logits then                     -- merged rows, or turned keys
        assert.equal("policy", code)
        assert.matches("losers", message)
        assert.equal(0, cache:tokens())
        return
      end
      local alone <close> = start(model, p, "f16", 150)
      steps_on(cache, 151, 190)
      steps_on(alone, 151, 190)
      local whole = alone:computed() >= model.config.layers * 190    -- passes count as well
      for layer = 1, model.config.layers do
        local hot, wanted = 0, 0
        for head = 1, model.config.kv_heads do
          hot, wanted = hot + cache:rows(layer, head, "hot"), wanted + alone:rows(layer, head)
          assert.is_true(not whole or cache:rows(layer, head) == 190)
        end
        assert.equal(wanted, hot)
      end
      assert.equal(whole, cache:evicted() == 0)
      local fork <close> = assert(cache:fork())
      local path = helper.tmp()
      assert(cache:save(path))
      local loaded <close> = assert(model:load_cache(path, { policy = down, tiers = declared() }))
      os.remove(path)
      local one = steps_on(cache, 191, 230)
      assert.equal(one:tostring(), steps_on(fork, 191, 230):tostring())
      assert.equal(one:tostring(), steps_on(loaded, 191, 230):tostring())
      for _, other in ipairs { fork, loaded } do
        assert.equal(all_positions(cache, model), all_positions(other, model))
        assert.equal(cache:bytes(), other:bytes())
      end
      local batch <close> = assert(model:batch { policy = down, tiers = declared() })
      local handle = assert(batch:add(prompt(150)))
      assert(batch:add(prompt(33)))
      assert(batch:step())
      for i = 151, 190 do
        assert(batch:push(handle, ids[i]))
        assert(batch:step())
      end
      local again <close> = assert(model:cache { policy = down, tiers = declared() })
      assert(again:prefill(prompt(150)))
      steps_on(again, 151, 190)
      assert.equal(all_positions(again, model), all_positions(handle, model))
    end)

    it("is the same on one, two and three threads", function()
      local kept
      for threads = 1, 3 do
        local model <close> = assert(pyramid.model(folder .. "/GQA.gguf", { threads = threads }))
        local cache <close>, logits = start(model, p, "f16", 150)
        local found = { logits:tostring(), steps_on(cache, 151, 180):tostring(),
          all_positions(cache, model) }
        kept = kept or found
        assert.same(kept, found)
      end
    end)

    it("says whether it has dropped anything", function()
      for _, n in ipairs { 3, 150 } do
        local run <close> = assert(models.GQA:generate(prompt(n),
          { policy = p, max_tokens = 20, ignore_eos = true }))
        for _ in run do end
        assert.equal("length", run.finish)
        assert.equal(run.stats.cache_fraction < 1, run.stats.pruned)
        assert.equal(run.cache:evicted() > 0, run.stats.pruned)
      end
    end)
  end)
end

describe("matrix, policies that nobody would write", function()
  it("keep in the core what they keep in the simulation", function()
    for seed = 1, 30 do
      local prompts = ({ { 50 }, { 30, 20 }, { 5, 40 }, { 3 }, { 20, 1, 10 } })[seed % 5 + 1]
      local kind = seed % 2 == 0 and "GQA" or "MHA"
      assert_simulated(random_policy(seed, kind == "GQA"), kind, prompts, 25)
    end
  end)
end)

describe("matrix, what a prompt's plan has ranked", function()
  local seen = score.attention { queries = 20, reduce = "max", heads = "max" }

  -- Rows 44 to 49 are the prompt's last, those that are left of it others: none of them is new.
  local function judged_once(share, guarded, extra)
    local function prefill(_, l)
      local plan = { keep = math.min(l.rows, 20), guard = { first = 1, last = guarded },
        share = share, score = score.key_norm() }
      for key, value in pairs(extra or {}) do plan[key] = value end
      return plan
    end
    return policy { name = "once", prefill = prefill,
      trigger = function() return { every = 3, window = 6, once = true, track = seen } end,
      decode = function(_, l) return { keep = math.max(1, l.rows - 2), share = "head" } end }
  end

  it("is not ranked once more where rows are judged once", function()
    for _, case in ipairs { { "layer", 0 }, { "head", 2 }, { "head", 6 }, { "pool", 0 },
      { "head", 0, { above = 0 } }, { "model", 1 } } do
      for kind in pairs(small) do
        assert_simulated(judged_once(table.unpack(case)), kind, { 30, 20 }, 25)
      end
    end
  end)

  it("leaves the first rows alone that decode would have taken for new ones", function()
    local cache <close> = assert(small.MHA.model:cache { policy = judged_once("layer", 0),
      dtype = "f32" })
    assert(cache:prefill(prompt(50)))
    local left = cache:positions(1, 1)
    for i = 51, 56 do assert(cache:step(ids[i])) end
    assert.same(left, helper.slice(cache:positions(1, 1), 1, #left))
    for i = 57, 62 do assert(cache:step(ids[i])) end                      -- 50 to 52, and so on
    assert.same(left, helper.slice(cache:positions(1, 1), 1, #left))
    assert.is_true(#cache:positions(1, 1) < #left + 12)
  end)

  it("counts for when a trigger by length fires, also where passes come first", function()
    local track = score.attention { queries = 6, reduce = "max", heads = "max" }
    local how = { track = score.attention { reduce = "max", heads = "max" }, block = 20 }
    local p = policy { name = "late", prepare = function() return how end,
      prefill = function(_, l)
        return { keep = math.min(l.rows, 12), guard = { last = 1 }, share = "head",
          score = score.probed() }
      end,
      trigger = function() return { over = 30, track = track } end,
      decode = function() return { keep = 24, share = "head", guard = { last = 1 } } end }
    for kind in pairs(small) do assert_simulated(p, kind, { 5, 40 }, 30) end
  end)
end)

describe("matrix, the folder", function()
  it("holds sound policies, each named after its file", function()
    local reports = assert(testing.check_folder("policies", { pyramidinfer = { falls = true } }))
    assert.equal(#names, #reports)
    for _, report in ipairs(reports) do
      local plan_drops = not ({ full = 1, guide = 1, quest = 1, signs = 1, arkvale = 1,
        infllm = 1 })[report.name]
      assert.equal(not plan_drops, report.keeps_everything, tostring(report))
      assert.not_matches("changes no plan", table.concat(report.notes, "\n"), report.name)
    end
  end)
end)

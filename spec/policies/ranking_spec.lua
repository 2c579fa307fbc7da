-- Which queries count where rows are ranked: behind hidden pruning, over several prompts, in layers
-- whose keys were compacted; and scores that ask for what is not tracked.
local helper = require "spec.helper"
local policy = require "pyramid.policy"
local pyramid = require "pyramid"
local random_model = require "pyramid.tools.random_model"
local score = require "pyramid.score"
local shell = require "spec.support.shell"

local folder, models = shell.folder(), {}

setup(function()
  for kind, kv_heads in pairs { MHA = 4, GQA = 2 } do
    local path = folder .. "/" .. kind
    assert(random_model.write(path, { dtype = "f32", seed = 4,
      shape = { layers = 3, width = 32, heads = 4, kv_heads = kv_heads, ff = 48, vocab = 272,
        context = 512 } }))
    models[kind] = assert(pyramid.model(path, { threads = 2 }))
  end
end)

teardown(function()
  for _, model in pairs(models) do model:close() end
  shell.remove(folder)
end)

local function prompt(n, from)
  local ids = {}
  for i = 1, n do ids[i] = (i + (from or 0)) * 37 % 271 end
  return ids
end

-- A score that shows what its inputs are, head by head, and ranks by the newest.
local function watching(inputs, seen)
  return score.custom(function(lane)
    seen[lane.layer] = seen[lane.layer] or {}
    local mine = { positions = lane.positions:totable() }
    for name in pairs(inputs) do mine[name] = lane[name]:totable() end
    seen[lane.layer][lane.head] = mine
    return lane.positions
  end, inputs)
end

local function sum(list)
  local total = 0.0
  for _, x in ipairs(list) do total = total + x end
  return total
end

describe("attention of the last queries", function()
  it("is that of the last which reach the layer, and its mean is over as many", function()
    local seen = {}
    local look = watching({ mean = score.attention { queries = 6 },
      sum = score.attention { queries = 6, reduce = "sum" },
        ramp = score.attention { queries = 6, ramp = 2 },
          more = score.attention { queries = 50 } }, seen)
    local cache <close> = assert(models.GQA:cache { dtype = "f32",
      policy = { name = "sparse", prefill = function(_, l)
      if l.index == 1 then return { keep = 15, score = score.random(3), prune = "hidden" } end
      return { keep = l.rows - 1, share = "head", score = look }
    end } })
    assert(cache:prefill(prompt(90)))
    for head = 1, 2 do
      local lane = seen[2][head]
      -- the last six positions are not all there
      assert.is_true(#lane.positions == 15 and lane.positions[10] < 89 - 6)
      assert.near(1, sum(lane.mean), 1e-5)                          -- each query gives 1 in all
      assert.near(6, sum(lane.sum), 1e-5)
      assert.near(1.5, sum(lane.ramp), 1e-5)
      assert.near(1, sum(lane.more), 1e-5)
    end
  end)
end)

describe("history over several prompts", function()
  local function reading(seen, heads, decay)
    return policy { name = "reading", prefill = function(_, l)
      return { keep = l.rows - 1, guard = { last = 1 }, share = "head",
        score = watching({ most = score.history { heads = heads, decay = decay },
          mean = score.history {} }, seen) }
    end, trigger = function() return { every = 50, track = score.history() } end,
      decode = function() end }
  end

  it("counts what earlier prompts gave, also under the maximum over heads", function()
    local seen = {}
    local cache <close> = assert(models.MHA:cache { dtype = "f32", policy = reading(seen, "max") })
    assert(cache:prefill(prompt(40)))
    assert(cache:prefill(prompt(10, 40)))
    assert.is_true(sum(seen[2][1].most) > 40)
    assert.same(seen[2][1].mean, seen[2][1].most)                   -- one query head a lane
  end)

  it("refuses what they did not leave, by name", function()
    for said_so, case in pairs {
      ["wants history{heads=max}, of which earlier prompts left the mean"] = { "max" },
        ["ranks by history of another decay than the trigger tracks"] = { "mean", 0.5 } } do
      local p = reading({}, case[1], case[2])
      local cache <close> = assert(models.GQA:cache { dtype = "f32", policy = p })
      assert(cache:prefill(prompt(40)))
      local logits, message, code = cache:prefill(prompt(10, 40))
      assert.is_nil(logits)
      assert.equal("policy", code)
      assert.truthy(message:find("policy reading, layer 1, prefill: score " .. said_so, 1, true),
        message)
      assert.equal(40, cache:tokens())
    end
  end)
end)

describe("scores in generation", function()
  it("must be what the trigger tracks, ramp and decay among it", function()
    local ramped, faded = score.attention { queries = 4, ramp = 2 }, score.history { decay = 0.9 }
    local highest = score.attention { reduce = "max", heads = "max" }
    for said_so, case in pairs {
      ["ranks by attention of another ramp than the trigger tracks"] = { ramped,
        score.attention { queries = 4 } },
      ["ranks by history of another decay than the trigger tracks"] = { faded, score.history() },
      ["takes a maximum over queries, of which the trigger tracks a sum"] = { ramped,
        score.attention { queries = 4, ramp = 2, reduce = "max" } },
      ["adds queries up, of which the trigger tracks a maximum"] = { highest, score.attention() },
      ["adds up query heads, of which the trigger tracks the maximum"] = { highest,
        score.attention { reduce = "max" } },
      ["ranks by attention that the trigger does not track"] = { ramped,
        score.attention { queries = 5, ramp = 2 } },
    } do
      local p = policy { name = "other", trigger = function() return { every = 1,
        track = case[1] } end,
        decode = function() return { keep = 10, score = 2 * case[2] } end }
      local cache <close> = assert(models.GQA:cache { dtype = "f32", policy = p })
      assert(cache:prefill(prompt(20)))
      local logits, message, code = cache:step(1)
      assert.is_nil(logits)
      assert.equal("policy", code)
      assert.truthy(message:find("policy other, layer 1, decode: score " .. said_so, 1, true),
        message)
      assert.equal(20, cache:tokens())
    end
  end)
end)

describe("tracking", function()
  it("keeps the highest that any query and head gave, from the prompt on, in files and forks",
    function()
    local highest = score.attention { reduce = "max", heads = "max" }
    local function p(every)
      return policy { name = "highest", trigger = function()
        return { every = every, track = highest }
      end, decode = function(_, l) return { keep = l.rows } end }
    end
    for _, model in pairs(models) do
      local all <close> = assert(model:cache { dtype = "f32", policy = p(1000) })
      assert(all:prefill(prompt(40)))
      for i = 1, 9 do assert(all:step(prompt(i)[i])) end
      local path = helper.tmp()
      assert(all:save(path))
      local loaded <close> = assert(model:load_cache(path, { dtype = "f32", policy = p(1000) }))
      os.remove(path)
      local seen = {}                -- the same as a prompt's maxima, which custom scores are shown
      local reads = policy { name = "reads", prefill = function(_, l)
        return { keep = l.rows - 1, share = "head", score = score.custom(function(lane)
          seen[lane.layer * 10 + lane.head] = lane.its:totable()
          return lane.its
        end, { its = highest }) }
      end }
      local whole <close> = assert(model:cache { dtype = "f32", policy = reads })
      local ids = prompt(40)
      for i = 1, 9 do ids[#ids + 1] = prompt(i)[i] end
      assert(whole:prefill(ids))
      for layer = 1, model.config.layers do
        for head = 1, model.config.kv_heads do
          for _, cache in ipairs { all, loaded } do
            local got = assert(cache:scores(nil, { layer = layer, head = head })):totable()
            assert.equal(49, #got)
            for i, x in ipairs(seen[layer * 10 + head]) do assert.near(x, got[i], 2e-5) end
          end
        end
      end
    end
  end)

  it("refuses one kind of maximum without the other where query heads share a K/V head", function()
    for said_so, track in pairs {
      ["track keeps a maximum over queries of all query heads"] = score.attention {
        reduce = "max" },
      ["track cannot keep a maximum over the query heads of a K/V head of"] = score.attention {
        heads = "max" },
      ["track cannot keep a maximum over the query heads of a K/V head"] = score.history {
        heads = "max" },
    } do
      local p = policy { name = "half",
        trigger = function() return { every = 9, track = track } end,
        decode = function(_, l) return { keep = l.rows } end }
      local cache <close> = assert(models.GQA:cache { policy = p })
      local done, message, code = cache:prefill(prompt(20))
      assert.is_nil(done)
      assert.equal("policy", code)
      assert.truthy(message:find("policy half, layer 1, trigger: " .. said_so, 1, true), message)
      local alone <close> = assert(models.MHA:cache { policy = p })
      assert(alone:prefill(prompt(20)))
      assert(alone:step(1))
    end
  end)
end)

describe("layers whose keys are compacted", function()
  it("are so only once a row has gone", function()
    local logits = {}
    for _, rotate in ipairs { "keep", "compact" } do
      local cache <close> = assert(models.GQA:cache { dtype = "f32",
        policy = { name = "whole", prefill = function(_, l)
        if l.index == 1 then return { keep = 20, score = score.random(1), prune = "hidden" } end
        return { mass = 1, score = score.const(1), rotate = rotate }           -- which takes all
      end } })
      assert(cache:prefill(prompt(60)))
      assert.equal(20, cache:rows(3))
      logits[rotate] = assert(cache:step(7))
    end
    assert.equal(logits.keep:tostring(), logits.compact:tostring())
  end)

  it("expect attention from queries as they were turned there", function()
    local function expecting(seen, sinks)
      return watching({ e = score.expected { future = 8, sinks = sinks } }, seen)
    end
    local short, whole = {}, {}
    local cache <close> = assert(models.GQA:cache { dtype = "f32",
      policy = { name = "turned", prefill = function(_, l)
      if l.past == 0 then return { keep = 10, rotate = "compact" } end
      return { keep = l.rows - 1, score = expecting(short, 0) }
    end } })
    assert(cache:prefill(prompt(40)))
    assert(cache:prefill(prompt(20, 40)))
    -- In the first layer a key is its token's, turned to its place: as if the ten rows and the
    -- prompt were all there is.
    local fresh <close> = assert(models.GQA:cache { dtype = "f32",
      policy = { name = "fresh", prefill = function(_, l)
      return { keep = l.rows - 1, score = expecting(whole, 10) }
    end } })
    assert(fresh:prefill(prompt(30, 30)))
    assert.equal(30, #short[1][1].e)
    assert.is_true(helper.distance(short[1][1].e, whole[1][1].e) < 1e-4)
  end)
end)

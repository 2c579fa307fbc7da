-- Stages that have layers of their own (docs/ranks.md, "A pipeline"), alone and with several ranks
-- in each: the same logits, ids and rows as one process, whatever is saved by whom, what is
-- refused, and what happens when one of them fails.
local helper = require "spec.helper"
local mpirun = require "spec.support.mpirun"
local random_model = require "pyramid.tools.random_model"
local shell = require "spec.support.shell"

local missing = mpirun.missing()

local function ranked(name, test)
  if missing then pending(name .. ": " .. missing) else it(name, test) end
end
local scripts <const> = "spec/support/ranks/"
local BOTH <const> = "pipeline:2,tensor:2"
local folder

setup(function()
  folder = shell.folder()
  for _, kv_heads in ipairs { 4, 2, 1 } do
    for prefix, size in pairs { [""] = { 32, 96 }, wide = { 128, 192 } } do
      assert(random_model.write(folder .. "/" .. prefix .. kv_heads, { dtype = "f32", seed = 3,
        shape = { layers = 3, width = size[1], heads = 4, kv_heads = kv_heads, ff = size[2],
          vocab = 272, context = 1024 } }))
    end
  end
end)
teardown(function() shell.remove(folder) end)

-- Runs a script alone (n = 1) or on ranks of a kind; all must end well.
local function each(kind, n, ...)
  local out, err, status
  if n == 1 then out, err, status = shell.pyramid(...)
  else out, err, status = mpirun.run_as(kind, n, ...) end
  assert.equal(0, status, out .. err)
  return out
end

-- A script of this spec's, by its text.
local function written(name, text)
  local path = ("%s/%s.lua"):format(folder, name)
  local file = assert(io.open(path, "w"))
  file:write([[
    local pyramid = require "pyramid"
    local rank = tonumber(os.getenv "OMPI_COMM_WORLD_RANK" or os.getenv "PMI_RANK")
    local function open(options)
      options.ranks, options.threads, options.precision = os.getenv "RANKS", 1, "f32"
      return pyramid.model(arg[1], options)
    end
  ]], text)
  file:close()
  return path
end

describe("logits of every family", function()
  local fixtures = helper.golden_models()

  for kind, n in pairs { pipeline = 2, [BOTH] = 4 } do
    ranked("are the golden ones, and so are 200 greedy ids: " .. kind, function()
      local out, err = mpirun.run_as(kind, n, scripts .. "families.lua", table.unpack(fixtures))
      for _, fixture in ipairs(fixtures) do
        assert.truthy(out:find(fixture .. "\tok\n", 1, true), out .. err)
      end
    end)
  end
end)

describe("policies of several stages", function()
  local names = helper.policies()
  table.move({ "cascade", "weighing-head", "weighing-pool" }, 1, 3, #names + 1, names)
  -- Layers that share a budget lie on several stages.
  local refused = { cake = true, kvzip = true, lava = true, cascade = true,
    ["weighing-head"] = true, ["weighing-pool"] = true }

  local function lines(path)
    local out = {}
    for line in helper.read(path):gmatch "[^\n]+" do out[#out + 1] = line end
    return out
  end

  -- What cache:scores says of one policy on one model is five lines.
  local function without_refused(list)
    local out, at = {}, 0
    for _ = 1, 3 do
      for _, name in ipairs(names) do
        for i = 1, 5 do if not refused[name] then out[#out + 1] = list[at + i] end end
        at = at + 5
      end
    end
    return out
  end

  for kind, n in pairs { pipeline = 2, ["pipeline:1+1+1"] = 3, [BOTH] = 4 } do
    ranked("keep the rows that they keep in one process, or are refused: " .. kind, function()
      each(nil, 1, scripts .. "policies.lua", folder .. "/alone", folder, table.unpack(names))
      local out = ("%s/%d"):format(folder, n) .. "-ranks"
      each(kind, n, scripts .. "policies.lua", out, folder, table.unpack(names))
      local expected = lines(folder .. "/alone.0")
      for rank = 0, n - 1 do
        for i, line in ipairs(lines(("%s.%d"):format(out, rank))) do
          local name = line:match "^%d (%S+)"
          if refused[name] then
            assert.matches("prefill: rank 0: policy " .. name:gsub("%-", "%%-")
              .. ", layer %d, prefill: shares a budget among layers that lie on several", line)
          else
            assert.equal(expected[i], line)
          end
        end
      end
      local scores = lines(out .. ".0.scores")
      for rank = 1, n - 1 do assert.same(scores, lines(("%s.%d.scores"):format(out, rank))) end
      local alone = without_refused(lines(folder .. "/alone.0.scores"))
      assert.equal(#alone, #scores)
      -- Of stages alone the numbers are one process's to the bit.
      if kind ~= BOTH then assert.same(alone, scores) end
    end)
  end
end)

describe("tiers of several stages", function()
  local function tiers(kind, n, models, name, what)
    local path = folder .. "/tiers-" .. name
    each(kind, n, scripts .. "tiers.lua", path, models, what)
    local first = helper.read(path .. ".0")
    for rank = 1, n - 1 do assert.equal(first, helper.read(("%s.%d"):format(path, rank))) end
    return first
  end
  local function copy(to)
    assert(os.execute(("mkdir %s && cp -r %s %s %s %s"):format(to, folder .. "/1", folder .. "/2",
      folder .. "/4", to)))
    return to
  end

  ranked("hold the rows that they hold in one process", function()
    local alone, several = copy(folder .. "/alone-tiers"), copy(folder .. "/several-tiers")
    local expected = tiers(nil, 1, alone, "one", "save")
    local loaded = tiers(nil, 1, alone, "one", "load")
    assert.equal(expected, tiers("pipeline", 2, several, "more", "save"))
    assert.equal(loaded, tiers(nil, 1, several, "one", "load"))
    assert.equal(loaded, tiers("pipeline", 2, alone, "more", "load"))
  end)
end)

describe("a saved cache", function()
  for _, kv_heads in ipairs { 2, 1 } do
    ranked(("goes between stages, ranks and one process, of %d K/V heads"):format(kv_heads),
      function()
      local model = ("%s/wide%d"):format(folder, kv_heads)
      local function go(kind, n, ...) each(kind, n, scripts .. "saving.lua", folder, model, ...) end
      go(nil, 1, "save", "one")
      local one = helper.read(folder .. "/save.0")
      go("pipeline", 2, "save", "two")
      assert.equal(one, helper.read(folder .. "/save.0"))
      assert.equal(one, helper.read(folder .. "/save.1"))
      assert.equal(helper.read(folder .. "/one"), helper.read(folder .. "/two"))
      local rest, id = one:gsub("^next %d+\n", ""), one:match "^next (%d+)"
      local cases = { { nil, 1, "two" }, { "pipeline", 2, "one" }, { "pipeline", 3, "two" },
        { "tensor", 2, "two" } }
      -- One K/V head's four query heads are 32 columns each of o: one block of q8_0 a rank.
      if kv_heads == 2 then cases[#cases + 1] = { BOTH, 4, "one" } end
      for _, case in ipairs(cases) do
        go(case[1], case[2], "load", case[3], id)
        assert.equal(rest, helper.read(folder .. "/load.0"))
      end
    end)
  end
end)

describe("stages", function()
  ranked("that do not fit the model or the run are refused in words", function()
    local script = written("fits", [[print(rank, select(2, open {}))]])
    local function said(kind, words)
      local out, err = mpirun.run_as(kind, 2, script, folder .. "/2")
      assert.truthy(out:find(words), out .. err)
    end
    said("pipeline:2+2", "the stages have 4 layers, the model 3")
    said("pipeline:1+1+1", "does not fit 2 of them")
    said("pipeline:2,tensor:2", "does not fit 2 of them")
    said("pipeline:0", "is not known %(known: tensor, pipeline,")
    said("pipeline,", "is not known")
    said("pipeline:2,tensor:x", "is not known")
  end)

  ranked("hold their own layers' weights and rows", function()
    local script = written("held", [[
      local model = assert(open {})
      local cache = assert(model:cache { dtype = "f32" })
      local ids = {}
      for i = 1, 64 do ids[i] = i end
      assert(cache:prefill(ids))
      local file = assert(io.open(arg[2] .. (rank or ""), "w"))
      file:write(model.handle:bytes(), " ", cache:bytes())
      file:close()
    ]])
    local function held(kind, n)
      each(kind, n, script, folder .. "/wide2", folder .. "/held")
      local weights, rows = {}, {}
      for rank = 0, n - 1 do
        local text = helper.read(folder .. "/held" .. (n > 1 and rank or ""))
        weights[rank + 1], rows[rank + 1] = text:match "(%d+) (%d+)"
      end
      return weights, rows
    end
    local weights, rows = held(nil, 1)
    local own, parts = held("pipeline:2+1", 2)
    assert.equal(tonumber(rows[1]) // 3 * 2, tonumber(parts[1]))
    assert.equal(tonumber(rows[1]) // 3, tonumber(parts[2]))
    assert.truthy(tonumber(own[1]) < 0.8 * weights[1])
    assert.truthy(tonumber(own[2]) < 0.7 * weights[1])
  end)

  ranked("give a prompt's logits to the bit, whose pieces are in flight", function()
    local script = written("pieces", [[
      local model = assert(open {})
      local lines = {}
      for _, n in ipairs { 128, 129, 250, 270, 400, 511, 513, 530, 559, 560, 600 } do
        local ids, half = {}, {}
        for i = 1, n do ids[i] = i * 37 % 271 end
        for i = 1, 100 do half[i] = i * 31 % 271 end
        for _, first in ipairs { {}, half } do
          local cache <close> = assert(model:cache { dtype = "f32" })
          if #first > 0 then assert(cache:prefill(first)) end
          local before = model:ranks().swaps
          local logits = assert(cache:prefill(ids, { all = true }))
          lines[#lines + 1] = table.concat(logits[n]:totable(), " ")
          lines[#lines + 1] = table.concat(logits[1]:totable(), " ")
          lines[#lines + 1] = table.concat(assert(cache:step(7)):totable(), " ")
          if rank then
            assert(model:ranks().swaps - before >= 3 * math.max(n // 128, 1))
          end
        end
      end
      local file = assert(io.open(arg[2] .. (rank or ""), "w"))
      file:write(table.concat(lines, "\n"))
      file:close()
    ]])
    each(nil, 1, script, folder .. "/2", folder .. "/pieces")
    each("pipeline", 3, script, folder .. "/2", folder .. "/pieces")
    local expected = helper.read(folder .. "/pieces")
    for rank = 0, 2 do assert.truthy(expected == helper.read(folder .. "/pieces" .. rank)) end
  end)

  -- 34 sequences step in two groups, and one prompt of 300 tokens goes in pieces among the others.
  ranked("read prompts and take steps of a batch as one process does", function()
    local script = written("batch", [[
      local model = assert(open {})
      local lines = {}
      for _, name in ipairs { "full", "pyramidinfer", "h2o", "quest" } do
        local batch <close> = assert(model:batch { dtype = "f32",
          policy = pyramid.policy(name, name == "quest" and { rows = 40 } or nil) })
        local handles, made = {}, {}
        for i = 1, 34 do
          local ids = {}
          for j = 1, i == 9 and 300 or 5 + i * 53 % 90 do ids[j] = (i * 31 + j * 37) % 271 end
          handles[i] = assert(batch:add(ids, i % 3 == 0 and pyramid.sampler { temperature = 0.8,
            seed = i } or nil))
        end
        for _ = 1, 12 do
          for _, entry in ipairs(assert(batch:step())) do
            local id = entry.id or entry[2]:argmax()
            if entry[2] then batch:push(entry[1], id) end
            made[#made + 1] = id
          end
        end
        lines[#lines + 1] = table.concat(made, " ")
        for _, handle in ipairs(handles) do
          for layer = 1, 3 do
            lines[#lines + 1] = table.concat(handle:positions(layer, 1), " ")
          end
          lines[#lines + 1] = handle:computed()
        end
      end
      local file = assert(io.open(arg[2] .. (rank or ""), "w"))
      file:write(table.concat(lines, "\n"))
      file:close()
    ]])
    each(nil, 1, script, folder .. "/2", folder .. "/batch")
    local expected = helper.read(folder .. "/batch")
    for kind, n in pairs { pipeline = 2, [BOTH] = 4 } do
      each(kind, n, script, folder .. "/2", folder .. "/batch")
      for rank = 0, n - 1 do
        assert.truthy(expected == helper.read(folder .. "/batch" .. rank))
      end
    end
  end)

  ranked("read a batch's prompts up to one that fails in one of them", function()
    local script = written("together", [[
      local core = require "pyramid.core"
      local model = assert(open {})
      for bad = 0, 1 do
        local policy = pyramid.policy { name = "picky", prefill = function(_, l)
          local fails = rank == bad and l.prompt == 30
          return { keep = fails and 0 or l.rows // 2 }
        end }
        local caches, prompts = {}, {}
        for i = 1, 4 do
          caches[i], prompts[i] = assert(model:cache { dtype = "f32", policy = policy }), {}
          for j = 1, i * 10 do prompts[i][j] = j end
        end
        local before = assert(model:cache { dtype = "f32", policy = policy })
        local logits = assert(before:prefill(prompts[1]))
        local read = core.read_together(caches, prompts)
        assert(logits:argmax() == read[1]:argmax())
        local rows, tokens = {}, {}
        for i = 1, 4 do rows[i], tokens[i] = caches[i]:rows(3, 1), caches[i]:tokens() end
        if rank == 0 then print(bad, #read, table.concat(rows, " "), table.concat(tokens, " ")) end
        local _, message, code = caches[3]:prefill(prompts[3])
        if rank == 0 then print(bad, code, message) end
        assert(caches[4]:prefill(prompts[4]))
      end
      local _, message, code = model:cache { trace = print }
      if rank == 0 then print(code, message) end
    ]])
    local out, err = mpirun.run_as("pipeline:2+1", 2, script, folder .. "/2")
    for bad = 0, 1 do
      assert.truthy(out:find(("%d\t2\t5 10 0 0\t10 20 0 0\n"):format(bad), 1, true), out .. err)
      assert.truthy(out:find(("%d\tpolicy\trank %d: policy picky"):format(bad, bad), 1, true),
        out .. err)
    end
    assert.truthy(out:find("unsupported\ttracer: of several stages", 1, true), out .. err)
  end)

  ranked("of which one has no memory end the call on all, which changes nothing", function()
    local script = written("memory", [[
      local model = assert(open {})
      local ids = {}
      for i = 1, 300 do ids[i] = i % 271 end
      for short = 0, 1 do
        local cache = assert(model:cache { dtype = "f32", budget = rank == short and 40000 or nil })
        local logits, message, code = cache:prefill(ids)
        assert(cache:prefill { 1, 2, 3 })
        for i = 1, 3 do
          local rows = cache:rows(i, 1)
          if rank == 1 then print(short, logits, code, message, rows) end
        end
      end
    ]])
    local out, err = mpirun.run_as("pipeline", 2, script, folder .. "/2")
    for short = 0, 1 do
      local _, lines = out:gsub(("%d\tnil\tbudget\trank %d: [^\n]*\t3\n"):format(short, short), "")
      assert.equal(3, lines, out .. err)
    end
  end)

  -- A function that ranks is run after a team has agreed to read the layer: the others of it then
  -- wait for scores, or read on, and the stages for each other.
  ranked("of several ranks of which one fails alone end the call on all", function()
    local script = written("alone", [[
      local core, score = require "pyramid.core", require "pyramid.score"
      local model = assert(open {})
      local function say(...) if rank == 0 then print(...) end end
      for _, share in ipairs { "layer", "head", "pool" } do
        for bad = 0, 3 do
          local first = (bad < 2 and os.getenv "RANKS" ~= "tensor") and 1 or 3
          local look = score.custom(function(lane)
            if rank == bad and lane.rows == 30 and lane.layer == first then error "tired" end
            local all = {}
            for i = 1, lane.rows do all[i] = i * 7 % 11 end
            return all
          end)
          local policy = pyramid.policy { name = "tiring", prefill = function(_, l)
            return { keep = l.rows // 2, share = share, score = look }
          end }
          local caches, prompts, tokens = {}, {}, {}
          for i = 1, 4 do
            caches[i], prompts[i] = assert(model:cache { dtype = "f32", policy = policy }), {}
            for j = 1, i * 10 do prompts[i][j] = j end
          end
          local read, message, code = core.read_together(caches, prompts)
          for i = 1, 4 do tokens[i] = caches[i]:tokens() end
          if #read > 0 then assert(code == "policy") end
          say("batch", share, bad, #read, table.concat(tokens, " "), code, message)
          local logits, message, code = caches[3]:prefill(prompts[3])
          say("prefill", share, bad, logits, caches[3]:rows(3, 1), code, message)
          assert(caches[3]:prefill(prompts[2]))
          assert(caches[3]:step(1))
        end
      end
      -- The whole of the cache, at rest.
      for bad = 0, 3 do
        local look = score.custom(function(lane)
          if rank == bad then error "tired" end
          local all = {}
          for i = 1, lane.rows do all[i] = i end
          return all
        end)
        local cache = assert(model:cache { dtype = "f32" })
        assert(cache:prefill { 1, 2, 3, 4, 5, 6, 7, 8 })
        local done, message, code = cache:evict(pyramid.policy { name = "tiring",
          prefill = function() return { keep = 4, share = "layer", score = look } end })
        say("evict", bad, done, cache:rows(1, 1), code, message)
        assert(cache:step(1))
      end
    ]])
    local out, err = mpirun.run_as(BOTH, 4, script, folder .. "/2")
    for bad = 0, 3 do
      for _, share in ipairs { "layer", "head", "pool" } do
        for _, words in ipairs { "batch\t%s\t%d\t2\t10 20 0 0\t",
          "prefill\t%s\t%d\tnil\t0\t" } do
          assert.truthy(out:find(words:format(share, bad) .. "policy\trank " .. bad .. ": "),
            out .. err)
        end
      end
      assert.truthy(out:find(("evict\t%d\tnil\t8\tpolicy\trank %d: "):format(bad, bad)),
        out .. err)
    end
    out, err = mpirun.run_as("tensor", 2, script, folder .. "/2")
    for bad = 0, 1 do
      for _, share in ipairs { "layer", "head", "pool" } do
        local words = ("prefill\t%s\t%d\tnil\t0\tpolicy\trank %d: "):format(share, bad, bad)
        assert.truthy(out:find(words), out .. err)
      end
    end
  end)

  ranked("count what passes over a prompt compute, of all layers", function()
    local script = written("prepared", [[
      local score = require "pyramid.score"
      local model = assert(open {})
      local cache = assert(model:cache { dtype = "f32", policy = { name = "twice",
        prepare = function() return { track = score.attention(), block = 9 } end,
        prefill = function(_, l)
          return { keep = l.rows // 2, share = "layer", score = score.probed() }
        end } })
      local ids, lines = {}, {}
      for i = 1, 40 do ids[i] = i * 37 % 271 end
      assert(cache:prefill(ids))
      lines[1] = cache:computed()
      for layer = 1, 3 do lines[layer + 1] = table.concat(cache:positions(layer, 1), " ") end
      assert(cache:probe(ids, score.attention()))
      lines[5] = cache:computed()
      local file = assert(io.open(arg[2] .. (rank or ""), "w"))
      file:write(table.concat(lines, "\n"))
      file:close()
    ]])
    each(nil, 1, script, folder .. "/2", folder .. "/prepared")
    each("pipeline", 2, script, folder .. "/2", folder .. "/prepared")
    local expected = helper.read(folder .. "/prepared")
    assert.matches("^240\n", expected)
    for rank = 0, 1 do assert.equal(expected, helper.read(folder .. "/prepared" .. rank)) end
  end)

  ranked("whose policy fails in one say which it was, and nothing has changed", function()
    local script = written("fails", [[
      local model = assert(open {})
      for bad = 1, 3 do
        local policy = pyramid.policy { name = "picky", prefill = function(_, l)
          return { keep = l.index == bad and 0 or l.rows // 2 }
        end }
        local cache = assert(model:cache { dtype = "f32", policy = policy })
        local _, message, code = cache:prefill { 1, 2, 3, 4, 5, 6, 7, 8 }
        local rows = cache:rows(1, 1)
        if rank == 0 then print(bad, code, message, rows) end
      end
    ]])
    local out, err = mpirun.run_as("pipeline:2+1", 2, script, folder .. "/2")
    for bad = 1, 3 do
      assert.truthy(out:find(("%d\tpolicy\trank %d: policy picky, layer %d[^\n]*\t0\n"):format(bad,
        bad == 3 and 1 or 0, bad)), out .. err)
    end
  end)

  ranked("of which one is killed end, and say which it was", function()
    local script = written("killed", [[
      local model = assert(open {})
      local cache = assert(model:cache())
      assert(cache:prefill { 1, 2, 3 })
      for i = 1, 400 do
        if rank == tonumber(arg[2]) and i == tonumber(arg[3]) then
          os.execute("kill -9 $PPID")
          while true do end
        end
        local logits, message, code = cache:step(i % 271)
        if not logits then io.stderr:write(code, ": ", message, "\n") os.exit(3) end
      end
    ]])
    for _, case in ipairs { { 0, 7 }, { 1, 1 }, { 1, 200 } } do
      local began = os.time()
      local out, err, status = mpirun.run_as("pipeline", 2, script, folder .. "/2", case[1],
        case[2])
      assert.not_equal(0, status)
      assert.truthy(os.time() - began < 60)
      assert.truthy((out .. err):find("rank " .. case[1]) or (out .. err):find "process rank",
        out .. err)
    end
  end)
end)

describe("layers", function()
  local core = require "pyramid.core"
  local plan = require "pyramid.tools.plan"

  -- The least that the stage with most can have, by trying every way.
  local function least(costs, tail, stages, from)
    local best, sum = math.huge, 0
    if stages == 1 then
      for i = from, #costs do sum = sum + costs[i] end
      return sum + tail
    end
    for i = from, #costs - stages + 1 do
      sum = sum + costs[i]
      best = math.min(best, math.max(sum, least(costs, tail, stages - 1, i + 1)))
    end
    return best
  end

  it("are dealt out so that the stage that has most has as little as can be", function()
    math.randomseed(5)
    local random = math.random
    for _ = 1, 200 do
      local costs, tail = {}, random(0, 3) * random(0, 9)
      for i = 1, random(1, 9) do costs[i] = random(1, 20) end
      local stages = random(1, #costs)
      local dealt = core.deal(costs, tail, stages)
      local at, most = 0, 0
      for stage, count in ipairs(dealt) do
        local sum = stage == stages and tail or 0
        assert.is_true(count >= 1)
        for i = at + 1, at + count do sum = sum + costs[i] end
        at, most = at + count, math.max(most, sum)
      end
      assert.equal(#costs, at)
      assert.equal(stages, #dealt)
      assert.is_true(math.abs(most - least(costs, tail, stages, 1)) < 1e-6)
    end
    assert.is_nil(core.deal({ 1, 2 }, 0, 3))
  end)

  it("are dealt out by what a policy's forecast leaves to compute", function()
    local function stages(given)
      given.stages = 2
      return assert(plan.make("7b", given)).stages
    end
    local policy = require("pyramid").policy "pyramidinfer"
    assert.same({ 16, 16 }, stages { prompt = 2048 })
    local shrinking = stages { prompt = 2048, policy = policy }
    assert.is_true(shrinking[1] < 16 and shrinking[1] + shrinking[2] == 32)
    local _, message, code = plan.make("7b", { stages = 33 })
    assert.equal("argument", code)
    assert.equal("--stages is 33, and the model has 32 layers", message)
    -- A stage takes less than a rank that has all layers: that is not said of it.
    local out, err, status = shell.pyramid("plan", "7b", "--stages", "2", "--memory", "80 GiB")
    assert.equal(0, status, err)
    assert.truthy(out:find("pipeline:16+16\n", 1, true), out)
    assert.is_nil(out:find("fits", 1, true) or out:find("weights", 1, true))
  end)
end)

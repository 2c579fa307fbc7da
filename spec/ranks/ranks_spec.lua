-- Several processes that compute one model (docs/ranks.md), started by mpirun on this machine: the
-- same logits, ids and rows as one process, whatever is saved by how many, and what happens when
-- one of them is not as the others, or ends.
local files = require "pyramid.files"
local helper = require "spec.helper"
local policy = require("pyramid").policy
local random_model = require "pyramid.tools.random_model"
local shell = require "spec.support.shell"

local missing = require "spec.support.mpirun".missing()
local mpirun = require "spec.support.mpirun".run

local function ranked(name, test)
  if missing then pending(name .. ": " .. missing) else it(name, test) end
end

local scripts = "spec/support/ranks/"
local folder

setup(function()
  folder = shell.folder()
  for _, kv_heads in ipairs { 4, 2, 1 } do
    local function write(name, width, ff)
      assert(random_model.write(folder .. "/" .. name, { dtype = "f32", seed = 3,
        shape = { layers = 3, width = width, heads = 4, kv_heads = kv_heads, ff = ff, vocab = 272,
          context = 512 } }))
    end
    write(kv_heads, 32, 96)
    write("wide" .. kv_heads, 128, 192)          -- heads of a block of q8_0
  end
end)
teardown(function() shell.remove(folder) end)

describe("logits of every family", function()
  local fixtures = helper.golden_models()

  for _, n in ipairs { 2, 3 } do
    ranked(("are the golden ones, and so are 200 greedy ids: %d ranks"):format(n), function()
      local out, err = mpirun(n, scripts .. "families.lua", table.unpack(fixtures))
      for _, fixture in ipairs(fixtures) do
        -- two heads in all
        if fixture == "families/codellama" and n == 3 then
          assert.truthy(out:find(fixture .. "\t[^\n]*heads cannot be divided among 3 "), out)
        else
          assert.truthy(out:find(fixture .. "\tok\n", 1, true), out .. err)
        end
      end
    end)
  end
end)

describe("policies on several ranks", function()
  -- All on two ranks; on three, where K/V heads are replicated, one of each way to gather. Of the
  -- last three, see the script.
  local own = { "cascade", "weighing-head", "weighing-pool" }
  local of = { [2] = helper.policies(), [3] = { "pyramidinfer", "h2o", "snapkv", "adakv", "kvzip",
    "dms", "tova", "criticalkv", "expected_attention", "kvzap", "triattention", "rkv", "cake",
    "lava" } }
  for _, names in pairs(of) do table.move(own, 1, #own, #names + 1, names) end

  local function read(path)
    local lines = {}
    for line in (helper.read(path)):gmatch "[^\n]+" do lines[#lines + 1] = line end
    return lines
  end

  -- Sums of ranks round otherwise than one process's: so do the rows, and what is said of them.
  local function assert_scores(expected, lines)
    for i, line in ipairs(lines) do
      if line:find "^[%d.e-]+ " then
        local values, wanted = {}, {}
        for value in line:gmatch "%S+" do values[#values + 1] = tonumber(value) end
        for value in expected[i]:gmatch "%S+" do wanted[#wanted + 1] = tonumber(value) end
        values[#values + 1], wanted[#wanted + 1] = 1, 1      -- all may be 0
        assert.is_true(helper.distance(values, wanted) < 1e-4)
      else
        assert.equal(expected[i], line)
      end
    end
  end

  for _, n in ipairs { 2, 3 } do
    ranked(("keep the rows that they keep in one process: %d ranks"):format(n), function()
      local names = of[n]
      local alone, err, status = shell.pyramid(scripts .. "policies.lua", folder .. "/alone",
        folder, table.unpack(names))
      assert.equal(0, status, alone .. err)
      local out
      out, err, status = mpirun(n, scripts .. "policies.lua", folder .. "/ranks" .. n, folder,
        table.unpack(names))
      assert.equal(0, status, out .. err)
      local expected = read(folder .. "/alone.0")
      for rank = 0, n - 1 do
        for i, line in ipairs(read(("%s/ranks%d.%d"):format(folder, n, rank))) do
          assert.matches("^%d %S+ %x+ %x+ %d%.%d+$", line)
          assert.equal(expected[i], line)
        end
      end
      local scores = read(("%s/ranks%d.0.scores"):format(folder, n))
      assert.equal(#names * 3 * 5, #scores)
      assert_scores(read(folder .. "/alone.0.scores"), scores)
      for rank = 1, n - 1 do
        assert.same(scores, read(("%s/ranks%d.%d.scores"):format(folder, n, rank)))
      end
    end)
  end
end)

describe("tiers of several ranks", function()
  local function run(n, models, name, what)
    local out, err, status
    local path = folder .. "/tiers-" .. name
    if n == 1 then out, err, status = shell.pyramid(scripts .. "tiers.lua", path, models, what)
    else out, err, status = mpirun(n, scripts .. "tiers.lua", path, models, what) end
    assert.equal(0, status, out .. err)
    local lines = helper.read(path .. ".0")
    for rank = 1, n - 1 do assert.equal(lines, helper.read(("%s.%d"):format(path, rank))) end
    return lines
  end

  local function copy(to)
    assert(os.execute(("mkdir %s && cp -r %s %s %s %s"):format(to, folder .. "/1", folder .. "/2",
      folder .. "/4", to)))
    return to
  end

  for _, n in ipairs { 2, 3 } do
    ranked(("hold the rows that they hold in one process: %d ranks"):format(n), function()
      local alone, several = copy(("%s/alone%d"):format(folder, n)),
        copy(("%s/several%d"):format(folder, n))
      local expected, loaded = run(1, alone, "one", "save"), run(1, alone, "one", "load")
      assert.equal(expected, run(n, several, "more", "save"))
      assert.equal(loaded, run(1, several, "one", "load"))
      assert.equal(loaded, run(n, alone, "more", "load"))
    end)
  end
end)

describe("a saved cache", function()
  for _, kv_heads in ipairs { 2, 1 } do
    ranked(("goes between ranks and one process, of %d K/V heads"):format(kv_heads), function()
      local model = ("%s/wide%d"):format(folder, kv_heads)
      local function run(n, ...)
        local out, err, status
        if n == 1 then out, err, status = shell.pyramid(scripts .. "saving.lua", folder, model, ...)
        else out, err, status = mpirun(n, scripts .. "saving.lua", folder, model, ...) end
        assert.equal(0, status, out .. err)
      end
      run(1, "save", "one")
      local one = helper.read(folder .. "/save.0")
      run(2, "save", "two")
      assert.equal(one, helper.read(folder .. "/save.0"))
      assert.equal(one, helper.read(folder .. "/save.1"))
      local rest = one:gsub("^next %d+\n", "")
      local id = one:match "^next (%d+)"
      for _, case in ipairs { { 1, "two" }, { 2, "one" }, { 3, "two" } } do
        run(case[1], "load", case[2], id)
        assert.equal(rest, helper.read(folder .. "/load.0"))
      end
    end)
  end
end)

describe("a plan on paper", function()
  local plan = require "pyramid.tools.plan"
  for _, case in ipairs { { "full", "f32" }, { "full", "q8_0" }, { "pyramidinfer", "f32" },
    { "h2o", "f32" } } do
    local name, weights = table.unpack(case)
    ranked(("says what two ranks hold and send, within 5 %%: %s, %s"):format(name, weights),
      function()
      local model = folder .. "/plan"
      if not files.exists(model) then
        assert(random_model.write(model, { dtype = "f32", seed = 3, shape = { layers = 4,
          width = 512, heads = 8, kv_heads = 4, ff = 1408, vocab = 4096, context = 2048 } }))
      end
      local out, err, status = mpirun(2, scripts .. "measure.lua", folder .. "/measured", model,
        name, weights)
      assert.equal(0, status, out .. err)
      local made = assert(plan.make(model, { ranks = 2, prompt = 700, threads = 1,
        weights = weights, policy = name ~= "full" and policy(name) or nil }))
      for i, rank in ipairs(made.ranks) do
        local seen = helper.json(("%s/measured.%d"):format(folder, i - 1))
        local function near(wanted, value, what)
          assert(math.abs(value - wanted) <= 0.05 * wanted,
            ("%s of rank %d: planned %d, measured %d"):format(what, i - 1, value, wanted))
        end
        assert.equal(seen.weights, rank.weights)
        if name == "full" then assert.equal(seen.rows, rank.rows) end
        near(seen.rows, rank.rows, "rows")
        near(seen.weights + seen.peak, rank.total, "bytes")
        near(seen.peak - seen.rows, rank.scratch, "scratch")
        near(seen.prompt_sent, rank.prompt_sent, "a prompt's traffic")
        near(seen.step_sent, rank.step_sent, "a step's traffic")
      end
    end)
  end
end)

describe("a model", function()
  ranked("that has no part for each rank is refused in words", function()
    local script = folder .. "/refused.lua"
    local file = assert(io.open(script, "w"))
    file:write(([[
      local pyramid = require "pyramid"
      for _, weights in ipairs { "f32", "q8_0" } do
        local model, message, code = pyramid.model(%q, { ranks = "tensor", weights = weights })
        print(weights, model and "opened", code, message)
        if model then model:close() end
      end
    ]]):format(folder .. "/1"))
    file:close()
    local out, err = mpirun(2, script)
    assert.truthy(out:find "f32\topened", out .. err)   -- heads of 8 values: a block has all four
    assert.truthy(out:find "q8_0\tnil\tunsupported\t[^\n]*cannot be divided among 2", out .. err)
  end)
end)

describe("a rank", function()
  ranked("with another model file is refused", function()
    local script = folder .. "/other.lua"
    local file = assert(io.open(script, "w"))
    file:write(([[
      local pyramid = require "pyramid"
      local rank = tonumber(os.getenv "OMPI_COMM_WORLD_RANK" or os.getenv "PMI_RANK")
      local model, message, code = pyramid.model(rank == 0 and %q or %q, { ranks = "tensor" })
      print(rank, model, code, message)
    ]]):format(folder .. "/2", folder .. "/other"))
    file:close()
    assert(random_model.write(folder .. "/other", { dtype = "f32", seed = 4,
      shape = { layers = 3, width = 32, heads = 4, kv_heads = 2, ff = 96, vocab = 272,
        context = 512 } }))
    local out = mpirun(2, script)
    for rank = 0, 1 do
      assert.truthy(out:find(rank .. "\tnil\tformat\t[^\n]*rank 1 has other weights"), out)
    end
  end)

  ranked("that has no memory ends the call on all, which changes nothing", function()
    local script = folder .. "/memory.lua"
    local file = assert(io.open(script, "w"))
    file:write(([[
      local pyramid = require "pyramid"
      local rank = tonumber(os.getenv "OMPI_COMM_WORLD_RANK" or os.getenv "PMI_RANK")
      local model = assert(pyramid.model(%q, { ranks = "tensor", threads = 1, precision = "f32" }))
      local cache = assert(model:cache { dtype = "f32", budget = rank == 1 and 40000 or nil })
      local ids = {}
      for i = 1, 300 do ids[i] = i %% 271 end
      local logits, message, code = cache:prefill(ids)
      assert(cache:prefill { 1, 2, 3 })
      print(rank, logits, code, message, cache:rows(1, 1))
    ]]):format(folder .. "/2"))
    file:close()
    local out, err = mpirun(2, script)
    for rank = 0, 1 do
      assert.truthy(out:find(rank .. "\tnil\tbudget\t[^\n]*\t3\n"), out .. err)
    end
    assert.truthy(out:find "rank 1: ", out)
  end)

  ranked("that is killed ends the others, who say which it was", function()
    local script = folder .. "/killed.lua"
    local file = assert(io.open(script, "w"))
    file:write(([[
      local pyramid = require "pyramid"
      local rank = tonumber(os.getenv "OMPI_COMM_WORLD_RANK" or os.getenv "PMI_RANK")
      local model = assert(pyramid.model(%q, { ranks = "tensor", threads = 1, precision = "f32" }))
      local cache = assert(model:cache())
      assert(cache:prefill { 1, 2, 3 })
      for i = 1, 400 do
        if rank == 1 and i == tonumber(arg[1]) then
          os.execute("kill -9 $PPID")
          while true do end
        end
        local logits, message, code = cache:step(i %% 271)
        if not logits then io.stderr:write(code, ": ", message, "\n") os.exit(3) end
      end
    ]]):format(folder .. "/2"))
    file:close()
    for _, at in ipairs { 1, 7, 200 } do
      local began = os.time()
      local out, err, status = mpirun(2, script, at)
      assert.not_equal(0, status)
      assert.truthy(os.time() - began < 60)
      assert.truthy((out .. err):find "rank 1" or (out .. err):find "process rank", out .. err)
    end
  end)
end)

it("without ranks a runtime says that it is alone", function()
  local core = require "pyramid.core"
  local runtime <close> = assert(core.runtime { threads = 1 })
  assert.same({ rank = 0, size = 1, sent = 0, received = 0, swaps = 0 }, runtime:ranks())
  local none, message, code = core.runtime { threads = 1, ranks = "sideways" }
  assert.is_nil(none)
  assert.equal("argument", code)
  assert.truthy(message:find "known: tensor")
end)

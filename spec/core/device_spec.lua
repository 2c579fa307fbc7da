-- The CUDA backend from end to end, on the device that is asked for (PYRAMID_DEVICE), else its
-- kernels run by the processor: the same rows kept and the same logits as the CPU's, for every
-- policy; what it says where a device is missing; and that the emulator sees what a kernel does
-- wrong. Single operations are compared in ops_*_spec.lua.
local core = require "pyramid.core"
local probe = require "pyramid.probe"
local engine = require "pyramid.tools.engine"
local helper = require "spec.helper"
local lfs = require "lfs"
local pyramid = require "pyramid"
local random_model = require "pyramid.tools.random_model"
local shell = require "spec.support.shell"

local name_of_device = helper.device == "cpu" and "emulated" or helper.device

local ids = {}
-- a prime: no two alike, so that no score is decided by rounding
for i = 1, 270 do ids[i] = i * 37 % 271 end

local function prompt(n, from) return helper.slice(ids, from or 1, (from or 1) + n - 1) end

-- The same for the smaller vocabularies of spec/fixtures/decoders.
local few = {}
for i = 1, 60 do few[i] = i * 37 % 89 + 3 end

--- A prompt of n and some steps on both, with caches of the same options, of which `policy` is made
--- afresh; of other ids, if said.
local function compare(cpu, device, o, n, steps, what)
  local text = o.ids or ids
  local function cache_of(model)
    return assert(model:cache { policy = o.policy, dtype = o.dtype or "f32" })
  end
  local one <close> = cache_of(cpu)
  local other <close> = cache_of(device)
  local read = helper.slice(text, 1, n)
  helper.assert_near(assert(other:prefill(read)), assert(one:prefill(read)):totable(),
    what .. ": prompt", o.limit)
  helper.assert_same_rows(one, other, cpu, what .. ": prompt")
  for i = 1, steps do
    local logits = assert(one:step(text[n + i]))
    helper.assert_near(assert(other:step(text[n + i])), logits:totable(),
      ("%s: step %d"):format(what, i), o.limit)
  end
  helper.assert_same_rows(one, other, cpu, what .. ": steps")
  assert.equal(one:bytes(), other:bytes(), what)
end

describe("the device", function()
  it("runs the default model as the processor does", function()
    local cpu <close> = assert(pyramid.model("models/tiny", { device = "cpu", threads = 2 }))
    local device <close> = assert(pyramid.model("models/tiny", { device = name_of_device }))
    assert.equal(name_of_device, device:runtime():isa())
    compare(cpu, device, { policy = "full" }, 9, 2, "full")
    compare(cpu, device, { policy = assert(pyramid.policy("pyramidinfer",
      { floor = 8, exceed = 2 })) }, 66, 3, "pyramidinfer")
  end)

  describe("with a small model", function()
    local folder, cpu, device = shell.folder(), nil, nil

    setup(function()
      assert(random_model.write(folder .. "/small",
        { dtype = "f32", seed = 3, shape = { layers = 3, width = 128, heads = 4, kv_heads = 2,
          ff = 64, vocab = 272, context = 512 } }))
      cpu = assert(pyramid.model(folder .. "/small", { device = "cpu", threads = 2 }))
      device = assert(pyramid.model(folder .. "/small", { device = name_of_device }))
    end)
    teardown(function()
      cpu:close()
      device:close()
      shell.remove(folder)
    end)

    for _, name in ipairs(helper.policies()) do
      if engine.reads_less(assert(pyramid.policy(name))) then
        it("refuses to read less than is held: " .. name, function()
          local cache <close> = assert(device:cache { policy = name, dtype = "f32" })
          local logits, message, code = cache:prefill(prompt(20))
          assert.is_nil(logits)
          assert.equal("unsupported", code)
          local refusal = ("read: the device \"%s\" reads all"):format(name_of_device)
          assert.is_truthy(message:find(refusal, 1, true), message)
          assert.equal(0, cache:tokens())
        end)
      else
        it("keeps the rows that the processor keeps: " .. name, function()
          compare(cpu, device, { policy = helper.squeezed(name) }, 81, 5, name)
        end)
      end
    end

    it("holds rows of every dtype", function()
      for dtype, limit in pairs { f16 = 1e-3, bf16 = 5e-3, q8_0 = 5e-3, fp8_e4m3 = 5e-2 } do
        compare(cpu, device, { policy = "full", dtype = dtype, limit = limit }, 40, 2, dtype)
      end
    end)

    it("multiplies with quantised weights, in the order in which it holds them", function()
      for _, weights in ipairs { "q8_0", "q4_0" } do
        local function open(where)
          return assert(pyramid.model(folder .. "/small", { device = where, weights = weights,
            precision = "f32" }))
        end
        local one <close> = open "cpu"
        local other <close> = open(name_of_device)
        compare(one, other, { policy = helper.squeezed "criticalkv" }, 61, 3, weights)
        compare(one, other, { policy = "full" }, 20, 2, weights)
        local ways = assert(probe.device_ways(other:runtime()))
        assert.truthy(ways.stream > 0)
        assert.equal(0, ways.plain)
      end
    end)

    it("steps sequences of unequal length together", function()
      local function run(model)
        local batch <close> = assert(model:batch { policy = helper.squeezed "pyramidinfer" })
        local out = {}
        for i, n in ipairs { 1, 40, 70 } do assert(batch:add(prompt(n, i))) end
        for step = 1, 4 do
          for i, entry in ipairs(assert(batch:step())) do
            out[#out + 1] = { step, i, entry[2]:totable() }
          end
        end
        return out
      end
      local ours, theirs = run(device), run(cpu)
      assert.equal(#theirs, #ours)
      for i, entry in ipairs(ours) do
        assert(helper.distance(entry[3], theirs[i][3]) < 1e-4,
          ("sequence %d, step %d"):format(entry[2], entry[1]))
      end
    end)

    it("launches a step as a whole, made once for each number of sequences", function()
      local function counts() return assert(probe.device_steps(device:runtime())) end
      local function steps(caches, count)
        local before = counts()
        local last = {}
        for i, cache in ipairs(caches) do last[i] = cache:tokens() % 200 end
        for _ = 1, count do assert(core.step(caches, last)) end
        local after = counts()
        for key, value in pairs(before) do after[key] = after[key] - value end
        return after
      end
      local one <close> = assert(device:cache { policy = "full" })
      local two <close> = assert(device:cache { policy = helper.squeezed "pyramidinfer" })
      assert(one:prefill(prompt(90)))
      assert(two:prefill(prompt(60)))
      local first = steps({ one }, 1)
      -- One launch for the views of lanes, which the device keeps from the first step on.
      assert.same({ 1, 1 }, { first.single, first.launched })
      -- One where rows come to a new page: it goes to the page tables of all lanes. Else none.
      assert.same({ built = 0, launched = 20, single = 1, told = 0 }, steps({ one }, 20))
      local both = steps({ one, two }, 1)
      assert.same({ 1, 1 }, { both.launched, both.built })
      assert.equal(0, steps({ one }, 1).built)
      assert.equal(0, steps({ one, two }, 3).built)
      -- over the end of a segment: of attention, its join and what they are told
      local grown <close> = assert(one:fork())
      assert(grown:prefill(prompt(115)))
      assert.equal(231, grown:tokens())
      assert.equal(1, steps({ grown }, 1).launched)
      local far = steps({ grown }, 30)
      assert.same({ 0, 30 }, { far.built, far.launched })
      assert.truthy(far.told > 0 and far.told <= 9, far.told)
      assert.truthy(far.single >= 1 and far.single <= 2, far.single)
      device:profile(true)                       -- each operation by itself
      local alone = steps({ one }, 1)
      device:profile(false)
      assert.truthy(alone.launched == 0 and alone.single > 20)
    end)

    it("picks where the logits are, what a sampler picks of them", function()
      local function sampler()
        return pyramid.sampler { temperature = 0.9, top_p = 0.95, seed = 5 }
      end
      local shared, same = sampler(), sampler()
      local caches, last = {}, {}
      for i, n in ipairs { 20, 9, 31 } do
        caches[i], last[i] = assert(device:cache { policy = "full" }), i
        assert(caches[i]:prefill(prompt(n, i)))
      end
      for _ = 1, 8 do
        local forks, expected = {}, {}
        for i, cache in ipairs(caches) do forks[i] = assert(cache:fork()) end
        for i, logits in ipairs(assert(core.step(forks, last))) do
          expected[i] = i ~= 2 and same:pick(logits) or logits:tostring()
        end
        local got = assert(core.step(caches, last, { shared, false, shared }))
        assert.same({ expected[1], expected[3] }, { got[1], got[3] })
        assert.equal(expected[2], got[2]:tostring())
        last = { got[1], 5, got[3] }
        for _, fork in ipairs(forks) do fork:close() end
      end
      for _, cache in ipairs(caches) do cache:close() end
    end)

    it("rounds a prompt's products where that is asked for, and no steps", function()
      local function open(precision)
        return assert(pyramid.model(folder .. "/small",
          { device = name_of_device, precision = precision, weights = "q8_0" }))
      end
      local rounded <close> = open "bf16"
      local exact <close> = open "f32"
      local one <close> = assert(exact:cache())
      local other <close> = assert(rounded:cache())
      local exactly = assert(one:prefill(prompt(60))):totable()
      local distance = helper.distance(assert(other:prefill(prompt(60))):totable(), exactly)
      assert.truthy(distance > 0 and distance < 0.02, distance)
      local three <close> = assert(exact:cache())
      local four <close> = assert(rounded:cache())
      assert.equal(assert(three:prefill(prompt(9))):tostring(),
        assert(four:prefill(prompt(9))):tostring())
    end)

    it("counts its memory, and reports when there is no more", function()
      local result, _, code = pyramid.model(folder .. "/small",
        { device = name_of_device, memory = 3000000 })
      if result then
        local cache <close> = assert(result:cache())
        local bytes = result:runtime():memory()
        assert.truthy(bytes > 2 ^ 20)
        repeat
          result, _, code = cache:prefill(prompt(200))
        until not result
      end
      assert.truthy(code == "memory" or code == "context", code)
    end)
  end)
end)

-- Decoders with switches whose logits transformers gave: read at once and stepped, a step as one
-- launch; of some, under a policy too. Prompts are as short as their windows (24) let them be.
describe("the device, of decoders with switches,", function()
  local prompts = { cohere = 6, ["falcon-alibi"] = 6, gemma2 = 25, gemma3 = 25, ["glm4-moe"] = 6,
    ["gpt-neox"] = 6, gpt2 = 6, olmo2 = 6, phi3 = 6, smollm3 = 6 }
  local kept = { ["falcon-alibi"] = true, gemma3 = true, ["gpt-neox"] = true, gpt2 = true }

  for fixture, n in pairs(prompts) do
    it("says what transformers says: " .. fixture, function()
      local path = helper.fixture("decoders/" .. fixture)
      local golden, bytes = helper.json(path .. "/golden.json"), helper.read(path .. "/golden.bin")
      local sequence = golden.sequences[#golden.sequences]
      local vocab = sequence.shape[2]
      local function reference(i)
        return helper.floats(bytes, sequence.offset + 4 * vocab * (i - 1), vocab)
      end
      local device <close> = assert(pyramid.model(path, { device = name_of_device }))
      local function launched() return assert(probe.device_steps(device:runtime())).launched end
      local cache <close> = assert(device:cache { policy = "full", dtype = "f32" })
      helper.assert_near(assert(cache:prefill(helper.slice(sequence.ids, 1, n))), reference(n),
        fixture .. ": prompt")
      local before = launched()
      for i = n + 1, n + 2 do
        helper.assert_near(assert(cache:step(sequence.ids[i])), reference(i), fixture .. ": step")
      end
      assert.equal(2, launched() - before)
      if not kept[fixture] then return end
      local cpu <close> = assert(pyramid.model(path, { device = "cpu", threads = 1 }))
      compare(cpu, device, { policy = helper.squeezed "pyramidinfer", ids = few }, 20, 1, fixture)
    end)
  end
end)

describe("a device", function()
  it("that is missing is named, with what to do", function()
    local runtime, message, code = core.runtime { device = "cuda" }
    if runtime then return runtime:close() end
    assert.equal("device", code)
    assert.truthy(message:find "make cuda" or message:find "driver", message)
    assert.same({ nil, "runtime: device 'tpu' is not available (there are: cpu, cuda)", "device" },
      { core.runtime { device = "tpu" } })
    assert.truthy(select(2, core.runtime { device = "emulated",
      isa = "avx2" }):find "no \"avx2\" kernels")
  end)

  it("is the host's default where none is named, unless instruction sets of the processor are",
    function()
    local runtime <close> = assert(core.runtime())
    local cpu <close> = assert(core.runtime { isa = "base" })
    assert.equal(helper.device ~= "cpu", runtime:isa() == helper.device)
    assert.equal("base", cpu:isa())
    for device, wanted in pairs { cpu = false, emulated = true } do
      local line = "PYRAMID_DEVICE=%s %s -e 'local rt = require [[pyramid.core]].runtime() print(rt:isa())'"
      local out = shell.run(line:format(device, shell.quote(shell.program)))
      assert.equal(wanted, out == "emulated\n", out)
    end
    local _, err, status = shell.run(("PYRAMID_DEVICE=tpu %s spec/run.lua sampler"):format(
      shell.quote(shell.program)))
    assert.equal(1, status)
    assert.equal("PYRAMID_DEVICE=tpu: runtime: device 'tpu' is not available (there are: cpu, "
      .. "cuda)\n", err)
  end)

  it("says what it is, and what it can do at most", function()
    local runtime <close> = assert(core.runtime { device = name_of_device })
    local cpu <close> = assert(core.runtime { device = "cpu" })
    local facts, before = assert(probe.device(runtime)), runtime:memory()
    for _, key in ipairs { "name", "arch", "driver", "runtime" } do
      assert.truthy(#facts[key] > 0, key)
    end
    for kind, size in pairs { copy = 1 << 16, f32 = 32, f16 = 32, bf16 = 32 } do
      assert.truthy(assert(probe.device_time(runtime, kind, size, 2)) > 0, kind)
      assert.same({ nil, "the runtime's device is the processor", "unsupported" },
        { probe.device_time(cpu, kind, size, 2) })
    end
    assert.equal(before, runtime:memory())
    assert.has_error(function() probe.device_time(runtime, "f32", 17) end)
    local limited <close> = assert(core.runtime { device = name_of_device, memory = before + 1000 })
    assert.equal("memory", (select(3, probe.device_time(limited, "copy", 1 << 20))))
    assert.equal("unsupported", (select(3, probe.device(cpu))))
  end)
end)

describe("the version of a device's object", function()
  -- Structs of `args` that `version` does not mix in.
  local function forgotten(args, version)
    local mixed, out, found = {}, {}, 0
    for name in version:gmatch "pyr_[%w_]+" do mixed[name] = true end
    for name in args:gmatch "typedef struct (pyr_[%w_]+)" do
      found = found + 1
      if not mixed[name] then out[#out + 1] = name end
    end
    return out, found
  end

  it("has the size of every struct that the backends' operations are given", function()
    local version = helper.read("core/backend/plugin.h"):match "PYR_DEVICE_VERSION = (.-)};"
    local args = helper.read "core/backend/op_args.h"
    local out, found = forgotten(args, version)
    assert.same({}, out)
    assert.truthy(found > 15, found)
    assert.same({ "pyr_new" }, (forgotten(args .. "typedef struct pyr_new { int n; } pyr_new;",
      version)))
    assert.same({ "pyr_range" }, (forgotten(args, (version:gsub("pyr_range", "pyr_ranges")))))
  end)
end)

describe("the emulator", function()
  -- It finds shared memory of a kernel by the kernel's name.
  it("is told of all shared memory, as only kernels declare any", function()
    local found = 0
    for name in lfs.dir "kernels" do
      if name:find "%.cuh?$" then
        local head = ""
        for line in io.lines("kernels/" .. name) do
          if line:find "^%l.*%(" or line:find "^template" then head = line end
          if line:find "^%s+__shared__" then
            found = found + 1
            assert.truthy(head:find "__global__", ("%s: %s in %s"):format(name, line, head))
          end
        end
      end
    end
    assert.truthy(found > 10, found)
  end)

  helper.cpu_only("the emulator, which it plays", it)("names the kernel and what is wrong with it",
    function()
    local program = os.tmpname()
    local flags = "-x c++ -std=c++17 -DPYR_EMULATED -Icore -Ikernels "
      .. (os.getenv "PYRAMID_CFLAGS" or "") .. " -O1"
    local line = "${CXX:-c++} %s -o %s spec/support/emulator_checks.cu "
      .. "kernels/emulate/emulate.cpp -lpthread && %s"
    local out, err, status = shell.run(line:format(flags, program, program))
    os.remove(program)
    assert.equal("", err)
    assert.equal(0, status)
    assert.equal("all checks pass\n", out)
  end)
end)

-- Steps on a device do not look at lanes (core/cache/stride.c). Whatever is done to caches between
-- steps, and whenever a step fails, a device's caches stay what the processor's are: random walks
-- of steps, questions, forks, cuts and evictions on both, with the same ids.
local core = require "pyramid.core"
local helper = require "spec.helper"
local probe = require "pyramid.probe"
local pyramid = require "pyramid"
local random_model = require "pyramid.tools.random_model"
local shell = require "spec.support.shell"

local name_of_device = helper.device == "cpu" and "emulated" or helper.device

describe("strides", function()
  local folder, cpu, device = shell.folder(), nil, nil

  setup(function()
    assert(random_model.write(folder .. "/small", { dtype = "f32", seed = 11, shape = { layers = 2,
      width = 32, heads = 4, kv_heads = 2, ff = 16, vocab = 260, context = 512 } }))
    cpu = assert(pyramid.model(folder .. "/small", { device = "cpu", threads = 1 }))
    device = assert(pyramid.model(folder .. "/small", { device = name_of_device }))
  end)
  teardown(function()
    cpu:close()
    device:close()
    shell.remove(folder)
  end)

  local function ids(n)
    local out = {}
    for i = 1, n do out[i] = math.random(0, 63) end
    return out
  end

  -- A pair is the same cache twice: { one = the processor's, other = the device's }.
  local function both(pair, f)
    local a, why = f(pair.one)
    local b, why_not = f(pair.other)
    assert.equal(a and true or why, b and true or why_not)
    return a, b
  end

  local function same(pair, what)
    helper.assert_same_rows(pair.one, pair.other, cpu, what)
    assert.equal(pair.one:bytes(), pair.other:bytes(), what)
    assert.equal(pair.one:fraction(), pair.other:fraction(), what)
  end

  local function step(pairs_of, what)
    local ours, theirs, last = {}, {}, ids(#pairs_of)
    for i, pair in ipairs(pairs_of) do ours[i], theirs[i] = pair.one, pair.other end
    local a, b = assert(core.step(ours, last)), assert(core.step(theirs, last))
    for i = 1, #pairs_of do helper.assert_near(b[i], a[i]:totable(), what, 1e-3) end
  end

  for _, name in ipairs { "full", "pyramidinfer", "snapkv" } do
    it("are seen by nobody: " .. name, function()
      local policy = name == "full" and "full" or helper.squeezed(name)
      local function new()
        local pair = { one = assert(cpu:cache { policy = policy, dtype = "f32" }),
          other = assert(device:cache { policy = policy, dtype = "f32" }) }
        local prompt = ids(math.random(20, 70))
        both(pair, function(cache) return cache:prefill(prompt) end)
        return pair
      end
      local all = { new(), new() }
      local acts = {
        function(pair) same(pair, "looked at") end,
        function(pair) assert.equal(pair.one:rows(1, 1), pair.other:rows(1, 1)) end,
        function(pair)
          local one, other = both(pair, function(cache) return cache:fork() end)
          if #all < 4 then all[#all + 1] = { one = one, other = other }
          else one:close() other:close() end
        end,
        function(pair)
          local more = ids(math.random(1, 9))
          both(pair, function(cache) return cache:prefill(more) end)
        end,
        function(pair)
          local tokens = pair.one:tokens() - math.random(0, 3)
          both(pair, function(cache) return cache:truncate(tokens) end)
        end,
        function(pair)
          both(pair, function(cache) return cache:evict(helper.squeezed "streaming") end)
        end,
        function(pair)
          if #all < 3 then return end
          for i, other in ipairs(all) do if other == pair then table.remove(all, i) end end
          pair.one:close()
          pair.other:close()
        end,
      }
      for turn = 1, 14 do
        local stepping = {}
        for i, pair in ipairs(all) do
          if i == 1 or math.random() < 0.7 then stepping[#stepping + 1] = pair end
        end
        for i = 1, math.random(1, 12) do step(stepping, ("turn %d, step %d"):format(turn, i)) end
        local act = math.random(#acts)
        acts[act](all[math.random(#all)])
      end
      for _, pair in ipairs(all) do
        same(pair, "at the end")
        pair.one:close()
        pair.other:close()
      end
    end)
  end

  it("end where a step fails, and the next is as if it had not been", function()
    local one <close> = assert(cpu:cache { policy = "full", dtype = "f32" })
    local other <close> = assert(device:cache { policy = "full", dtype = "f32" })
    local pair, prompt = { one = one, other = other }, ids(40)
    both(pair, function(cache) return cache:prefill(prompt) end)
    for _ = 1, 3 do step({ pair }, "before") end
    for _ = 1, 4 do
      for _, bad in ipairs { { 260 }, { -1 } } do
        assert.is_nil((core.step({ other }, bad)))
      end
      step({ pair }, "after a wrong id")
    end
    same(pair, "wrong ids")
  end)

  it("end where memory does, and the step that finds none has not been", function()
    local prompt, next_ids = ids(62), ids(6)
    local before, peak = 0, 0
    local function run(model)
      local cache <close> = assert(model:cache { policy = "full", dtype = "f32" })
      local made, why, code = cache:prefill(prompt)
      if not made then return nil, why, code end
      before = math.max(before, model:runtime():memory())
      for i = 1, #next_ids do
        local tokens, positions = cache:tokens(), cache:positions(2, 2)
        made, why, code = cache:step(next_ids[i])
        if not made then
          assert.equal(tokens, cache:tokens())
          assert.same(positions, cache:positions(2, 2))
          assert.equal(tokens, cache:rows(1, 1))
          local again, _, still = cache:step(next_ids[i])
          assert.same({ false, "memory" }, { again ~= nil, still })
          return nil, why, code
        end
        peak = math.max(peak, model:runtime():memory())
      end
      return made:totable()
    end
    local reference, failed = run(cpu), 0
    before, peak = 0, 0
    local free <close> = assert(pyramid.model(folder .. "/small", { device = name_of_device }))
    assert(run(free))
    for limit = before, peak + 4096, math.max(64, (peak - before) // 24) do
      local model <close> = assert(pyramid.model(folder .. "/small", { device = name_of_device,
        memory = limit }))
      local made, _, code = run(model)
      if made then
        assert(helper.distance(made, reference) < 1e-3)
      else
        assert.equal("memory", code)
        failed = failed + 1
      end
    end
    assert.truthy(failed > 3, failed)
  end)

  it("leave descriptions of lanes alone: nothing but the step itself is launched", function()
    local cache <close> = assert(device:cache { policy = "full", dtype = "f16" })
    assert(cache:prefill(ids(64)))
    assert(cache:step(1))
    local before = assert(probe.device_steps(device:runtime()))
    for _ = 1, 31 do assert(cache:step(2)) end
    local after = assert(probe.device_steps(device:runtime()))
    assert.equal(0, after.single - before.single)
    assert.equal(31, after.launched - before.launched)
    assert.equal(96, cache:rows(1, 1))
    assert(cache:step(3))                              -- the edge of a page
    assert.truthy(assert(probe.device_steps(device:runtime())).single > after.single)
  end)

  -- Where a sanitizer looks, lanes have no room to spare, and move at each page.
  it("send a page's address alone until rows are half as many again as the prompt's", function()
    if (os.getenv "PYRAMID_CFLAGS" or ""):find "sanitize" then
      pending "a sanitizer is told of the end of each array"
    end
    local cache <close> = assert(device:cache { policy = "full", dtype = "f16" })
    local runtime = device:runtime()
    assert(cache:prefill(ids(320)))
    assert(cache:step(1))                              -- views go over
    local before = assert(probe.device_steps(runtime)).single
    for _ = 1, 159 do assert(cache:step(2)) end
    assert.equal(480, cache:rows(1, 1))
    assert.equal(4, assert(probe.device_steps(runtime)).single - before)
  end)
end)

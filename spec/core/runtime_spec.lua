-- Runtimes, and callbacks that reach Lua from inside a core call.
local core = require "pyramid.core"
local pyramid = require "pyramid"

local ids = {}
for i = 1, 100 do ids[i] = i end

describe("runtime", function()
  it("tells what it is", function()
    local rt <close> = assert(core.runtime { threads = 3, isa = "base" })
    assert.equal(3, rt:threads())
    assert.equal("base", rt:isa())
    assert.is_true(rt:memory() > 0 and rt:memory_peak() >= rt:memory())
    assert.matches("base, 3 threads", tostring(rt))
    assert.is_true(assert(core.runtime()):threads() >= 1)
  end)

  it("closes once and for all", function()
    local rt = assert(core.runtime {})
    rt:close()
    rt:close()
    assert.matches("closed", tostring(rt))
    for _, method in ipairs { "threads", "isa", "memory", "memory_peak", "on_progress" } do
      assert.error_matches(function() rt[method](rt) end, "closed")
    end
  end)

  it("raises on misuse", function()
    assert.error_matches(function() core.runtime { thread = 1 } end,
      "unknown option 'thread' %(known: threads, device, isa, memory, ranks%)")
    for _, options in ipairs { { threads = -1 }, { threads = 257 }, { threads = "many" },
      { memory = -1 }, { device = {} }, 3 } do
      assert.error(function() core.runtime(options) end)
    end
    local rt <close> = assert(core.runtime {})
    assert.error(function() rt:on_progress(3) end)
  end)

  it("fails where the machine lacks something", function()
    for options, wanted in pairs { [{ isa = "nonesuch" }] = "isa 'nonesuch'",
      [{ device = "nonesuch" }] = "device 'nonesuch'" } do
      local rt, message, code = core.runtime(options)
      assert.is_nil(rt)
      assert.matches(wanted, message)
      assert.is_string(code)
    end
    local rt, message, code = core.runtime { memory = 100 }
    assert.is_nil(rt)
    assert.matches("out of memory", message)
    assert.equal("memory", code)
  end)

  it("lives as long as what was made from it", function()
    local rt = assert(core.runtime { threads = 2 })
    local sampler = core.sampler(rt, {})
    rt:close()
    rt = nil -- luacheck: ignore
    collectgarbage()
    assert.equal(1, sampler:pick { 1, 2 })
  end)
end)

describe("a progress callback", function()
  local model
  setup(function() model = assert(pyramid.model("spec/fixtures/families/llama-mha",
    { threads = 2 })) end)
  teardown(function() model:close() end)

  local function prefill(progress)
    local cache <close> = assert(model:cache {})
    local logits, message, code = cache:prefill(ids, { progress = progress })
    return logits, message, code
  end

  it("sees the work advance", function()
    local last, count, total = -1, 0, nil
    assert(prefill(function(done, all)
      assert.is_true(done >= last and done <= all)
      last, total, count = done, all, count + 1
    end))
    assert.is_true(count >= 2)
    assert.equal(total, last)
  end)

  it("cancels with true, and leaves the cache as it was", function()
    local cache <close> = assert(model:cache {})
    assert(cache:prefill { 1, 2, 3 })
    local before = cache:bytes()
    local logits, message, code = cache:prefill(ids,
      { progress = function(done) return done > 0 end })
    assert.is_nil(logits)
    assert.matches("cancelled", message)
    assert.equal("cancelled", code)
    assert.equal(before, cache:bytes())
    assert.equal(3, cache:rows(1, 1))
    assert(cache:prefill(ids))
  end)

  it("may raise: the error goes on from the call that was under way", function()
    local raised = { "a table" }
    for _, value in ipairs { "text", raised, false } do
      local calls = 0
      local ok, message = pcall(prefill, function()
        calls = calls + 1
        error(value, 0)
      end)
      assert.is_false(ok)
      assert.equal(value, message)
      assert.equal(1, calls)
    end
    assert.is_false((pcall(prefill, function() error() end)))
    assert(prefill())
  end)

  it("may run models, the same and others", function()
    local other = assert(pyramid.model("spec/fixtures/families/qwen3", { threads = 1 }))
    local alone = assert(prefill()):totable()
    local inner = 0
    local logits = assert(prefill(function()
      local cache <close> = assert(other:cache {})
      assert(cache:prefill({ 1, 2, 3 }, { progress = function() inner = inner + 1 end }))
      local ok, message = pcall(cache.prefill, cache, { 1 },
        { progress = function() error("inner", 0) end })
      assert(not ok and message == "inner")
    end))
    assert.same(alone, logits:totable())
    assert.is_true(inner > 0)
    other:close()
  end)

  it("runs in the coroutine that called, and may not yield out of it", function()
    local running
    local run = coroutine.create(function()
      return prefill(function() running = coroutine.running() end)
    end)
    assert.is_true((coroutine.resume(run)))
    assert.equal(run, running)
    run = coroutine.create(function() return prefill(coroutine.yield) end)
    local ok, message = coroutine.resume(run)
    assert.is_false(ok)
    assert.matches("yield", message)
  end)

  it("is gone with the coroutine and the model that set it", function()
    for _ = 1, 3 do
      local run = coroutine.wrap(function()
        local mine = assert(pyramid.model("spec/fixtures/families/llama-mha", { threads = 1 }))
        mine:runtime():on_progress(function() error "stale" end)
        return mine:cache {}
      end)
      local cache = run()
      run = nil -- luacheck: ignore
      collectgarbage()
      collectgarbage()
      pcall(cache.prefill, cache, { 1 })
      cache:close()
    end
  end)
end)

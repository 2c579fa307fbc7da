-- Caches: exact bytes, budgets, forks, files, failures that lose nothing. On small random models,
-- f32.
local helper = require "spec.helper"
local pyramid = require "pyramid"

local PAGE_ROWS = 32
local row_bytes = { f32 = function(d) return 4 * d end, f16 = function(d) return 2 * d end,
  bf16 = function(d) return 2 * d end,
  q8_0 = function(d) return d // 32 * 34 end, fp8_e4m3 = function(d) return d end }

local function prompt(n, vocab, seed)
  local ids, state = {}, seed or 1
  for i = 1, n do
    state = (state * 1103515245 + 12345) % 2147483648
    ids[i] = state // 65536 % vocab
  end
  return ids
end

--- Bytes a cache must hold for its rows: whole pages, and 4 bytes a row slot for positions (8 with
--- a history).
local function expected_bytes(model, cache, dtype, tracked)
  local config, bytes = model.config, 0
  local page = 2 * PAGE_ROWS * row_bytes[dtype](config.head_dim)
  for layer = 1, config.layers do
    for head = 1, config.kv_heads do
      local pages = (cache:rows(layer, head) + PAGE_ROWS - 1) // PAGE_ROWS
      bytes = bytes + pages * (page + PAGE_ROWS * (tracked and 8 or 4))
        + helper.lane_beside(pages, tracked and 2 or 1)
    end
  end
  return bytes
end

local function all_positions(model, cache)
  local lanes = {}
  for layer = 1, model.config.layers do
    for head = 1, model.config.kv_heads do lanes[#lanes + 1] = cache:positions(layer, head) end
  end
  return lanes
end

describe("cache", function()
  local model, vocab

  setup(function()
    model = assert(pyramid.model(helper.fixture "families/llama-gqa-llama3", { threads = 2 }))
    vocab = model.config.vocab
  end)
  teardown(function() model:close() end)

  local function new(given)
    given = given or {}
    given.dtype = given.dtype or "f32"
    return assert(model:cache(given))
  end

  it("holds exactly the pages of its rows, for each dtype", function()
    for dtype in pairs(row_bytes) do
      if dtype ~= "q8_0" or model.config.head_dim % 32 == 0 then
        local cache <close> = new { dtype = dtype }
        assert.equal(0, cache:bytes())
        assert(cache:prefill(prompt(70, vocab)))
        assert.equal(expected_bytes(model, cache, dtype), cache:bytes())
        for _ = 1, 30 do assert(cache:step(3)) end
        assert.equal(100, cache:rows(1, 1))
        assert.equal(expected_bytes(model, cache, dtype), cache:bytes())
        assert.equal(1, cache:fraction())
        assert.equal(100, cache:tokens())
        assert.equal(100 * model.config.layers, cache:computed())
        assert.equal(0, cache:evicted())
      end
    end
  end)

  it("frees pages as rows go", function()
    local cache <close> = new { policy = pyramid.policy("pyramidinfer",
      { floor = 8, ratio = 0.5 }) }
    assert(cache:prefill(prompt(300, vocab)))
    assert.equal(expected_bytes(model, cache, "f32", true), cache:bytes())
    assert.is_true(cache:fraction() < 1)
    local rows = 0
    for layer = 1, model.config.layers do rows = rows + cache:rows(layer, 1) end
    assert.equal(rows / (300 * model.config.layers), cache:fraction())
    assert.equal((300 * model.config.layers - rows) * model.config.kv_heads, cache:evicted())
    local streaming <close> = new { policy = pyramid.policy("streaming", { ratio = 0.25 }) }
    assert(streaming:prefill(prompt(300, vocab)))
    assert.equal(75, streaming:rows(1, 1))
    assert.equal(expected_bytes(model, streaming, "f32"), streaming:bytes())
  end)

  it("returns the runtime's memory when closed", function()
    local before = model:memory()
    for _ = 1, 3 do
      local cache <close> = new { policy = "pyramidinfer" }
      assert(cache:prefill(prompt(200, vocab)))
      local fork <close> = assert(cache:fork())
      assert(fork:step(1))
      assert(cache:step(2))
    end
    collectgarbage()
    assert.is_true(model:memory() - before < 1 << 20, "scratch and workspaces only")
    local second = model:memory()
    for _ = 1, 3 do
      local cache <close> = new { policy = "pyramidinfer" }
      assert(cache:prefill(prompt(200, vocab)))
    end
    collectgarbage()
    assert.equal(second, (model:memory()))
  end)

  it("continues a prompt as if it had been read at once", function()
    local ids = prompt(150, vocab, 9)
    local once <close> = new()
    local twice <close> = new()
    local a = assert(once:prefill(ids))
    assert(twice:prefill(helper.slice(ids, 1, 41)))
    for i = 42, 60 do assert(twice:step(ids[i])) end
    local b = assert(twice:prefill(helper.slice(ids, 61)))
    helper.assert_near(b, a:totable(), "continued")
  end)

  it("forks: what one writes the other does not see", function()
    local policies = { false, "streaming", pyramid.policy("h2o", { ratio = 0.5 }),
      pyramid.policy("pyramidinfer", { floor = 8 }), "adakv",
        pyramid.policy("d2o", { rows = 70, slack = 3, threshold = 0 }),
          pyramid.policy("streaming", { rows = 70, slack = 3, rotate = true }) }
    for _, policy in ipairs(policies) do
      local ids = prompt(90, vocab, 4)
      local cache <close> = new { policy = policy or nil }
      assert(cache:prefill(ids))
      local fork <close> = assert(cache:fork())
      local alone <close> = new { policy = policy or nil }
      assert(alone:prefill(ids))
      for i = 1, 40 do
        assert(fork:step(i % vocab))
        local a = assert(cache:step((7 * i) % vocab))
        local b = assert(alone:step((7 * i) % vocab))
        helper.assert_near(a, b:totable(), "fork step " .. i, 1e-6)
      end
      assert.same(all_positions(model, alone), all_positions(model, cache))
      assert.equal(130, fork:tokens())
    end
  end)

  it("shares pages between forks", function()
    local batch <close> = assert(model:batch { dtype = "f32" })
    local handle = assert(batch:add(prompt(96, vocab)))
    assert(batch:step())
    local before = batch:bytes()
    local fork <close> = assert(handle:fork())
    local bookkeeping = (96 * 4 + 256) * model.config.layers * model.config.kv_heads
    assert.equal(before + bookkeeping, batch:bytes())
    assert(fork:step(1))
    assert.is_true(batch:bytes() > before + bookkeeping)
  end)

  describe("in a file", function()
    local path
    before_each(function() path = helper.tmp() end)
    after_each(function() os.remove(path) end)

    it("comes back as it was, and goes on the same", function()
      for _, dtype in ipairs { "f32", "f16", "bf16" } do
        for _, policy in ipairs { "full", "h2o", "pyramidinfer", "adakv", "d2o" } do
          local chosen = pyramid.policy(policy, policy == "pyramidinfer" and { floor = 8 } or nil)
          local cache <close> = new { policy = chosen, dtype = dtype }
          assert(cache:prefill(prompt(120, vocab)))
          for i = 1, 5 do assert(cache:step(i)) end
          assert(cache:save(path))
          local loaded <close> = assert(model:load_cache(path, { policy = chosen, dtype = dtype }))
          assert.same(all_positions(model, cache), all_positions(model, loaded))
          assert.equal(cache:bytes(), loaded:bytes())
          for i = 1, 40 do
            local a, b = assert(cache:step(i)), assert(loaded:step(i))
            assert.equal(a:tostring(), b:tostring())
          end
          assert.same(all_positions(model, cache), all_positions(model, loaded))
        end
      end
    end)

    it("loads under another policy, or none", function()
      local cache <close> = new { policy = "h2o" }
      assert(cache:prefill(prompt(60, vocab)))
      assert(cache:save(path))
      for _, policy in ipairs { false, "full", "streaming", "snapkv" } do
        local loaded <close> = assert(model:load_cache(path,
          { dtype = "f32", policy = policy or nil }))
        for i = 1, 5 do assert(loaded:step(i)) end
        assert.equal(35, loaded:rows(1))
      end
    end)

    it("needs no more budget than it held, when a prompt goes on that nobody prunes", function()
      local cache <close> = new()
      assert(cache:prefill(prompt(60, vocab)))
      assert(cache:prefill(prompt(36, vocab)))
      local tight <close> = new { budget = cache:bytes() }
      assert(tight:prefill(prompt(60, vocab)))
      assert(tight:prefill(prompt(36, vocab)))
      assert.equal(cache:bytes(), tight:bytes())
    end)

    it("is refused when it is not whole, or another model's", function()
      local cache <close> = new()
      assert(cache:prefill(prompt(40, vocab)))
      assert(cache:save(path))
      local bytes = helper.read(path)
      local function refused(changed, code, pattern)
        helper.write(path, changed)
        local loaded, message, got = model:load_cache(path, { dtype = "f32" })
        assert.is_nil(loaded)
        assert.equal(code, got)
        assert.truthy(message:find(path, 1, true))
        if pattern then assert.truthy(message:find(pattern), message) end
      end
      for _, length in ipairs { 0, 1, 8, 40, 90, 200, #bytes // 2, #bytes - 9, #bytes - 8,
        #bytes - 1 } do
        refused(bytes:sub(1, length), "format")
      end
      refused(bytes .. "x", "format")
      refused("X" .. bytes:sub(2), "format", "magic")
      local state = 77
      for _ = 1, 200 do
        state = (state * 1103515245 + 12345) % 2147483648
        local at = state % #bytes + 1
        refused(bytes:sub(1, at - 1) .. string.char(bytes:byte(at) ~ (1 << state % 8))
          .. bytes:sub(at + 1), "format")
      end
      helper.write(path, bytes)
      local other <close> = assert(pyramid.model(helper.fixture "families/llama-mha",
        { threads = 1 }))
      local loaded, message, code = other:load_cache(path, { dtype = "f32" })
      assert.is_nil(loaded)
      assert.equal("format", code, message)
      loaded, message, code = model:load_cache(path, { dtype = "f16" })
      assert.is_nil(loaded)
      assert.equal("format", code)
      assert.truthy(message:find "dtype")
      loaded, message, code = model:load_cache(path .. ".none", { dtype = "f32" })
      assert.is_nil(loaded)
      assert.equal("io", code, message)
      loaded, message, code = cache:save("/nonexistent/folder/file")
      assert.is_nil(loaded)
      assert.equal("io", code, message)
    end)
  end)

  describe("under a budget", function()
    local ids = {}
    setup(function() ids = prompt(200, vocab, 3) end)

    it("fails in mid-prefill with an error, and is usable afterwards", function()
      local full <close> = new()
      assert(full:prefill(ids))
      for _, share in ipairs { 0.1, 0.5, 0.9, 0.999 } do
        local cache <close> = new { budget = math.floor(full:bytes() * share) }
        local logits, message, code = cache:prefill(ids)
        assert.is_nil(logits)
        assert.equal("budget", code, message)
        assert.equal(0, cache:bytes())
        assert.equal(0, cache:tokens())
        local few = assert(cache:prefill { 1, 2, 3 } or share == 0.1)
        assert.truthy(few)
      end
    end)

    it("keeps its rows when a continued prompt does not fit", function()
      for _, policy in ipairs { "full", "h2o", "streaming" } do
        local probe <close> = new()
        assert(probe:prefill(helper.slice(ids, 1, 60)))
        local cache <close> = new { policy = policy, budget = 2 * probe:bytes() }
        local twin <close> = new { policy = policy }
        assert(cache:prefill(helper.slice(ids, 1, 60)))
        assert(twin:prefill(helper.slice(ids, 1, 60)))
        local before, bytes = all_positions(model, cache), cache:bytes()
        local many = prompt(400, vocab)
        local logits, message, code = cache:prefill(many)
        assert.is_nil(logits)
        assert.equal("budget", code, message)
        assert.same(before, all_positions(model, cache))
        assert.equal(bytes, cache:bytes())
        helper.assert_near(assert(cache:step(5)), assert(twin:step(5)):totable(),
          "after the failure", 1e-6)
      end
    end)

    it("fails in mid-decode with an error, rows intact", function()
      local full <close> = new()
      assert(full:prefill(helper.slice(ids, 1, 64)))
      local cache <close> = new { budget = full:bytes() + 4000 }
      assert(cache:prefill(helper.slice(ids, 1, 64)))
      local before = all_positions(model, cache)
      local logits, message, code = cache:step(1)
      assert.is_nil(logits)
      assert.equal("budget", code, message)
      assert.same(before, all_positions(model, cache))
      assert.equal(64, cache:tokens())
      local again, _, same = cache:step(1)
      assert.is_nil(again)
      assert.equal("budget", same)
    end)

    it("lets a policy that evicts go on for ever", function()
      local policy = pyramid.policy("streaming", { rows = 40, slack = 0 })
      local probe <close> = new { policy = policy }
      assert(probe:prefill(helper.slice(ids, 1, 64)))
      local cache <close> = new { policy = policy, budget = 4 * probe:bytes() }
      assert(cache:prefill(helper.slice(ids, 1, 64)))
      for i = 1, 100 do assert(cache:step(i % vocab)) end
      assert.equal(40, cache:rows(1, 1))
      assert.equal(163, cache:positions(1, 1)[40])
    end)
  end)

  it("refuses what makes no sense, with codes", function()
    local cache <close> = new()
    local function refused(code, ...)
      local result, message, got = ...
      assert.is_nil(result)
      assert.equal(code, got, message)
    end
    refused("argument", cache:prefill {})
    refused("argument", cache:step(1))
    refused("argument", cache:prefill { 1, vocab, 2 })
    refused("argument", cache:prefill { 1, -1 })
    refused("argument", cache:prefill { 1 << 40 })
    refused("context", cache:prefill(prompt(model.config.context + 1, vocab)))
    assert(cache:prefill { 1, 2 })
    refused("argument", cache:step(vocab))
    assert.has_error(function() cache:prefill { "x" } end)
    assert.has_error(function() cache:prefill { 1.5 } end)
    for _, length in ipairs { 1 << 62, -1, math.maxinteger } do
      local liar = setmetatable({}, { __len = function() return length end,
        __index = function() return 1 end })
      assert.has_error(function() cache:prefill(liar) end)
    end
    assert.has_error(function() cache:rows(0) end)
    assert.has_error(function() cache:rows(model.config.layers + 1) end)
    assert.has_error(function() cache:rows(1, model.config.kv_heads + 1) end)
    assert.has_error(function() model:cache { polciy = "full" } end)
    assert.has_error(function() model:cache { dtype = "f64" } end)
    assert.has_error(function() model:cache { budget = "lots" } end)
    refused("policy", model:cache { policy = "no-such-policy" })
    cache:close()
    cache:close()
    assert.has_error(function() cache:rows(1) end)
  end)

  it("fills the context to the last token and no further", function()
    local cache <close> = new()
    local context = model.config.context
    assert(cache:prefill(prompt(context - 1, vocab)))
    assert(cache:step(1))
    local logits, message, code = cache:step(1)
    assert.is_nil(logits)
    assert.equal("context", code, message)
    assert.equal(context, cache:rows(1))
  end)

  it("cancels a prefill, and forgets nothing", function()
    local cache <close> = new()
    assert(cache:prefill { 1, 2, 3 })
    local calls = 0
    local logits, _, code = cache:prefill(prompt(100, vocab), { progress = function(done, total)
      calls = calls + 1
      assert(done <= total)
      assert.equal(3, cache:tokens())
      return calls == 3
    end })
    assert.is_nil(logits)
    assert.equal("cancelled", code)
    assert.equal(3, cache:rows(1))
    assert.has_error(function()
      cache:prefill({ 1 }, { progress = function() error("mine", 0) end })
    end, "mine")
    assert.equal(3, cache:tokens())
    assert.has_error(function() cache:prefill({ 1 },
      { progress = function() cache:close() end }) end)
    assert.has_error(function() cache:prefill({ 1 },
      { progress = function() cache:step(1) end }) end)
    assert(cache:prefill { 1 })
  end)

  it("outlives its model, in any order of closing", function()
    for order = 1, 4 do
      do
        local own = assert(pyramid.model(helper.fixture "families/llama-mha", { threads = 1 }))
        local cache = assert(own:cache { policy = "pyramidinfer", dtype = "f32" })
        assert(cache:prefill { 1, 2, 3 })
        local things = { own, cache, assert(cache:fork()) }
        for i = 1, order == 3 and 0 or 3 do
          things[(i * order) % 3 + 1]:close()
          collectgarbage()
        end
        if order ~= 3 then assert.has_error(function() own:cache() end) end
      end
      collectgarbage()      -- order 3: the collector closes them
      collectgarbage()
    end
    local own = assert(pyramid.model(helper.fixture "families/llama-mha", { threads = 1 }))
    local cache = assert(own:cache { dtype = "f32" })
    own:close()
    assert(cache:prefill { 1, 2 })
    assert(cache:step(3))
    cache:close()
  end)
end)

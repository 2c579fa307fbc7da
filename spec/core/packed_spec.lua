-- Caches whose full pages are packed to few bits: what they hold, that forks, files, failures and
-- evictions change no row, and how near what they foretell stays to plain rows.
local helper = require "spec.helper"
local ops = require "pyramid_specs"
local policy = require "pyramid.policy"
local pyramid = require "pyramid"
local random_model = require "pyramid.tools.random_model"
local random_models = require "spec.support.random_models"
local shell = require "spec.support.shell"

local SHAPE = { layers = 3, width = 128, heads = 4, kv_heads = 2, ff = 96, vocab = 272,
  context = 4096 }
local PAGE, D = ops.page_rows, 32
local models = random_models(SHAPE)

local function prompt(n, seed) return helper.ids(n, SHAPE.vocab, seed) end

-- Bytes of a row of K and of V in a packed page: a scale, and so many for 32 values.
local row_bytes = { q8_0 = { 34, 34 }, q4 = { 18, 18 }, q3 = { 14, 14 }, q2 = { 10, 10 } }
local frame_bytes = 24 + 20 * D

--- What a lane of `rows` rows takes, that only grew: the first page and the newest are plain.
local function lane_bytes(rows, k, v)
  local pages = (rows + PAGE - 1) // PAGE
  local packed = rows > 3 * PAGE and pages - 2 or 0
  return pages * PAGE * 4 + helper.lane_beside(pages) + frame_bytes
    + (pages - packed) * PAGE * 2 * 2 * D
    + packed * (PAGE * (row_bytes[k][1] + row_bytes[v][2]) + 8)
end

local function all_rows(cache)
  local all = { cache:tokens(), cache:evicted(), cache:bytes() }
  for layer = 1, SHAPE.layers do
    for head = 1, SHAPE.kv_heads do all[#all + 1] = cache:positions(layer, head) end
  end
  return all
end

--- Steps of both, which must give the same logits to the bit.
local function assert_alike(a, b, n, what)
  for i = 1, n do
    assert.same(assert(a:step(i)):totable(), assert(b:step(i)):totable(), what)
  end
end

describe("the dtype of a cache", function()
  it("names the bits of keys and values, together or apart", function()
    local model = models.cpu
    for _, dtype in ipairs { "q4", "q3", "q2", "k=q8_0,v=q4", "k=f16,v=q2", "k=q4,v=f32" } do
      assert(model:cache { dtype = dtype }):close()
    end
    assert(model:cache { dtype = { k = "q8_0", v = "q4" } }):close()
    for text, word in pairs { q5 = "unknown dtype 'q5' %(known: .*q2, q3, q4", ["k=q4"] = "k=q4",
      ["k=q4,v=q9"] = "unknown dtype 'q9'", ["k=f16,v=f32"] = "must be q8_0, q4, q3 or q2" } do
      local ok, message = pcall(model.cache, model, { dtype = text })
      assert.is_false(ok)
      assert.matches(word, message)
    end
    for _, dtype in ipairs { { k = "q4" }, { k = "q4", v = "q4", w = 1 }, { "q4" } } do
      assert.has_error(function() model:cache { dtype = dtype } end)
    end
  end)

  it("is refused in words where a model or a device has no such rows", function()
    local cache, message, code = models.device:cache { dtype = "q4" }
    assert.is_nil(cache)
    assert.equal("unsupported", code)
    assert.matches("devices have no kernels", message)
    local folder = shell.folder()
    local narrow = {}
    for key, value in pairs(SHAPE) do narrow[key] = value end
    narrow.width = 64
    assert(random_model.write(folder .. "/narrow", { shape = narrow, dtype = "f32", seed = 5 }))
    local model <close> = assert(pyramid.model(folder .. "/narrow"))
    cache, message, code = model:cache { dtype = "q4" }
    assert.is_nil(cache)
    assert.equal("unsupported", code)
    assert.matches("head_dim %% 32 == 0, and it is 16", message)
    shell.remove(folder)
  end)
end)

describe("a cache of few bits", function()
  it("holds exactly the bytes of its pages", function()
    for _, pair in ipairs { { "q4", "q4" }, { "q8_0", "q4" }, { "q3", "q2" } } do
      local cache <close> = assert(models.cpu:cache { dtype = { k = pair[1], v = pair[2] } })
      local tokens, lanes = 0, SHAPE.layers * SHAPE.kv_heads
      local function check()
        assert.equal(lanes * lane_bytes(tokens, pair[1], pair[2]), cache:bytes(),
          ("%s %s, %d tokens"):format(pair[1], pair[2], tokens))
      end
      for _, n in ipairs { 20, 77, 31, 200 } do
        assert(cache:prefill(prompt(n, n)))
        tokens = tokens + n
        check()
      end
      for i = 1, 40 do
        assert(cache:step(i))
        tokens = tokens + 1
        check()
      end
    end
  end)

  it("reads a prompt as plain rows do, and foretells nearly the same afterwards", function()
    local plain <close> = assert(models.cpu:cache { dtype = "f16" })
    local wanted = assert(plain:prefill(prompt(300, 1))):totable()
    local after = assert(plain:step(7)):totable()
    local last = 0
    for _, kind in ipairs { "q8_0", "q4", "q3", "q2" } do
      local v = kind ~= "q8_0" and kind or "q4"
      local cache <close> = assert(models.cpu:cache { dtype = { k = kind, v = v } })
      assert.same(wanted, assert(cache:prefill(prompt(300, 1))):totable())
      local got, off, all = assert(cache:step(7)):totable(), 0, 0
      for i, x in ipairs(after) do off, all = off + (got[i] - x) ^ 2, all + x ^ 2 end
      -- weights are random: nothing in such a model is worth more than anything else
      local share = (off / all) ^ 0.5
      assert(share > last and share < 0.6, ("%s: %g"):format(kind, share))
      last = share
    end
  end)

  it("does not depend on the number of threads", function()
    local one <close> = assert(pyramid.model(models.cpu.path, { threads = 1 }))
    local a <close> = assert(one:cache { dtype = "q3" })
    local b <close> = assert(models.cpu:cache { dtype = "q3" })
    assert(a:prefill(prompt(600, 2)))
    assert(b:prefill(prompt(600, 2)))
    assert_alike(a, b, 5)
  end)

  it("is shared by forks, each of which goes its own way", function()
    local cache <close> = assert(models.cpu:cache { dtype = "q4" })
    local twin <close> = assert(models.cpu:cache { dtype = "q4" })
    for _, c in ipairs { cache, twin } do assert(c:prefill(prompt(150, 3))) end
    local fork <close> = assert(cache:fork())
    assert.equal(cache:bytes(), fork:bytes())
    for i = 1, 70 do assert(fork:step(200 - i)) end
    assert_alike(cache, twin, 70)
    assert.equal(cache:bytes(), fork:bytes())
  end)

  it("is saved and loaded byte for byte", function()
    local path = helper.tmp()
    for _, n in ipairs { 20, 90, 300 } do
      for _, dtype in ipairs { "q4", "k=q8_0,v=q3", "k=f16,v=q2" } do
        local cache <close> = assert(models.cpu:cache { dtype = dtype })
        assert(cache:prefill(prompt(n, 4)))
        assert(cache:step(1))
        assert(cache:save(path))
        local loaded <close> = assert(models.cpu:load_cache(path, { dtype = dtype }))
        assert.same(all_rows(cache), all_rows(loaded))
        assert_alike(cache, loaded, 80, dtype)
      end
    end
    local plain, message = models.cpu:load_cache(path, { dtype = "f16" })
    assert.is_nil(plain)
    assert.matches("dtype differs", message)
    -- a frame that cannot be
    local bytes = helper.read(path)
    local at = assert(bytes:find(("<i4i4"):pack(D, 1), 1, true))
    for _, bad in ipairs { ("<i4i4"):pack(D + 1, 1), ("<i4i4"):pack(D, 2) } do
      helper.write(path, bytes:sub(1, at - 1) .. bad .. bytes:sub(at + 8))
      plain, message = models.cpu:load_cache(path, { dtype = "k=f16,v=q2" })
      assert.is_nil(plain)
      assert.matches("a lane's frame is", message)
    end
    helper.write(path, bytes:sub(1, at + 23) .. ("\255"):rep(20) .. bytes:sub(at + 44))
    plain, message = models.cpu:load_cache(path, { dtype = "k=f16,v=q2" })
    assert.is_nil(plain)
    assert.matches("a lane's frame is out of range", message)
  end)

  it("is cut back to a token", function()
    local cache <close> = assert(models.cpu:cache { dtype = "q4" })
    assert(cache:prefill(prompt(300, 5)))
    local fork <close> = assert(cache:fork())
    for i = 1, 50 do assert(cache:step(i)) end
    assert(cache:truncate(300))
    -- pages that were packed meanwhile stay so: rows, but not bits, are as they were
    assert.equal(fork:tokens(), cache:tokens())
    assert(cache:truncate(100))
    assert(fork:truncate(100))
    assert_alike(cache, fork, 40)
  end)

  it("steps in a batch as alone", function()
    local batch <close> = assert(models.cpu:batch { dtype = "q4" })
    local cache <close> = assert(models.cpu:cache { dtype = "q4" })
    local ids = prompt(120, 6)
    local first = assert(cache:prefill(ids)):argmax()
    assert(batch:add(ids))
    assert(batch:add(prompt(40, 7)))
    local alone, together = { first }, {}
    for i = 1, 40 do alone[i + 1] = assert(cache:step(alone[i])):argmax() end
    for i = 1, 41 do together[i] = assert(batch:step())[1][2]:argmax() end
    assert.same(alone, together)
  end)

  it("never fails for want of room to pack", function()
    local full <close> = assert(models.cpu:cache { dtype = "q4" })
    assert(full:prefill(prompt(320, 8)))
    -- room for a layer's plain rows beside what is packed by then
    local layer = SHAPE.kv_heads * 10 * PAGE * (4 * D + 4)
    local cache <close> = assert(models.cpu:cache { dtype = "q4", budget = full:bytes() + layer })
    assert(cache:prefill(prompt(320, 8)))
    assert.equal(full:bytes(), cache:bytes())
    assert_alike(full, cache, 3)
    local small <close> = assert(models.cpu:cache { dtype = "q4", budget = full:bytes() // 2 })
    local logits, message, code = small:prefill(prompt(320, 8))
    assert.is_nil(logits)
    assert.equal("budget", code, message)
    assert.equal(0, small:bytes())
    assert(small:prefill(prompt(60, 8)))
  end)

  it("leaves rows as they were when a prefill fails", function()
    local by_name = { none = false,
      knorm = assert(pyramid.policy("knorm", { rows = 100, sinks = 4 })),
      streaming = assert(pyramid.policy("streaming", { rows = 100 })),
      compact = assert(pyramid.policy("streaming", { rows = 100, rotate = true })),
      h2o = assert(pyramid.policy("h2o", { rows = 100 })),
      d2o = assert(pyramid.policy("d2o", { rows = 100 })) }
    for name, chosen in pairs(by_name) do
      local cache <close> = assert(models.cpu:cache { dtype = "q3", policy = chosen or nil })
      local twin <close> = assert(models.cpu:cache { dtype = "q3", policy = chosen or nil })
      for _, c in ipairs { cache, twin } do
        assert(c:prefill(prompt(200, 9)))
        for i = 1, 20 do assert(c:step(i)) end
      end
      local before = all_rows(cache)
      for stop = 1, SHAPE.layers + 1 do
        local calls = 0
        local logits, _, code = cache:prefill(prompt(70, 10), { progress = function()
          calls = calls + 1
          return calls == stop
        end })
        if logits then break end
        assert.equal("cancelled", code)
        assert.same(before, all_rows(cache), ("%s, stopped at %d"):format(name, stop))
      end
      assert_alike(cache, twin, 5, name)
    end
  end)

  it("goes with every policy, its forks and files, too", function()
    local path = helper.tmp()
    for _, name in ipairs(helper.policies()) do
      local chosen = assert(pyramid.policy(name))
      local cache <close> = assert(models.cpu:cache { dtype = "q4", policy = chosen })
      assert(cache:prefill(prompt(200, 11)), name)
      for i = 1, 40 do
        local logits = assert(cache:step(i))
        assert.is_true(logits:logprob(logits:argmax()) == logits:logprob(logits:argmax()), name)
      end
      local fork <close> = assert(cache:fork())
      assert(cache:save(path))
      local loaded <close> = assert(models.cpu:load_cache(path, { dtype = "q4", policy = chosen }))
      for i = 1, 10 do
        local a, b, c = cache:step(i), fork:step(i), loaded:step(i)
        assert.same(a:totable(), b:totable(), name)
        assert.same(a:totable(), c:totable(), name)
      end
    end
  end)

  it("is as it was, or has gone on, whatever allocation fails", function()
    local path = models.cpu.path
    local function task(limit)
      local model <close>, message, code = pyramid.model(path, { threads = 2, memory = limit })
      if not model then return nil, message, code end
      local file = helper.tmp()
      local made <close> = setmetatable({}, { __close = function(list)
        for i = #list, 1, -1 do list[i]:close() end
      end })
      local function keep(value, why, what)
        if not value then error({ why, what }) end
        if type(value) == "userdata" and value.close then made[#made + 1] = value end
        return value
      end
      local ok, failure = pcall(function()
        local cache = keep(model:cache { dtype = "q4", policy = policy { name = "half",
          prefill = function(_, l) return { keep = l.rows // 2 } end } })
        keep(cache:prefill(prompt(200, 12)))
        keep(cache:step(1))
        local fork = keep(cache:fork())
        keep(fork:prefill(prompt(130, 13)))
        keep(cache:save(file))
        keep(model:load_cache(file, { dtype = "q4" }))
      end)
      if ok then return true end
      if type(failure) ~= "table" then error(failure, 0) end
      return nil, failure[1], failure[2]
    end
    local tries, limit = 0, 1 << 20
    while true do
      local done, message, code = task(limit)
      if done then break end
      assert.equal("memory", code, message)
      tries, limit = tries + 1, limit + 61 * 1024
      assert(tries < 400)
    end
    assert(tries > 3, tries)
  end)
end)

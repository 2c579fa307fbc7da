-- model:profile: what it counts, and that it changes nothing.
local helper = require "spec.helper"
local pyramid = require "pyramid"

describe("model:profile", function()
  local model
  local ids = {}
  for i = 1, 40 do ids[i] = i * 7 % 50 end

  before_each(function() model = assert(pyramid.model(helper.fixture "families/llama-mha",
    { threads = 2 })) end)
  after_each(function() model:close() end)

  local function by_name(entries)
    local out = {}
    for _, entry in ipairs(entries) do out[entry.name] = entry end
    return out
  end

  local function read(given)
    local cache <close> = assert(model:cache(given))
    return assert(cache:prefill(ids)):totable()
  end

  it("is off until it is asked for", function()
    assert.same({}, model:profile())
    read()
    assert.same({}, model:profile())
  end)

  it("counts calls, seconds, arithmetic and bytes", function()
    local config = model.config
    assert.same({}, assert(model:profile(true)))
    read { dtype = "f32" }
    local entries = model:profile()
    local found = by_name(entries)
    assert.equal(1, found.embed.calls)
    assert.equal(config.layers, found.attention.calls)
    -- q, k, v of every layer; o, gate, up, down; the logits
    assert.equal(config.layers * 7 + 1, found.linear.calls)
    local n, heads = #ids, config.heads
    assert.equal(4 * config.head_dim * heads * config.layers * n * (n + 1) / 2,
      found.attention.flops)
    assert.is_true(found.linear.flops > 0 and found.linear.bytes > 0)
    for i, entry in ipairs(entries) do
      assert.is_true(entry.calls > 0 and entry.seconds > 0)
      if i > 1 then assert.is_true(entry.seconds <= entries[i - 1].seconds) end
    end
  end)

  it("counts each weight once for a step of many sequences", function()
    local function bytes_of_step(count)
      local batch <close> = assert(model:batch())
      for _ = 1, count do assert(batch:add(ids)) end
      assert(batch:step())
      assert(model:profile(true))
      assert(batch:step())
      return by_name(model:profile(false)).linear.bytes
    end
    local one, three = bytes_of_step(1), bytes_of_step(3)
    assert.is_true(three < 1.5 * one)
  end)

  -- each is a launch on a GPU
  it("counts one call a layer for all heads of all sequences of a step", function()
    local batch <close> = assert(model:batch())
    for _ = 1, 3 do assert(batch:add(ids)) end
    assert(batch:step())
    assert(model:profile(true))
    assert(batch:step())
    local found = by_name(model:profile(false))
    for _, name in ipairs { "store", "attention" } do
      assert.equal(model.config.layers, found[name].calls, name)
    end
  end)

  it("counts one call a layer where all heads keep the same rows", function()
    assert(model:profile(true))
    read { policy = pyramid.policy("streaming", { ratio = 0.5 }) }
    assert.equal(model.config.layers, by_name(model:profile(false)).gather.calls)
  end)

  it("begins anew, stops, and may be stopped twice", function()
    model:profile(true)
    read()
    assert.is_true(#model:profile(true) > 0)
    assert.same({}, model:profile())
    read()
    assert.is_true(#model:profile(false) > 0)
    assert.same({}, model:profile())
    assert.same({}, model:profile(false))
    read()
    assert.same({}, model:profile())
  end)

  it("changes no result, under policies either", function()
    for _, given in ipairs { {}, { policy = pyramid.policy("pyramidinfer",
      { floor = 4, sinks = 1 }) }, { policy = "h2o" } } do
      model:profile(false)
      local plain = read(given)
      model:profile(true)
      assert.same(plain, read(given))
    end
    local found = by_name(model:profile())
    assert.is_not_nil(found.select)
    assert.is_not_nil(found.gather)
  end)

  it("may be on when the model is closed", function()
    assert(model:profile(true))
    local cache = assert(model:cache())
    assert(cache:prefill(ids))
    model:close()
    cache:close()
    assert.error(function() model:profile() end)
  end)

  it("refuses what is no switch", function()
    assert.error_matches(function() model:profile(1) end, "true, false or nothing")
  end)

  it("says when there is no memory for it", function()
    local small = assert(pyramid.model(helper.fixture "families/llama-mha", { threads = 1 }))
    local held = small:memory()
    small:close()
    small = assert(pyramid.model(helper.fixture "families/llama-mha",
      { threads = 1, memory = held + 500 }))
    local entries, message, code = small:profile(true)
    assert.is_nil(entries)
    assert.matches("a profile needs", message)
    assert.equal("memory", code)
    assert.same({}, small:profile())
    small:close()
  end)
end)

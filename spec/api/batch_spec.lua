-- model:batch: what it refuses, and whom it names.
local helper = require "spec.helper"
local pyramid = require "pyramid"

describe("a batch", function()
  local model

  setup(function() model = assert(pyramid.model(helper.fixture "families/llama-gqa-llama3",
    { threads = 2 })) end)
  teardown(function() model:close() end)

  it("checks ids where they are given", function()
    local batch <close> = assert(model:batch())
    for _, wrong in ipairs { 5, { "x" },
      { 1.5 } } do assert.has_error(function() batch:add(wrong) end) end
    for _, ids in ipairs { {}, { -1 }, { 1, model.config.vocab } } do
      assert.equal("argument", select(3, batch:add(ids)))
    end
    assert.equal(0, #batch)
    local handle = assert(batch:add { 1, 2 })
    assert.has_error(function() batch:push(handle, "x") end)
    assert.equal("argument", select(3, batch:push(handle, model.config.vocab)))
    assert.is_true(batch:push(handle, 3))
  end)

  it("gives many sequences what each gets alone, also where prompts are multiplied in bf16",
    function()
    local tiny <close> = assert(pyramid.model("models/tiny", { threads = 2, precision = "bf16" }))
    for _, count in ipairs { 16, 33, 50 } do
      -- The same, bit for bit, up to where products are summed in another order; rows in f16 and
      -- sharp heads magnify that.
      local limit = count < require "pyramid_specs".small_n and 1e-12 or 1e-3
      local batch <close> = assert(tiny:batch { policy = "pyramidinfer" })
      local handles, alone, picked = {}, {}, {}
      for i = 1, count do
        local ids = {}
        for j = 1, 20 + i do ids[j] = (i * 131 + j * 37) % 2000 + 2 end
        handles[i] = assert(batch:add(ids))
        alone[i] = assert(tiny:cache { policy = "pyramidinfer" })
        picked[i] = { assert(alone[i]:prefill(ids)) }
      end
      for step = 1, 20 do
        for i, entry in ipairs(assert(batch:step())) do
          if step > 1 then picked[i][1] = assert(alone[i]:step((picked[i][1]:argmax()))) end
          local what = ("sequence %d of %d, step %d"):format(i, count, step)
          assert.equal(picked[i][1]:argmax(), (entry[2]:argmax()), what)
          if step % 10 == 0 then
            helper.assert_near(entry[2], picked[i][1]:totable(), what, limit)
          end
        end
      end
      for i = 1, count do
        assert.same(alone[i]:positions(8, 2), handles[i]:positions(8, 2))
        alone[i]:close()
      end
    end
  end)

  it("names the sequence whose handle was closed", function()
    local batch <close> = assert(model:batch())
    assert(batch:add { 1 })
    local second = assert(batch:add { 2 })
    assert(batch:step())
    second:close()
    local ok, message = pcall(batch.step, batch)
    assert.is_false(ok)
    assert.truthy(message:find("sequence 2", 1, true), message)
    batch:remove(second)
    assert(batch:step())
  end)

  it("lets sequences pick for themselves, as their samplers pick of the logits", function()
    local pyramid_sampler, core = pyramid.sampler, require "pyramid.core"
    local function sampler(seed)
      return pyramid_sampler { temperature = 1, repeat_penalty = 1.2, seed = seed }
    end
    local batch <close> = assert(model:batch())
    local shared, same = sampler(1), sampler(1)
    local prompts, caches, last = { { 1, 2, 3 }, { 4, 5 }, { 6 } }, {}, {}
    local plain
    for i, ids in ipairs(prompts) do
      local handle = assert(batch:add(ids, i ~= 2 and shared or nil))
      if i == 2 then plain = handle end
      caches[i] = assert(model:cache())
      last[i] = assert(caches[i]:prefill(ids))
    end
    for _ = 1, 8 do
      local entries = assert(batch:step())
      for i, entry in ipairs(entries) do
        if entry[1] == plain then
          assert.is_nil(entry.id)
          assert.equal(last[i]:tostring(), entry[2]:tostring())
        else
          if last[i] and _ == 1 then same:accept(prompts[i]) end
          assert.is_nil(entry[2])
          local id = same:pick(last[i])
          assert.equal(id, entry.id)
          last[i] = id
        end
      end
      for i in ipairs(prompts) do
        local id = i == 2 and last[i]:argmax() or last[i]
        last[i] = assert(caches[i]:step(id))
      end
    end
    for _, cache in ipairs(caches) do cache:close() end
    shared:close()
    local ok, message = pcall(batch.step, batch)
    assert.is_false(ok)
    assert.truthy(message:find("sequence 1: its sampler was closed", 1, true), message)
    assert.has_error(function() batch:add({ 1 }, "greedy") end)

    -- What cannot be picked is refused before anything moves; a policy may not touch what a step
    -- holds.
    local cache <close> = assert(model:cache())
    assert(cache:prefill { 1, 2 })
    local picks, why, code = core.step({ cache }, { 3 },
      { pyramid_sampler { logit_bias = { [model.config.vocab] = 1 } } })
    assert.is_nil(picks)
    assert.equal("argument", code)
    assert.truthy(why:find("bias of id", 1, true), why)
    assert.equal(2, cache:tokens())
    local busy, said = sampler(3), nil
    local policy = pyramid.policy { name = "nosy", trigger = function() return { every = 1 } end,
      decode = function() said = select(2, pcall(busy.close, busy)) end }
    local watched <close> = assert(model:cache { policy = policy })
    assert(watched:prefill { 1, 2, 3 })
    for _ = 1, 3 do assert(core.step({ watched }, { 4 }, { busy })) end
    assert.truthy(said and said:find("busy", 1, true), tostring(said))
    busy:close()
  end)
end)

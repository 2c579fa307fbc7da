-- model:batch: what it refuses, and whom it names.
local helper = require "spec.helper"
local pyramid = require "pyramid"

describe("a batch", function()
  local model

  setup(function() model = assert(pyramid.model(helper.fixture "families/llama-gqa-llama3", { threads = 2 })) end)
  teardown(function() model:close() end)

  it("checks ids where they are given", function()
    local batch <close> = assert(model:batch())
    for _, wrong in ipairs { 5, { "x" }, { 1.5 } } do assert.has_error(function() batch:add(wrong) end) end
    for _, ids in ipairs { {}, { -1 }, { 1, model.config.vocab } } do
      assert.equal("argument", select(3, batch:add(ids)))
    end
    assert.equal(0, #batch)
    local handle = assert(batch:add { 1, 2 })
    assert.has_error(function() batch:push(handle, "x") end)
    assert.equal("argument", select(3, batch:push(handle, model.config.vocab)))
    assert.is_true(batch:push(handle, 3))
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
end)

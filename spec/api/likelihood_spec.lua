-- model:score: a continuation's log-probabilities are those of generation, under policies, too.
local pyramid = require "pyramid"

describe("model:score", function()
  local model
  local prompt = "Once upon a time there was a"

  setup(function() model = assert(pyramid.model("models/tiny", { threads = 2 })) end)
  teardown(function() model:close() end)

  it("gives what generation says of the same ids, under policies", function()
    local ids = assert(model:encode(prompt))
    for i = 1, 60 do ids[#ids + 1] = ids[i % 7 + 1] end
    for _, name in ipairs { "full", "pyramidinfer", "streaming", "tova" } do
      local run <close> = assert(model:generate(ids, { policy = name, logprobs = true,
        max_tokens = 70, ignore_eos = true, sampler = { temperature = 1, seed = 3 } }))
      local written = {}
      for _, id in run do written[#written + 1] = id end
      local found = assert(model:score(ids, written, { policy = name }))
      assert.same(run.logprobs, found.logprobs, name)
      local sum = 0
      for _, each in ipairs(run.logprobs) do sum = sum + each end
      assert.equal(sum, found.logprob)
      assert.same(written, found.ids)
      assert.is_false(found.greedy)
    end
  end)

  it("knows what it would have written itself", function()
    local pieces = {}
    for piece in assert(model:generate(prompt, { max_tokens = 12, ignore_eos = true })) do
      pieces[#pieces + 1] = piece
    end
    local text = table.concat(pieces)
    local found = assert(model:score(prompt, text))
    assert.is_true(found.greedy)
    assert.equal(#text, found.bytes)
    local other = assert(model:score(prompt, text:reverse()))
    assert.is_true(other.logprob < found.logprob)
  end)

  it("cuts two texts where the tokenizer cuts both together", function()
    local one = assert(model:score(prompt .. " ", "dog"))
    local two = assert(model:score(prompt, " dog"))
    assert.same(two.ids, one.ids)
    assert.equal(two.logprob, one.logprob)
    local whole, before = assert(model:encode(prompt .. " dog")), assert(model:encode(prompt))
    assert.same(table.move(whole, #before + 1, #whole, 1, {}), two.ids)
  end)

  it("goes on from a cache, which stays as it is", function()
    local cache <close> = assert(model:cache())
    local ids = assert(model:encode(prompt .. " dog who lived in a"))
    assert(cache:prefill(table.move(ids, 1, 5, 1, {})))
    local found = assert(model:score(table.move(ids, 6, 8, 1, {}), table.move(ids, 9, #ids, 1, {}),
      { cache = cache }))
    assert.equal(5, cache:tokens())
    local whole = assert(model:score(table.move(ids, 1, 8, 1, {}), table.move(ids, 9, #ids, 1, {})))
    for i, each in ipairs(whole.logprobs) do
      assert.is_true(math.abs(each - found.logprobs[i]) < 1e-4)
    end
  end)

  it("says what is wrong", function()
    assert.has_error(function() model:score(prompt, "") end)
    assert.has_error(function() model:score(prompt, { 1 }) end)
    assert.has_error(function() model:score(prompt, "x", { polcy = "full" }) end)
    local found, message, code = model:score({}, { 1 })
    assert.is_nil(found)
    assert.equal("argument", code)
    assert.matches("nothing stands before", message, 1, true)
    local long = {}
    for i = 1, model.config.context do long[i] = 5 end
    found, message, code = model:score({ 1, 2 }, long)
    assert.is_nil(found)
    assert.equal("context", code, message)
  end)
end)

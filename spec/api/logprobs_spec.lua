-- Log-probabilities against a plain log-softmax in Lua: logits:logprob, logits:top, run.logprobs,
-- run.top, and `pyramid generate --logprobs`.
local json = require "pyramid.json"
local pyramid = require "pyramid"
local shell = require "support.shell"

local function log_softmax(values)
  local most, sum, out = -math.huge, 0, {}
  for _, x in ipairs(values) do most = math.max(most, x) end
  for _, x in ipairs(values) do sum = sum + math.exp(x - most) end
  for i, x in ipairs(values) do out[i] = x - most - math.log(sum) end
  return out
end

-- Ids, the most probable first; of equals the lower.
local function ranked(values)
  local ids = {}
  for i = 1, #values do ids[i] = i - 1 end
  table.sort(ids, function(a, b)
    if values[a + 1] ~= values[b + 1] then return values[a + 1] > values[b + 1] end
    return a < b
  end)
  return ids
end

local function assert_top(logits, k, plain, order)
  local ids, logprobs = logits:top(k)
  assert.equal(math.min(k, #plain), #ids)
  assert.equal(#ids, #logprobs)
  for i, id in ipairs(ids) do
    assert.equal(order[i], id)
    assert.near(plain[id + 1], logprobs[i], 1e-9)
    assert.equal(logprobs[i], logits:logprob(id))
  end
end

describe("log-probabilities", function()
  local model

  setup(function() model = assert(pyramid.model "models/tiny") end)
  teardown(function() model:close() end)

  it("are a log-softmax of the logits, and `top` is their order", function()
    math.randomseed(os.time())
    local cache <close> = assert(model:cache())
    local vocab = model.config.vocab
    local ids = {}
    for i = 1, 3 do ids[i] = math.random(0, vocab - 1) end
    for _, logits in ipairs(assert(cache:prefill(ids, { all = true }))) do
      local values = logits:totable()
      local plain, order = log_softmax(values), ranked(values)
      for _, k in ipairs { 0, 1, 2, math.random(3, 40), 1000 } do
        assert_top(logits, k, plain, order)
      end
      assert.equal(vocab, #logits:top(vocab + 5))
      local sum = 0
      for id = 0, vocab - 1 do sum = sum + math.exp(logits:logprob(id)) end
      assert.near(1, sum, 1e-6)
      assert.error(function() logits:top(-1) end)
      assert.error(function() logits:logprob(vocab) end)
    end
  end)

  it("come with each token of a generation, before bias and temperature", function()
    local bias = {}
    for id = 0, 40 do bias[id] = 3 end
    for _, sampler in ipairs { { temperature = 0 }, { temperature = 1.7, seed = 4,
      logit_bias = bias, repeat_penalty = 1.5 } } do
      local run <close> = assert(model:generate("The box was", { max_tokens = 6, logprobs = 3,
        sampler = sampler, ignore_eos = true }))
      local made, tops = {}, {}
      for _, id in run do
        made[#made + 1] = id
        if #made <= 6 then tops[#made] = { run.top, run.top_logprobs } end
      end
      assert.equal(6, #run.logprobs)
      -- the same ids, read by another cache step by step
      local cache <close> = assert(model:cache())
      local logits = assert(cache:prefill(assert(model:encode "The box was")))
      for i, logprob in ipairs(run.logprobs) do
        local values = logits:totable()
        local plain, order = log_softmax(values), ranked(values)
        assert.near(plain[made[i] + 1], logprob, 1e-3)
        assert.same(table.move(order, 1, 3, 1, {}), tops[i][1])
        for k = 1, 3 do assert.near(plain[order[k] + 1], tops[i][2][k], 1e-3) end
        logits = assert(cache:step(made[i]))
      end
    end
  end)

  it("are told by generate --logprobs", function()
    local out, err, status = shell.pyramid("generate", "The box was", "-n", "4", "--json",
      "--logprobs", "2")
    assert.equal(0, status, err)
    local told = assert(json.decode(out))
    local run <close> = assert(model:generate("The box was", { max_tokens = 4, logprobs = true }))
    local text = ""
    for piece in run do text = text .. piece end
    assert.equal(#run.logprobs, #told.logprobs)
    local joined = ""
    for i, one in ipairs(told.logprobs) do
      assert.equal(told.ids[i], one.id)
      assert.near(run.logprobs[i], one.logprob, 1e-9)
      assert.equal(2, #one.top)
      assert.equal(one.id, one.top[1].id)                     -- greedy
      assert.is_true(one.top[1].logprob >= one.top[2].logprob)
      joined = joined .. one.text
    end
    assert.equal(text, joined)
    out, err = shell.pyramid("generate", "The box was", "-n", "4", "--logprobs", "0")
    assert.equal(text .. "\n", out)
    assert.matches("token +log p\n", err)
    assert.equal(5, select(2, err:gsub("[^\n]+\n", "")))
    out, err, status = shell.pyramid("generate", "x", "--logprobs", "-1")
    assert.equal("", out)
    assert.equal(1, status)
    assert.matches("%-%-logprobs' must be an integer of 0 or more", err)
  end)
end)

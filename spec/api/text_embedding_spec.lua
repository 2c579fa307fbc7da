-- One vector for a text: the states of a plain Lua transformer, pooled; on both backends, in
-- chunks, under policies, and over HTTP as `pyramid serve` answers.
local helper = require "spec.helper"
local plain = require "spec.support.plain_llama"
local pyramid = require "pyramid"
local random_models = require "spec.support.random_models"
local score = require "pyramid.score"
local served = require "spec.support.served"
local serve = require "pyramid.serve.engine"
local vector = require "pyramid.vector"

local SHAPE = { layers = 2, width = 32, heads = 4, kv_heads = 2, ff = 64, vocab = 272,
  context = 1024 }
local models, folder = random_models(SHAPE)

local drops = assert(pyramid.policy { name = "drops", prefill = function(_, l)
  if l.index > 1 then return nil end
  return { keep = 20, prune = "hidden", score = score.attention { queries = 4 } }
end })

local function prompt(n, seed) return helper.ids(n, SHAPE.vocab, seed) end

local function near(wanted, got, within)
  assert.equal(#wanted, #got)
  for i = 1, #wanted do assert.near(wanted[i], got[i], within or 1e-5) end
end

-- States of all tokens, by the plain transformer.
local function plain_states(ids)
  local llama, states = plain.open(folder() .. "/model"), {}
  local lanes = llama:lanes()
  for i, id in ipairs(ids) do states[i] = select(2, llama:step(lanes, id)) end
  return states
end

local function mean(states)
  local sum = {}
  for j = 1, SHAPE.width do
    sum[j] = 0
    for _, state in ipairs(states) do sum[j] = sum[j] + state[j] end
    sum[j] = sum[j] / #states
  end
  return sum
end

local function unit(v)
  local sum, out = 0, {}
  for _, number in ipairs(v) do sum = sum + number * number end
  for i, number in ipairs(v) do out[i] = number / math.sqrt(sum) end
  return out
end

describe("the vector of a text", function()
  for _, kind in ipairs { "cpu", "device" } do
    it("is made of the states of its tokens, on the " .. kind, function()
      local model = models[kind]
      for _, n in ipairs { 1, 7, 33 } do
        local ids = prompt(n, os.time() + n)
        local states = plain_states(ids)
        near(mean(states), assert(model:text_embedding(ids, { dtype = "f32",
          normalize = false })))
        near(unit(mean(states)), assert(model:text_embedding(ids, { dtype = "f32" })))
        near(states[n], assert(model:text_embedding(ids, { pooling = "last", dtype = "f32",
          normalize = false })))
        local cache <close> = assert(model:cache { dtype = "f32" })
        local all = assert(cache:read_ids(ids, true, true, false, true))
        assert.same({ n, SHAPE.width }, { #all, all:columns() })
        for i = 1, n do near(states[i], all[i]) end
      end
    end)
  end

  it("of many chunks is what their tokens' logits are made of", function()
    local ids = prompt(1000, 5)
    local one <close> = assert(models.cpu:cache())
    local all = assert(one:read_ids(ids, true, true, false, true))
    near(all:mean "columns", assert(models.cpu:text_embedding(ids, { normalize = false })), 1e-4)
    near(all[1000], assert(models.cpu:text_embedding(ids, { pooling = "last",
      normalize = false })), 1e-4)
    -- the cache is as after any prefill
    local other <close> = assert(models.cpu:cache())
    assert(other:prefill(ids))
    assert.equal(assert(other:step(3)):tostring(), assert(one:step(3)):tostring())
  end)

  it("goes with policies, but not the mean where hidden states are dropped", function()
    local ids = prompt(300, 6)
    local full = assert(models.cpu:text_embedding(ids))
    near(full, assert(models.cpu:text_embedding(ids, { policy = "h2o", dtype = "f16" })), 2e-2)
    assert(models.cpu:text_embedding(ids, { policy = drops, pooling = "last" }))
    local none, message, code = models.cpu:text_embedding(ids, { policy = drops })
    assert.is_nil(none)
    assert.equal("argument", code)
    assert.matches("hidden states of every position .* policy drops prunes .* at layer 1", message)
  end)

  it("is refused where there is nothing to read, or a word is unknown", function()
    local none, _, code = models.cpu:text_embedding {}
    assert.is_nil(none)
    assert.equal("argument", code)
    none, _, code = models.cpu:text_embedding { SHAPE.vocab }
    assert.is_nil(none)
    assert.equal("argument", code)
    assert.error_matches(function() models.cpu:text_embedding({ 1 }, { pooling = "cls" }) end,
      "pooling is 'cls', not one of mean, last")
    assert.error_matches(function() models.cpu:text_embedding({ 1 }, { pool = "mean" }) end,
      "unknown option")
  end)

  it("is made in pieces by the engine, beside what is written, and keeps nothing", function()
    local model <close> = assert(pyramid.model("models/tiny", { precision = "f32" }))
    local engine <close> = serve.new(model, { memory = "64 MiB" })
    local got, written = {}, 0
    for i, n in ipairs { 700, 3, 256 } do
      for _, pooling in ipairs { "mean", "last" } do
        local ids = prompt(n, n)
        assert(engine:submit { ids = ids, embed = pooling, on_event = function(choice, event)
          assert.equal("embedded", event.finish)
          got[#got + 1] = { ids = ids, pooling = pooling, vector = choice.vector }
        end })
      end
      assert(engine:submit { ids = prompt(20, i), samplers = { assert(pyramid.sampler()) },
        max_tokens = 5, ignore_eos = true,
        on_event = function(_, event) written = written + (event.id and 1 or 0) end })
    end
    while engine:tick() do end
    assert.same({ 6, 15 }, { #got, written })
    for _, one in ipairs(got) do
      near(assert(model:text_embedding(one.ids, { pooling = one.pooling })), one.vector, 1e-4)
    end
    local failed
    assert(engine:submit { ids = prompt(300, 1), embed = "mean", policy = drops,
      on_event = function(_, event) failed = event end })
    while engine:tick() do end
    assert.same({ "error", "argument" }, { failed.finish, failed.code })
  end)

  local missing = served.missing()
  if missing then return pending("is answered by pyramid serve: " .. missing) end

  it("is answered by pyramid serve", function()
    local server = served.start "--model models/tiny --precision f32 --name tiny --quiet"
    local model <close> = assert(pyramid.model("models/tiny", { precision = "f32" }))
    local texts = { "the cat sat", "a dog" }
    local wanted = {}
    for i, text in ipairs(texts) do wanted[i] = assert(model:text_embedding(text)) end
    local answer, status = server:ask("/v1/embeddings", { input = texts, model = "tiny" })
    assert.equal(200, status)
    assert.same({ "list", "tiny", 2 }, { answer.object, answer.model, #answer.data })
    assert.equal(#model:encode(texts[1]) + #model:encode(texts[2]), answer.usage.prompt_tokens)
    for i, one in ipairs(answer.data) do
      assert.same({ "embedding", i - 1 }, { one.object, one.index })
      near(wanted[i], vector(one.embedding), 1e-4)
    end
    answer = server:ask("/v1/embeddings", { input = model:encode(texts[2]), pooling = "last",
      encoding_format = "float" })
    near(assert(model:text_embedding(texts[2], { pooling = "last" })),
      vector(answer.data[1].embedding), 1e-4)
    answer = server:ask("/v1/embeddings", { input = texts[1], encoding_format = "base64" })
    assert.equal((4 * model.config.width + 2) // 3 * 4, #answer.data[1].embedding)
    for field, body in pairs { dimensions = { input = "x", dimensions = 3 }, input = {},
      pooling = { input = "x", pooling = "cls" }, encoding_format = { input = "x",
        encoding_format = "int8" }, ["pyramid.policy"] = { input = "x",
          pyramid = { policy = "nothing" } } } do
      answer, status = server:ask("/v1/embeddings", body)
      assert.equal(400, status)
      assert.equal(field, answer.error.param)
    end
    server:stop()
  end)
end)

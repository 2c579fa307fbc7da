-- Logits of every family equal those of Hugging Face transformers
-- (scripts/maker/oracle/families.py), however the tokens come.
local core = require "pyramid.core"
local families = require "pyramid.families"
local helper = require "spec.helper"
local pyramid = require "pyramid"

local fixtures = {
  "llama-mha", "llama-gqa-llama3", "llama-linear", "llama-yarn", "llama-rope-parameters",
    "codellama", "mistral", "qwen2",
  "qwen2-untied", "qwen3",
}

local function folder(family)
  return helper.fixture("families/" .. family)
end

it("each bundled family has golden logits", function()
  local held = {}
  for _, name in ipairs(fixtures) do
    held[helper.json(folder(name) .. "/config.json").model_type] = true
  end
  for _, name in ipairs(families.list()) do
    local bundled = core.bundled("module", "pyramid.families." .. name) ~= nil
    assert.is_true(held[name] or not bundled, name .. " is in none of spec/fixtures/families")
  end
end)

-- reference(i): the golden logits of position i, from 1
local function reference(bytes, sequence)
  local vocab = sequence.shape[2]
  return function(i)
    return helper.floats(bytes, sequence.offset + 4 * vocab * (i - 1), vocab)
  end
end

local function assert_all(logits, ref, from, what)
  for i = 1, #logits do
    helper.assert_near(logits[i], ref(from + i), ("%s, position %d"):format(what, from + i))
  end
end

for _, family in ipairs(fixtures) do
  describe("family " .. family, function()
    local golden = helper.json(folder(family) .. "/golden.json")
    local bytes = helper.read(folder(family) .. "/golden.bin")
    local model

    setup(function() model = assert(pyramid.model(folder(family), { threads = 2 })) end)
    teardown(function() model:close() end)

    local function new_cache()
      return assert(model:cache { dtype = "f32" })
    end

    it("states its shape", function()
      local config = helper.json(folder(family) .. "/config.json")
      assert.equal(config.num_hidden_layers, model.config.layers)
      assert.equal(config.num_attention_heads, model.config.heads)
      assert.equal(config.num_key_value_heads, model.config.kv_heads)
      assert.equal(config.head_dim or config.hidden_size // config.num_attention_heads,
        model.config.head_dim)
      assert.equal(config.vocab_size, model.config.vocab)
      assert.equal(config.max_position_embeddings, model.config.context)
    end)

    for _, sequence in ipairs(golden.sequences) do
      local ids, ref = sequence.ids, reference(bytes, sequence)

      it(("prefills %d tokens"):format(#ids), function()
        local cache <close> = new_cache()
        local logits = assert(cache:prefill(ids, { all = true }))
        assert.equal(#ids, #logits)
        assert_all(logits, ref, 0, "all")
        local again <close> = new_cache()
        local last = assert(again:prefill(ids))
        helper.assert_near(last, ref(#ids), "last")
        assert.equal(sequence.shape[2], #last)
        local first = last:totable()
        assert.equal(first[1], last[0])            -- a table counts from 1, ids from 0
        assert.equal(first[#first], last[#last - 1])
      end)

      it(("reads %d tokens one by one"):format(#ids), function()
        local cache <close> = new_cache()
        helper.assert_near(assert(cache:prefill { ids[1] }), ref(1), "position 1")
        for i = 2, #ids do
          helper.assert_near(assert(cache:step(ids[i])), ref(i), "position " .. i)
        end
        assert.equal(#ids, cache:rows(1, 1))
      end)
    end

    it("prefills in parts, with steps between them", function()
      local sequence = golden.sequences[#golden.sequences]
      local ids, ref = sequence.ids, reference(bytes, sequence)
      local cache <close> = new_cache()
      assert_all(assert(cache:prefill(helper.slice(ids, 1, 100), { all = true })), ref, 0,
        "first part")
      for i = 101, 103 do
        helper.assert_near(assert(cache:step(ids[i])), ref(i), "step " .. i)
      end
      assert_all(assert(cache:prefill(helper.slice(ids, 104), { all = true })), ref, 103,
        "last part")
    end)

    it("goes on greedily for 200 tokens", function()
      local cache <close> = new_cache()
      local logits, out = assert(cache:prefill(golden.greedy.prompt)), {}
      for i = 1, #golden.greedy.ids do
        out[i] = logits:argmax()
        logits = assert(cache:step(out[i]))
      end
      assert.same(golden.greedy.ids, out)
    end)
  end)
end

-- Logits of every family equal those of Hugging Face transformers
-- (scripts/maker/oracle/families.py and decoders.py), however the tokens come.
local cjson = require "cjson"
local core = require "pyramid.core"
local families = require "pyramid.families"
local files = require "pyramid.files"
local helper = require "spec.helper"
local pyramid = require "pyramid"

local fixtures = {
  "families/llama-mha", "families/llama-gqa-llama3", "families/llama-linear",
  "families/llama-yarn", "families/llama-rope-parameters", "families/codellama",
  "families/mistral", "families/qwen2", "families/qwen2-untied", "families/qwen3",
  "decoders/gemma", "decoders/gemma2", "decoders/gemma3", "decoders/phi3", "decoders/gpt2",
  "decoders/gpt-neox", "decoders/gpt-neox-sequential",
  "decoders/gpt-oss", "decoders/gpt-oss-folder", "decoders/gpt-oss-mxfp4",
  "decoders/mixtral", "decoders/qwen2-moe",
  "decoders/qwen3-moe", "decoders/olmoe", "decoders/glm4-moe",
  "decoders/starcoder2", "decoders/stablelm", "decoders/stablelm-parallel", "decoders/phi",
  "decoders/cohere", "decoders/cohere2", "decoders/opt", "decoders/falcon",
  "decoders/bloom", "decoders/falcon-groups", "decoders/falcon-alibi", "decoders/falcon-one-norm",
  "decoders/nemotron", "decoders/gptj",
  "decoders/gpt-bigcode", "decoders/gpt-bigcode-heads", "decoders/mpt",
  "decoders/helium", "decoders/ernie4-5", "decoders/jais2", "decoders/vaultgemma",
  "decoders/gpt-neo",
  "decoders/smollm3", "decoders/granite", "decoders/olmo2", "decoders/olmo3", "decoders/glm",
  "decoders/glm4", "decoders/arcee", "decoders/seed-oss", "decoders/exaone4",
  "decoders/ministral", "decoders/ministral3", "decoders/minicpm", "decoders/internlm2",
}

local function folder(family) return helper.fixture(family) end

it("each bundled family has golden logits", function()
  local held = {}
  for _, name in ipairs(fixtures) do
    held[helper.json(folder(name) .. "/config.json").model_type] = true
  end
  for _, name in ipairs(families.list()) do
    local bundled = core.bundled("module", "pyramid.families." .. name) ~= nil
    assert.is_true(held[name] or not bundled,
      name .. " is in none of spec/fixtures/families and decoders")
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

    setup(function()
      local file = folder(family) .. "/model.gguf"              -- what is read in this form alone
      local path = files.exists(file) and file or folder(family)
      model = assert(pyramid.model(path, { threads = 2, precision = "f32" }))
    end)
    teardown(function() model:close() end)

    local function new_cache()
      return assert(model:cache { dtype = "f32" })
    end

    it("states its shape", function()
      local config = helper.json(folder(family) .. "/config.json")
      local called = families.find(config.model_type).fields
      local function stated(key)
        local value = config[called[key] or key]
        return value ~= cjson.null and value or nil
      end
      local heads = stated "num_attention_heads"
      assert.equal(stated "num_hidden_layers", model.config.layers)
      assert.equal(heads, model.config.heads)
      local one = config.multi_query and not config.new_decoder_architecture
      assert.equal(one and 1 or stated "num_key_value_heads" or heads, model.config.kv_heads)
      assert.equal(stated "head_dim" or stated "hidden_size" // heads, model.config.head_dim)
      assert.equal(config.vocab_size, model.config.vocab)
      assert.equal(stated "max_position_embeddings", model.config.context)
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
      local first = #ids // 3
      assert_all(assert(cache:prefill(helper.slice(ids, 1, first), { all = true })), ref, 0,
        "first part")
      for i = first + 1, first + 3 do
        helper.assert_near(assert(cache:step(ids[i])), ref(i), "step " .. i)
      end
      assert_all(assert(cache:prefill(helper.slice(ids, first + 4), { all = true })), ref,
        first + 3, "last part")
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

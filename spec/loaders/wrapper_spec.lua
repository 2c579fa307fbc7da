-- Decoders inside of other models, and under other names: the golden logits are those of the
-- decoder alone.
local cjson = require "cjson"
local formats = require "spec.support.formats"
local helper = require "spec.helper"
local loaders = require "pyramid.loaders"
local pyramid = require "pyramid"
local safetensors = require "pyramid.loaders.safetensors"
local shell = require "spec.support.shell"

local folder
local function fixture(name) return helper.fixture("families/" .. name) end

-- The fixture's tensors as formats.safetensors takes them, renamed; rename(name) -> name, or nil
-- for one that is left out.
local function tensors_of(name, rename)
  local path, list = fixture(name) .. "/model.safetensors", {}
  local bytes = helper.read(path)
  for _, t in ipairs(assert(safetensors.read(path)).tensors) do
    local to = rename(t.name)
    if to then
      list[#list + 1] = { name = to, dtype = "BF16", shape = t.shape,
        data = bytes:sub(t.offset + 1, t.offset + t.bytes) }
    end
  end
  return list
end

local function extra(list, ...)
  for _, name in ipairs { ... } do
    list[#list + 1] = { name = name, dtype = "BF16", shape = { 2 }, data = "\0\0\0\0" }
  end
  return list
end

local function put(config, tensors)
  helper.write(folder .. "/config.json", type(config) == "table" and cjson.encode(config) or config)
  helper.write(folder .. "/model.safetensors", formats.safetensors(tensors))
end

local function last_logits(path, name)
  local golden = helper.json(fixture(name) .. "/golden.json")
  local sequence = golden.sequences[1]
  for _, other in ipairs(golden.sequences) do
    if #other.ids < #sequence.ids and #other.ids > 4 then sequence = other end
  end
  local vocab, n = sequence.shape[2], #sequence.ids
  local model <close> = assert(pyramid.model(path))
  local cache <close> = assert(model:cache { dtype = "f32" })
  local want = helper.floats(helper.read(fixture(name) .. "/golden.bin"),
    sequence.offset + 4 * vocab * (n - 1), vocab)
  helper.assert_near(assert(cache:prefill(sequence.ids)), want, name)
  return model.warnings, model.config
end

local function refuses(word, code)
  local source, message, got = loaders.open(folder)
  if source then source, message, got = loaders.weights(source) end
  assert.is_nil(source, word)
  assert.truthy(message:find(word, 1, true), ("'%s' is not about '%s'"):format(message, word))
  assert.equal(code or "unsupported", got)
end

local function plain(to, output)
  return function(name)
    if name == "lm_head.weight" then return output or name end
    return (name:gsub("^model%.", to))
  end
end

describe("a decoder inside of another model", function()
  before_each(function() folder = shell.folder() end)
  after_each(function() shell.remove(folder) end)

  local function wrap(name, change)
    local text = helper.json(fixture(name) .. "/config.json")
    local config = { model_type = "llava", architectures = { "LlavaForConditionalGeneration" },
      text_config = text, vision_config = { model_type = "clip_vision_model", hidden_size = 8 },
      eos_token_id = 7 }
    if change then change(config, text) end
    return config
  end

  for _, case in ipairs {
    { "language_model.model.", "language_model.lm_head.weight" }, { "model.language_model." },
    { "language_model." }, { "language_model.", "language_model.lm_head.weight" },
    { "model.text_model." },
  } do
    it(("is found below %s, its output at %s"):format(case[1], case[2] or "lm_head.weight"),
      function()
        put(wrap "llama-mha", extra(tensors_of("llama-mha", plain(case[1], case[2])),
          "vision_tower.encoder.layers.0.self_attn.q_proj.weight", "vision_tower.x",
          "model.multi_modal_projector.linear_1.weight", case[1]
          .. "layers.0.self_attn.rotary_emb.inv_freq"))
        local warnings, config = last_logits(folder, "llama-mha")
        assert.same({ folder .. "/config.json: a model of type llava; its text part (llama) is "
          .. "used alone", folder .. ": 4 tensors that the decoder does not need are ignored: 2 of "
          .. "vision_tower, 1 of model.multi_modal_projector, 1 of rotary_emb.inv_freq" }, warnings)
        assert.same({ 7, 2 }, config.eos)
        assert.is_false(config.tied)
      end)
  end

  it("may be tied by either configuration, or by the lack of an output", function()
    local function tensors() return tensors_of("qwen2", plain "language_model.model.") end
    for _, case in ipairs { { true, nil }, { nil, true }, { false, true }, { nil, nil } } do
      put(wrap("qwen2", function(config, text)
        text.tie_word_embeddings, config.tie_word_embeddings = case[1], case[2]
      end), tensors())
      local _, config = last_logits(folder, "qwen2")
      assert.is_true(config.tied)
    end
    put(wrap("qwen2", function(_, text) text.tie_word_embeddings = false end), tensors())
    refuses("lm_head.weight is missing", "format")
    put(wrap("qwen2-untied", function(_, text) text.tie_word_embeddings = nil end),
      tensors_of("llama-mha", plain "language_model.model."))
    assert.is_false(assert(loaders.open(folder)).config.tied)
  end)

  it("means its class's defaults where it is silent", function()
    for _, case in ipairs {
      { "llama", 32, 4096, 11008, 32, 32000 }, { "mistral", 32, 4096, 14336, 8, 32000 },
      { "qwen2", 32, 4096, 22016, 32, 151936 }, { "qwen3", 32, 4096, 22016, 32, 151936 },
    } do
      put({ model_type = "wrapped", text_config = { model_type = case[1] } },
        tensors_of("llama-mha", plain "language_model.model."))
      local c = assert(loaders.open(folder)).config
      assert.same(case, { c.family, c.layers, c.width, c.ff, c.kv_heads, c.vocab })
    end
    put({ model_type = "llama", text_config = { model_type = "llama" } }, {})  -- no wrapper
    refuses("num_hidden_layers is missing", "format")
  end)

  it("is refused by name where it is of no known family, or no configuration", function()
    put(wrap("llama-mha", function(_, text) text.model_type = "mllama_text_model" end), {})
    refuses "config.json: text_config: model_type mllama_text_model (known families: "
    put(wrap("llama-mha", function(_, text) text.hidden_act = "xielu" end), {})
    refuses "config.json: text_config: hidden_act is xielu"
    put(wrap("llama-mha", function(_, text) text.model_type = cjson.null end), {})
    refuses("text_config: model_type is missing", "format")
    for _, text in ipairs { "7", '"llama"', "[]" } do
      put('{"model_type":"llava","text_config":' .. text .. "}", {})
      refuses(text == "[]" and "text_config: model_type is missing" or "text_config is not a table",
        "format")
    end
    put(wrap("llama-mha", function(config) config.text_config = nil end), {})
    refuses "model_type llava, architectures LlavaForConditionalGeneration"
    put(wrap("llama-mha", function(config)
      config.quantization_config = { quant_method = "bitsandbytes" }
    end), {})
    refuses "text_config: quantization_config: quant_method bitsandbytes"
  end)
end)

describe("names of tensors", function()
  before_each(function()
    folder = shell.folder()
    helper.write(folder .. "/config.json", helper.read(fixture "qwen2" .. "/config.json"))
  end)
  after_each(function() shell.remove(folder) end)
  local config = helper.read(fixture "qwen2" .. "/config.json")

  it("may lack model.", function()
    put(config, tensors_of("qwen2", plain ""))
    assert.same({}, (last_logits(folder, "qwen2")))
  end)

  it("may be beside others that text does not go through", function()
    for _, prefix in ipairs { "model.", "" } do
      put(config, extra(tensors_of("qwen2", plain(prefix)), "visual.blocks.0.attn.qkv.weight",
        "v_head.summary.weight", prefix .. "layers.1.self_attn.rotary_emb.inv_freq",
        "mtp.layers.0.input_layernorm.weight"))
      assert.same({ folder .. ": 4 tensors that the decoder does not need are ignored: 1 of mtp, "
        .. "1 of rotary_emb.inv_freq, 1 of v_head, 1 of visual" },
        (last_logits(folder, "qwen2")))
    end
    put(config, extra(tensors_of("qwen2", plain "model."), "a.x", "b.x", "b.y", "c.x", "d.x",
      "e.x"))
    assert.same({ folder .. ": 6 tensors that the decoder does not need are ignored: 2 of b, 1 of "
      .. "a, 1 of c, 1 of d and 1 other parts" }, (last_logits(folder, "qwen2")))
    put(config, extra(tensors_of("qwen2", plain "model."), "one"))
    assert.same({ folder .. ": 1 tensor that the decoder does not need is ignored: 1 of one" },
      (last_logits(folder, "qwen2")))
  end)

  it("may be masks, and lack transformer., as GPT-2 was published", function()
    local gpt2 = "../decoders/gpt2"
    put(helper.read(fixture(gpt2) .. "/config.json"), extra(tensors_of(gpt2, function(name)
      return (name:gsub("^transformer%.", ""))
    end), "h.0.attn.bias", "h.1.attn.bias", "h.2.attn.masked_bias"))
    local warnings = last_logits(folder, gpt2)
    assert.same({ folder .. ": 3 tensors that the decoder does not need are ignored: 2 of bias, "
      .. "1 of h" }, warnings)
  end)

  it("below the decoder's own must all be asked for, and what changes it anywhere", function()
    for _, prefix in ipairs { "model.", "", "language_model.model." } do
      for _, name in ipairs { prefix .. "layers.0.self_attn.sinks", prefix .. "layers.3.mlp.x",
        prefix .. "layers.-1.x", prefix .. "embed_tokens.bias", prefix .. "norm.bias",
        "lm_head.bias", "base_model.layers.0.self_attn.q_proj.lora_A.weight",
        "language_model.lm_head.bias", "other.cross_attn.q_proj.weight",
        "prompt_embeddings.weight" } do
        put(config, extra(tensors_of("qwen2", plain(prefix)), name))
        refuses(name)
      end
    end
    put(config, extra(tensors_of("qwen2", plain "model."), "model.wpe.weight"))
    refuses "model.wpe.weight"
  end)

  it("of layers that guess further tokens are ignored where config.json counts them", function()
    local tensors = extra(tensors_of("qwen2", plain "model."), "model.layers.3.eh_proj.weight",
      "model.layers.4.mlp.up_proj.weight")
    put(config:gsub("}%s*$", ',"num_nextn_predict_layers":1}'), tensors)
    refuses "model.layers.4.mlp.up_proj.weight"
    put(config:gsub("}%s*$", ',"num_nextn_predict_layers":2}'), tensors)
    assert.same({ folder .. ": 2 tensors that the decoder does not need are ignored: 2 of "
      .. "model.layers" }, (last_logits(folder, "qwen2")))
  end)

  it("may not be those of two decoders", function()
    local tensors = tensors_of("qwen2", plain "model.")
    for _, t in ipairs(tensors_of("qwen2", plain "language_model.")) do
      tensors[#tensors + 1] = t
    end
    put(config, tensors)
    refuses "two decoders, below 'model.' and below 'language_model.'"
  end)
end)

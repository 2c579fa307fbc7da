-- Fields that change the arithmetic in a way that Pyramid does not have are refused by name, at
-- every value but the neutral ones: never a model that loads and answers wrongly. The values here
-- are written down once more, so that an entry of the list cannot vouch for itself.
local cjson = require "cjson"
local formats = require "spec.support.formats"
local helper = require "spec.helper"
local loaders = require "pyramid.loaders"
local shell = require "spec.support.shell"
local switches = require "pyramid.loaders.switches"

local kv = formats.kv
local null = cjson.null
local root = 1 / math.sqrt(16)          -- of llama-mha: heads of 16, width 48, 3 layers

-- field = { values that load, values that are refused }
local rms = { null, "rms", "rms_norm", "rmsnorm" }
local on, off, one = { { null, true }, { false } }, { { null, false }, { true } },
  { { null, false, 1, 1.0 }, { 0.22, 12, 0 } }
local config_fields = {
  attn_logit_softcapping = { { null, false }, { 50.0, 0 } },
  final_logit_softcapping = { { null, false }, { 30.0, 0 } },
  attention_multiplier = { { null, root, 0.25 }, { 1.0, 0.0156, 0 } },
  query_pre_attn_scalar = { { null, 16, 16.0 }, { 256, 24 } },
  scale_attn_weights = on, scale_attn_by_inverse_layer_idx = off,
  attn_temperature_tuning = off, attn_output_multiplier = one, attention_in_multiplier = one,
  attention_out_multiplier = one, key_multiplier = one,
  num_kv_shared_layers = { { null, 0 }, { 15 } },
  sparse_config = { { null, false }, { { dense_len = 8192 } } },
  clip_qkv = { { null, false }, { 8.0 } },
  use_qk_norm = off, qk_layernorm = off,
  no_rope_layers = { { null, {}, { 1, 1, 1 } }, { { 1, 1, 0 }, { 0 } } },
  no_rope_layer_interval = { { null, 0 }, { 4 } },
  rope_interleave = off,
  position_embedding_type = { { null, "rope", "rotary" }, { "nope", "absolute" } },
  alibi = off,
  layer_norm_type = { rms, { "default", "layer_norm" } }, norm_type = { rms, { "layernorm" } },
  use_parallel_residual = off, parallel_attn = off,
  apply_residual_connection_post_layernorm = off, do_layer_norm_before = on,
  _remove_final_layer_norm = off, layer_norm_elementwise_affine = on,
  word_embed_proj_dim = { { null, 48 }, { 32 } },
  residual_multiplier = one, scale_depth = { { null, math.sqrt(3) }, { 1.4, 1 } },
  mlp_multipliers = { { null, { 1.0, 1.0 } }, { { 1.0, 0.5 } } },
  embedding_multiplier = one, scale_emb = one, dim_model_base = { { null, 48 }, { 256 } },
  logits_scaling = { { null, 1.0 }, { 8.0 } }, logit_scale = { { null, 1.0 }, { 0.0625 } },
  lm_head_multiplier = one,
}

local function of(kind, ...)
  local out = {}
  for i, value in ipairs { ... } do out[i] = { kind, value } end
  return out
end
local scale = { of("f32", 0, 1), of("f32", 0.22, 12) }
local metadata_fields = {
  attn_logit_softcapping = { of("f32", 0), of("f32", 50) },
  final_logit_softcapping = { of("f32", 0), of("f32", 30) },
  ["attention.scale"] = { of("f32", 0, root), of("f32", 1, 0.0156) },
  ["attention.temperature_length"] = { of("u32", 0), of("u32", 8192) },
  ["attention.temperature_scale"] = { of("f32", 0), of("f32", 0.1) },
  ["attention.output_scale"] = scale,
  ["attention.causal"] = { of("bool", 1), of("bool", 0) },
  ["attention.shared_kv_layers"] = { of("u32", 0), of("u32", 10) },
  ["attention.clamp_kqv"] = { of("f32", 0), of("f32", 8) },
  ["attention.max_alibi_bias"] = { of("f32", 0), of("f32", 8) },
  use_parallel_residual = { of("bool", 0), of("bool", 1) },
  swin_norm = { of("bool", 0), of("bool", 1) },
  residual_scale = scale, embedding_scale = scale, logit_scale = scale,
  hidden_activation = { of("string", "silu"), of("string", "gelu") },
}

local function sorted(t)
  local names = {}
  for name in pairs(t) do names[#names + 1] = name end
  table.sort(names)
  return names
end

local function listed(format)
  local names = {}
  for _, switch in ipairs(switches.all) do names[#names + 1] = switch[format] end
  table.sort(names)
  return names
end

describe("switches that change the arithmetic", function()
  local folder
  setup(function() folder = shell.folder() end)
  teardown(function() shell.remove(folder) end)

  it("are all tried here", function()
    assert.same(sorted(config_fields), listed "hf")
    assert.same(sorted(metadata_fields), listed "gguf")
  end)

  local function put(fixture, fields)
    local dir = helper.fixture("families/" .. fixture)
    local config = helper.json(dir .. "/config.json")
    for key, value in pairs(fields) do config[key] = value end
    helper.write(folder .. "/config.json", cjson.encode(config))
    helper.write(folder .. "/model.safetensors", helper.read(dir .. "/model.safetensors"))
    return loaders.open(folder)
  end

  local function refused(value, message, code, ...)
    assert.is_nil(value, (...))
    for _, part in ipairs { ... } do
      assert.truthy(message:find(part, 1, true), ("'%s' does not say '%s'"):format(message, part))
    end
    assert.equal("unsupported", code, message)
  end

  for _, key in ipairs(sorted(config_fields)) do
    it("load or are refused in config.json: " .. key, function()
      local plain = assert(put("llama-mha", {})).config
      for _, value in ipairs(config_fields[key][1]) do
        local source = assert(put("llama-mha", { [key] = value }))
        assert.same(plain, source.config)
      end
      for _, value in ipairs(config_fields[key][2]) do
        local source, message, code = put("llama-mha", { [key] = value })
        refused(source, message, code, folder .. "/config.json: " .. key .. " is ", "(known: ")
      end
    end)
  end

  for _, key in ipairs(sorted(metadata_fields)) do
    it("load or are refused in GGUF: " .. key, function()
      local path, name = folder .. "/model.gguf", "llama." .. key
      local function open(field)
        local more = field and { [name] = kv(name, field[1], field[2]) }
        helper.write(path, formats.gguf(formats.gguf_of("llama-mha", "bf16", more)))
        return loaders.open(path)
      end
      local plain = assert(open()).config
      for _, field in ipairs(metadata_fields[key][1]) do
        assert.same(plain, assert(open(field)).config)
      end
      for _, field in ipairs(metadata_fields[key][2]) do
        local source, message, code = open(field)
        refused(source, message, code, path .. ": metadata " .. name .. " is ", "(known: ")
      end
    end)
  end

  it("say what would load", function()
    local function message(fields) return (select(2, put("llama-mha", fields))) end
    for text, fields in pairs {
      ["attn_logit_softcapping is 50 (known: none)"] = { attn_logit_softcapping = 50 },
      ["attention_multiplier is 1 (known: 0.25)"] = { attention_multiplier = 1 },
      ["query_pre_attn_scalar is 256 (known: 16)"] = { query_pre_attn_scalar = 256 },
      ["hidden_act is xielu (known: gelu, gelu_accurate, gelu_fast, gelu_new, "
        .. "gelu_pytorch_tanh, relu, relu2, silu, swish)"] = { hidden_act = "xielu" },
      ["no_rope_layers is (a list or an object) (known: nothing but 1)"] =
        { no_rope_layers = { 0 } },
    } do
      assert.equal(folder .. "/config.json: " .. text, message(fields))
    end
  end)

  it("may say what the family does anyway", function()
    assert(put("qwen3", { use_qk_norm = true, query_pre_attn_scalar = 32 }))
    local source, _, code = put("qwen3", { query_pre_attn_scalar = 12 })  -- width / heads
    assert.is_nil(source)
    assert.equal("unsupported", code)
  end)

  it("are of their types", function()
    for key, value in pairs { attn_logit_softcapping = "x", hidden_act = 1, mlp_bias = 1,
      no_rope_layers = 4, clip_qkv = true } do
      local source, message, code = put("llama-mha", { [key] = value })
      assert.is_nil(source, key)
      assert.equal("format", code)
      local wanted = folder .. "/config.json: " .. key .. " is not a"
      assert.truthy(message:find(wanted, 1, true), message)
    end
  end)
end)

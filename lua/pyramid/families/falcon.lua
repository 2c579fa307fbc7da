-- Falcon 7B, 40B, 180B, 11B and RW: LayerNorm, a plain MLP with GELU, q, k and v in one matrix.
--
--     7B          one head of keys and values; attention and MLP beside each other behind one norm
--     40B, 180B   groups of heads; a norm for each of the two (ln_attn, ln_mlp)
--     11B         groups of heads, one norm
--     RW          as many keys as queries, one after the other, biases, ALiBi
local alibi = require "pyramid.loaders.alibi"
local rope = require "pyramid.loaders.rope"

local layer = "transformer.h.%d."

-- Of a 40B, converters call the norm of the MLP attn_norm, and the attention's attn_norm_2.
local function gguf_names()
  return { attn_norm = "blk.%d.attn_norm_2.weight", attn_norm_bias = "blk.%d.attn_norm_2.bias",
    ffn_norm = "blk.%d.attn_norm.weight", ffn_norm_bias = "blk.%d.attn_norm.bias" }
end

--- Which norms there are, and whether q, k and v, …, have biases.
local function take(config, residual, biases)
  config.decoder.residual = residual
  config.weights = { "attn_norm_bias", "out_norm_bias" }
  local function add(...)
    for _, role in ipairs { ... } do config.weights[#config.weights + 1] = role end
  end
  if residual ~= "shared" then add "ffn_norm_bias" end
  if biases then add("q_bias", "k_bias", "v_bias", "o_bias", "up_bias", "down_bias") end
end

return require("pyramid.families").family {
  name          = "falcon",
  architectures = { "FalconForCausalLM", "RWForCausalLM" },
  decoder       = { norm = "layer", plain_mlp = true },
  fields        = {
    num_key_value_heads = "num_kv_heads", intermediate_size = "ffn_hidden_size",
    rms_norm_eps = "layer_norm_epsilon", hidden_act = "activation",
  },
  names         = { hf = {
    embed = "transformer.word_embeddings.weight",
    out_norm = "transformer.ln_f.weight", out_norm_bias = "transformer.ln_f.bias",
    attn_norm = layer .. "input_layernorm.weight", attn_norm_bias = layer .. "input_layernorm.bias",
    ffn_norm = layer .. "post_attention_layernorm.weight",
    ffn_norm_bias = layer .. "post_attention_layernorm.bias",
    q = layer .. "self_attention.q.weight", k = layer .. "self_attention.k.weight",
    v = layer .. "self_attention.v.weight", q_bias = layer .. "self_attention.q.bias",
    k_bias = layer .. "self_attention.k.bias", v_bias = layer .. "self_attention.v.bias",
    o = layer .. "self_attention.dense.weight", o_bias = layer .. "self_attention.dense.bias",
    up = layer .. "mlp.dense_h_to_4h.weight", up_bias = layer .. "mlp.dense_h_to_4h.bias",
    down = layer .. "mlp.dense_4h_to_h.weight", down_bias = layer .. "mlp.dense_4h_to_h.bias",
  } },
  fused         = {
    hf = { qkv = { name = layer .. "self_attention.query_key_value", groups = true } },
  },
  defaults      = {
    layer_norm_epsilon = 1e-5, max_position_embeddings = 2048, rope_theta = 10000,
    activation = "gelu", multi_query = true, parallel_attn = true, alibi = false, bias = false,
    new_decoder_architecture = false, tie_word_embeddings = true,
  },
  from_hf       = function(get, config)
    local new = get("new_decoder_architecture", "boolean", false)
    local parallel = get("parallel_attn", "boolean", true)
    local multi_query = get("multi_query", "boolean", true)
    local norms = get("num_ln_in_parallel_attn", "number", new and 2 or 1)
    if not new then config.kv_heads = multi_query and 1 or config.heads end
    local two = new and norms == 2
    take(config, two and "parallel" or (new or parallel) and "shared" or "sequential",
      get("bias", "boolean", false))
    if two then
      config.names = { attn_norm = layer .. "ln_attn.weight", ffn_norm = layer .. "ln_mlp.weight",
        attn_norm_bias = layer .. "ln_attn.bias", ffn_norm_bias = layer .. "ln_mlp.bias" }
    end
    if not get("alibi", "boolean", false) then return end
    -- added before scores are scaled, unlike in other models
    config.decoder.slopes = alibi.slopes(config.heads, config.head_dim ^ -0.5)
    rope.turn(config, "none", "none")
  end,
  from_gguf     = function(_, config, has)
    local two = has "blk.0.attn_norm_2.weight"
    take(config, two and "parallel" or "shared", false)
    config.decoder.activation = "gelu"
    if two then config.names = gguf_names() end
  end,
  to_gguf       = function(_, config)
    return config.decoder.residual == "parallel" and gguf_names() or nil
  end,
}

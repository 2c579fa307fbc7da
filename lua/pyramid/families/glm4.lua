-- GLM-4-0414 and GLM-Z1 (9B, 32B): as GLM, with norms around both halves of a layer.
return require("pyramid.families").family {
  name          = "glm4",
  architectures = { "Glm4ForCausalLM" },
  decoder       = { norm_place = "around" },
  rope          = "interleaved",
  gguf_rope     = "interleaved",
  names         = { hf = {
    attn_post_norm = "model.layers.%d.post_self_attn_layernorm.weight",
    ffn_post_norm = "model.layers.%d.post_mlp_layernorm.weight",
  } },
  fused         = {
    hf = { gate_up = { name = "model.layers.%d.mlp.gate_up_proj" } },
    gguf = { gate_up = { name = "blk.%d.ffn_up" } },
  },
  defaults      = {
    rms_norm_eps = 0.00000015625, max_position_embeddings = 131072, rope_theta = 10000,
    num_key_value_heads = 2, head_dim = 128, partial_rotary_factor = 0.5, attention_bias = true,
  },
  from_hf       = function(get, config)
    local biased = get("attention_bias", "boolean")
    config.weights = biased and { "q_bias", "k_bias", "v_bias" } or {}
  end,
}

-- GLM-4 (9B) and GLM-Edge: half of each head turns, by pairs of neighbours; biases on q, k and v,
-- gate and up in one matrix.
return require("pyramid.families").family {
  name          = "glm",
  gguf          = "chatglm",
  architectures = { "GlmForCausalLM" },
  rope          = "interleaved",
  gguf_rope     = "interleaved",
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

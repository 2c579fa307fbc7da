-- Qwen2 and Qwen2.5: biases on q, k and v; a sliding window in the upper layers that most
-- checkpoints switch off.
return require("pyramid.families").family {
  name          = "qwen2",
  architectures = { "Qwen2ForCausalLM" },
  weights       = { "q_bias", "k_bias", "v_bias" },
  window        = "upper",
  defaults      = {
    rms_norm_eps = 1e-6, max_position_embeddings = 32768, rope_theta = 10000,
      num_key_value_heads = 32,
    sliding_window = 4096, max_window_layers = 28,
  },
}

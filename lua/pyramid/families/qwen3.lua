-- Qwen3: every head of q and k is normalised before it turns, and the heads' width is a number of
-- its own.
return require("pyramid.families").family {
  name          = "qwen3",
  architectures = { "Qwen3ForCausalLM" },
  weights       = { "q_norm", "k_norm" },
  window        = "upper",
  defaults      = {
    rms_norm_eps = 1e-6, max_position_embeddings = 32768, rope_theta = 10000,
      num_key_value_heads = 32, head_dim = 128,
    sliding_window = 4096, max_window_layers = 28,
  },
}

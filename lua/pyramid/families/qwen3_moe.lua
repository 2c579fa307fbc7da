-- Qwen3-MoE: a Qwen3 with experts. config.json says that weights are renormalised; GGUF files mean
-- it without a word.
return require("pyramid.families").family {
  name          = "qwen3_moe",
  gguf          = "qwen3moe",
  architectures = { "Qwen3MoeForCausalLM" },
  weights       = { "q_norm", "k_norm" },
  window        = "used",
  experts       = { gguf_renormalise = true },
  defaults      = {
    rms_norm_eps = 1e-6, max_position_embeddings = 32768, rope_theta = 10000,
    num_key_value_heads = 4, num_experts_per_tok = 8, num_local_experts = 128,
    moe_intermediate_size = 768, intermediate_size = 6144, sliding_window = 4096,
  },
}

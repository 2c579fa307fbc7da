-- OLMoE: a Llama with experts; queries and keys are normed over all heads at once.
return require("pyramid.families").family {
  name          = "olmoe",
  architectures = { "OlmoeForCausalLM" },
  weights       = { "q_norm", "k_norm" },
  decoder       = { qk_norm = "width" },
  experts       = { ff = true },
  defaults      = {
    rms_norm_eps = 1e-5, max_position_embeddings = 4096, rope_theta = 10000,
    num_key_value_heads = 16, num_experts = 64, num_experts_per_tok = 8,
    intermediate_size = 2048,
  },
}

-- Qwen1.5-MoE and Qwen2-MoE: a Qwen2 with experts, beside which one that all tokens share is
-- weighed by a router of its own.
return require("pyramid.families").family {
  name          = "qwen2_moe",
  gguf          = "qwen2moe",
  architectures = { "Qwen2MoeForCausalLM" },
  weights       = { "q_bias", "k_bias", "v_bias", "shared_router" },
  window        = "upper",
  experts       = {},
  defaults      = {
    rms_norm_eps = 1e-6, max_position_embeddings = 32768, rope_theta = 10000,
    num_key_value_heads = 16, sliding_window = 4096, max_window_layers = 28, num_experts = 60,
    num_experts_per_tok = 4, moe_intermediate_size = 1408, intermediate_size = 5632,
    shared_expert_intermediate_size = 5632,
  },
  from_hf       = function(get, config)
    if not get("qkv_bias", "boolean", true) then config.weights = { "shared_router" } end
  end,
}

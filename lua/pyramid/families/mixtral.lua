-- Mixtral: a Mistral whose MLPs are mixtures of experts. GGUF files call it a Llama, and hold q and
-- k permuted.
return require("pyramid.families").family {
  name          = "mixtral",
  gguf          = "llama",
  architectures = { "MixtralForCausalLM" },
  window        = "all",
  gguf_rope     = "interleaved",
  experts       = { ff = true, renormalise = true },
  names         = { hf = {
    router = "model.layers.%d.block_sparse_moe.gate.weight",
    expert_gate = "model.layers.%d.block_sparse_moe.experts.%d.w1.weight",
    expert_up = "model.layers.%d.block_sparse_moe.experts.%d.w3.weight",
    expert_down = "model.layers.%d.block_sparse_moe.experts.%d.w2.weight",
  } },
  defaults      = {
    rms_norm_eps = 1e-5, max_position_embeddings = 131072, rope_theta = 1000000,
    num_key_value_heads = 8, num_local_experts = 8, num_experts_per_tok = 2,
  },
}

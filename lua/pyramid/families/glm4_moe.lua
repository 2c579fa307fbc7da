-- GLM-4.5 and GLM-4.6: half of each head turns; experts behind a first few plain layers, chosen by
-- corrected sigmoids, in groups, and one that all tokens share. Their GGUF files, which count the
-- layers that guess further tokens among the others, are not read.
return require("pyramid.families").family {
  name          = "glm4_moe",
  gguf          = false,
  architectures = { "Glm4MoeForCausalLM" },
  experts       = { router = "sigmoid" },
  names         = { hf = {
    shared_gate = "model.layers.%d.mlp.shared_experts.gate_proj.weight",
    shared_up = "model.layers.%d.mlp.shared_experts.up_proj.weight",
    shared_down = "model.layers.%d.mlp.shared_experts.down_proj.weight",
  } },
  defaults      = {
    rms_norm_eps = 1e-5, max_position_embeddings = 131072, rope_theta = 10000,
    partial_rotary_factor = 0.5, num_key_value_heads = 8, n_routed_experts = 128,
    num_experts_per_tok = 8, moe_intermediate_size = 1408, n_shared_experts = 1,
    norm_topk_prob = true, first_k_dense_replace = 1, intermediate_size = 10944,
  },
  from_hf       = function(get, config)
    local weights = { "router_correction" }
    local function add(...) for _, role in ipairs { ... } do weights[#weights + 1] = role end end
    if get("attention_bias", "boolean", false) then add("q_bias", "k_bias", "v_bias") end
    if get("use_qk_norm", "boolean", false) then add("q_norm", "k_norm") end
    config.weights = weights
  end,
}

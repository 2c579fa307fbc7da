-- Seed-OSS 36B: a Llama with biases on q, k and v, and heads of a width of their own.
return require("pyramid.families").family {
  name          = "seed_oss",
  architectures = { "SeedOssForCausalLM" },
  names         = { gguf = { ffn_norm = "blk.%d.post_attention_norm.weight" } },
  defaults      = {
    rms_norm_eps = 1e-6, max_position_embeddings = 524288, rope_theta = 10000,
    num_key_value_heads = 8, head_dim = 128, attention_bias = true,
  },
  from_hf       = function(get, config)
    local biased, out = get("attention_bias", "boolean"), get("attention_out_bias", "boolean")
    config.weights = biased and { "q_bias", "k_bias", "v_bias" } or {}
    if out then table.insert(config.weights, "o_bias") end
    get("residual_dropout", "number")                     -- in training only
  end,
}

-- Helium: a Llama whose pairs that turn are neighbours.
return require("pyramid.families").family {
  name          = "helium",
  gguf          = false,
  architectures = { "HeliumForCausalLM" },
  rope          = "interleaved",
  defaults      = {
    rms_norm_eps = 1e-8, max_position_embeddings = 4096, rope_theta = 100000, head_dim = 128,
    num_key_value_heads = 20, tie_word_embeddings = false,
  },
  from_hf       = function(get, config)        -- none on what attention gives
    local biases = get("attention_bias", "boolean", false)
    config.weights = biases and { "q_bias", "k_bias", "v_bias" } or {}
  end,
}

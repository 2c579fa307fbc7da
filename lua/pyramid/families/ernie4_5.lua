-- ERNIE 4.5 without experts: a Llama whose pairs that turn are neighbours, and whose embeddings are
-- its output matrix.
return require("pyramid.families").family {
  name          = "ernie4_5",
  architectures = { "Ernie4_5ForCausalLM", "Ernie4_5_ForCausalLM" },
  rope          = "interleaved",
  gguf_rope     = "interleaved",
  defaults      = {
    rms_norm_eps = 1e-5, max_position_embeddings = 131072, rope_theta = 500000, head_dim = 128,
    num_key_value_heads = 2, tie_word_embeddings = true,
  },
  from_hf       = function(get, config)
    if not get("use_bias", "boolean", false) then return end
    config.weights = { "q_bias", "k_bias", "v_bias", "o_bias", "gate_bias", "up_bias", "down_bias" }
  end,
}

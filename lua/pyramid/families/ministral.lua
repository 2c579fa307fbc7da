-- Ministral 8B: a Mistral that may name the layers that slide, which GGUF files cannot say.
return require("pyramid.families").family {
  name          = "ministral",
  gguf          = false,
  architectures = { "MinistralForCausalLM" },
  window        = "all",
  defaults      = {
    rms_norm_eps = 1e-6, max_position_embeddings = 131072, rope_theta = 10000,
    num_key_value_heads = 8, sliding_window = 4096,
  },
}

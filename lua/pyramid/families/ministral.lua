-- Ministral 8B: a Mistral that may name the layers that slide. GGUF files call it "llama".
return require("pyramid.families").family {
  name          = "ministral",
  architectures = { "MinistralForCausalLM" },
  window        = "all",
  gguf_rope     = "interleaved",
  defaults      = {
    rms_norm_eps = 1e-6, max_position_embeddings = 131072, rope_theta = 10000,
    num_key_value_heads = 8, sliding_window = 4096,
  },
}

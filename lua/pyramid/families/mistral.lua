-- Mistral 7B and its kin: a Llama with a sliding window in every layer, which later versions switch
-- off with a null. GGUF files call it "llama".
return require("pyramid.families").family {
  name          = "mistral",
  gguf_as       = "llama",
  architectures = { "MistralForCausalLM" },
  window        = "all",
  gguf_rope     = "interleaved",
  defaults      = {
    rms_norm_eps = 1e-6, max_position_embeddings = 131072, rope_theta = 10000,
      num_key_value_heads = 8, sliding_window = 4096,
  },
}

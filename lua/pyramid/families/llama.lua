-- Llama 1, 2 and 3, and what is built like them: TinyLlama, Vicuna, CodeLlama, DeepSeek-LLM, Yi.
-- GGUF files of Llamas hold q and k with each head's rows permuted, so that rotary pairs are
-- neighbours.
return require("pyramid.families").family {
  name          = "llama",
  architectures = { "LlamaForCausalLM", "LLaMAForCausalLM" },
  gguf_rope     = "interleaved",
  defaults      = { rms_norm_eps = 1e-6, max_position_embeddings = 2048, rope_theta = 10000 },
}

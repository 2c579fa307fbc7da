-- Jais 2: LayerNorm and biases everywhere, a plain MLP with squared ReLU.
return require("pyramid.families").family {
  name          = "jais2",
  gguf          = false,
  architectures = { "Jais2ForCausalLM" },
  weights       = { "attn_norm_bias", "ffn_norm_bias", "out_norm_bias" },
  decoder       = { norm = "layer", plain_mlp = true },
  fields        = { rms_norm_eps = "layer_norm_eps" },
  defaults      = {
    layer_norm_eps = 1e-5, max_position_embeddings = 8192, rope_theta = 10000,
    hidden_act = "relu2", attention_bias = true, mlp_bias = true, tie_word_embeddings = false,
  },
}

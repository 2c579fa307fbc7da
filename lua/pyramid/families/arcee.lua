-- Arcee's AFM: a Llama whose MLP has no gate, but squares what is above zero.
return require("pyramid.families").family {
  name          = "arcee",
  architectures = { "ArceeForCausalLM" },
  decoder       = { plain_mlp = true },
  gguf_rope     = "interleaved",
  defaults      = {
    rms_norm_eps = 1e-5, max_position_embeddings = 4096, rope_theta = 10000, hidden_act = "relu2",
  },
  from_gguf     = function(_, config) config.decoder.activation = "relu2" end,
}

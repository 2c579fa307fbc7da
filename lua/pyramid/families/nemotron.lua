-- Nemotron 3, 4 and Minitron: LayerNorm whose weights are held less 1 (GGUF files have it added), a
-- plain MLP with squared ReLU, heads of which a half turns.
return require("pyramid.families").family {
  name          = "nemotron",
  architectures = { "NemotronForCausalLM" },
  weights       = { "attn_norm_bias", "ffn_norm_bias", "out_norm_bias" },
  decoder       = { norm = "layer", plain_mlp = true },
  fields        = { rms_norm_eps = "norm_eps" },
  defaults      = {
    norm_eps = 1e-5, max_position_embeddings = 4096, rope_theta = 10000,
    partial_rotary_factor = 0.5, hidden_act = "relu2", tie_word_embeddings = false,
  },
  from_hf       = function(_, config) config.decoder.norm_offset = 1 end,
  from_gguf     = function(_, config) config.decoder.activation = "relu2" end,
}

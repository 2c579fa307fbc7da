-- OLMo 2: norms behind both halves of a layer, and of all heads of q and of k as one vector.
return require("pyramid.families").family {
  name          = "olmo2",
  architectures = { "Olmo2ForCausalLM" },
  weights       = { "q_norm", "k_norm" },
  decoder       = { norm_place = "after", qk_norm = "width" },
  names         = { hf = {
    attn_post_norm = "model.layers.%d.post_attention_layernorm.weight",
    ffn_post_norm = "model.layers.%d.post_feedforward_layernorm.weight",
  } },
  defaults      = { rms_norm_eps = 1e-5, max_position_embeddings = 2048, rope_theta = 10000 },
}

-- Command R: attention and MLP beside each other behind one LayerNorm without a bias, pairs that
-- turn are neighbours, logits are scaled. Command R+ norms each head of q and k, by weights of its
-- own.
return require("pyramid.families").family {
  name          = "cohere",
  gguf          = "command-r",
  architectures = { "CohereForCausalLM" },
  decoder       = { norm = "layer", residual = "shared", qk_norm = "each" },
  rope          = "interleaved",
  gguf_rope     = "interleaved",
  fields        = { rms_norm_eps = "layer_norm_eps" },
  defaults      = {
    layer_norm_eps = 1e-5, max_position_embeddings = 8192, rope_theta = 500000,
    logit_scale = 0.0625, tie_word_embeddings = true,
  },
  from_hf       = function(get, config)
    config.decoder.logit_scale = get("logit_scale", "positive", 1)
    if get("use_qk_norm", "boolean", false) then config.weights = { "q_norm", "k_norm" } end
  end,
  from_gguf     = function(get, config, has)
    config.decoder.logit_scale = get("logit_scale", "positive", 1)
    if has "blk.0.attn_q_norm.weight" then config.weights = { "q_norm", "k_norm" } end
  end,
  to_gguf       = function(put, config)
    put("logit_scale", "f32", config.decoder.logit_scale)
  end,
}

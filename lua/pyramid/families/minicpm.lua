-- MiniCPM 1 and 2, MiniCPM4: a Llama with scaled embeddings, a scale of what half a layer adds that
-- falls with the number of layers, and logits divided by how much wider it is than its model.
return require("pyramid.families").family {
  name          = "minicpm",
  architectures = { "MiniCPMForCausalLM" },
  gguf_rope     = "interleaved",
  defaults      = {
    rms_norm_eps = 1e-6, max_position_embeddings = 2048, rope_theta = 10000, scale_emb = 1,
    scale_depth = 1, dim_model_base = 1, tie_word_embeddings = true,
  },
  from_hf       = function(get, config)
    local d = config.decoder
    d.embed_scale = get("scale_emb", "positive", 1)
    d.residual_scale = get("scale_depth", "positive", 1) / math.sqrt(config.layers)
    d.logit_scale = get("dim_model_base", "positive", 1) / config.width
  end,
  -- what early files leave out are numbers of the 2B
  from_gguf     = function(get, config)
    local d = config.decoder
    d.embed_scale = get("embedding_scale", "positive", 12)
    d.residual_scale = get("residual_scale", "positive", 1.4 / math.sqrt(config.layers))
    d.logit_scale = 1 / get("logit_scale", "positive", config.width / 256)
  end,
  to_gguf       = function(put, config)
    local d = config.decoder
    put("embedding_scale", "f32", d.embed_scale)
    put("residual_scale", "f32", d.residual_scale)
    put("logit_scale", "f32", 1 / d.logit_scale)
  end,
}

-- Granite 3 and 4 without experts: a Llama with four scalars, of embeddings, of scores, of what
-- half a layer adds, and of logits, which are divided by theirs.
local rope = require "pyramid.loaders.rope"

return require("pyramid.families").family {
  name          = "granite",
  architectures = { "GraniteForCausalLM" },
  gguf_rope     = "interleaved",
  defaults      = {
    rms_norm_eps = 1e-6, max_position_embeddings = 2048, rope_theta = 10000,
    embedding_multiplier = 1.0, residual_multiplier = 1.0, attention_multiplier = 1.0,
    logits_scaling = 1.0,
  },
  from_hf       = function(get, config)
    local d = config.decoder
    d.embed_scale = get("embedding_multiplier", "positive")
    d.residual_scale = get("residual_multiplier", "positive")
    d.score_scale = get("attention_multiplier", "positive")
    d.logit_scale = 1 / get("logits_scaling", "positive", 1)
  end,
  from_gguf     = function(get, config)
    local d = config.decoder
    d.embed_scale, d.residual_scale = get("embedding_scale", "positive"),
      get("residual_scale", "positive")
    d.score_scale = get("attention.scale", "positive")
    d.logit_scale = 1 / get("logit_scale", "positive", 1)
    -- how hybrids of which all layers are attention say that none turns
    if not get("rope.scaling.finetuned", "boolean", true) then rope.turn(config, "none", "none") end
  end,
  to_gguf       = function(put, config)
    local d = config.decoder
    put("embedding_scale", "f32", d.embed_scale)
    put("residual_scale", "f32", d.residual_scale)
    put("attention.scale", "f32", d.score_scale)
    put("logit_scale", "f32", 1 / d.logit_scale)
  end,
}

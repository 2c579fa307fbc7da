-- Gemma 2: as Gemma, with norms around both halves of a layer, soft caps of scores and logits, a
-- scale of scores that is a number of its own, and a window in every other layer.
local function scale_scores(config, scalar) config.decoder.score_scale = scalar ^ -0.5 end

return require("pyramid.families").family {
  name          = "gemma2",
  architectures = { "Gemma2ForCausalLM" },
  decoder       = { norm_place = "around", activation = "gelu_tanh" },
  window        = "every",
  names         = { hf = {
    attn_post_norm = "model.layers.%d.post_attention_layernorm.weight",
    ffn_norm = "model.layers.%d.pre_feedforward_layernorm.weight",
    ffn_post_norm = "model.layers.%d.post_feedforward_layernorm.weight",
  } },
  defaults      = {
    rms_norm_eps = 1e-6, max_position_embeddings = 8192, rope_theta = 10000, head_dim = 256,
    num_key_value_heads = 4, sliding_window = 4096, sliding_window_pattern = 2,
    query_pre_attn_scalar = 256, attn_logit_softcapping = 50.0, final_logit_softcapping = 30.0,
    tie_word_embeddings = true,
  },
  from_hf       = function(get, config)
    local d = config.decoder
    d.norm_offset, d.embed_scale = 1, config.width ^ 0.5
    d.score_cap = get("attn_logit_softcapping", "positive", 0)
    d.logit_cap = get("final_logit_softcapping", "positive", 0)
    scale_scores(config, get("query_pre_attn_scalar", "positive", 256))
  end,
  from_gguf     = function(get, config)
    local d = config.decoder
    d.embed_scale = config.width ^ 0.5
    d.score_cap = get("attn_logit_softcapping", "positive", 50)
    d.logit_cap = get("final_logit_softcapping", "positive", 30)
    -- of the 27B model alone not by the heads' own width
    scale_scores(config, config.layers == 46 and config.width // config.heads or config.head_dim)
  end,
  to_gguf       = function(put, config)
    put("attn_logit_softcapping", "f32", config.decoder.score_cap)
    put("final_logit_softcapping", "f32", config.decoder.logit_cap)
  end,
}

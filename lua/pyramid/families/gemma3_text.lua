-- Gemma 3: as Gemma 2 without soft caps; every head of q and k is normed before it turns, five
-- layers of six slide, and those turn by a table of their own. 268M to 27B; of the larger the part
-- for text.
local function scale_scores(config, scalar) config.decoder.score_scale = scalar ^ -0.5 end

return require("pyramid.families").family {
  name          = "gemma3_text",
  gguf          = "gemma3",
  architectures = { "Gemma3ForCausalLM", "Gemma3TextModel" },
  weights       = { "q_norm", "k_norm" },
  decoder       = { norm_place = "around", activation = "gelu_tanh" },
  window        = "every",
  names         = { hf = {
    attn_post_norm = "model.layers.%d.post_attention_layernorm.weight",
    ffn_norm = "model.layers.%d.pre_feedforward_layernorm.weight",
    ffn_post_norm = "model.layers.%d.post_feedforward_layernorm.weight",
  } },
  defaults      = {
    rms_norm_eps = 1e-6, max_position_embeddings = 131072, rope_theta = 1000000, head_dim = 256,
    rope_local_base_freq = 10000, num_key_value_heads = 4, sliding_window = 4096,
    sliding_window_pattern = 6, query_pre_attn_scalar = 256, tie_word_embeddings = true,
  },
  from_hf       = function(get, config)
    local d = config.decoder
    d.norm_offset, d.embed_scale = 1, config.width ^ 0.5
    d.score_cap = get("attn_logit_softcapping", "positive", 0)
    d.logit_cap = get("final_logit_softcapping", "positive", 0)
    scale_scores(config, get("query_pre_attn_scalar", "positive", 256))
  end,
  from_gguf     = function(get, config)
    local d, turns = config.decoder, {}
    d.embed_scale = config.width ^ 0.5
    d.logit_cap = get("final_logit_softcapping", "number", 0)
    -- of the 27B model alone not by the heads' own width
    scale_scores(config, config.layers == 62 and config.width // config.heads or config.head_dim)
    for i = 1, config.layers do
      turns[i] = config.window and config.window[i] > 0 and "second" or "first"
    end
    d.turns = turns
    config.rope_second = { type = "none", style = config.rope.style, dims = config.rope.dims,
      base = get("rope.freq_base_swa", "number", 10000), names = config.rope.names }
  end,
}

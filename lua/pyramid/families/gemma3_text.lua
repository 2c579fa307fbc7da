-- Gemma 3: as Gemma 2 without soft caps; every head of q and k is normed before it turns, five
-- layers of six slide, and those turn by a table of their own. 268M to 27B; of the larger the part
-- for text.
local gemma2 = require "pyramid.families.gemma2"
local rope = require "pyramid.loaders.rope"

return require("pyramid.families").family {
  name          = "gemma3_text",
  gguf          = "gemma3",
  architectures = { "Gemma3ForCausalLM", "Gemma3TextModel" },
  weights       = { "q_norm", "k_norm" },
  decoder       = { norm_place = "around", activation = "gelu_tanh" },
  window        = "every",
  gguf_pattern  = true,
  names         = gemma2.names,
  defaults      = {
    rms_norm_eps = 1e-6, max_position_embeddings = 131072, rope_theta = 1000000, head_dim = 256,
    rope_local_base_freq = 10000, num_key_value_heads = 4, sliding_window = 4096,
    sliding_window_pattern = 6, query_pre_attn_scalar = 256, tie_word_embeddings = true,
  },
  from_hf       = gemma2.from_hf,
  from_gguf     = function(get, config)
    local d = config.decoder
    d.embed_scale = config.width ^ 0.5
    d.logit_cap = get("final_logit_softcapping", "number", 0)
    -- of the 27B model alone not by the heads' own width
    d.score_scale = (config.layers == 62 and config.width // config.heads or config.head_dim) ^ -0.5
    rope.turn_windows_apart(config, get("rope.freq_base_swa", "number", 10000))
  end,
}

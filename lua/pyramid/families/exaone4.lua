-- EXAONE 4: norms behind both halves of a layer; every head of q and k is normed. In the 32B three
-- layers of four slide, and only those turn.
local rope = require "pyramid.loaders.rope"

local function turn_windowed(_, config)
  if config.window then rope.turn(config, "first", "none") end
end

return require("pyramid.families").family {
  name          = "exaone4",
  architectures = { "Exaone4ForCausalLM" },
  weights       = { "q_norm", "k_norm" },
  decoder       = { norm_place = "after" },
  window        = "every",
  gguf_pattern  = true,
  names         = { hf = {
    attn_post_norm = "model.layers.%d.post_attention_layernorm.weight",
    ffn_post_norm = "model.layers.%d.post_feedforward_layernorm.weight",
  } },
  defaults      = {
    rms_norm_eps = 1e-5, max_position_embeddings = 2048, rope_theta = 10000,
    num_key_value_heads = 32, sliding_window = 4096, sliding_window_pattern = 4,
  },
  from_hf       = turn_windowed,
  from_gguf     = turn_windowed,
}

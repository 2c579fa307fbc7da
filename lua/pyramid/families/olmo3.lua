-- OLMo 3: as OLMo 2, of which three layers of four slide; those turn without the scaling that the
-- others have. GGUF files call it "olmo2", and have a window.
local rope = require "pyramid.loaders.rope"

local function turn_plainly(config, base)
  if config.window and not config.rope_second then rope.turn_windows_apart(config, base) end
end

return require("pyramid.families").family {
  name          = "olmo3",
  gguf          = "olmo2",
  gguf_key      = "attention.sliding_window",
  architectures = { "Olmo3ForCausalLM" },
  weights       = { "q_norm", "k_norm" },
  decoder       = { norm_place = "after", qk_norm = "width" },
  window        = "every",
  gguf_pattern  = true,
  names         = { hf = {
    attn_post_norm = "model.layers.%d.post_attention_layernorm.weight",
    ffn_post_norm = "model.layers.%d.post_feedforward_layernorm.weight",
  } },
  defaults      = {
    rms_norm_eps = 1e-5, max_position_embeddings = 2048, rope_theta = 500000,
    sliding_window = 4096, sliding_window_pattern = 4,
  },
  from_hf       = function(_, config) turn_plainly(config, config.rope.base) end,
  from_gguf     = function(get, config)
    turn_plainly(config, get("rope.freq_base_swa", "positive", config.rope.base))
  end,
}

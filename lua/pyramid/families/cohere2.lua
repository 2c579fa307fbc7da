-- Command R7B and Command A: as Command R, with a window in three layers of four; the others see
-- all, and turn nothing.
local cohere = require "pyramid.families.cohere"
local rope = require "pyramid.loaders.rope"

local function turn_windows(get, config)
  config.decoder.logit_scale = get("logit_scale", "positive", 1)
  rope.turn(config, "first", "none")
end

return require("pyramid.families").family {
  name          = "cohere2",
  architectures = { "Cohere2ForCausalLM" },
  decoder       = { norm = "layer", residual = "shared" },
  window        = "every",
  rope          = "interleaved",
  gguf_rope     = "interleaved",
  fields        = { rms_norm_eps = "layer_norm_eps" },
  defaults      = {
    layer_norm_eps = 1e-5, max_position_embeddings = 8192, rope_theta = 10000,
    logit_scale = 0.0625, sliding_window = 4096, sliding_window_pattern = 4,
    tie_word_embeddings = true,
  },
  from_hf       = turn_windows,
  from_gguf     = turn_windows,
  to_gguf       = cohere.to_gguf,
}

-- Gemma: norms hold what their weights are beyond 1 (GGUF files have it added), embeddings are
-- scaled by the root of the width, and the MLP is gated by GELU.
local function scale_embeddings(_, config) config.decoder.embed_scale = config.width ^ 0.5 end

return require("pyramid.families").family {
  name          = "gemma",
  architectures = { "GemmaForCausalLM" },
  decoder       = { activation = "gelu_tanh" },
  defaults      = {
    rms_norm_eps = 1e-6, max_position_embeddings = 8192, rope_theta = 10000, head_dim = 256,
    tie_word_embeddings = true,
  },
  from_hf       = function(get, config)
    config.decoder.norm_offset = 1
    scale_embeddings(get, config)
  end,
  from_gguf     = scale_embeddings,
}

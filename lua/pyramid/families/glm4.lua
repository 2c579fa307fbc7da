-- GLM-4-0414 and GLM-Z1 (9B, 32B): as GLM, with norms around both halves of a layer.
local glm = require "pyramid.families.glm"

return require("pyramid.families").family {
  name          = "glm4",
  architectures = { "Glm4ForCausalLM" },
  decoder       = { norm_place = "around" },
  rope          = "interleaved",
  gguf_rope     = "interleaved",
  names         = { hf = {
    attn_post_norm = "model.layers.%d.post_self_attn_layernorm.weight",
    ffn_post_norm = "model.layers.%d.post_mlp_layernorm.weight",
  } },
  fused         = glm.fused,
  defaults      = glm.defaults,
  from_hf       = glm.from_hf,
}

-- BLOOM and BLOOMZ: LayerNorm, behind the embeddings, too, biases everywhere, ALiBi; q, k and v of
-- a head follow each other in one matrix. Names are those of Falcon.
local alibi = require "pyramid.loaders.alibi"
local falcon = require "pyramid.families.falcon"

local function slope(_, config) config.decoder.slopes = alibi.slopes(config.heads) end

local names = { embed_norm = "transformer.word_embeddings_layernorm.weight",
  embed_norm_bias = "transformer.word_embeddings_layernorm.bias" }
for role, name in next, falcon.names.hf do names[role] = name end

return require("pyramid.families").family {
  name          = "bloom",
  architectures = { "BloomForCausalLM" },
  weights       = { "embed_norm", "embed_norm_bias", "attn_norm_bias", "ffn_norm_bias",
    "out_norm_bias", "q_bias", "k_bias", "v_bias", "o_bias", "up_bias", "down_bias" },
  decoder       = { norm = "layer", plain_mlp = true, activation = "gelu_tanh" },
  rope          = "none",
  gguf_rope     = "none",
  fields        = {
    num_hidden_layers = "n_layer", num_attention_heads = "n_head",
    max_position_embeddings = "seq_length", rms_norm_eps = "layer_norm_epsilon",
  },
  names         = { hf = names },
  fused         = { hf = { qkv = falcon.fused.hf.qkv } },
  defaults      = { layer_norm_epsilon = 1e-5, seq_length = 2048, tie_word_embeddings = true },
  from_hf       = slope,
  from_gguf     = slope,
}

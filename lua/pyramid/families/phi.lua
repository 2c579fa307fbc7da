-- Phi-1, Phi-1.5 and Phi-2: attention and MLP beside each other behind one LayerNorm, biases
-- everywhere, on the logits, too; heads of which a part turns.
return require("pyramid.families").family {
  name          = "phi",
  gguf          = "phi2",
  architectures = { "PhiForCausalLM" },
  weights       = { "attn_norm_bias", "out_norm_bias", "output_bias", "q_bias", "k_bias", "v_bias",
    "o_bias", "up_bias", "down_bias" },
  decoder       = { norm = "layer", plain_mlp = true, residual = "shared" },
  fields        = { rms_norm_eps = "layer_norm_eps" },
  names         = { hf = {
    out_norm = "model.final_layernorm.weight", out_norm_bias = "model.final_layernorm.bias",
    o = "model.layers.%d.self_attn.dense.weight", o_bias = "model.layers.%d.self_attn.dense.bias",
    up = "model.layers.%d.mlp.fc1.weight", up_bias = "model.layers.%d.mlp.fc1.bias",
    down = "model.layers.%d.mlp.fc2.weight", down_bias = "model.layers.%d.mlp.fc2.bias",
  } },
  defaults      = {
    layer_norm_eps = 1e-5, max_position_embeddings = 2048, rope_theta = 10000,
    partial_rotary_factor = 0.5, hidden_act = "gelu_new", tie_word_embeddings = false,
  },
  from_gguf     = function(_, config) config.decoder.activation = "gelu_tanh" end,
}

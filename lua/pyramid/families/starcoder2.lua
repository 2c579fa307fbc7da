-- StarCoder 2: LayerNorm, a plain MLP with GELU, and biases everywhere; grouped queries. A window
-- in all layers, where config.json has one.
local function biases(get, config)
  config.weights = { "attn_norm_bias", "ffn_norm_bias", "out_norm_bias" }
  if not get("use_bias", "boolean", true) then return end
  for _, role in ipairs { "q_bias", "k_bias", "v_bias", "o_bias", "up_bias", "down_bias" } do
    config.weights[#config.weights + 1] = role
  end
end

return require("pyramid.families").family {
  name          = "starcoder2",
  architectures = { "Starcoder2ForCausalLM" },
  weights       = { "attn_norm_bias", "ffn_norm_bias", "out_norm_bias" },
  decoder       = { norm = "layer", plain_mlp = true },
  window        = "all",
  fields        = { rms_norm_eps = "norm_epsilon" },
  names         = { hf = {
    up = "model.layers.%d.mlp.c_fc.weight", up_bias = "model.layers.%d.mlp.c_fc.bias",
    down = "model.layers.%d.mlp.c_proj.weight", down_bias = "model.layers.%d.mlp.c_proj.bias",
  } },
  defaults      = {
    norm_epsilon = 1e-5, max_position_embeddings = 4096, rope_theta = 10000,
    num_key_value_heads = 2, hidden_act = "gelu_pytorch_tanh", tie_word_embeddings = true,
  },
  from_hf       = biases,
  from_gguf     = function(_, config) config.decoder.activation = "gelu_tanh" end,
}

-- OPT: LayerNorm with biases, learned positions of which the first two are padding's, a plain MLP
-- with ReLU. The 350M model, whose embeddings are narrower than its layers and whose norms come
-- behind, is refused.
return require("pyramid.families").family {
  name          = "opt",
  gguf          = false,
  architectures = { "OPTForCausalLM" },
  decoder       = { norm = "layer", plain_mlp = true, positions = true },
  rope          = "none",
  fields        = { intermediate_size = "ffn_dim", rms_norm_eps = "layer_norm_eps" },
  names         = { hf = {
    embed = "model.decoder.embed_tokens.weight",
    positions = "model.decoder.embed_positions.weight",
    out_norm = "model.decoder.final_layer_norm.weight",
    out_norm_bias = "model.decoder.final_layer_norm.bias",
    attn_norm = "model.decoder.layers.%d.self_attn_layer_norm.weight",
    attn_norm_bias = "model.decoder.layers.%d.self_attn_layer_norm.bias",
    ffn_norm = "model.decoder.layers.%d.final_layer_norm.weight",
    ffn_norm_bias = "model.decoder.layers.%d.final_layer_norm.bias",
    q = "model.decoder.layers.%d.self_attn.q_proj.weight",
    k = "model.decoder.layers.%d.self_attn.k_proj.weight",
    v = "model.decoder.layers.%d.self_attn.v_proj.weight",
    o = "model.decoder.layers.%d.self_attn.out_proj.weight",
    q_bias = "model.decoder.layers.%d.self_attn.q_proj.bias",
    k_bias = "model.decoder.layers.%d.self_attn.k_proj.bias",
    v_bias = "model.decoder.layers.%d.self_attn.v_proj.bias",
    o_bias = "model.decoder.layers.%d.self_attn.out_proj.bias",
    up = "model.decoder.layers.%d.fc1.weight", up_bias = "model.decoder.layers.%d.fc1.bias",
    down = "model.decoder.layers.%d.fc2.weight", down_bias = "model.decoder.layers.%d.fc2.bias",
  } },
  defaults      = {
    layer_norm_eps = 1e-5, max_position_embeddings = 2048, activation_function = "relu",
    tie_word_embeddings = true,
  },
  from_hf       = function(get, config)
    config.first_position = 2
    config.weights = { "attn_norm_bias", "ffn_norm_bias", "out_norm_bias" }
    if not get("enable_bias", "boolean", true) then return end
    for _, role in ipairs { "q_bias", "k_bias", "v_bias", "o_bias", "up_bias", "down_bias" } do
      config.weights[#config.weights + 1] = role
    end
  end,
}

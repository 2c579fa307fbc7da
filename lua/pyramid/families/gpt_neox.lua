-- GPT-NeoX and Pythia: attention and MLP beside each other, each with a LayerNorm of its own; q, k
-- and v in one matrix, head by head, of which a quarter turns.
return require("pyramid.families").family {
  name          = "gpt_neox",
  gguf          = "gptneox",
  architectures = { "GPTNeoXForCausalLM" },
  weights       = { "attn_norm_bias", "ffn_norm_bias", "out_norm_bias", "up_bias", "down_bias" },
  decoder       = { norm = "layer", plain_mlp = true },
  fields        = { rms_norm_eps = "layer_norm_eps", rope_theta = "rotary_emb_base" },
  names         = { hf = {
    embed = "gpt_neox.embed_in.weight", output = "embed_out.weight",
    out_norm = "gpt_neox.final_layer_norm.weight",
    out_norm_bias = "gpt_neox.final_layer_norm.bias",
    attn_norm = "gpt_neox.layers.%d.input_layernorm.weight",
    attn_norm_bias = "gpt_neox.layers.%d.input_layernorm.bias",
    ffn_norm = "gpt_neox.layers.%d.post_attention_layernorm.weight",
    ffn_norm_bias = "gpt_neox.layers.%d.post_attention_layernorm.bias",
    q = "gpt_neox.layers.%d.attention.q.weight", k = "gpt_neox.layers.%d.attention.k.weight",
    v = "gpt_neox.layers.%d.attention.v.weight", q_bias = "gpt_neox.layers.%d.attention.q.bias",
    k_bias = "gpt_neox.layers.%d.attention.k.bias", v_bias = "gpt_neox.layers.%d.attention.v.bias",
    o = "gpt_neox.layers.%d.attention.dense.weight",
    o_bias = "gpt_neox.layers.%d.attention.dense.bias",
    up = "gpt_neox.layers.%d.mlp.dense_h_to_4h.weight",
    up_bias = "gpt_neox.layers.%d.mlp.dense_h_to_4h.bias",
    down = "gpt_neox.layers.%d.mlp.dense_4h_to_h.weight",
    down_bias = "gpt_neox.layers.%d.mlp.dense_4h_to_h.bias",
  } },
  fused         = {
    hf = { qkv = { name = "gpt_neox.layers.%d.attention.query_key_value", groups = true } },
  },
  defaults      = {
    layer_norm_eps = 1e-5, max_position_embeddings = 2048, rotary_pct = 0.25,
    rotary_emb_base = 10000, hidden_act = "gelu", attention_bias = true,
  },
  from_hf       = function(get, config)
    local parallel = get("use_parallel_residual", "boolean", true)
    config.decoder.residual = parallel and "parallel" or "sequential"
    if get("attention_bias", "boolean", true) then
      config.weights = { "attn_norm_bias", "ffn_norm_bias", "out_norm_bias", "up_bias",
        "down_bias", "o_bias" }
    end
  end,
  from_gguf     = function(get, config)
    local parallel = get("use_parallel_residual", "boolean", true)
    config.decoder.residual = parallel and "parallel" or "sequential"
    config.decoder.activation = "gelu"
  end,
  to_gguf       = function(put, config)
    put("use_parallel_residual", "bool", config.decoder.residual == "parallel")
  end,
}

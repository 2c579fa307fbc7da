-- InternLM2 and 2.5: a Llama with names of its own; q, k and v are one matrix, by K/V heads.
return require("pyramid.families").family {
  name          = "internlm2",
  architectures = { "InternLM2ForCausalLM" },
  gguf_rope     = "interleaved",
  names         = { hf = {
    embed = "model.tok_embeddings.weight", output = "output.weight",
    attn_norm = "model.layers.%d.attention_norm.weight",
    ffn_norm = "model.layers.%d.ffn_norm.weight",
    q = "model.layers.%d.attention.wq.weight", k = "model.layers.%d.attention.wk.weight",
    v = "model.layers.%d.attention.wv.weight", q_bias = "model.layers.%d.attention.wq.bias",
    k_bias = "model.layers.%d.attention.wk.bias", v_bias = "model.layers.%d.attention.wv.bias",
    o = "model.layers.%d.attention.wo.weight", o_bias = "model.layers.%d.attention.wo.bias",
    gate = "model.layers.%d.feed_forward.w1.weight",
    up = "model.layers.%d.feed_forward.w3.weight",
    down = "model.layers.%d.feed_forward.w2.weight",
  } },
  fused         = {
    hf = { qkv = { name = "model.layers.%d.attention.wqkv", groups = true, apart = true } },
  },
  defaults      = {
    rms_norm_eps = 1e-6, max_position_embeddings = 2048, rope_theta = 10000, bias = true,
  },
  from_hf       = function(get, config)
    config.weights = get("bias", "boolean") and { "o_bias" } or {}
  end,
}

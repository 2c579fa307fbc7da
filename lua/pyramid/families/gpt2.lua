-- GPT-2: LayerNorm with biases, learned positions, a plain MLP with GELU. Its matrices lie as [in,
-- out], q, k and v in one.
local biases = { "attn_norm_bias", "ffn_norm_bias", "out_norm_bias", "q_bias", "k_bias", "v_bias",
  "o_bias", "up_bias", "down_bias" }

return require("pyramid.families").family {
  name          = "gpt2",
  architectures = { "GPT2LMHeadModel" },
  weights       = biases,
  decoder       = { norm = "layer", plain_mlp = true, positions = true },
  rope          = "none",
  gguf_rope     = "none",
  fields        = {
    num_hidden_layers = "n_layer", num_attention_heads = "n_head", hidden_size = "n_embd",
    intermediate_size = "n_inner", max_position_embeddings = "n_positions",
    rms_norm_eps = "layer_norm_epsilon",
  },
  names         = { hf = {
    embed = "transformer.wte.weight", positions = "transformer.wpe.weight",
    out_norm = "transformer.ln_f.weight", out_norm_bias = "transformer.ln_f.bias",
    attn_norm = "transformer.h.%d.ln_1.weight", attn_norm_bias = "transformer.h.%d.ln_1.bias",
    ffn_norm = "transformer.h.%d.ln_2.weight", ffn_norm_bias = "transformer.h.%d.ln_2.bias",
    q = "transformer.h.%d.attn.q.weight", k = "transformer.h.%d.attn.k.weight",
    v = "transformer.h.%d.attn.v.weight", q_bias = "transformer.h.%d.attn.q.bias",
    k_bias = "transformer.h.%d.attn.k.bias", v_bias = "transformer.h.%d.attn.v.bias",
    o = "transformer.h.%d.attn.c_proj.weight", o_bias = "transformer.h.%d.attn.c_proj.bias",
    up = "transformer.h.%d.mlp.c_fc.weight", up_bias = "transformer.h.%d.mlp.c_fc.bias",
    down = "transformer.h.%d.mlp.c_proj.weight", down_bias = "transformer.h.%d.mlp.c_proj.bias",
  } },
  fused         = { hf = { qkv = { name = "transformer.h.%d.attn.c_attn", transposed = true } } },
  transposed    = { o = true, up = true, down = true },
  defaults      = {
    layer_norm_epsilon = 1e-5, n_positions = 1024, activation_function = "gelu_new",
    tie_word_embeddings = true,
  },
  from_gguf     = function(_, config) config.decoder.activation = "gelu_tanh" end,
}

-- GPT-J: attention and MLP beside each other behind one LayerNorm; the first dimensions of a head
-- turn, pairs of neighbours; biases on the MLP and the logits alone.
return require("pyramid.families").family {
  name          = "gptj",
  gguf          = false,
  architectures = { "GPTJForCausalLM" },
  weights       = { "attn_norm_bias", "out_norm_bias", "output_bias", "up_bias", "down_bias" },
  decoder       = { norm = "layer", plain_mlp = true, residual = "shared" },
  rope          = "interleaved",
  fields        = require("pyramid.families.gpt2").fields,
  names         = { hf = {
    embed = "transformer.wte.weight", out_norm = "transformer.ln_f.weight",
    out_norm_bias = "transformer.ln_f.bias",
    attn_norm = "transformer.h.%d.ln_1.weight", attn_norm_bias = "transformer.h.%d.ln_1.bias",
    q = "transformer.h.%d.attn.q_proj.weight", k = "transformer.h.%d.attn.k_proj.weight",
    v = "transformer.h.%d.attn.v_proj.weight", o = "transformer.h.%d.attn.out_proj.weight",
    up = "transformer.h.%d.mlp.fc_in.weight", up_bias = "transformer.h.%d.mlp.fc_in.bias",
    down = "transformer.h.%d.mlp.fc_out.weight", down_bias = "transformer.h.%d.mlp.fc_out.bias",
  } },
  defaults      = {
    layer_norm_epsilon = 1e-5, n_positions = 2048, rope_theta = 10000, rotary_dim = 64,
    activation_function = "gelu_new", tie_word_embeddings = false,
  },
}

-- StarCoder and SantaCoder: GPT-2 with one head of keys and values for all queries, and matrices
-- that lie as [out, in].
local gpt2 = require "pyramid.families.gpt2"

return require("pyramid.families").family {
  name          = "gpt_bigcode",
  gguf          = "starcoder",
  architectures = { "GPTBigCodeForCausalLM" },
  weights       = gpt2.weights,
  decoder       = { norm = "layer", plain_mlp = true, positions = true },
  rope          = "none",
  gguf_rope     = "none",
  fields        = gpt2.fields,
  names         = gpt2.names,
  fused         = { hf = { qkv = { name = "transformer.h.%d.attn.c_attn", groups = true } } },
  defaults      = {
    layer_norm_epsilon = 1e-5, n_positions = 1024, activation_function = "gelu_pytorch_tanh",
    multi_query = true, tie_word_embeddings = true,
  },
  from_hf       = function(get, config)
    config.kv_heads = get("multi_query", "boolean", true) and 1 or config.heads
  end,
  from_gguf     = gpt2.from_gguf,
}

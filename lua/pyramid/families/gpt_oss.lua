-- GPT-OSS: a mixture of experts with biases everywhere, a clamped SwiGLU, a sink in each head's
-- softmax, and a window in every other layer. GGUF files only: in Hugging Face's folders the
-- experts of a layer are one matrix, transposed, whose columns are gates and ups in turn.
local fault = require "pyramid.loaders.fault"

return require("pyramid.families").family {
  name          = "gpt_oss",
  gguf          = "gpt-oss",
  architectures = { "GptOssForCausalLM" },
  weights       = { "q_bias", "k_bias", "v_bias", "o_bias", "sinks", "router_bias", "expert_bias" },
  decoder       = { activation = "swiglu_clamped", activation_limit = 7 },
  window        = "every",
  experts       = { ff = true, renormalise = true },
  -- llama.cpp's name for what is the MLP's norm
  names         = { gguf = { ffn_norm = "blk.%d.post_attention_norm.weight" } },
  defaults      = {
    rms_norm_eps = 1e-5, max_position_embeddings = 131072, rope_theta = 150000,
    num_key_value_heads = 8, head_dim = 64, sliding_window = 128, sliding_window_pattern = 2,
    num_local_experts = 128, num_experts_per_tok = 4,
  },
  from_hf       = function()
    fault.raise("unsupported", "config.json: model_type gpt_oss: folders of GPT-OSS, whose experts "
      .. "are interleaved in one matrix, cannot be read; its GGUF files can")
  end,
}

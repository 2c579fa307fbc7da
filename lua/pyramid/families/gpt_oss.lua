-- GPT-OSS: a mixture of experts with biases everywhere, a clamped SwiGLU, a sink in each head's
-- softmax, and a window in every other layer. In folders gate and up of a layer's experts are one
-- matrix, of which they have a row in turn: in mxfp4, as published, or transposed in bf16.
local fault = require "pyramid.loaders.fault"

local mlp = "model.layers.%d.mlp."

return require("pyramid.families").family {
  name          = "gpt_oss",
  gguf          = "gpt-oss",
  architectures = { "GptOssForCausalLM" },
  weights       = { "q_bias", "k_bias", "v_bias", "o_bias", "sinks", "router_bias", "expert_bias" },
  decoder       = { activation = "swiglu_clamped", activation_limit = 7 },
  window        = "every",
  experts       = { ff = true, renormalise = true, transposed = true, dealt = true },
  names         = {
    hf = {
      router = mlp .. "router.weight", router_bias = mlp .. "router.bias",
      experts_gate_up_bias = mlp .. "experts.gate_up_proj_bias",
      experts_down_bias = mlp .. "experts.down_proj_bias",
      expert_gate_bias = mlp .. "experts.%d.gate_proj.bias",
      expert_up_bias = mlp .. "experts.%d.up_proj.bias",
      expert_down_bias = mlp .. "experts.%d.down_proj.bias",
    },
    -- llama.cpp's name for what is the MLP's norm
    gguf = { ffn_norm = "blk.%d.post_attention_norm.weight" },
  },
  defaults      = {
    rms_norm_eps = 1e-5, max_position_embeddings = 131072, rope_theta = 150000,
    num_key_value_heads = 8, head_dim = 64, sliding_window = 128, sliding_window_pattern = 2,
    num_local_experts = 128, num_experts_per_tok = 4, attention_bias = true, swiglu_limit = 7.0,
    swiglu_alpha = 1.702,
  },
  from_hf       = function(get, config)
    config.decoder.activation_limit = get("swiglu_limit", "positive", 7)
    local alpha = get("swiglu_alpha", "number", 1.702)
    if alpha ~= 1.702 then
      fault.raise("unsupported", "config.json: swiglu_alpha is %s (known: 1.702)",
        fault.quote(alpha))
    end
    if not get("attention_bias", "boolean", true) then
      config.weights = { "sinks", "router_bias", "expert_bias" }
    end
  end,
}

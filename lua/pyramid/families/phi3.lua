-- Phi-3, Phi-3.5, Phi-4 and Phi-4-mini: a Llama whose q, k and v are one matrix, gate and up
-- another; heads of which a part may turn, and LongRoPE.
return require("pyramid.families").family {
  name          = "phi3",
  architectures = { "Phi3ForCausalLM" },
  window        = "all",
  fused         = {
    hf = { qkv = { name = "model.layers.%d.self_attn.qkv_proj" },
      gate_up = { name = "model.layers.%d.mlp.gate_up_proj" } },
    gguf = { gate_up = { name = "blk.%d.ffn_up" } },
  },
  defaults      = {
    rms_norm_eps = 1e-5, max_position_embeddings = 4096, rope_theta = 10000,
    original_max_position_embeddings = 4096,
  },
  -- what is left after attention and MLP in training only
  from_hf       = function(get) get("resid_pdrop", "number") end,
}

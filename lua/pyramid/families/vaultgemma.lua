-- VaultGemma: Gemma 2 without the norms behind attention and MLP.
return require("pyramid.families").family {
  name          = "vaultgemma",
  gguf          = false,
  architectures = { "VaultGemmaForCausalLM" },
  decoder       = { activation = "gelu_tanh" },
  window        = "every",
  names         = { hf = { ffn_norm = "model.layers.%d.pre_feedforward_layernorm.weight" } },
  defaults      = {
    rms_norm_eps = 1e-6, max_position_embeddings = 8192, rope_theta = 10000, head_dim = 256,
    num_key_value_heads = 4, sliding_window = 4096, sliding_window_pattern = 2,
    query_pre_attn_scalar = 256, attn_logit_softcapping = 50.0, final_logit_softcapping = 30.0,
    tie_word_embeddings = true,
  },
  from_hf       = function(get, config)
    local d = config.decoder
    d.norm_offset, d.embed_scale = 1, config.width ^ 0.5
    d.score_cap = get("attn_logit_softcapping", "number", 0)
    d.logit_cap = get("final_logit_softcapping", "number", 0)
    d.score_scale = get("query_pre_attn_scalar", "positive", config.head_dim) ^ -0.5
  end,
}

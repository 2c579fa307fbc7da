-- VaultGemma: Gemma 2 without the norms behind attention and MLP.
local gemma2 = require "pyramid.families.gemma2"

return require("pyramid.families").family {
  name          = "vaultgemma",
  gguf          = false,
  architectures = { "VaultGemmaForCausalLM" },
  decoder       = { activation = "gelu_tanh" },
  window        = "every",
  names         = { hf = { ffn_norm = "model.layers.%d.pre_feedforward_layernorm.weight" } },
  defaults      = gemma2.defaults,
  from_hf       = gemma2.from_hf,
}

-- Models that are widely published and that Pyramid does not have: what their layers do that its
-- one machine (pyr_model_config in core/pyramid.h) cannot. By `model_type` of config.json, and by
-- GGUF's general.architecture where that is another name; a name that is in neither list is refused
-- without a reason. Sources: transformers' modeling_*.py, llama.cpp's src/models.
--
--     config.json: model_type apertus, architectures ApertusForCausalLM: its activation is xIELU
--     (known families: …)

local refused = {}

local states = "it has layers of states in place of attention"
local latent = "its attention reads keys and values from one latent vector (MLA)"
local encoder = "it is no decoder of text alone"

---@type table<string, string>
refused.reasons = {
  apertus = "its activation is xIELU",
  hunyuan_v1_dense = "its queries and keys are normed after they turn, not before",
  hunyuan_v1_moe = "its queries and keys are normed after they turn, not before",
  minicpm3 = latent, deepseek_v2 = latent, deepseek_v3 = latent, kimi_k2 = latent,
  mamba = states, mamba2 = states, falcon_mamba = states, jamba = states, bamba = states,
  zamba2 = states, nemotron_h = states, falcon_h1 = states, granitemoehybrid = states,
  recurrent_gemma = states, rwkv = states, lfm2 = states, qwen3_next = states,
  llama4 = "its queries grow with their position, and layers attend within chunks",
  llama4_text = "its queries grow with their position, and layers attend within chunks",
  gemma3n = "its layers have several streams, and share keys and values",
  gemma3n_text = "its layers have several streams, and share keys and values",
  bert = encoder, roberta = encoder, t5 = encoder, bart = encoder, whisper = encoder,
}

-- What GGUF files call them otherwise.
local gguf = {
  ["hunyuan-dense"] = "hunyuan_v1_dense", ["hunyuan-moe"] = "hunyuan_v1_moe",
  deepseek2 = "deepseek_v3", ["falcon-h1"] = "falcon_h1", granitehybrid = "granitemoehybrid",
  rwkv6 = "rwkv", rwkv7 = "rwkv", qwen3next = "qwen3_next", ["nomic-bert"] = "bert",
}

---Why models of a kind are refused, as a part of a message: ": " and a reason, or nothing.
---@param name string  model_type, or general.architecture
---@return string
function refused.why(name)
  local reason = refused.reasons[gguf[name] or name]
  return reason and ": " .. reason or ""
end

return refused

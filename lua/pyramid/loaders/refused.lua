-- Models that are widely published and that Pyramid does not have: what their layers do that its
-- one machine (pyr_model_config in core/pyramid.h) cannot. By `model_type` of config.json, and by
-- GGUF's general.architecture where that is another name; a name that is in neither list by fields
-- of config.json that such models share, or else without a reason. Sources: transformers'
-- modeling_*.py, llama.cpp's src/models. scripts/maker/oracle/model_types.py asks this of every
-- type that transformers has (docs/model-types.md).
--
--     config.json: model_type apertus, architectures ApertusForCausalLM: its activation is xIELU
--     (known families: …)

local refused = {}

local states = "it has layers of states in place of attention"
local latent = "its attention reads keys and values from one latent vector (MLA)"
local encoder = "it is no decoder of text alone"
local cross = "its layers attend to an encoder's output"
local index = "its layers attend to rows that an index chooses"
local merged = "its layers attend to rows that were merged"
local around = "its norms stand behind the sum of a layer's input and output"
local experts = "it is a mixture of experts of a kind that no family has"
local inputs = "its layers take embeddings of their own"
local sines = "its positions are sines"

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
  ["bert-generation"] = encoder,
  biogpt = "its embeddings are scaled, and positions are learned",
  bitnet = "its norms stand between the matrices of half a layer",
  blt = "it gathers bytes into patches",
  codegen = "its rows of q, k and v are dealt over four shards",
  cpmant = "its scores have buckets of relative positions",
  ctrl = sines, xglm = sines, ["openai-gpt"] = around, xlm = around,
  dbrx = experts, dots1 = experts, ernie4_5_moe = experts,
  diffllama = "its attention is the difference of two softmaxes",
  gemma4_unified_text = "its layers' heads differ in width",
  gpt_neox_japanese = "its attention has a bias in the last layer alone",
  hrm_text = "its layers are gone through several times",
  ["modernbert-decoder"] = "its first layer has no norm",
  moshi = "it has several streams of speech",
  nanochat = "its norms have no weights", olmo = "its norms have no weights",
  persimmon = "its norms of q and k have biases",
  reformer = "its attention hashes",
  trocr = cross, xlnet = "its positions are relative", xlstm = states,
  bert = encoder, roberta = encoder, t5 = encoder, bart = encoder, whisper = encoder,
}

-- What GGUF files call them otherwise.
local gguf = {
  ["hunyuan-dense"] = "hunyuan_v1_dense", ["hunyuan-moe"] = "hunyuan_v1_moe",
  deepseek2 = "deepseek_v3", ["falcon-h1"] = "falcon_h1", granitehybrid = "granitemoehybrid",
  rwkv6 = "rwkv", rwkv7 = "rwkv", qwen3next = "qwen3_next", ["nomic-bert"] = "bert",
}

--- Fields of config.json and what it means that they are there, and neither false nor 0.
local signs = {
  { "is_encoder_decoder", cross }, { "encoder_layers", cross }, { "kv_lora_rank", latent },
  { "state_size", states }, { "ssm_state_size", states }, { "mamba_d_state", states },
  { "lru_width", states }, { "linear_key_head_dim", states }, { "conv_L_cache", states },
  { "hidden_size_per_layer_input", inputs }, { "type_vocab_size", encoder },
  { "cross_attention_layers", "its layers attend to images" },
  { "vision_config", encoder }, { "audio_config", encoder },
}

--- Kinds of layers.
local kinds = {
  linear_attention = states, conv = states, hybrid = states, hybrid_sliding = states,
  indexed_attention = index, compressed_sparse_attention = merged,
  heavily_compressed_attention = merged, chunked_attention = "its layers attend within chunks",
}

local function is_set(value) return value and value ~= 0 and type(value) ~= "userdata" end

--- What a configuration has that no family has, and where it says so, or nil.
local function sign_of(c)
  for _, sign in ipairs(signs) do
    if is_set(c[sign[1]]) then return sign[2], sign[1] end
  end
  for _, key in ipairs { "layer_types", "layers_block_type" } do
    for _, kind in ipairs(type(c[key]) == "table" and c[key] or {}) do
      if type(kind) == "string" and kinds[kind] then return kinds[kind], key .. ": " .. kind end
    end
  end
  for _, key in ipairs { "num_experts", "num_local_experts", "n_routed_experts",
    "moe_num_experts" } do
    if math.type(c[key]) == "integer" and c[key] > 1 then return experts, key end
  end
end

---Why models of a kind are refused, as a part of a message: ": " and a reason, or nothing.
---@param name string    model_type, or general.architecture
---@param config? table  config.json
---@return string
function refused.why(name, config)
  local reason = refused.reasons[gguf[name] or name]
  if reason then return ": " .. reason end
  local sign, field = sign_of(config or {})
  return sign and (": %s (%s)"):format(sign, field) or ""
end

return refused

-- StableLM 2 and 3B: a Llama with LayerNorm, of whose heads a quarter turns. Some have biases on q,
-- k and v; some, attention and MLP beside each other behind one norm.
local biases = { "attn_norm_bias", "ffn_norm_bias", "out_norm_bias" }

local function residual(parallel, config)
  config.decoder.residual = parallel and "shared" or "sequential"
  if parallel then config.weights = { "attn_norm_bias", "out_norm_bias" } end
end

return require("pyramid.families").family {
  name          = "stablelm",
  architectures = { "StableLmForCausalLM", "StableLMEpochForCausalLM" },
  weights       = biases,
  decoder       = { norm = "layer" },
  fields        = { rms_norm_eps = "layer_norm_eps" },
  defaults      = {
    layer_norm_eps = 1e-5, max_position_embeddings = 4096, rope_theta = 10000,
    num_key_value_heads = 32, partial_rotary_factor = 0.25, tie_word_embeddings = false,
  },
  from_hf       = function(get, config)
    residual(get("use_parallel_residual", "boolean", false), config)
    if not get("use_qkv_bias", "boolean", false) then return end
    config.weights = table.move(config.weights or biases, 1, 3, 1, {})
    for _, role in ipairs { "q_bias", "k_bias", "v_bias" } do
      config.weights[#config.weights + 1] = role
    end
  end,
  -- converters say "parallel" where config.json is silent: what the layers have decides
  from_gguf     = function(get, config, has)
    get("use_parallel_residual", "boolean", false)
    residual(not has "blk.0.ffn_norm.weight", config)
  end,
  to_gguf       = function(put, config)
    put("use_parallel_residual", "bool", config.decoder.residual == "shared")
  end,
}

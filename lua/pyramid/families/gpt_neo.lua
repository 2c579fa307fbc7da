-- GPT-Neo: GPT-2 with matrices that lie as [out, in], no biases on q, k and v, scores that are not
-- scaled, and a window in the layers that attention_types calls local.
local fault = require "pyramid.loaders.fault"

local layer = "transformer.h.%d."

--- "global" or "local" for each layer: [[["global", "local"], 12]] is 24 of them.
local function expand(types, layers)
  local out = {}
  for _, run in ipairs(types) do
    local kinds = type(run) == "table" and type(run[1]) == "table" and run[1] or {}
    local times = type(run) == "table" and math.tointeger(run[2]) or 0
    for _ = 1, math.min(times, layers) do
      for _, kind in ipairs(kinds) do out[#out + 1] = kind end
    end
  end
  for i = 1, layers do
    if out[i] ~= "global" and out[i] ~= "local" or #out ~= layers then
      fault.raise("format", "config.json: attention_types: no list of 'global' and 'local' for %d "
        .. "layers", layers)
    end
  end
  return out
end

return require("pyramid.families").family {
  name          = "gpt_neo",
  gguf          = false,
  architectures = { "GPTNeoForCausalLM" },
  weights       = { "attn_norm_bias", "ffn_norm_bias", "out_norm_bias", "o_bias", "up_bias",
    "down_bias" },
  decoder       = { norm = "layer", plain_mlp = true, positions = true, score_scale = 1 },
  rope          = "none",
  fields        = {
    num_hidden_layers = "num_layers", num_attention_heads = "num_heads",
    rms_norm_eps = "layer_norm_epsilon",
  },
  names         = { hf = {
    embed = "transformer.wte.weight", positions = "transformer.wpe.weight",
    out_norm = "transformer.ln_f.weight", out_norm_bias = "transformer.ln_f.bias",
    attn_norm = layer .. "ln_1.weight", attn_norm_bias = layer .. "ln_1.bias",
    ffn_norm = layer .. "ln_2.weight", ffn_norm_bias = layer .. "ln_2.bias",
    q = layer .. "attn.attention.q_proj.weight", k = layer .. "attn.attention.k_proj.weight",
    v = layer .. "attn.attention.v_proj.weight", o = layer .. "attn.attention.out_proj.weight",
    o_bias = layer .. "attn.attention.out_proj.bias",
    up = layer .. "mlp.c_fc.weight", up_bias = layer .. "mlp.c_fc.bias",
    down = layer .. "mlp.c_proj.weight", down_bias = layer .. "mlp.c_proj.bias",
  } },
  defaults      = {
    layer_norm_epsilon = 1e-5, max_position_embeddings = 2048, window_size = 256,
    activation_function = "gelu_new", tie_word_embeddings = true,
  },
  from_hf       = function(get, config)
    local kinds = expand(get("attention_types", "table", {}), config.layers)
    local width = get("window_size", "integer", 256)
    if width < 1 or width > 1 << 30 then
      fault.raise("format", "config.json: window_size is %d", width)
    end
    config.window = {}
    for i, kind in ipairs(kinds) do config.window[i] = kind == "local" and width or 0 end
  end,
}

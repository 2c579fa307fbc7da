-- SmolLM3: a Llama of which every fourth layer does not turn its queries and keys.
local function leave_out(config, turned)
  local turns = {}
  for i = 1, config.layers do turns[i] = turned(i) and "first" or "none" end
  config.decoder.turns = turns
end

return require("pyramid.families").family {
  name          = "smollm3",
  architectures = { "SmolLM3ForCausalLM" },
  window        = "upper",
  gguf_rope     = "interleaved",
  defaults      = {
    rms_norm_eps = 1e-6, max_position_embeddings = 32768, rope_theta = 2000000,
    num_key_value_heads = 4, no_rope_layer_interval = 4, tie_word_embeddings = true,
  },
  from_hf       = function(get, config)
    local listed = get("no_rope_layers", "table")         -- 1: the layer turns
    local each = get("no_rope_layer_interval", "positive", 4)
    leave_out(config, function(i)
      if listed then return listed[i] ~= 0 end
      return i % each ~= 0
    end)
    if get("use_sliding_window", "boolean", false) and not get("layer_types", "table") then
      local width = get("sliding_window", "integer", 0)
      for i = 1, width > 0 and config.layers or 0 do
        config.window[i] = config.decoder.turns[i] == "none" and width or 0
      end
    end
  end,
  -- files do not say; ggml has every fourth
  from_gguf     = function(_, config) leave_out(config, function(i) return i % 4 ~= 0 end) end,
}

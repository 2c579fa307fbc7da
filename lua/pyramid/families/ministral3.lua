-- Ministral 3 and Devstral 2: a Mistral whose positions are scaled by YaRN, and whose queries grow
-- with the logarithm of how often their position holds the original context.
local fault = require "pyramid.loaders.fault"

local function temper(config, by, what)
  local d, length = config.decoder, config.rope.original
  if by == 0 then return end
  if not (by > 0 and by <= 1000) then
    fault.raise("format", "%s is %s, outside [0, 1000]", what, fault.quote(by))
  end
  if length < 1 or length > 1 << 30 then
    fault.raise("format", "%s: the original context has %d positions", what, length)
  end
  d.temper, d.temper_length = by, length
end

return require("pyramid.families").family {
  name          = "ministral3",
  gguf          = "mistral3",
  architectures = { "Ministral3ForCausalLM" },
  window        = "all",
  gguf_rope     = "interleaved",
  defaults      = {
    rms_norm_eps = 1e-5, max_position_embeddings = 262144, rope_theta = 1000000,
    num_key_value_heads = 8, head_dim = 128,
  },
  from_hf       = function(_, config)
    temper(config, config.rope.temper, "config.json: RoPE parameters: llama_4_scaling_beta")
    config.rope.temper = 0
  end,
  from_gguf     = function(get, config)
    temper(config, get("attention.temperature_scale", "number", 0),
      "metadata mistral3.attention.temperature_scale")
  end,
  to_gguf       = function(put, config)
    if config.decoder.temper then
      put("attention.temperature_scale", "f32", config.decoder.temper)
    end
  end,
}

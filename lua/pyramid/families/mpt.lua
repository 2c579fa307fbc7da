-- MPT: LayerNorm and matrices without biases, a plain MLP with GELU, ALiBi. What its files say of
-- attention stands in a table of its own; those that clip q, k and v (StoryWriter) are refused.
local alibi = require "pyramid.loaders.alibi"
local fault = require "pyramid.loaders.fault"
local json = require "pyramid.loaders.json"

local layer = "transformer.blocks.%d."
local where = "config.json: attn_config"

local function refuse(attention, key, kind, neutral)
  local value = json.field(attention, key, kind, where)
  if value ~= nil and value ~= neutral then
    fault.raise("unsupported", "%s: %s is %s (known: %s)", where, key, fault.quote(value),
      neutral == nil and "none" or tostring(neutral))
  end
end

return require("pyramid.families").family {
  name          = "mpt",
  architectures = { "MPTForCausalLM", "MptForCausalLM" },
  decoder       = { norm = "layer", plain_mlp = true, activation = "gelu" },
  rope          = "none",
  gguf_rope     = "none",
  fields        = {
    num_hidden_layers = "n_layers", num_attention_heads = "n_heads", hidden_size = "d_model",
    max_position_embeddings = "max_seq_len", rms_norm_eps = "layer_norm_epsilon",
  },
  names         = { hf = {
    embed = "transformer.wte.weight", out_norm = "transformer.norm_f.weight",
    attn_norm = layer .. "norm_1.weight", ffn_norm = layer .. "norm_2.weight",
    q = layer .. "attn.q.weight", k = layer .. "attn.k.weight", v = layer .. "attn.v.weight",
    o = layer .. "attn.out_proj.weight", up = layer .. "ffn.up_proj.weight",
    down = layer .. "ffn.down_proj.weight",
  } },
  fused         = { hf = { qkv = { name = layer .. "attn.Wqkv" } } },
  defaults      = {
    layer_norm_epsilon = 1e-5, max_seq_len = 2048, expansion_ratio = 4, tie_word_embeddings = true,
  },
  from_hf       = function(get, config)
    local attention = get("attn_config", "table", {})
    refuse(attention, "clip_qkv", "number")
    refuse(attention, "softmax_scale", "number")
    refuse(attention, "qk_ln", "boolean", false)
    refuse(attention, "prefix_lm", "boolean", false)
    refuse(attention, "alibi", "boolean", true)
    get("norm_type", "string")                 -- LayerNorm in all of them
    config.ff = get("expansion_ratio", "integer", 4) * config.width
    config.decoder.slopes = alibi.slopes(config.heads, 1,
      json.field(attention, "alibi_bias_max", "integer", where, 8))
  end,
  from_gguf     = function(get, config)
    local greatest = get("attention.max_alibi_bias", "number", 0)
    if greatest == 0 then
      fault.raise("unsupported", "metadata mpt.attention.max_alibi_bias is 0: no ALiBi")
    end
    config.decoder.slopes = alibi.slopes(config.heads, 1, greatest)
  end,
  to_gguf       = function(put, config)
    put("attention.max_alibi_bias", "f32", alibi.greatest(config.decoder.slopes))
  end,
}

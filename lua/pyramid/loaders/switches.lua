-- Fields of config.json and of GGUF metadata that change the arithmetic of a decoder in a way that
-- Pyramid does not have: their names in both formats, and the values at which they change nothing.
-- A model with such a value loads; one with any other is refused by the field's name. Without
-- that, its tensors would all be there, and it would answer fluently and wrongly.
--
--     logits_scaling: 1.0             loads: logits are divided by 1
--     logits_scaling: 8.0             "… logits_scaling is 8.0 (known: 1)", code "unsupported"
--     query_pre_attn_scalar: 128      loads where heads are 128 wide: scores are divided by its
--                                     root
--
-- Absent and null mean "switched off"; so do false for what is a number in config.json, and 0 in
-- GGUF, as ggml reads it. What brings tensors of its own (biases, norms behind the attention) needs
-- no entry: tensors that nobody asks for are refused, too. Sources: the configuration classes of
-- Hugging Face transformers, whose models are named behind the fields, and the `gguf` package's
-- constants.

local fault = require "pyramid.loaders.fault"

local switches = {}

---@class pyramid.SwitchFacts  what neutral values depend on
---@field head_dim integer
---@field layers integer
---@field width integer
---@field family pyramid.Family

---@class pyramid.Switch
---@field hf string?    its name in config.json
---@field gguf string?  its name in GGUF metadata, behind the architecture's
---@field kind string
---  "number", "boolean", "string", "table", or "ones": a list whose elements are all 1
---@field gguf_kind? string  where it is of another kind in GGUF
---@field neutral any[] values that change nothing, beside those above
---@field from? fun(facts: pyramid.SwitchFacts): any  a neutral value that depends on the model

local function scale_of_scores(facts) return 1 / math.sqrt(facts.head_dim) end
local silu = { "silu", "swish" }

--- What a family that norms q and k head by head may say of itself.
local function norms_heads(facts)
  for _, role in ipairs(facts.family.weights) do
    if role == "q_norm" then return true end
  end
end

---@type pyramid.Switch[]
switches.all = {
  -- scores and their softmax
  { hf = "attn_logit_softcapping", gguf = "attn_logit_softcapping", kind = "number",   -- Gemma 2
    neutral = {} },
  { hf = "attention_multiplier", gguf = "attention.scale", kind = "number", neutral = {},
    from = scale_of_scores },                                                          -- Granite
  { hf = "query_pre_attn_scalar", kind = "number", neutral = {},                       -- Gemma 2, 3
    from = function(facts) return facts.head_dim end },
  { hf = "scale_attn_weights", kind = "boolean", neutral = { true } },                 -- GPT-2
  { hf = "scale_attn_by_inverse_layer_idx", kind = "boolean", neutral = { false } },   -- GPT-2
  { hf = "attn_temperature_tuning", gguf = "attention.temperature_length",             -- Llama 4
    kind = "boolean", gguf_kind = "number", neutral = { false } },
  { gguf = "attention.temperature_scale", kind = "number", neutral = {} },
  { hf = "attn_output_multiplier", gguf = "attention.output_scale", kind = "number",   -- Grok
    neutral = { 1 } },
  { hf = "attention_in_multiplier", kind = "number", neutral = { 1 } },                -- Falcon-H1
  { hf = "attention_out_multiplier", kind = "number", neutral = { 1 } },
  { hf = "key_multiplier", kind = "number", neutral = { 1 } },
  { hf = "sparse_config", kind = "table", neutral = {} },                              -- MiniCPM4.1
  { gguf = "attention.causal", kind = "boolean", neutral = { true } },
  { hf = "num_kv_shared_layers", gguf = "attention.shared_kv_layers", kind = "number", -- Gemma 3n
    neutral = { 0 } },

  -- q, k and v
  { hf = "clip_qkv", gguf = "attention.clamp_kqv", kind = "number", neutral = {} },    -- OLMo
  { hf = "use_qk_norm", kind = "boolean", neutral = { false }, from = norms_heads },   -- Llama 4
  { hf = "qk_layernorm", kind = "boolean", neutral = { false } },                      -- StableLM

  -- positions
  { hf = "no_rope_layers", kind = "ones", neutral = {} },                              -- SmolLM3
  { hf = "no_rope_layer_interval", kind = "number", neutral = { 0 } },
  { hf = "rope_interleave", kind = "boolean", neutral = { false } },                   -- DeepSeek
  { hf = "position_embedding_type", kind = "string", neutral = { "rope", "rotary" } }, -- Granite
  { hf = "alibi", kind = "boolean", neutral = { false } },                             -- Falcon
  { gguf = "attention.max_alibi_bias", kind = "number", neutral = {} },

  -- the layer: norms, residuals, the gated product
  { hf = "layer_norm_type", kind = "string", neutral = { "rms", "rms_norm", "rmsnorm" } },
  { hf = "norm_type", kind = "string", neutral = { "rms", "rms_norm", "rmsnorm" } },
  { hf = "use_parallel_residual", gguf = "use_parallel_residual", kind = "boolean",    -- GPT-NeoX
    neutral = { false } },
  { hf = "parallel_attn", kind = "boolean", neutral = { false } },                     -- Falcon
  { hf = "apply_residual_connection_post_layernorm", kind = "boolean", neutral = { false } },
  { hf = "do_layer_norm_before", kind = "boolean", neutral = { true } },               -- OPT
  { hf = "_remove_final_layer_norm", kind = "boolean", neutral = { false } },
  { hf = "layer_norm_elementwise_affine", kind = "boolean", neutral = { true } },
  { gguf = "swin_norm", kind = "boolean", neutral = { false } },                       -- Chameleon
  { hf = "residual_multiplier", gguf = "residual_scale", kind = "number", neutral = { 1 } },
  { hf = "scale_depth", kind = "number", neutral = {},                                 -- MiniCPM
    from = function(facts) return math.sqrt(facts.layers) end },
  { gguf = "hidden_activation", kind = "string", neutral = silu },
  { hf = "mlp_multipliers", kind = "ones", neutral = {} },                             -- Falcon-H1

  -- embeddings and logits
  { hf = "word_embed_proj_dim", kind = "number", neutral = {},                         -- OPT
    from = function(facts) return facts.width end },
  { hf = "embedding_multiplier", gguf = "embedding_scale", kind = "number",            -- Granite
    neutral = { 1 } },
  { hf = "scale_emb", kind = "number", neutral = { 1 } },                              -- MiniCPM
  { hf = "dim_model_base", kind = "number", neutral = {},
    from = function(facts) return facts.width end },
  { hf = "logits_scaling", kind = "number", neutral = { 1 } },                         -- Granite
  { hf = "logit_scale", gguf = "logit_scale", kind = "number", neutral = { 1 } },      -- Cohere
  { hf = "lm_head_multiplier", kind = "number", neutral = { 1 } },                     -- Falcon-H1
  { hf = "final_logit_softcapping", gguf = "final_logit_softcapping", kind = "number", -- Gemma 2
    neutral = {} },
}

-- Whether two values are one; f32 holds 1/sqrt(head_dim) to 1e-7 of it, JSON as many digits as its
-- writer liked.
local function equal(a, b)
  if type(a) ~= "number" or type(b) ~= "number" then return a == b end
  return math.abs(a - b) <= 1e-6 * math.abs(b)
end

local function all_ones(list)
  for _, x in pairs(list) do
    if x ~= 1 and x ~= true then return false end
  end
  return true
end

--- Refuses the first switch of a model that is not neutral.
---@param format string  "hf" or "gguf"
---@param get fun(key: string, kind: string): any
---  a field of that type, nil where it is switched off; raises for other types
---@param facts pyramid.SwitchFacts
---@param called fun(key: string): string  file and field, for messages
function switches.refuse(format, get, facts, called)
  for _, switch in ipairs(switches.all) do
    local key = switch[format]
    local kind = switch[format .. "_kind"] or switch.kind
    local value
    if key then value = get(key, kind == "ones" and "table" or kind) end
    if value ~= nil then
      local neutral = table.move(switch.neutral, 1, #switch.neutral, 1, {})
      neutral[#neutral + 1] = switch.from and switch.from(facts)
      local right = kind == "ones" and all_ones(value)
      for _, known in ipairs(neutral) do right = right or equal(value, known) end
      if not right then
        for i, known in ipairs(neutral) do neutral[i] = tostring(known) end
        if kind == "ones" then neutral[1] = "nothing but 1" end
        fault.raise("unsupported", "%s is %s (known: %s)", called(key), fault.quote(value),
          #neutral > 0 and table.concat(neutral, ", ") or "none")
      end
    end
  end
end

return switches

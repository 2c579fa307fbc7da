-- Checkpoints that hold more than a decoder, or name its tensors otherwise: models for images or
-- speech around a text model, decoders saved by themselves, heads for other tasks beside it.
--
--     config.json   { "model_type": "llava", "text_config": { "model_type": "llama", … }, … }
--     tensors       language_model.model.layers.0.self_attn.q_proj.weight      the decoder's
--                   language_model.lm_head.weight                             its output
--                   vision_tower.…, multi_modal_projector.…                   ignored, with a note
--
-- The prefix is found once, from the names, and put into the family's. What lies below it is the
-- decoder's own: there everything must be asked for, as an unknown tensor is arithmetic that is
-- missing. What lies elsewhere is not the decoder's, unless its name says that it is.

local fault = require "pyramid.loaders.fault"
local families = require "pyramid.families"
local json = require "pyramid.loaders.json"

local wrapper = {}

-- ---- config.json --------------------------------------------------------------------------------

--- What a `text_config` means where it is silent: unlike a config.json of its own it may leave out
--- all that its class has as default, the sizes too (LLaVA 1.5 does). From the classes of
--- transformers; wrong ones would not go unseen, as tensors are checked against them.
local sizes = {
  llama = { vocab_size = 32000, hidden_size = 4096, intermediate_size = 11008,
    num_hidden_layers = 32, num_attention_heads = 32 },
  mistral = { vocab_size = 32000, hidden_size = 4096, intermediate_size = 14336,
    num_hidden_layers = 32, num_attention_heads = 32 },
  ministral3 = { vocab_size = 131072, hidden_size = 4096, intermediate_size = 14336,
    num_hidden_layers = 34, num_attention_heads = 32 },
  qwen2 = { vocab_size = 151936, hidden_size = 4096, intermediate_size = 22016,
    num_hidden_layers = 32, num_attention_heads = 32 },
}
sizes.qwen3 = sizes.qwen2

--- The part of a configuration that is about text, where it is a wrapper's: its own fields win. The
--- configuration itself where it is none.
---@param c table      config.json
---@param what string  the file
---@return table text
---@return string where   what messages call it
---@return string? note
function wrapper.text_of(c, what)
  local kind = json.required(c, "model_type", "string", what)
  local text = json.field(c, "text_config", "table", what)
  if not text or families.find(kind) then return c, what end
  local where = what .. ": text_config"
  local inner = json.required(text, "model_type", "string", where)
  local out = {}
  for key, value in pairs(sizes[inner] or {}) do out[key] = value end
  for key, value in pairs(text) do out[key] = value end
  -- AutoModel goes by the type alone here, and old files name classes that are gone
  out.architectures = nil
  if out.quantization_config == nil then out.quantization_config = c.quantization_config end
  local tied = json.field(text, "tie_word_embeddings", "boolean", where)
  local outer = json.field(c, "tie_word_embeddings", "boolean", what)
  if tied ~= nil or outer ~= nil then out.tie_word_embeddings = tied or outer or false end
  return out, where, ("%s: a model of type %s; its text part (%s) is used alone"):format(what,
    fault.quote(kind), fault.quote(inner))
end

-- ---- names --------------------------------------------------------------------------------------

--- Where decoders lie inside of checkpoints, beside the place that their family says.
local prefixes = { "language_model.model.", "model.language_model.", "language_model.",
  "model.text_model.", "" }

--- "model.layers.%d." of the names of a family, and what stands before the layers.
local function stem_of(names)
  local stem = names.q:match "^(.-%%d%.)"
  return stem, stem and stem:match "^([%w_]+%.)" or ""
end

--- A family's names in this checkpoint, and what its own tensors begin with. Names outside of the
--- family's base ("lm_head.weight") stay; the output is looked for below the prefixes, too.
---@param tensors table<string, pyramid.Tensor>
---@param names table<string, string>   of the family
---@param what string
---@return table<string, string> names
---@return fun(name: string): string? own   the rest of a name that is the decoder's own
---@return fun(name: string): string placed  what a name of the family's is called here
function wrapper.names_of(tensors, names, what)
  local stem, base = stem_of(names)
  local found = {}
  local function look(prefix)
    local start = prefix .. stem:sub(#base + 1):format(0)
    for name in pairs(tensors) do
      if name:sub(1, #start) == start then
        found[#found + 1] = prefix
        return
      end
    end
  end
  if stem then
    look(base)
    for _, prefix in ipairs(prefixes) do
      if prefix ~= base then look(prefix) end
    end
  end
  if #found > 1 then
    fault.raise("unsupported", "%s: two decoders, below '%s' and below '%s'", what, found[1],
      found[2])
  end
  local prefix = found[1] or base
  local function placed(name)
    if name:sub(1, #base) ~= base or base == "" then return name end
    return prefix .. name:sub(#base + 1)
  end
  local out = setmetatable({}, { __index = function(self, role)
    local name = names[role] and placed(names[role])
    if role == "output" and not tensors[name] then
      for _, outer in ipairs { prefix:match "^(.*%.)model%.$" or prefix, "language_model." } do
        if tensors[outer .. names.output] then name = outer .. names.output end
      end
    end
    rawset(self, role, name)
    return name
  end })
  -- without a prefix only the decoder's own parts tell it from what lies beside it
  local parts
  if prefix == "" then
    parts = {}
    for _, role in ipairs { "embed", "out_norm", "q" } do
      parts[out[role]:match "^[%w_]+"] = true
    end
  end
  return out, function(name)
    if name:sub(1, #prefix) ~= prefix then return nil end
    if parts and not parts[name:match "^[%w_]+"] then return nil end
    return name:sub(#prefix + 1)
  end, placed
end

-- ---- what is left over --------------------------------------------------------------------------

--- Below the decoder's own prefix: buffers that are computed anew, and parts that text never goes
--- through.
local harmless = { "rotary_emb%.inv_freq$", "rotary_emb%.cos_cached$", "rotary_emb%.sin_cached$",
  -- causal masks of GPT-2, GPT-J, GPT-NeoX and their kin
  "^h%.%d+%.attn%.bias$", "^h%.%d+%.attn%.attention%.bias$",
  "^layers%.%d+%.attention%.bias$", "%.masked_bias$",
  "^vision_", "^visual%.", "^audio_", "^image_newline$", "^multi_modal_projector%.",
  "^mm_projector%.", "^mtp[%._]" }

--- Outside of it: what belongs to the decoder nevertheless, and would change what it computes.
local changing = { "lm_head", "lora_[AB]", "lora_embedding", "lora_magnitude", "adapter_query",
  "prompt_embeddings", "prefix_encoder", "cross_attn", "embed_tokens" }

local function any(patterns, name)
  for _, pattern in ipairs(patterns) do
    if name:find(pattern) then return true end
  end
  return false
end

--- Whether a tensor that nobody asked for may be left out.
---@param name string
---@param own fun(name: string): string?
---@param layers integer    of the decoder
---@param heads integer     layers behind it that only guess tokens (num_nextn_predict_layers)
---@return boolean
function wrapper.may_ignore(name, own, layers, heads)
  local rest = own(name)
  if not rest then return not any(changing, name) end
  local layer = tonumber(rest:match "^layers%.(%d%d?%d?%d?)%." or "")
  if layer and layer >= layers and layer < layers + heads then return true end
  return any(harmless, rest)
end

--- A line about tensors that were left out, by where they lie; nil for none.
---@param names string[]
---@param what string
---@return string?
function wrapper.describe(names, what)
  if #names == 0 then return nil end
  local counts, groups = {}, {}
  for _, name in ipairs(names) do
    local group = name:match "rotary_emb%.[%w_]+$" or name:match "%.(%l+_scale)$"
      or name:match "%.(bias)$" or name:match "^model%.[%w_]+" or name:match "^[^%.]*"
    if not counts[group] then groups[#groups + 1] = group end
    counts[group] = (counts[group] or 0) + 1
  end
  table.sort(groups, function(a, b)
    if counts[a] ~= counts[b] then return counts[a] > counts[b] end
    return a < b
  end)
  local parts = {}
  for i, group in ipairs(groups) do
    parts[i] = ("%d of %s"):format(counts[group], fault.quote(group))
  end
  local more = #parts > 4 and (" and %d other parts"):format(#parts - 4) or ""
  return ("%s: %d %s that the decoder does not need %s ignored: %s%s"):format(what, #names,
    #names == 1 and "tensor" or "tensors", #names == 1 and "is" or "are",
    table.concat(parts, ", ", 1, math.min(#parts, 4)), more)
end

return wrapper

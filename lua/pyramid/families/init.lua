-- Families of decoders: what their checkpoints call things, and where they differ from one another.
--
-- All of them are one machine with switches (pyr_model_config in core/pyramid.h), so a family is a
-- short table: its name, which must be the `model_type` of Hugging Face configurations, and what it
-- has that differs from Llama. A new family of Pyramid's own is one new file
-- lua/pyramid/families/<name>.lua, which the build packs; nothing else changes. One of a host's or
-- script's own is registered by a call, before its models are opened:
--
--   local families = require "pyramid.families"
--   families.register(families.family { name = "mine", architectures = { "MineForCausalLM" } })
--
-- Files of a model only ever name a family. Nothing is looked for on package.path, so that no name
-- can bring code.

local core = require "pyramid.core"

local families = {}

--- Names of weights by format. %d stands for the layer, from 0; in those of an expert's weights
--- (expert_…) a second one for the expert. experts_…: of all experts in one tensor.
local base_names = {
  hf = {
    embed = "model.embed_tokens.weight", out_norm = "model.norm.weight",
    out_norm_bias = "model.norm.bias", output = "lm_head.weight", output_bias = "lm_head.bias",
    attn_norm = "model.layers.%d.input_layernorm.weight",
    attn_norm_bias = "model.layers.%d.input_layernorm.bias",
    ffn_norm = "model.layers.%d.post_attention_layernorm.weight",
    ffn_norm_bias = "model.layers.%d.post_attention_layernorm.bias",
    q = "model.layers.%d.self_attn.q_proj.weight", k = "model.layers.%d.self_attn.k_proj.weight",
    v = "model.layers.%d.self_attn.v_proj.weight", o = "model.layers.%d.self_attn.o_proj.weight",
    q_bias = "model.layers.%d.self_attn.q_proj.bias",
    k_bias = "model.layers.%d.self_attn.k_proj.bias",
    v_bias = "model.layers.%d.self_attn.v_proj.bias",
    o_bias = "model.layers.%d.self_attn.o_proj.bias",
    q_norm = "model.layers.%d.self_attn.q_norm.weight",
    k_norm = "model.layers.%d.self_attn.k_norm.weight",
    sinks = "model.layers.%d.self_attn.sinks",
    gate = "model.layers.%d.mlp.gate_proj.weight", up = "model.layers.%d.mlp.up_proj.weight",
    down = "model.layers.%d.mlp.down_proj.weight",
    gate_bias = "model.layers.%d.mlp.gate_proj.bias", up_bias = "model.layers.%d.mlp.up_proj.bias",
    down_bias = "model.layers.%d.mlp.down_proj.bias",
    router = "model.layers.%d.mlp.gate.weight",
    router_correction = "model.layers.%d.mlp.gate.e_score_correction_bias",
    shared_gate = "model.layers.%d.mlp.shared_expert.gate_proj.weight",
    shared_up = "model.layers.%d.mlp.shared_expert.up_proj.weight",
    shared_down = "model.layers.%d.mlp.shared_expert.down_proj.weight",
    shared_router = "model.layers.%d.mlp.shared_expert_gate.weight",
    expert_gate = "model.layers.%d.mlp.experts.%d.gate_proj.weight",
    expert_up = "model.layers.%d.mlp.experts.%d.up_proj.weight",
    expert_down = "model.layers.%d.mlp.experts.%d.down_proj.weight",
    experts_gate_up = "model.layers.%d.mlp.experts.gate_up_proj",
    experts_down = "model.layers.%d.mlp.experts.down_proj",
  },
  gguf = {
    embed = "token_embd.weight", positions = "position_embd.weight",
    embed_norm = "token_embd_norm.weight", embed_norm_bias = "token_embd_norm.bias",
    out_norm = "output_norm.weight", out_norm_bias = "output_norm.bias",
    output = "output.weight", output_bias = "output.bias",
    attn_norm = "blk.%d.attn_norm.weight", attn_norm_bias = "blk.%d.attn_norm.bias",
    attn_post_norm = "blk.%d.post_attention_norm.weight",
    ffn_norm = "blk.%d.ffn_norm.weight", ffn_norm_bias = "blk.%d.ffn_norm.bias",
    ffn_post_norm = "blk.%d.post_ffw_norm.weight",
    q = "blk.%d.attn_q.weight", k = "blk.%d.attn_k.weight", v = "blk.%d.attn_v.weight",
    o = "blk.%d.attn_output.weight",
    q_bias = "blk.%d.attn_q.bias", k_bias = "blk.%d.attn_k.bias", v_bias = "blk.%d.attn_v.bias",
    o_bias = "blk.%d.attn_output.bias", q_norm = "blk.%d.attn_q_norm.weight",
    k_norm = "blk.%d.attn_k_norm.weight", sinks = "blk.%d.attn_sinks.weight",
    gate = "blk.%d.ffn_gate.weight", up = "blk.%d.ffn_up.weight", down = "blk.%d.ffn_down.weight",
    gate_bias = "blk.%d.ffn_gate.bias", up_bias = "blk.%d.ffn_up.bias",
    down_bias = "blk.%d.ffn_down.bias",
    router = "blk.%d.ffn_gate_inp.weight", router_correction = "blk.%d.exp_probs_b.bias",
    shared_gate = "blk.%d.ffn_gate_shexp.weight", shared_up = "blk.%d.ffn_up_shexp.weight",
    shared_down = "blk.%d.ffn_down_shexp.weight",
    shared_router = "blk.%d.ffn_gate_inp_shexp.weight",
    expert_gate = "blk.%d.ffn_gate.%d.weight", expert_up = "blk.%d.ffn_up.%d.weight",
    expert_down = "blk.%d.ffn_down.%d.weight",
    experts_gate_up = "blk.%d.ffn_gate_up_exps.weight",
    experts_gate = "blk.%d.ffn_gate_exps.weight", experts_up = "blk.%d.ffn_up_exps.weight",
    experts_down = "blk.%d.ffn_down_exps.weight",
    router_bias = "blk.%d.ffn_gate_inp.bias",
    expert_gate_bias = "blk.%d.ffn_gate.%d.bias", expert_up_bias = "blk.%d.ffn_up.%d.bias",
    expert_down_bias = "blk.%d.ffn_down.%d.bias", experts_gate_bias = "blk.%d.ffn_gate_exps.bias",
    experts_up_bias = "blk.%d.ffn_up_exps.bias", experts_down_bias = "blk.%d.ffn_down_exps.bias",
  },
}

--- Matrices of several weights in one, by format, without ".weight" and ".bias": where a checkpoint
--- has one, its weights are parts of it.
local base_fused = {
  hf = {}, gguf = { qkv = { name = "blk.%d.attn_qkv" } },
}

--- Roles outside the layers, and in each, in the order in which they are bound. Whether a model has
--- one, families.has says.
families.global_roles = { "embed", "embed_norm", "embed_norm_bias", "positions", "out_norm",
  "out_norm_bias", "output", "output_bias" }
families.layer_roles = {
  "attn_norm", "attn_norm_bias", "q", "k", "v", "q_bias", "k_bias", "v_bias", "q_norm", "k_norm",
  "sinks", "o", "o_bias", "attn_post_norm", "ffn_norm", "ffn_norm_bias", "gate", "gate_bias", "up",
  "up_bias", "down", "down_bias", "router",
  "router_bias", "router_correction", "shared_gate", "shared_up",
  "shared_down", "shared_router", "ffn_post_norm",
}

--- Those of each expert of a layer that has some; their names are "expert_" and these. Biases are
--- there where the role "expert_bias" is among a model's optional ones.
families.expert_roles = { "gate", "up", "down" }

---Whether a layer has experts in place of an MLP.
---@param decoder table    its model's switches
---@param layer integer    from 1
---@return boolean
function families.mixes(decoder, layer)
  return (decoder.experts or 0) > 0 and not (decoder.dense and decoder.dense[layer])
end

--- Roles that a switch decides about; other roles than these are of every model, or (what has a
--- name in `optional`) of those that a family or a checkpoint says.
local decided = {
  positions = function(d) return d.positions end,
  attn_norm = function(d) return d.norm_place ~= "after" end,
  ffn_norm = function(d) return d.norm_place ~= "after" and d.residual ~= "shared" end,
  attn_post_norm = function(d) return d.norm_place == "after" or d.norm_place == "around" end,
  ffn_post_norm = function(d) return d.norm_place == "after" or d.norm_place == "around" end,
  gate = function(d) return not d.plain_mlp end,
  shared_gate = function(d) return not d.plain_mlp and (d.shared_ff or 0) > 0 end,
  shared_up = function(d) return (d.shared_ff or 0) > 0 end,
  shared_down = function(d) return (d.shared_ff or 0) > 0 end,
  gate_bias = function(d, optional) return not d.plain_mlp and optional.gate_bias end,
}
local always = { embed = true, out_norm = true, output = true, q = true, k = true, v = true,
  o = true, up = true, down = true, router = true }

--- Roles of layers that have an MLP (false), or experts (true), alone.
local of_kind = { gate = false, up = false, down = false, gate_bias = false, up_bias = false,
  down_bias = false, router = true, router_bias = true,
  router_correction = true, shared_gate = true,
  shared_up = true, shared_down = true, shared_router = true }

---Whether a model has a weight; of an expert's families.expert_roles tells.
---@param role string
---@param decoder table                    its switches
---@param optional table<string, boolean>  roles beyond what switches say
---@param layer? integer                   from 1, of roles in layers
---@return boolean
function families.has(role, decoder, optional, layer)
  if of_kind[role] ~= nil and of_kind[role] ~= families.mixes(decoder, layer or 1) then
    return false
  end
  if decided[role] then return decided[role](decoder, optional) and true or false end
  return always[role] or optional[role] or false
end

--- Sliding windows from a Hugging Face configuration, one for each layer (0: none), or nil. A
--- family names one of these.
local windows = {}

---No window in any layer.
---@return nil
function windows.none() return nil end

---The same window in every layer, or in those that `layer_types` names.
---@param c table           config.json
---@param layers integer
---@return integer[]?
function windows.all(c, layers)
  if not c.sliding_window then return nil end
  local out = {}
  for i = 1, layers do
    local slides = not c.layer_types or c.layer_types[i] == "sliding_attention"
    out[i] = slides and c.sliding_window or 0
  end
  return out
end

---The same window in every layer, if `use_sliding_window`.
---@param c table           config.json
---@param layers integer
---@return integer[]?
function windows.used(c, layers)
  return c.use_sliding_window and windows.all(c, layers) or nil
end

---A window in the layers that `layer_types` names, or from `max_window_layers` on; only if
---`use_sliding_window`.
---@param c table           config.json
---@param layers integer
---@return integer[]?
function windows.upper(c, layers)
  if not c.use_sliding_window or not c.sliding_window then return nil end
  local out = {}
  for i = 1, layers do
    local slides = i > (c.max_window_layers or 0)
    if c.layer_types then slides = c.layer_types[i] == "sliding_attention" end
    out[i] = slides and c.sliding_window or 0
  end
  return out
end

---A window in the layers that `layer_types` names, or else in all but each n-th.
---@param c table           config.json; sliding_window_pattern: n
---@param layers integer
---@return integer[]?
function windows.every(c, layers)
  if not c.sliding_window then return nil end
  local out = {}
  for i = 1, layers do
    local slides = i % (c.sliding_window_pattern or 1) ~= 0
    if c.layer_types then slides = c.layer_types[i] == "sliding_attention" end
    out[i] = slides and c.sliding_window or 0
  end
  return out
end

---@class pyramid.Fused       a matrix, and perhaps a bias, of several weights
---@field name string           without ".weight" and ".bias"
---@field apart boolean?        GGUF files have its weights by themselves nevertheless
---@field groups boolean?
---  rows go by K/V head: the queries of one, its key, its value; else all of q, all of k, all of v
---@field transposed boolean?   [in, out]

---@class pyramid.FamilyExperts
---@field ff boolean?            the experts' width is intermediate_size, not moe_intermediate_size
---@field router string?         "sigmoid" (default "softmax")
---@field renormalise boolean?   whatever norm_topk_prob says
---@field transposed boolean?   folders hold their matrices as [in, out]
---@field dealt boolean?         folders hold a row of the gate and one of the up in turn
---@field gguf_renormalise boolean?  what GGUF files of the family mean by saying nothing

---@class pyramid.Family
---@field name string            model_type of config.json
---@field architectures string[] what config.json may call it
---@field gguf string|false|nil
---  general.architecture of GGUF files, where it is another name; false where there are none
---@field gguf_key string?
---  metadata, behind that name, by which its files are told from those of another family
---@field gguf_as string?
---  the same where files are written, if another family reads them
---@field gguf_pattern boolean?  files list which layers slide, where some do
---@field weights string[]?      optional roles that its checkpoints have
---@field decoder table?         switches that all of its models have (pyr_model_config)
---@field fields table<string, string>?   what its config.json calls the base's fields
---@field defaults table?        what its config.json means where it is silent
---@field window string?
---  "all", "used", "upper" or "every": which layers slide where no layer_types say so (default:
---  none do)
---@field rope string?       "interleaved" where pairs that turn are neighbours (default "half")
---@field gguf_rope string?
---  "interleaved" where GGUF files hold pairs that turn as neighbours, because they are, or because
---  converters permute q and k (default "half")
---@field names table?
---  { hf = { role = pattern }, gguf = { role = pattern } } where names differ from the base
---@field experts pyramid.FamilyExperts?  its models are mixtures of experts
---@field fused table?       { hf = { qkv = Fused, gate_up = Fused }, gguf = … }
---@field transposed table<string, boolean>?  roles whose matrices config.json's files hold as [in, out]
---@field from_hf? fun(get: pyramid.FieldReader, config: pyramid.Config)
---  sets switches (config.decoder), and where they depend on it config.weights and config.names
---  (like those above; { role = pattern }), by what config.json says; what is got here counts as
---  read
---@field from_gguf? fun(get: pyramid.FieldReader, config: pyramid.Config, has: fun(name: string): boolean)
---  the same of metadata, and of which tensors there are
---@field to_gguf? fun(put: fun(key: string, kind: string, value: any), config: pyramid.Config): table?
---  puts metadata that files of the family have beyond the base's; returns names (as config.names)
---  that this model's have

---A field of a configuration, of a type ("positive": a number above 0); raises a fault where it is
---of another.
---@alias pyramid.FieldReader fun(key: string, kind: string, default: any): any

local known = { name = 1, architectures = 1, gguf = 1, gguf_key = 1, weights = 1, decoder = 1,
  fields = 1, defaults = 1, window = 1, rope = 1, gguf_rope = 1, names = 1, fused = 1,
  transposed = 1, from_hf = 1, from_gguf = 1, to_gguf = 1, gguf_as = 1, gguf_pattern = 1,
  experts = 1 }
local Family = {}

--- Makes a family; what its file returns.
---@param t pyramid.Family
---@return pyramid.Family
function families.family(t)
  for key in pairs(t) do
    if not known[key] then
      local list = {}
      for name in pairs(known) do list[#list + 1] = name end
      table.sort(list)
      error(("family: unknown key '%s' (known: %s)"):format(tostring(key),
        table.concat(list, ", ")), 2)
    end
  end
  if type(t.name) ~= "string" or not t.name:find "^[%w_%-%.]+$" then
    error("family: a name of letters, digits, '_', '-' and '.' is wanted", 2)
  end
  if type(t.architectures) ~= "table" then
    error(("family %s: architectures must be a list"):format(t.name), 2)
  end
  if t.window ~= nil and not windows[t.window] then
    error(("family %s: window = '%s' (known: all, every, none, upper, used)"):format(t.name,
      tostring(t.window)), 2)
  end
  local names, fused = {}, {}
  for format, base in pairs(base_names) do
    names[format] = setmetatable(t.names and t.names[format] or {}, { __index = base })
    fused[format] = setmetatable(t.fused and t.fused[format] or {},
      { __index = base_fused[format] })
  end
  return setmetatable({
    name = t.name, architectures = t.architectures,
    gguf = t.gguf == nil and t.name or t.gguf or nil, gguf_key = t.gguf_key,
    weights = t.weights or {}, decoder = t.decoder or {}, fields = t.fields or {},
    defaults = t.defaults or {}, window = windows[t.window or "none"], rope = t.rope or "half",
    gguf_rope = t.gguf_rope or "half", names = names, fused = fused,
    transposed = t.transposed or {}, experts = t.experts, from_hf = t.from_hf,
    from_gguf = t.from_gguf, to_gguf = t.to_gguf, gguf_as = t.gguf_as,
    gguf_pattern = t.gguf_pattern,
  }, Family)
end

local registered = {}

local function bundled_names()
  local out = {}
  for _, module in ipairs(core.bundled_list "module") do
    local name = module:match "^pyramid%.families%.([%w_]+)$"
    if name and name ~= "init" then out[#out + 1] = name end
  end
  return out
end

local function is_bundled(name)
  return core.bundled("module", "pyramid.families." .. name) ~= nil and name ~= "init"
end

--- Makes a family known by its name. Raises if that is taken.
---@param family pyramid.Family  what families.family made
---@return pyramid.Family
function families.register(family)
  if getmetatable(family) ~= Family then
    error("families.register: a value of families.family is wanted", 2)
  end
  if registered[family.name] ~= family and (registered[family.name] or is_bundled(family.name)) then
    error(("families.register: there is a family '%s' already"):format(family.name), 2)
  end
  registered[family.name] = family
  return family
end

--- The family of a name, registered or bundled, or nil if there is none.
---@param name string
---@return pyramid.Family?
function families.find(name)
  if type(name) ~= "string" then return nil end
  if registered[name] then return registered[name] end
  if not name:find("^[%w_]+$") or not is_bundled(name) then return nil end
  local family = require("pyramid.families." .. name)
  return getmetatable(family) == Family and family or nil
end

--- The family of a GGUF file's general.architecture, or nil if there is none. Of two of one name,
--- one has experts (Mixtral's files are Llamas), or has metadata of its own (OLMo 3's are OLMo 2's
--- with a window).
---@param architecture string
---@param mixed? boolean  whether the file has experts
---@param has? fun(key: string): boolean  whether it has metadata, behind that name
---@return pyramid.Family?
function families.of_gguf(architecture, mixed, has)
  local found
  for _, name in ipairs(families.list()) do
    local family = families.find(name)
    local key = family and family.gguf_key
    if family and family.gguf == architecture and (not key or has and has(key))
      and (not found or key or not found.gguf_key
        and (family.experts ~= nil) == (mixed or false)) then found = family end
  end
  return found
end

--- What GGUF files call the families, sorted.
---@return string[]
function families.gguf_list()
  local out, seen = {}, {}
  for _, name in ipairs(families.list()) do
    local family = families.find(name)
    if family and family.gguf and not seen[family.gguf] then
      seen[family.gguf] = true
      out[#out + 1] = family.gguf
    end
  end
  table.sort(out)
  return out
end

--- What a model of a family calls its weights in files of a format: the family's names, and those
--- that it has for this model alone (config.names, which is taken out).
---@param family pyramid.Family
---@param format string     "hf" or "gguf"
---@param config pyramid.Config
---@return table<string, string>
function families.names(family, format, config)
  local own = config.names
  config.names = nil
  return own and setmetatable(own, { __index = family.names[format] }) or family.names[format]
end

--- Names of the families that are bundled or registered, sorted.
---@return string[]
function families.list()
  local out = bundled_names()
  for name in pairs(registered) do out[#out + 1] = name end
  table.sort(out)
  return out
end

return families

-- Families of decoders: what their checkpoints call things, and where they differ from one another.
--
-- All of them are the same machine (pre-norm, rotary, grouped-query attention, gated SiLU), so a
-- family is a short table: its name, which must be the `model_type` of Hugging Face configurations
-- and the `general.architecture` of GGUF files, and what it has beyond the base below. A new family
-- of Pyramid's own is one new file lua/pyramid/families/<name>.lua, which the build packs; nothing
-- else changes. One of a host's or script's own is registered by a call, before its models are
-- opened:
--
--   local families = require "pyramid.families"
--   families.register(families.family { name = "mine", architectures = { "MineForCausalLM" } })
--
-- Files of a model only ever name a family. Nothing is looked for on package.path, so that no name
-- can bring code.

local core = require "pyramid.core"

local families = {}

--- Weights that every family has; names by format. %d stands for the layer, from 0.
local base_names = {
  hf = {
    embed = "model.embed_tokens.weight", out_norm = "model.norm.weight", output = "lm_head.weight",
    attn_norm = "model.layers.%d.input_layernorm.weight",
      ffn_norm = "model.layers.%d.post_attention_layernorm.weight",
    q = "model.layers.%d.self_attn.q_proj.weight", k = "model.layers.%d.self_attn.k_proj.weight",
    v = "model.layers.%d.self_attn.v_proj.weight", o = "model.layers.%d.self_attn.o_proj.weight",
    q_bias = "model.layers.%d.self_attn.q_proj.bias",
      k_bias = "model.layers.%d.self_attn.k_proj.bias",
    v_bias = "model.layers.%d.self_attn.v_proj.bias",
      o_bias = "model.layers.%d.self_attn.o_proj.bias",
    q_norm = "model.layers.%d.self_attn.q_norm.weight",
      k_norm = "model.layers.%d.self_attn.k_norm.weight",
    gate = "model.layers.%d.mlp.gate_proj.weight", up = "model.layers.%d.mlp.up_proj.weight",
    down = "model.layers.%d.mlp.down_proj.weight",
  },
  gguf = {
    embed = "token_embd.weight", out_norm = "output_norm.weight", output = "output.weight",
    attn_norm = "blk.%d.attn_norm.weight", ffn_norm = "blk.%d.ffn_norm.weight",
    q = "blk.%d.attn_q.weight", k = "blk.%d.attn_k.weight", v = "blk.%d.attn_v.weight",
      o = "blk.%d.attn_output.weight",
    q_bias = "blk.%d.attn_q.bias", k_bias = "blk.%d.attn_k.bias", v_bias = "blk.%d.attn_v.bias",
    o_bias = "blk.%d.attn_output.bias", q_norm = "blk.%d.attn_q_norm.weight",
      k_norm = "blk.%d.attn_k_norm.weight",
    gate = "blk.%d.ffn_gate.weight", up = "blk.%d.ffn_up.weight", down = "blk.%d.ffn_down.weight",
  },
}

--- Roles of weights outside the layers, and those of each layer; `optional` ones are bound where a
--- family or its configuration asks for them, and only there.
families.global_roles = { "embed", "out_norm", "output" }
families.layer_roles = { "attn_norm", "q", "k", "v", "o", "ffn_norm", "gate", "up", "down" }
families.optional_roles = { "q_bias", "k_bias", "v_bias", "o_bias", "q_norm", "k_norm" }

--- Sliding windows from a Hugging Face configuration, one for each layer (0: none), or nil. A
--- family names one of these.
local windows = {}

---No window in any layer.
---@return nil
function windows.none() return nil end

---The same window in every layer.
---@param c table           config.json
---@param layers integer
---@return integer[]?
function windows.all(c, layers)
  local out = {}
  for i = 1, layers do out[i] = c.sliding_window or 0 end
  return c.sliding_window and out or nil
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

---@class pyramid.Family
---@field name string            model_type and general.architecture
---@field architectures string[] what config.json may call it
---@field weights string[]?      optional roles that its checkpoints have
---@field defaults table?        what its config.json means where it is silent
---@field window string?         "all" or "upper": which layers slide (default: none do)
---@field gguf_rope string?  "interleaved" where GGUF files hold q and k permuted (default "half")
---@field names table?
---  { hf = { role = pattern }, gguf = { role = pattern } } where names differ from the base

local known = { name = 1, architectures = 1, weights = 1, defaults = 1, window = 1, gguf_rope = 1,
  names = 1 }
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
    error(("family %s: window = '%s' (known: all, none, upper)"):format(t.name,
      tostring(t.window)), 2)
  end
  local names = {}
  for format, base in pairs(base_names) do
    names[format] = setmetatable(t.names and t.names[format] or {}, { __index = base })
  end
  return setmetatable({
    name = t.name, architectures = t.architectures, weights = t.weights or {},
      defaults = t.defaults or {},
    window = windows[t.window or "none"], gguf_rope = t.gguf_rope or "half", names = names,
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

--- Names of the families that are bundled or registered, sorted.
---@return string[]
function families.list()
  local out = bundled_names()
  for name in pairs(registered) do out[#out + 1] = name end
  table.sort(out)
  return out
end

return families

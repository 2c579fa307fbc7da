-- Mixtures of experts: what config.json and GGUF metadata say of them, and their matrices where a
-- file has those of all experts in one. Families say what differs from the names here (the field
-- `experts` of pyramid.Family).
--
--     ffn_up_exps [experts, ff, width]                 expert e: rows [e ff, (e + 1) ff) of one
--                                                      matrix of experts * ff rows
--     experts.gate_up_proj [experts, 2 ff, width]      expert e: its gate's rows, then its up's

local fault = require "pyramid.loaders.fault"
local parts = require "pyramid.loaders.parts"

local experts = {}

-- As core/backend/op_args.h has it; what is larger is refused before anything is listed.
local EXPERTS_MAX = 1024

--- Which layers have a plain MLP instead, or nil: the first few, those that a list names, or all
--- but every n-th.
local function plain_layers(layers, first, step, only)
  local dense, any = {}, false
  for i = 1, layers do
    dense[i] = i <= first or i % step ~= 0
    for _, plain in ipairs(only) do dense[i] = dense[i] or plain == i - 1 end
    any = any or dense[i]
  end
  return any and dense or nil
end

-- What was found becomes the model's switches. `called`: what there must be, and its name in
-- messages.
local function put(config, family, what, found, called)
  local d = config.decoder
  for key, name in pairs(called) do
    if not found[key] then fault.raise("format", "%s: %s is missing", what, name) end
  end
  if found.experts > EXPERTS_MAX then
    fault.raise("format", "%s: %d experts, at most %d are known", what, found.experts, EXPERTS_MAX)
  end
  for key, value in pairs(found) do d[key] = value end
  d.router = found.router or family.experts.router
  if not d.dense then config.ff = 0 end
end

---Sets the switches of experts by what config.json says.
---@param get pyramid.FieldReader
---@param family pyramid.Family
---@param config pyramid.Config
---@param what string            the file
function experts.from_hf(get, family, config, what)
  local said = family.experts
  local ff = said.ff and config.ff or get("moe_intermediate_size", "integer")
  local shared = get("shared_expert_intermediate_size", "integer", 0)
  if shared == 0 then shared = get("n_shared_experts", "integer", 0) * (ff or 0) end
  local groups = get("n_group", "integer", 1)
  local step = get("decoder_sparse_step", "integer", 1)
  if step < 1 then fault.raise("format", "%s: decoder_sparse_step is %d", what, step) end
  local renormalise = get("norm_topk_prob", "boolean", false)
  if said.renormalise ~= nil then renormalise = said.renormalise end
  put(config, family, what, {
    experts = get("num_experts", "integer") or get("num_local_experts", "integer")
      or get("n_routed_experts", "integer"),
    experts_used = get("num_experts_per_tok", "integer"), expert_ff = ff, shared_ff = shared,
    router_renormalise = renormalise, router_scale = get("routed_scaling_factor", "number", 1),
    groups = groups > 1 and groups or 0,
    groups_used = groups > 1 and get("topk_group", "integer") or 0,
    dense = plain_layers(config.layers, get("first_k_dense_replace", "integer", 0), step,
      get("mlp_only_layers", "table", {})),
  }, { experts = "num_experts", experts_used = "num_experts_per_tok",
    expert_ff = "moe_intermediate_size" })
end

-- The third is a softmax of the chosen: that of all, divided by the sum of theirs.
local routers = { [1] = "softmax", [2] = "sigmoid", [3] = "softmax" }

---The same by GGUF metadata; which layers have a router, tensors tell.
---@param get pyramid.FieldReader
---@param family pyramid.Family
---@param config pyramid.Config
---@param tensors table<string, pyramid.Tensor>
---@param what string            the file
function experts.from_gguf(get, family, config, tensors, what)
  local names, dense = family.names.gguf, {}
  local ff = get("expert_feed_forward_length", "integer", config.ff)
  local kind = get("expert_gating_func", "integer", 0)
  if kind ~= 0 and not routers[kind] then
    fault.raise("unsupported", "%s: metadata %s.expert_gating_func is %d (known: 1, 2, 3)", what,
      family.gguf, kind)
  end
  for i = 1, config.layers do dense[i] = tensors[names.router:format(i - 1)] == nil end
  local any, shared = false, nil
  for i = 1, config.layers do
    any = any or dense[i]
    shared = shared or tensors[names.shared_up:format(i - 1)]
  end
  local scale, groups = get("expert_weights_scale", "number", 0),
    get("expert_group_count", "integer", 1)
  local renormalise = family.experts.gguf_renormalise
  if renormalise == nil then renormalise = family.experts.renormalise or false end
  put(config, family, what, {
    experts = get("expert_count", "integer"), experts_used = get("expert_used_count", "integer"),
    expert_ff = ff, shared_ff = shared and shared.shape[1] or 0, router = routers[kind],
    router_renormalise = get("expert_weights_norm", "boolean", renormalise) or kind == 3,
    router_scale = scale ~= 0 and scale or 1, groups = groups > 1 and groups or 0,
    groups_used = groups > 1 and get("expert_group_used_count", "integer") or 0,
    dense = any and dense or nil,
  }, { experts = ("metadata %s.expert_count"):format(family.gguf),
    experts_used = ("metadata %s.expert_used_count"):format(family.gguf) })
end

-- Experts' matrices out of one: `roles` in the order of an expert's rows, `rows` of each.
local function split(source, layer, name, roles, rows)
  local whole, count = source.tensors[name], source.config.decoder.experts
  if not whole then return end
  local shape = whole.shape
  local each, cols = #roles * rows, shape[#shape]
  -- of a single expert GGUF files know no third dimension
  local fits = #shape == 3 and shape[1] == count and shape[2] == each
    or #shape == 2 and count == 1 and shape[1] == each
  if not fits then
    fault.raise("format", "%s: tensor %s: shape [%s], where %d experts have %d rows each",
      whole.path, name, table.concat(shape, ", "), count, each)
  end
  local flat = setmetatable({ shape = { count * each, cols } }, { __index = whole })
  for e = 0, count - 1 do
    for i, role in ipairs(roles) do
      source.tensors[source.names["expert_" .. role]:format(layer, e)] = parts.take_rows(flat,
        ("%s of expert %d"):format(role, e), e * each + (i - 1) * rows, rows)
    end
  end
  source.tensors[name] = nil
end

-- Experts' biases out of a matrix of them.
local function split_biases(source, layer, role, length)
  local name = (source.names["experts_" .. role .. "_bias"] or ""):format(layer)
  local whole, count = source.tensors[name], source.config.decoder.experts
  if not whole then return end
  if #whole.shape ~= 2 or whole.shape[1] ~= count or whole.shape[2] ~= length then
    fault.raise("format", "%s: tensor %s: shape [%s], where %d experts have %d biases each",
      whole.path, name, table.concat(whole.shape, ", "), count, length)
  end
  local flat = setmetatable({ shape = { count * length } }, { __index = whole })
  for e = 0, count - 1 do
    source.tensors[source.names["expert_" .. role .. "_bias"]:format(layer, e)] =
      parts.take_rows(flat, ("%s bias of expert %d"):format(role, e), e * length, length)
  end
  source.tensors[name] = nil
end

--- Replaces tensors of all experts by one for each, under the names that those have alone.
---@param source pyramid.Source
function experts.split(source)
  local d, names = source.config.decoder, source.names
  if (d.experts or 0) == 0 then return end
  for layer = 0, source.config.layers - 1 do
    local function of(role) return (names["experts_" .. role] or ""):format(layer) end
    split(source, layer, of "gate_up", { "gate", "up" }, d.expert_ff)
    split(source, layer, of "gate", { "gate" }, d.expert_ff)
    split(source, layer, of "up", { "up" }, d.expert_ff)
    split(source, layer, of "down", { "down" }, source.config.width)
    split_biases(source, layer, "gate", d.expert_ff)
    split_biases(source, layer, "up", d.expert_ff)
    split_biases(source, layer, "down", source.config.width)
    local router = source.tensors[names.shared_router:format(layer)]
    if router and #router.shape == 1 then                       -- one row, as GGUF files have it
      source.tensors[names.shared_router:format(layer)] = setmetatable(
        { shape = { 1, router.shape[1] } }, { __index = router })
    end
  end
end

return experts

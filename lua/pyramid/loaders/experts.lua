-- Mixtures of experts: what config.json and GGUF metadata say of them, and their matrices where a
-- file has those of all experts in one. Families say what differs from the names here (the field
-- `experts` of pyramid.Family).
--
--     ffn_up_exps [experts, ff, width]                 expert e: rows [e ff, (e + 1) ff) of one
--                                                      matrix of experts * ff rows
--     experts.gate_up_proj [experts, 2 ff, width]      expert e: its gate's rows, then its up's
--     the same of GPT-OSS [experts, width, 2 ff]       transposed and dealt: columns 0, 2, 4, … of
--                                                      expert e are its gate's rows

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

-- Parts of a tensor that has those of all experts: matrices (rank 3) or biases (rank 2). `roles`,
-- of `rows` each, in the order of an expert's rows; `dealt`: one row of each in turn.
local function split(source, layer, what, roles, rows, rank, suffix)
  local name = (source.names["experts_" .. what .. suffix] or ""):format(layer)
  local whole, count = source.tensors[name], source.config.decoder.experts
  if not whole then return end
  local said, shape, each = source.family.experts, whole.shape, #roles * rows
  -- what lies as [in, out] is taken by columns; packed matrices are not turned
  local turned = rank == 3 and said.transposed and source.format == "hf" and not whole.packed
  local dealt = said.dealt and source.format == "hf" and #roles > 1
  local cols = shape[turned and 2 or 3]
  -- of a single expert GGUF files know no further dimension
  local fits = #shape == rank and shape[1] == count and shape[turned and 3 or 2] == each
    or #shape == rank - 1 and count == 1 and shape[1] == each and not turned
  if not fits then
    fault.raise("format", "%s: tensor %s: shape [%s], where %d experts have %d rows each",
      whole.path, name, table.concat(shape, ", "), count, each)
  end
  local flat = parts.reshape(whole, turned and { count * cols, each }
    or { count * each, rank == 3 and (cols or shape[2]) or nil })
  for e = 0, count - 1 do
    for i, role in ipairs(roles) do
      local called = ("%s%s of expert %d"):format(role, suffix:gsub("_", " "), e)
      local first, every = dealt and i - 1 or (i - 1) * rows, dealt and #roles or 1
      source.tensors[source.names["expert_" .. role .. suffix]:format(layer, e)] = turned
        and parts.take_columns(parts.take_rows(flat, called, e * cols, cols), called, first, rows,
          every)
        or parts.take_rows(flat, called, e * each + first, rows, every)
    end
  end
  source.tensors[name] = nil
end

--- Replaces tensors of all experts by one for each, under the names that those have alone.
---@param source pyramid.Source
function experts.split(source)
  local d, names = source.config.decoder, source.names
  if (d.experts or 0) == 0 then return end
  for layer = 0, source.config.layers - 1 do
    for _, kind in ipairs { { 3, "" }, { 2, "_bias" } } do
      local rank, suffix = table.unpack(kind)
      split(source, layer, "gate_up", { "gate", "up" }, d.expert_ff, rank, suffix)
      split(source, layer, "gate", { "gate" }, d.expert_ff, rank, suffix)
      split(source, layer, "up", { "up" }, d.expert_ff, rank, suffix)
      split(source, layer, "down", { "down" }, source.config.width, rank, suffix)
    end
    local router = source.tensors[names.shared_router:format(layer)]
    if router and #router.shape == 1 then                       -- one row, as GGUF files have it
      source.tensors[names.shared_router:format(layer)] =
        parts.reshape(router, { 1, router.shape[1] })
    end
  end
end

return experts

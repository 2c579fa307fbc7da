-- Mixtures of experts in files: the fixtures, whose logits families_spec holds against
-- transformers', give the same logits however their experts are written.
local cjson = require "cjson"
local convert = require "pyramid.tools.convert"
local gguf = require "pyramid.loaders.gguf"
local helper = require "spec.helper"
local formats = require "spec.support.formats"
local loaders = require "pyramid.loaders"
local pyramid = require "pyramid"
local safetensors = require "pyramid.loaders.safetensors"
local shell = require "spec.support.shell"

local architectures = { mixtral = "llama", ["qwen2-moe"] = "qwen2moe", ["qwen3-moe"] = "qwen3moe",
  olmoe = "olmoe" }

local function folder_of(name) return helper.fixture("decoders/" .. name) end
local function config_of(name) return helper.json(folder_of(name) .. "/config.json") end

-- Tensors of a fixture: { name, shape, data }, by name.
local function tensors_of(name)
  local path, out = folder_of(name) .. "/model.safetensors", {}
  local bytes = helper.read(path)
  for _, t in ipairs(assert(safetensors.read(path)).tensors) do
    out[t.name] = { name = t.name, shape = t.shape,
      data = bytes:sub(t.offset + 1, t.offset + t.bytes) }
  end
  return out
end

-- layer, expert and gate, up or down of an expert's matrix.
local function expert_of(name)
  local layer, expert, which = name:match "layers%.(%d+)%.[%w_]+%.experts%.(%d+)%.(%w+)"
  local roles = { w1 = "gate", w2 = "down", w3 = "up", gate_proj = "gate", up_proj = "up",
    down_proj = "down" }
  which = which and (name:match "(%l+_proj)" or which)
  if layer then return tonumber(layer), tonumber(expert), roles[which] end
end

-- One tensor of all experts of a layer: each one's `roles` in a row.
local function stack(tensors, layer, roles)
  local by, first = {}, nil
  for name, t in pairs(tensors) do
    local l, e, role = expert_of(name)
    if l == layer then
      by[e] = by[e] or {}
      by[e][role], first = t, role == roles[1] and t or first
    end
  end
  if not first then return nil end
  local data = {}
  for e = 0, #by do
    for _, role in ipairs(roles) do data[#data + 1] = by[e][role].data end
  end
  return { shape = { #by + 1, #roles * first.shape[1], first.shape[2] },
    data = table.concat(data) }
end

local renames = {
  { "^model%.embed_tokens%.", "token_embd." }, { "^model%.norm%.", "output_norm." },
  { "^lm_head%.", "output." }, { "^model%.layers%.", "blk." },
  { "input_layernorm", "attn_norm" }, { "post_attention_layernorm", "ffn_norm" },
  { "self_attn%.([qkv])_proj", "attn_%1" }, { "self_attn%.o_proj", "attn_output" },
  { "self_attn%.([qk])_norm", "attn_%1_norm" },
  { "mlp%.shared_expert_gate", "ffn_gate_inp_shexp" },
  { "mlp%.shared_expert%.(%l+)_proj", "ffn_%1_shexp" },
  { "mlp%.gate%.", "ffn_gate_inp." }, { "block_sparse_moe%.gate%.", "ffn_gate_inp." },
  { "mlp%.(%l+)_proj", "ffn_%1" },
}

-- A fixture as converters write it; `apart`: each expert by itself, as files of 2023 have them.
local function gguf_of(name, apart, more)
  local config, tensors, out = config_of(name), tensors_of(name), {}
  local arch = architectures[name]
  config.rope_theta, config.rope_scaling = config.rope_parameters.rope_theta, nil
  if config.head_dim == cjson.null then config.head_dim = nil end
  local function set(key, kind, value)
    key = arch .. "." .. key
    if more[key] == nil and value then more[key] = formats.kv(key, kind, value) end
  end
  set("expert_count", "u32", config.num_experts or config.num_local_experts)
  set("expert_used_count", "u32", config.num_experts_per_tok)
  set("expert_feed_forward_length", "u32", config.moe_intermediate_size)
  if name == "mixtral" then set("attention.sliding_window", "u32", config.sliding_window) end
  local function put(as, t)
    local wide = #t.shape == 1
    out[#out + 1] = { name = as, shape = t.shape, type = formats.types[wide and "f32" or "bf16"],
      data = wide and t.data:gsub("..", "\0\0%0") or t.data }
  end
  for _, t in pairs(tensors) do
    local layer, expert, role = expert_of(t.name)
    if not layer then
      local as, which = t.name, t.name:match "self_attn%.([qk])_proj"
      if name == "mixtral" and which then
        t.data = formats.permute(t.data, t.shape[1], which == "q" and config.num_attention_heads
          or config.num_key_value_heads)
      end
      if as:find "shared_expert_gate" then t.shape = { t.shape[2] } end
      for _, rename in ipairs(renames) do as = as:gsub(rename[1], rename[2]) end
      put(as, t)
    elseif apart then put(("blk.%d.ffn_%s.%d.weight"):format(layer, role, expert), t) end
  end
  for layer = 0, apart and -1 or config.num_hidden_layers - 1 do
    for _, role in ipairs { "gate", "up", "down" } do
      local t = stack(tensors, layer, { role })
      if t then put(("blk.%d.ffn_%s_exps.weight"):format(layer, role), t) end
    end
  end
  table.sort(out, function(a, b) return a.name < b.name end)
  return formats.gguf { metadata = formats.metadata_of(config, arch, more), tensors = out }
end

describe("experts in files", function()
  local folder
  setup(function() folder = shell.folder() end)
  teardown(function() shell.remove(folder) end)

  local function logits_of(path, options)
    options = options or { threads = 1 }
    options.precision = "f32"
    local model = assert(pyramid.model(path, options))
    local cache <close> = assert(model:cache { dtype = "f32" })
    local all = {}
    for i, logits in ipairs(assert(cache:prefill(helper.ids(9, 96), { all = true }))) do
      all[i] = logits:totable()
    end
    model:close()
    return all, model.config
  end

  local function near(got, ref)
    for i, row in ipairs(ref) do
      local distance = helper.distance(got[i], row)
      if distance > 1e-4 then error(("position %d: relative error %.3g"):format(i, distance), 2) end
    end
  end

  for name, arch in pairs(architectures) do
    it(("are one tensor, or one each, of a %s in GGUF"):format(arch), function()
      local ref, config = logits_of(folder_of(name))
      for _, apart in ipairs { false, true } do
        local path = folder .. "/model.gguf"
        helper.write(path, gguf_of(name, apart, {}))
        local got, its = logits_of(path)
        its.decoder.activation = config.decoder.activation    -- which config.json alone states
        assert.same(config.decoder, its.decoder)
        near(got, ref)
      end
    end)
  end

  -- A model directory with other tensors or another configuration than a fixture's.
  local function put(name, change, tensors)
    local config, list = config_of(name), {}
    for key, value in pairs(change) do config[key] = value end
    for _, t in pairs(tensors or tensors_of(name)) do
      list[#list + 1] = { name = t.name, dtype = "BF16", shape = t.shape, data = t.data }
    end
    table.sort(list, function(a, b) return a.name < b.name end)
    helper.write(folder .. "/config.json", cjson.encode(config))
    helper.write(folder .. "/model.safetensors", formats.safetensors(list))
    return folder
  end

  it("are two tensors, as transformers holds them in memory", function()
    local tensors = tensors_of "olmoe"
    for layer = 0, 2 do
      local prefix = ("model.layers.%d.mlp.experts."):format(layer)
      for name, roles in pairs { gate_up_proj = { "gate", "up" }, down_proj = { "down" } } do
        local t = stack(tensors, layer, roles)
        t.name = prefix .. name
        tensors[t.name] = t
      end
    end
    for name in pairs(tensors) do
      if expert_of(name) then tensors[name] = nil end
    end
    assert.same((logits_of(folder_of "olmoe")), (logits_of(put("olmoe", {}, tensors))))
  end)

  it("convert, and are told in the model's description", function()
    local model = assert(pyramid.model(folder_of "qwen3-moe", { weights = "f16", threads = 1 }))
    assert.truthy(model.description:find("3 layers, 3 of 9 experts,", 1, true), model.description)
    assert.equal(48, model.config.ff)                         -- of the layers that have none
    model:close()
    local ref = logits_of(folder_of "qwen3-moe")
    near(logits_of(folder_of "qwen3-moe", { weights = "f16", threads = 1 }), ref)
    assert.equal(0, assert(loaders.open(folder_of "olmoe")).config.ff)
  end)

  it("are stacked by `pyramid convert`, and copied", function()
    local path, copy, own = folder .. "/model.gguf", folder .. "/copy.gguf", folder .. "/own.gguf"
    helper.write(path, gguf_of("qwen3-moe", false, {}))
    assert(convert.write(folder_of "qwen3-moe", own, {}))
    assert(convert.write(path, copy, { weights = "f16" }))
    local ref = logits_of(folder_of "qwen3-moe")
    near(logits_of(own), ref)
    near(logits_of(copy), ref)
    local function shape(file)
      for _, t in ipairs(assert(gguf.read(file)).tensors) do
        if t.name == "blk.1.ffn_up_exps.weight" then return t.shape end
      end
    end
    assert.same(shape(path), shape(own))
  end)

  local function refuses(words, code, path)
    local source, message, got = loaders.open(path)
    if source then source, message, got = loaders.weights(source) end
    assert.is_nil(source)
    assert.equal(code, got)
    assert.truthy(message:find(words, 1, true), message)
  end

  -- GPT-OSS in mxfp4; change(tensors by their names in layer 0's experts) makes something wrong.
  local function put_mxfp4(change, config)
    local tensors, list, by = tensors_of "gpt-oss-mxfp4", {}, {}
    for _, t in pairs(tensors) do
      t.dtype = t.name:find "_blocks$" and "U8" or t.name:find "_scales$" and "U8" or "BF16"
      by[t.name:match "layers%.0%.mlp%.experts%.(.*)" or t.name] = t
    end
    if change then change(by) end
    for _, t in pairs(by) do list[#list + 1] = t end
    table.sort(list, function(a, b) return a.name < b.name end)
    local json = config_of "gpt-oss-mxfp4"
    for key, value in pairs(config or {}) do json[key] = value end
    helper.write(folder .. "/config.json", cjson.encode(json))
    helper.write(folder .. "/model.safetensors", formats.safetensors(list))
    return folder
  end

  it("in mxfp4 are q8_0 without loss, but for scales beyond a half's", function()
    local exact = logits_of(put_mxfp4(), { weights = "f32", threads = 1 })
    for i, row in ipairs((logits_of(put_mxfp4()))) do
      assert.is_true(helper.distance(row, exact[i]) < 1e-6)
    end
    put_mxfp4(function(by)       -- of the first row's block: its smallest, which is no normal float
      by.down_proj_scales.data = "\0" .. by.down_proj_scales.data:sub(2)
    end)
    near(logits_of(folder), (logits_of(folder, { weights = "f32", threads = 1 })))
  end)

  it("in mxfp4 are refused where parts do not fit", function()
    local function refused(words, change, config)
      refuses(words, "format", put_mxfp4(change, config))
    end
    refused("down_proj_scales: is missing", function(by) by.down_proj_scales = nil end)
    refused("down_proj_scales: is of bf16", function(by)
      local t = by.down_proj_scales
      t.dtype, t.data = "BF16", t.data:rep(2)
    end)
    refused("gate_up_proj_blocks: of shape [4, 128, 16], where [experts, rows, blocks, 16] is",
      function(by) by.gate_up_proj_blocks.shape = { 4, 128, 16 } end)
    refused("gate_up_proj_blocks: of shape [4, 128, 2, 8], where", function(by)
      by.gate_up_proj_blocks.shape = { 4, 128, 2, 8 }
    end)
    refused("gate_up_proj_scales: of shape [4, 128], where [4, 128, 1] is wanted", function(by)
      by.gate_up_proj_scales.shape = { 4, 128 }
    end)
    refused("gate_up_proj_blocks: has a dimension of 0", function(by)
      by.gate_up_proj_blocks.shape, by.gate_up_proj_blocks.data = { 0, 128, 1, 16 }, ""
    end)
    refused("shape [4, 128, 32], where 5 experts have 128 rows each", nil,
      { num_local_experts = 5 })
    refuses("swiglu_alpha is 2 (known: 1.702)", "unsupported",
      put_mxfp4(nil, { swiglu_alpha = 2 }))
  end)

  it("are refused where they cannot be", function()
    refuses("2000 experts, at most 1024", "format", put("olmoe", { num_experts = 2000 }))
    refuses("decoder_sparse_step is 0", "format", put("qwen3-moe", { decoder_sparse_step = 0 }))
    refuses("tensor model.layers.0.mlp.experts.6.gate_proj.weight is missing", "format",
      put("olmoe", { num_experts = 7 }))
    refuses("tensors that a olmoe does not have", "unsupported", put("olmoe", { num_experts = 5 }))
    refuses("moe_intermediate_size", "format", put("qwen3-moe", { moe_intermediate_size = "x" }))
    refuses("num_local_experts: a mixture of experts, of the family qwen3", "unsupported",
      put("qwen3-moe", { model_type = "qwen3", architectures = { "Qwen3ForCausalLM" },
        num_experts = 9 }))
    local path = folder .. "/model.gguf"
    for _, case in ipairs {
      { "expert_count", 6, "shape [5, 16, 32], where 6 experts have 16 rows each" },
      { "expert_count", false, "metadata qwen2moe.expert_count is missing" },
      { "expert_used_count", false, "metadata qwen2moe.expert_used_count is missing" },
      { "expert_gating_func", 4, "expert_gating_func is 4 (known: 1, 2, 3)", "unsupported" },
    } do
      local key = "qwen2moe." .. case[1]
      helper.write(path, gguf_of("qwen2-moe", false,
        { [key] = case[2] and formats.kv(key, "u32", case[2]) }))
      refuses(case[3], case[4] or "format", path)
    end
  end)
end)

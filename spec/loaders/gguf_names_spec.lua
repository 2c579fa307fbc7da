-- Families in GGUF files, as llama.cpp's converters write them: the fixtures, whose logits
-- families_spec holds against transformers', give the same logits from there. Names of tensors are
-- those of the `gguf` package (scripts/maker/oracle/decoders.py), keys and rearranged rows those of
-- the converters.
local cjson = require "cjson"
local families = require "pyramid.families"
local formats = require "spec.support.formats"
local helper = require "spec.helper"
local loaders = require "pyramid.loaders"
local pyramid = require "pyramid"
local safetensors = require "pyramid.loaders.safetensors"
local shell = require "spec.support.shell"

local published = helper.json(helper.fixture "decoders" .. "/gguf_names.json")

local function folder_of(name) return helper.fixture("decoders/" .. name) end

-- A field of config.json by the family's name of it; nil for null.
local function reader(config)
  local called = families.find(config.model_type).fields
  return function(key)
    local value = config[called[key] or key]
    return value ~= cjson.null and value or nil
  end
end

-- [groups of q, k, v] to [q, k, v]: heads of `size` bytes; `queries` a group.
local function regroup(data, groups, queries)
  local size, out = #data // (groups * (queries + 2)), { {}, {}, {} }
  for i = 0, groups * (queries + 2) - 1 do
    local place = i % (queries + 2)
    local which = place < queries and 1 or place == queries and 2 or 3
    table.insert(out[which], data:sub(i * size + 1, (i + 1) * size))
  end
  return table.concat(out[1]) .. table.concat(out[2]) .. table.concat(out[3])
end

-- [rows, columns] of two bytes to [columns, rows].
local function transpose(data, rows, columns)
  local out = {}
  for column = 0, columns - 1 do
    for row = 0, rows - 1 do
      local at = 2 * (row * columns + column)
      out[#out + 1] = data:sub(at + 1, at + 2)
    end
  end
  return table.concat(out)
end

-- What converters do to tensors: by the model_type, fn(t, config) changes t.shape and t.data, in
-- bf16.
local function grouped(t, config)
  if not t.name:find "query_key_value" then return end
  local heads = config.num_attention_heads or config.n_head
  local groups = config.new_decoder_architecture and config.num_kv_heads
    or config.multi_query and 1 or heads
  t.data = regroup(t.data, groups, heads // groups)
end
-- Rows of q and k as converters of Llamas order them.
local function permuted(t, config)
  local which = t.name:match "self_attn%.([qk])_proj"
  if not which then return end
  t.data = formats.permute(t.data, t.shape[1], which == "q" and config.num_attention_heads
    or config.num_key_value_heads)
end
local changes = {
  falcon = grouped, gpt_neox = grouped, bloom = grouped,
  smollm3 = permuted, granite = permuted, arcee = permuted, minicpm = permuted,
  ministral3 = permuted,
  gpt2 = function(t)
    if #t.shape == 1 or not t.name:find "%.c_%l+%." then return end
    t.data = transpose(t.data, t.shape[1], t.shape[2])
    t.shape = { t.shape[2], t.shape[1] }
  end,
}
-- Norms' weights less 1.
local one_more = { gemma = true, gemma2 = true, gemma3_text = true, nemotron = true }

-- f32 of a vector in bf16, plus `offset`.
local function widen(data, offset)
  local wide = data:gsub("..", "\0\0%0")
  if offset == 0 then return wide end
  return (wide:gsub("....", function(bytes)
    return ("<f"):pack(("<f"):unpack(bytes) + offset)
  end))
end

-- InternLM2's wqkv becomes three tensors, which its converter names itself.
local function apart(t, config)
  if not t.name:find "wqkv" then return { t } end
  local heads, groups = config.num_attention_heads, config.num_key_value_heads
  local row = #t.data // t.shape[1]
  local size = t.shape[1] // (heads + 2 * groups)
  local data, at, out = regroup(t.data, groups, heads // groups), 0, {}
  for i, which in ipairs { "q", "k", "v" } do
    local count = which == "q" and heads or groups
    local rows = data:sub(at + 1, at + count * size * row)
    if which ~= "v" then rows = formats.permute(rows, count * size, count) end
    out[i] = { shape = { count * size, t.shape[2] }, data = rows,
      as = ("blk.%d.attn_%s.%s"):format(t.name:match "%.(%d+)%.", which, t.name:match "%l+$") }
    at = at + #rows
  end
  return out
end

-- Which layers slide.
local function pattern(c)
  local out = {}
  for i, kind in ipairs(c.layer_types) do out[i] = kind == "sliding_attention" and 1 or 0 end
  return { ["attention.sliding_window"] = { "u32", c.sliding_window },
    ["attention.sliding_window_pattern"] = { "array:bool", out } }
end

-- What GGUF files cannot say, and the fixtures have otherwise: by the model_type.
local instead = {
  gemma2 = function(config) config.query_pre_attn_scalar = config.head_dim end,
  gemma3_text = function(config) config.query_pre_attn_scalar = config.head_dim end,
}

-- Keys that only some converters write: { kind, value } by key, of a config.json.
local more = {
  cohere = function(c) return { logit_scale = { "f32", c.logit_scale } } end,
  cohere2 = function(c)
    return { logit_scale = { "f32", c.logit_scale },
      ["attention.sliding_window"] = { "u32", c.sliding_window } }
  end,
  starcoder2 = function(c)
    return { ["attention.sliding_window"] = { "u32", c.sliding_window } }
  end,
  -- "parallel" even where the layers are not
  stablelm = function() return { use_parallel_residual = { "bool", 1 } } end,
  granite = function(c)
    return { ["attention.scale"] = { "f32", c.attention_multiplier },
      embedding_scale = { "f32", c.embedding_multiplier },
      residual_scale = { "f32", c.residual_multiplier },
      logit_scale = { "f32", c.logits_scaling } }
  end,
  minicpm = function(c)
    return { embedding_scale = { "f32", c.scale_emb },
      residual_scale = { "f32", c.scale_depth / c.num_hidden_layers ^ 0.5 },
      logit_scale = { "f32", c.hidden_size / c.dim_model_base } }
  end,
  olmo3 = pattern, exaone4 = pattern,
  gemma2 = function(c)
    return { ["attention.sliding_window"] = { "u32", c.sliding_window },
      attn_logit_softcapping = { "f32", c.attn_logit_softcapping },
      final_logit_softcapping = { "f32", c.final_logit_softcapping } }
  end,
  gemma3_text = pattern,
  ministral3 = function(c)
    return { ["attention.temperature_scale"] = { "f32", c.rope_parameters.llama_4_scaling_beta },
      ["rope.scaling.yarn_log_multiplier"] = { "f32", c.rope_parameters.mscale_all_dim } }
  end,
  mpt = function(c)
    return { ["attention.max_alibi_bias"] = { "f32", c.attn_config.alibi_bias_max } }
  end,
  gpt_neox = function(c)
    return { use_parallel_residual = { "bool", c.use_parallel_residual and 1 or 0 } }
  end,
}

-- `other`: keys with another { kind, value }; false takes one away.
local function metadata_of(config, arch, other)
  local get, out = reader(config), { formats.kv("general.architecture", "string", arch) }
  local function set(key, kind, value)
    if value and other[key] == nil then
      out[#out + 1] = formats.kv(arch .. "." .. key, kind, value)
    end
  end
  for key, field in pairs(other) do
    if field then out[#out + 1] = formats.kv(arch .. "." .. key, field[1], field[2]) end
  end
  local heads, width = get "num_attention_heads", get "hidden_size"
  local head_dim = get "head_dim" or width // heads
  local kv_heads = config.multi_query and not config.new_decoder_architecture and 1
    or get "num_key_value_heads"
  set("block_count", "u32", get "num_hidden_layers")
  set("context_length", "u32", get "max_position_embeddings")
  set("embedding_length", "u32", width)
  set("feed_forward_length", "u32", get "intermediate_size" or 4 * width)
  set("attention.head_count", "u32", heads)
  set("attention.head_count_kv", "u32", kv_heads)
  if head_dim * heads ~= width then set("attention.key_length", "u32", head_dim) end
  set(config.rms_norm_eps and "attention.layer_norm_rms_epsilon"
    or "attention.layer_norm_epsilon", "f32", get "rms_norm_eps")
  local rope = config.rope_parameters
  rope = rope and rope.full_attention or rope
  if rope then
    if rope.rope_type == "yarn" then
      set("rope.scaling.type", "string", rope.rope_type)
      set("rope.scaling.factor", "f32", rope.factor)
      set("rope.scaling.original_context_length", "u32", rope.original_max_position_embeddings)
    end
    set("rope.freq_base", "f32", rope.rope_theta)
    set("rope.dimension_count", "u32",
      math.floor((rope.partial_rotary_factor or 1) * head_dim))
  end
  for key, field in pairs(more[config.model_type] and more[config.model_type](config) or {}) do
    set(key, field[1], field[2])
  end
  return out
end

local function gguf_of(name, other)
  local dir, known = folder_of(name), published[name]
  local config, tensors = helper.json(dir .. "/config.json"), {}
  local file = assert(safetensors.read(dir .. "/model.safetensors"))
  local bytes = helper.read(file.path)
  for _, t in ipairs(file.tensors) do
    local layer = t.name:match "%.(%d+)%."
    local first = t.name:gsub("%.%d+%.", ".0.", 1)
    local copy = { name = t.name, shape = t.shape,
      data = bytes:sub(t.offset + 1, t.offset + t.bytes) }
    if changes[config.model_type] then changes[config.model_type](copy, config) end
    for _, part in ipairs(config.model_type == "internlm2" and apart(copy, config) or { copy }) do
      local as = part.as
        or known.names[first]:gsub("^blk%.0%.", "blk." .. (layer or "") .. ".")
      local wide = #part.shape == 1 or as:find "_norm"
      local offset = one_more[config.model_type] and as:find "_norm%.weight$" and 1 or 0
      tensors[#tensors + 1] = { name = as, shape = part.shape,
        type = formats.types[wide and "f32" or "bf16"],
        data = wide and widen(part.data, offset) or part.data }
    end
  end
  return formats.gguf { metadata = metadata_of(config, known.architecture, other or {}),
    tensors = tensors }
end

describe("families in GGUF files", function()
  local folder
  setup(function() folder = shell.folder() end)
  teardown(function() shell.remove(folder) end)

  -- The logits of a model, a function of the position.
  local function logits_of(path, ids)
    local model <close> = assert(pyramid.model(path, { threads = 1 }))
    local cache <close> = assert(model:cache { dtype = "f32" })
    local logits = assert(cache:prefill(ids, { all = true }))
    local out = {}
    for i = 1, #logits do out[i] = logits[i]:totable() end
    return function(i) return out[i] end, model.config
  end

  -- Those that a fixture has, or its folder with another configuration.
  local function expected(name, sequence)
    local config = helper.json(folder_of(name) .. "/config.json")
    if instead[config.model_type] then
      instead[config.model_type](config)
      helper.write(folder .. "/config.json", cjson.encode(config))
      helper.write(folder .. "/model.safetensors",
        helper.read(folder_of(name) .. "/model.safetensors"))
      return (logits_of(folder, sequence.ids))
    end
    local vocab, bytes = sequence.shape[2], helper.read(folder_of(name) .. "/golden.bin")
    return function(i)
      return helper.floats(bytes, sequence.offset + 4 * vocab * (i - 1), vocab)
    end
  end

  for name, known in pairs(published) do
    it(("have the same logits: %s as %s"):format(name, known.architecture), function()
      local path = folder .. "/model.gguf"
      helper.write(path, gguf_of(name))
      local golden = helper.json(folder_of(name) .. "/golden.json")
      local sequence = golden.sequences[#golden.sequences]
      local ref = expected(name, sequence)
      local logits, its = logits_of(path, sequence.ids)
      for i = 1, #sequence.ids do
        local distance = helper.distance(logits(i), ref(i))
        assert.is_true(distance < 1e-4, ("%s, position %d: %g"):format(name, i, distance))
      end
      local own = assert(loaders.open(folder_of(name))).config
      for _, key in ipairs { "family", "layers", "heads", "kv_heads", "head_dim", "width", "ff",
        "vocab", "context", "tied", "window" } do
        assert.same(own[key], its[key], key)
      end
    end)
  end

  local function open(name, other)
    helper.write(folder .. "/model.gguf", gguf_of(name, other))
    return loaders.open(folder .. "/model.gguf")
  end
  local PATTERN = "attention.sliding_window_pattern"

  it("say which layers slide in a list, by a number, or not at all", function()
    local function window(sliding)
      return assert(open("exaone4", { [PATTERN] = sliding })).config.window
    end
    assert.same({ 24, 0, 24 }, window())
    assert.same({ 24, 24, 0 }, window { "u32", 3 })
    assert.same({ 24, 24, 24 }, window(false))             -- each fourth does not
    local source, message, code = open("exaone4", { [PATTERN] = { "array:bool", { 1, 0 } } })
    assert.is_nil(source)
    assert.equal("format", code)
    assert.matches("model.gguf: metadata exaone4%.attention%.sliding_window_pattern is no list of "
      .. "a boolean for each layer$", message)
  end)

  it("say of YaRN's gain what is taken off it", function()
    local function gain(log)
      return assert(open("ministral3", { ["rope.scaling.yarn_log_multiplier"] = log })).config.rope
        .gain
    end
    local grown = math.log(20)
    for log, wanted in pairs { [1] = 1, [0.5] = (0.1 * grown + 1) / (0.05 * grown + 1),
      [0] = 0.1 * grown + 1 } do
      local distance = gain { "f32", log } - wanted
      assert.is_true(math.abs(distance) < 1e-7, log)
    end
    assert.equal(gain { "f32", 0 }, gain(false))
    local source, message, code = open("ministral3",
      { ["rope.scaling.yarn_ext_factor"] = { "f32", 0.5 } })
    assert.is_nil(source)
    assert.equal("unsupported", code)
    assert.matches("yarn_ext_factor is 0.5 %(known: 1%)$", message)
  end)

  it("temper queries by what is there", function()
    local key = "attention.temperature_scale"
    local d = assert(open("ministral3")).config.decoder
    assert.equal(16, d.temper_length)
    assert.is_nil(assert(open("ministral3", { [key] = false })).config.decoder.temper)
    for _, wrong in ipairs { -0.5, 2000 } do
      local source, message, code = open("ministral3", { [key] = { "f32", wrong } })
      assert.is_nil(source)
      assert.equal("format", code)
      assert.matches("attention%.temperature_scale is ", message)
    end
  end)

  it("of a family of which no layer slides have no window", function()
    local slides = { ["attention.sliding_window"] = { "u32", 24 } }
    local backwards = { ["attention.sliding_window"] = { "i32", -1 },
      [PATTERN] = { "array:bool", { 1, 1, 1 } } }
    for name, other in pairs { granite = slides, glm = slides, olmo2 = backwards } do
      local source, message, code = open(name, other)
      assert.is_nil(source)
      assert.equal("unsupported", code)
      assert.matches("attention%.sliding_window of a ", message)
    end
  end)

  it("of one name are told apart by a key", function()
    assert.equal("olmo3", assert(open("olmo3")).config.family)
    local other = { ["attention.sliding_window"] = false, [PATTERN] = false }
    assert.equal("olmo2", assert(open("olmo3", other)).config.family)
  end)

  it("leave scalars out, or have none that is negative", function()
    local function switches(name, other) return assert(open(name, other)).config.decoder end
    local plain = { ["attention.scale"] = { "f32", 0 }, embedding_scale = false,
      residual_scale = false, logit_scale = false }
    local d = switches("granite", plain)
    assert.same({ nil, nil, nil, 1 }, { d.embed_scale, d.residual_scale, d.score_scale,
      d.logit_scale })
    assert.is_nil(d.turns)
    d = switches("granite", { ["rope.scaling.finetuned"] = { "bool", 0 } })
    assert.same({ "none", "none", "none" }, d.turns)
    d = switches("minicpm", { embedding_scale = false, residual_scale = false,
      logit_scale = false })
    assert.same({ 12, 1.4 / 3 ^ 0.5, 256 / 32 }, { d.embed_scale, d.residual_scale,
      d.logit_scale })
    local source, message, code = open("granite", { embedding_scale = { "f32", -2 } })
    assert.is_nil(source)
    assert.equal("format", code)
    assert.matches("model.gguf: metadata granite%.embedding_scale is %-2%.0, where a positive "
      .. "number is wanted$", message)
  end)
end)

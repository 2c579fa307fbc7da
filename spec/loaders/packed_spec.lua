-- Quantised Hugging Face checkpoints. Three steps: the definition below, one value at a time, gives
-- the golden values that other people's code agrees with (scripts/maker/oracle/packed.py); a model
-- of random packed matrices computes just what one of the defined values does; and what is wrong
-- with a checkpoint is named.
local cjson = require "cjson"
local formats = require "spec.support.formats"
local helper = require "spec.helper"
local loaders = require "pyramid.loaders"
local pyramid = require "pyramid"
local safetensors = require "pyramid.loaders.safetensors"
local shell = require "spec.support.shell"

local f32 = function(x) return (("<f"):unpack(("<f"):pack(x))) end

-- ---- the definition -----------------------------------------------------------------------------

local function f16_at(s, i)
  local h = ("<I2"):unpack(s, 2 * i + 1)
  local exponent, mantissa = h >> 10 & 31, h & 1023
  local x = exponent == 0 and mantissa * 2.0 ^ -24 or (1 + mantissa / 1024) * 2.0 ^ (exponent - 15)
  return h >> 15 == 1 and -x or x
end

local function e4m3(b)
  local exponent, mantissa = b >> 3 & 15, b & 7
  local x = exponent == 0 and mantissa * 2.0 ^ -9 or (1 + mantissa / 8) * 2.0 ^ (exponent - 7)
  return b >> 7 == 1 and -x or x
end

local function word_at(s, i) return (("<I4"):unpack(s, 4 * i + 1)) end

-- Number i of a list of words, lowest bits first.
local function number_at(s, i, bits)
  return word_at(s, i // (32 // bits)) >> (i % (32 // bits) * bits) & (1 << bits) - 1
end

local dealt = { [0] = 0, 4, 1, 5, 2, 6, 3, 7 }   -- which nibble a row of AWQ's is

-- The value of row n, column k, both from 0, of parts as bytes.
local value_of = {
  gptq = function(c, p, n, k)
    local g = p.g_idx and word_at(p.g_idx, k) or k // c.group[2]
    local each = 32 // c.bits
    local q = word_at(p.qweight, k // each * c.rows + n) >> (k % each * c.bits)
      & (1 << c.bits) - 1
    local z = number_at(p.qzeros, g * c.rows + n, c.bits) + (c.less_one and 1 or 0)
    return f16_at(p.scales, g * c.rows + n) * (q - z)
  end,
  awq = function(c, p, n, k)
    local at, g = n // 8 * 8 + dealt[n % 8], k // c.group[2]
    return f16_at(p.scales, g * c.rows + n) * (number_at(p.qweight, k * c.rows + at, 4)
      - number_at(p.qzeros, g * c.rows + at, 4))
  end,
  scaled = function(c, p, n, k)
    local across = (c.cols - 1) // c.group[2] + 1
    local at = n // c.group[1] * across + k // c.group[2]
    return f32(e4m3(p.weight:byte(n * c.cols + k + 1)) * ("<f"):unpack(p.scale, 4 * at + 1))
  end,
}

local function values_of(c, p)
  local out, value = {}, value_of[c.kind]
  for n = 0, c.rows - 1 do
    for k = 0, c.cols - 1 do out[#out + 1] = ("<f"):pack(value(c, p, n, k)) end
  end
  return table.concat(out)
end

-- ---- checkpoints --------------------------------------------------------------------------------

local R = math.random

local function bytes(n, fn)
  local out = {}
  for i = 1, n do out[i] = fn(i - 1) end
  return table.concat(out)
end

local function random_word() return ("<I4"):pack(R(0) & 0xffffffff) end

-- A half from 2^-9 to 2^-7: its exponent is 6 or 7.
local function random_half() return ("<I2"):pack(R(6, 7) << 10 | R(0, 1023)) end

-- Parts of a random matrix; c: kind, bits, group, rows, cols, order, middle, less_one.
local make = {}
function make.gptq(c)
  local each, groups = 32 // c.bits, (c.cols - 1) // c.group[2] + 1
  local index, zero = {}, 1 << c.bits - 1
  for k = 0, c.cols - 1 do index[k + 1] = k // c.group[2] end
  if c.order then
    for i = #index, 2, -1 do
      local j = R(i)
      index[i], index[j] = index[j], index[i]
    end
  end
  local function zeros()
    local word = 0
    for i = 0, each - 1 do       -- never the highest: one is added in the first version
      word = word | (c.middle and zero - (c.less_one and 1 or 0) or R(0, 2 * zero - 2))
        << i * c.bits
    end
    return ("<I4"):pack(word)
  end
  return {
    qweight = bytes(c.rows * c.cols // each, random_word),
    qzeros = bytes(groups * c.rows // each, zeros), scales = bytes(groups * c.rows, random_half),
    g_idx = bytes(c.cols, function(k) return ("<I4"):pack(index[k + 1]) end),
  }, {
    qweight = { "I32", { c.cols // each, c.rows } }, qzeros = { "I32", { groups, c.rows // each } },
    scales = { "F16", { groups, c.rows } }, g_idx = { "I32", { c.cols } },
  }
end
function make.awq(c)
  local groups = (c.cols - 1) // c.group[2] + 1
  return {
    qweight = bytes(c.rows * c.cols // 8, random_word),
    qzeros = bytes(groups * c.rows // 8, random_word), scales = bytes(groups * c.rows, random_half),
  }, {
    qweight = { "I32", { c.cols, c.rows // 8 } }, qzeros = { "I32", { groups, c.rows // 8 } },
    scales = { "F16", { groups, c.rows } },
  }
end
function make.scaled(c)
  local down, across = (c.rows - 1) // c.group[1] + 1, (c.cols - 1) // c.group[2] + 1
  return {
    weight = bytes(c.rows * c.cols, function()
      local b = R(0, 255)
      return string.char(b & 127 == 127 and 0 or b)
    end),
    scale = bytes(down * across, function() return ("<f"):pack(R() * 2.0 ^ -10 + 2.0 ^ -11) end),
  }, {
    weight = { "F8_E4M3", { c.rows, c.cols } },
    scale = { "F32", c.scale_shape or { down, across } },
  }
end

local WIDTH, FF, VOCAB = 64, 64, 24

-- A Llama of one layer: its tensors packed, and plain; every matrix of the layer as `c` says.
local function new_model(c, width, ff)
  math.randomseed(7)
  width, ff = width or WIDTH, ff or FF
  local packed, plain = {}, {}
  local function both(t) packed[#packed + 1], plain[#plain + 1] = t, t end
  local function noise(n, base)
    return bytes(n, function() return ("<f"):pack(base + R() - 0.5) end)
  end
  both { name = "model.embed_tokens.weight", dtype = "F32", shape = { VOCAB, width },
    data = noise(VOCAB * width, 0) }
  both { name = "lm_head.weight", dtype = "F32", shape = { VOCAB, width },
    data = noise(VOCAB * width, 0) }
  both { name = "model.norm.weight", dtype = "F32", shape = { width }, data = noise(width, 1) }
  for _, name in ipairs { "input_layernorm", "post_attention_layernorm" } do
    both { name = "model.layers.0." .. name .. ".weight", dtype = "F32", shape = { width },
      data = noise(width, 1) }
  end
  for _, m in ipairs {
    { "self_attn.q_proj", width, width }, { "self_attn.k_proj", width // 2, width },
    { "self_attn.v_proj", width // 2, width }, { "self_attn.o_proj", width, width },
    { "mlp.gate_proj", ff, width }, { "mlp.up_proj", ff, width }, { "mlp.down_proj", width, ff },
  } do
    local of = setmetatable({ rows = m[2], cols = m[3] }, { __index = c })
    if c.whole then of.group = { m[2], m[3] } elseif c.by_row then of.group = { 1, m[3] } end
    if c.whole then of.scale_shape = {} end
    local stem = "model.layers.0." .. m[1] .. "."
    local parts, kinds = make[c.kind](of)
    local names = {}
    for part in pairs(parts) do names[#names + 1] = part end
    table.sort(names)
    for _, part in ipairs(names) do
      packed[#packed + 1] = { name = stem .. (part == "scale" and c.scale_name or part),
        dtype = kinds[part][1], shape = kinds[part][2], data = parts[part] }
    end
    plain[#plain + 1] = { name = stem .. "weight", dtype = "F32", shape = { m[2], m[3] },
      data = values_of(of, parts) }
  end
  return packed, plain
end

local made = {}

-- The same, made once; the tensors are the caller's to change.
local function model_of(c, width, ff)
  made[c] = made[c] or { new_model(c, width, ff) }
  local out = { {}, {} }
  for which, list in ipairs(made[c]) do
    for i, t in ipairs(list) do
      out[which][i] = { name = t.name, dtype = t.dtype, shape = t.shape, data = t.data }
    end
  end
  return out[1], out[2]
end

local function config_of(quantization, width, ff)
  return { model_type = "llama", vocab_size = VOCAB, hidden_size = width or WIDTH,
    intermediate_size = ff or FF, num_hidden_layers = 1, num_attention_heads = 4,
    num_key_value_heads = 2, rms_norm_eps = 1e-5, rope_theta = 10000,
    max_position_embeddings = 64, quantization_config = quantization }
end

describe("quantised checkpoints", function()
  local folder
  before_each(function() folder = shell.folder() end)
  after_each(function() shell.remove(folder) end)

  local function put(tensors, quantization, width, ff)
    helper.write(folder .. "/config.json", cjson.encode(config_of(quantization, width, ff)))
    helper.write(folder .. "/model.safetensors", formats.safetensors(tensors))
  end

  local function logits(options)
    options = options or {}
    options.precision = "f32"
    local model <close> = assert(pyramid.model(folder, options))
    local cache <close> = assert(model:cache { dtype = "f32" })
    local warnings = {}
    for i, line in ipairs(model.warnings) do warnings[i] = line:gsub("^.-: ", "") end
    return assert(cache:prefill { 3, 14, 15, 9, 2, 6 }):totable(), warnings
  end

  it("are defined as others define them", function()
    local dir = helper.fixture "packed/"
    local head, golden = helper.json(dir .. "values.json"), helper.read(dir .. "values.bin")
    local file, count = assert(safetensors.read(dir .. "matrices.safetensors")), 0
    local whole = helper.read(file.path)
    for name, c in pairs(head.cases) do
      local parts = {}
      for _, t in ipairs(file.tensors) do
        local part = t.name:match("^" .. name .. "%.([%w_]+)$")
        if part then
          parts[part == "weight_scale_inv" and "scale" or part] = whole:sub(t.offset + 1,
            t.offset + t.bytes)
        end
      end
      c.rows, c.cols, count = head.rows, head.cols, count + 1
      assert.is_true(values_of(c, parts) == golden:sub(c.offset + 1,
        c.offset + 4 * c.rows * c.cols), name)
    end
    assert.equal(10, count)
  end)

  local function gptq(bits, group, format)
    return { quant_method = "gptq", bits = bits, group_size = group, checkpoint_format = format,
      desc_act = false, sym = false }
  end
  local awq = { quant_method = "awq", bits = 4, group_size = 32, version = "GEMM",
    zero_point = true }
  local fp8 = { quant_method = "fp8", weight_block_size = { 24, 20 } }
  local compressed = { quant_method = "compressed-tensors", format = "float-quantized",
    config_groups = { group_0 = { weights = { type = "float", num_bits = 8 } } } }
  local cases = {
    ["gptq of 4 bits, zeros in the middle"] = { { kind = "gptq", bits = 4, group = { 1, 32 },
      less_one = true, middle = true }, gptq(4, 32), "7 tensors of gptq_int4 converted to q4_0" },
    ["gptq of 4 bits, any zeros"] = { { kind = "gptq", bits = 4, group = { 1, 32 },
      less_one = true }, gptq(4, 32, "gptq"), "7 tensors of gptq_int4 converted to q8_0" },
    ["gptq of 4 bits, version 2"] = { { kind = "gptq", bits = 4, group = { 1, 64 },
      middle = true }, gptq(4, 64, "gptq_v2"), "7 tensors of gptq_int4 converted to q4_0" },
    ["gptq of 4 bits, one group"] = { { kind = "gptq", bits = 4, group = { 1, 1 << 20 },
      less_one = true, middle = true }, gptq(4, -1), "7 tensors of gptq_int4 converted to q4_0" },
    ["gptq of 8 bits"] = { { kind = "gptq", bits = 8, group = { 1, 32 }, less_one = true,
      middle = true }, gptq(8, 32), "7 tensors of gptq_int8 converted to q8_0" },
    ["gptq of 4 bits, act order"] = { { kind = "gptq", bits = 4, group = { 1, 32 },
      less_one = true, middle = true, order = true }, gptq(4, 32),
      "7 tensors of gptq_int4 converted to q8_0", rounds = 0.02 },
    ["gptq of 8 bits, any zeros"] = { { kind = "gptq", bits = 8, group = { 1, 16 } },
      gptq(8, 16, "gptq_v2"), "7 tensors of gptq_int8 converted to q8_0", rounds = 0.1 },
    ["awq"] = { { kind = "awq", bits = 4, group = { 1, 32 } }, awq,
      "7 tensors of awq_int4 converted to q8_0" },
    ["fp8 in blocks"] = { { kind = "scaled", group = { 24, 20 }, scale_name = "weight_scale_inv" },
      fp8, "7 tensors of fp8_e4m3 converted to q8_0", rounds = 0.02 },
    ["fp8 of one scale"] = { { kind = "scaled", whole = true, scale_name = "weight_scale_inv" },
      { quant_method = "fp8" }, "7 tensors of fp8_e4m3 converted to q8_0", rounds = 0.02 },
    ["compressed tensors, a scale a row"] = { { kind = "scaled", by_row = true,
      scale_name = "weight_scale" }, compressed, "7 tensors of fp8_e4m3 converted to q8_0",
      rounds = 0.02 },
  }
  for name, case in pairs(cases) do
    it("compute what their values do: " .. name, function()
      local packed, plain = model_of(case[1])
      put(plain)
      local exact, rounded = logits(), logits { weights = "q8_0" }
      put(packed, case[2])
      for _, threads in ipairs { 1, 3 } do
        assert.same(exact, (logits { weights = "f32", threads = threads }))
      end
      local got, warnings = logits()
      assert.same({ case[3] .. " (the option 'weights' chooses another dtype)" }, warnings)
      assert.is_true(helper.distance(got, exact) < (case.rounds or 2e-5), name)
      if case.rounds then assert.same(rounded, (logits { weights = "q8_0" })) end
    end)
  end

  it("become GGUF files of just what they are loaded as", function()
    local convert = require "pyramid.tools.convert"
    for _, name in ipairs { "gptq of 4 bits, zeros in the middle", "awq", "fp8 in blocks" } do
      put(model_of(cases[name][1]), cases[name][2])
      local out = helper.tmp ".gguf"
      local ok, message = convert.write(folder, out)
      local want = logits()
      local model = ok and assert(pyramid.model(out, { precision = "f32" }))
      os.remove(out)
      assert(ok, message)
      local cache <close> = assert(model:cache { dtype = "f32" })
      assert.is_true(helper.distance(assert(cache:prefill { 3, 14, 15, 9, 2, 6 }):totable(), want)
        < 1e-5, name)
      model:close()
    end
  end)

  it("with rows of no whole blocks become f16", function()
    local packed, plain = model_of({ kind = "scaled", group = { 24, 20 },
      scale_name = "weight_scale_inv" }, 40, 44)
    put(plain, nil, 40, 44)
    local half = logits { weights = "f16" }
    put(packed, fp8, 40, 44)
    assert.same(half, (logits { weights = "f16" }))
    local _, warnings = logits()
    assert.matches("7 tensors of fp8_e4m3 converted to f16", warnings[1])
  end)

  -- change(tensors by name, the list) makes one wrong.
  local function wants(word, code, kind, quantization, change)
    local packed = model_of(cases[kind][1])
    local by = {}
    for _, t in ipairs(packed) do by[t.name:match "%.k_proj%.(.*)" or t.name] = t end
    if change then change(by, packed) end
    put(packed, quantization or cases[kind][2])
    local model, message, got = pyramid.model(folder)
    if model then model:close() end
    assert.is_nil(model, word)
    assert.truthy(message:find(word, 1, true), ("'%s' is not about '%s'"):format(message, word))
    assert.truthy(message:find(folder, 1, true), message)
    assert.equal(code or "format", got, message)
  end
  local function without(name)
    return function(by, list)
      for i, t in ipairs(list) do
        if t == by[name] then table.remove(list, i) end
      end
    end
  end
  local function shaped(name, shape, dtype)
    return function(by)
      local t, n = by[name], dtype == "F32" and 4 or #by[name].data // (by[name].shape[1]
        * (by[name].shape[2] or 1))
      t.shape, t.dtype = shape, dtype or t.dtype
      for _, d in ipairs(shape) do n = n * d end
      t.data = t.data:rep(n // #t.data + 1):sub(1, n)
    end
  end

  it("are refused where a part is missing, or not of the others' shape", function()
    local int4 = "gptq of 4 bits, any zeros"
    for _, part in ipairs { "qzeros", "scales" } do
      wants("k_proj." .. part .. ": is missing", nil, int4, nil, without(part))
      wants("k_proj." .. part .. ": is missing", nil, "awq", nil, without(part))
    end
    wants("k_proj.weight is missing", nil, int4, nil, without "qweight")
    wants("is f8_e4m3", "unsupported", "fp8 in blocks", nil, without "weight_scale_inv")
    for _, case in ipairs {
      { int4, "qzeros", { 2, 5 } }, { int4, "qzeros", { 3, 4 } }, { int4, "qzeros", { 8 } },
      { int4, "scales", { 2, 31 } }, { int4, "scales", { 1, 32 } }, { int4, "scales", { 64 } },
      { int4, "g_idx", { 63 } }, { int4, "g_idx", { 64, 1 } }, { "awq", "qzeros", { 4, 2 } },
      { "awq", "scales", { 1, 32 } },
    } do
      wants("k_proj." .. case[2] .. ": of shape", nil, case[1], nil, shaped(case[2], case[3]))
    end
    for _, shape in ipairs { { 2, 3 }, { 4, 2 }, { 64 }, { 2, 4, 1 } } do
      wants("weight_scale_inv", nil, "fp8 in blocks", nil, shaped("weight_scale_inv", shape))
    end
    wants("is no matrix", nil, int4, nil, shaped("qweight", { 256 }))
    wants("has a dimension of 0", nil, int4, nil, function(by)
      by.qweight.shape, by.qweight.data = { 0, 32 }, ""
    end)
    wants("is of f32", nil, int4, nil, shaped("qzeros", { 2, 4 }, "F32"))
    wants("is of f32", nil, int4, nil, shaped("qweight", { 8, 32 }, "F32"))
    wants("is of i32", nil, "awq", nil, function(by) by.scales.dtype = "I32"
      by.scales.data = by.scales.data:rep(2)
    end)
    wants("where the model's k is [32, 64]", nil, int4, nil, function(by)
      shaped("qweight", { 8, 64 })(by)
      shaped("qzeros", { 2, 8 })(by)
      shaped("scales", { 2, 64 })(by)
    end)
    wants("no whole words of 8 numbers", nil, int4, nil, function(by)
      shaped("qweight", { 8, 30 })(by)
      shaped("qzeros", { 2, 3 })(by)
      shaped("scales", { 2, 30 })(by)
    end)
    wants("comes twice", nil, int4, nil, function(by, list)
      list[#list + 1] = { name = by.qweight.name:gsub("qweight", "weight"), dtype = "F32",
        shape = { 1 }, data = "abcd" }
    end)
  end)

  it("are refused where a column's group is none", function()
    for _, word in ipairs { "\2\0\0\0", "\255\255\255\255", "\0\0\0\128" } do
      wants("g_idx: column 63 is of group", nil, "gptq of 4 bits, act order", nil, function(by)
        by.g_idx.data = by.g_idx.data:sub(1, -5) .. word
      end)
    end
  end)

  it("may lack g_idx, and have biases of zeros and scales of activations", function()
    local case = cases["gptq of 4 bits, any zeros"]
    local packed, plain = model_of(case[1])
    put(plain)
    local exact = logits()
    for i = #packed, 1, -1 do
      local t = packed[i]
      if t.name:find "g_idx$" then table.remove(packed, i)
      elseif t.name:find "scales$" then
        packed[#packed + 1] = { name = t.name:gsub("scales", "bias"), dtype = "F16",
          shape = { t.shape[2] }, data = ("\0\0"):rep(t.shape[2]) }
      end
    end
    packed[#packed + 1] = { name = "model.layers.0.self_attn.k_proj.input_scale", dtype = "F32",
      shape = { 1 }, data = "abcd" }
    put(packed, case[2])
    local got, warnings = logits { weights = "f32" }
    assert.same(exact, got)
    assert.equal("8 tensors that the decoder does not need are ignored: 7 of bias, 1 of "
      .. "input_scale", warnings[1])
    wants("k_proj.bias", "unsupported", "gptq of 4 bits, any zeros", nil, function(by, list)
      list[#list + 1] = { name = by.scales.name:gsub("scales", "bias"), dtype = "F16",
        shape = { 32 }, data = ("\0"):rep(63) .. "\60" }
    end)
  end)

  it("are refused by name where config.json asks for what nobody has", function()
    local function with(base, key, value)
      local q = {}
      for k, v in pairs(base) do q[k] = v end
      q[key] = value
      return q
    end
    local v1, weights = gptq(4, 32), { type = "int", num_bits = 8 }
    for _, case in ipairs {
      { { quant_method = "hqq" }, "quant_method hqq (known: awq, compressed-tensors, fbgemm" },
      { {}, "quant_method is missing" }, { with(v1, "bits", 3), "bits is 3 (known: 4, 8)" },
      { with(v1, "checkpoint_format", "marlin"), "checkpoint_format is marlin" },
      { with(v1, "pack_dtype", "int16"), "pack_dtype is int16" },
      { with(v1, "dynamic", { ["x"] = { bits = 8 } }), "dynamic: bits that differ" },
      { with(awq, "version", "gemv"), "version is gemv" }, { with(awq, "bits", 8), "bits is 8" },
      { with(awq, "zero_point", false), "zero_point is false" },
      { with(fp8, "fmt", "e5m2"), "fmt is e5m2" },
      { with(compressed, "format", "pack-quantized"), "format is pack-quantized" },
      { with(compressed, "transform_config", { config_groups = {} }), "transform_config" },
      { with(compressed, "sparsity_config", { format = "sparse-24" }), "sparsity_config" },
      { with(compressed, "config_groups", { g = { weights = weights } }), "weights: int of 8" },
    } do
      wants(case[2], "unsupported", "awq", case[1])
    end
    for _, case in ipairs {
      { with(v1, "bits", nil), "bits is missing" }, { with(v1, "bits", "4"), "bits is not" },
      { with(v1, "bits", 0), "bits is 0" },
      { with(v1, "group_size", nil), "group_size is missing" },
      { with(v1, "group_size", 1 << 40), "group_size is" },
      { with(v1, "dynamic", 7), "dynamic is not" }, { with(awq, "version", 2), "version is not" },
      { with(fp8, "weight_block_size", { 128 }), "weight_block_size is no pair" },
      { with(fp8, "weight_block_size", { 0, 128 }), "weight_block_size is no pair" },
      { with(fp8, "weight_block_size", { 1, 2, 3 }), "weight_block_size is no pair" },
      { with(compressed, "format", nil), "format is missing" },
      { with(compressed, "config_groups", { g = 1 }), "g is not an object" },
    } do
      wants("quantization_config: " .. (case[2]:find "^g " and "config_groups: " or "") .. case[2],
        "format", "awq", case[1])
    end
  end)

  it("survive an allocation that fails at every step in turn, and a cancel", function()
    local core = require "pyramid.core"
    put(model_of(cases["gptq of 4 bits, act order"][1]), gptq(4, 32))
    local probe, succeeded = assert(core.runtime { threads = 1 }), false
    local base = probe:memory()
    probe:close()
    for extra = 0, 300000, 20011 do
      local runtime <close> = assert(core.runtime { threads = 1, memory = base + extra })
      local loaded, message, code = loaders.load(runtime, folder, { weights = "f32" })
      if loaded then
        loaded.handle:close()
        succeeded = true
      else assert.equal("memory", code, message) end
      assert.equal(base, runtime:memory())
    end
    assert.is_true(succeeded)
    local runtime <close> = assert(core.runtime { threads = 2 })
    runtime:on_progress(function(done) return done > 0 end)
    assert.equal("cancelled", select(3, loaders.load(runtime, folder)))
  end)
end)

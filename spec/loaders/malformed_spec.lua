-- Broken files: whatever a header says, opening a model gives nil, a message that names the file,
-- and a code; never a crash, never an error raised, never a model that is not the one that was
-- saved.
local cjson = require "cjson"
local lfs = require "lfs"
local formats = require "spec.support.formats"
local helper = require "spec.helper"
local core = require "pyramid.core"
local dtypes = require "pyramid.loaders.dtypes"
local families = require "pyramid.families"
local gguf = require "pyramid.loaders.gguf"
local loaders = require "pyramid.loaders"
local safetensors = require "pyramid.loaders.safetensors"

local kv, types = formats.kv, formats.types

local function known_families() return table.concat(families.list(), ", ") end

--- Writes the bytes, calls read(path), and wants nil, a message with the path (and `word` in it),
--- and one of the codes.
local function refuses(read, path, bytes, word, code)
  helper.write(path, bytes)
  local value, message, got = read(path)
  assert.is_nil(value, word)
  assert.is_string(message)
  if path ~= "" then assert.truthy(message:find(path, 1, true), message) end
  if word then
    assert.truthy(message:find(word, 1, true), ("'%s' is not about '%s'"):format(message, word))
  end
  assert.equal(code or "format", got, message)
end

local function u32(n) return ("<I4"):pack(n) end
local function u64(n) return ("<i8"):pack(n) end

describe("a broken safetensors file", function()
  local path
  setup(function() path = helper.tmp ".safetensors" end)
  teardown(function() os.remove(path) end)
  local function file(...) refuses(safetensors.read, path, ...) end
  local data = ("d"):rep(24)
  local function one(changes)
    local t = { name = "a", dtype = "F32", shape = { 2, 3 }, data = data }
    for k, v in pairs(changes) do t[k] = v end
    return formats.safetensors { t }
  end
  local function header(text)
    return formats.safetensors({ { name = "", dtype = "", shape = {}, data = data } }, text)
  end

  it("may be too short", function()
    file("", "too few")
    file("1234567", "too few")
    local whole = one {}
    for cut = 0, #whole - 1 do file(whole:sub(1, cut)) end
  end)

  it("may have a header of impossible length", function()
    for _, length in ipairs { 0, 1, -1, math.mininteger, math.maxinteger, 1 << 30, 200 } do
      file(formats.safetensors({}, "{}", length), "header length")
    end
  end)

  it("may have a header that is no object", function()
    for _, text in ipairs { "[]", "1", '"x"', "{", "{]", '{"a"}', "\0\0", "{'a':1}",
      '{"a":NaN}' .. (" "):rep(9), "  {}" } do
      file(header(text), "header")
    end
    file(header(("["):rep(100000)), "header")
    file(header('{"a":' .. ("["):rep(5000) .. ("]"):rep(5000) .. "}"), "header")
  end)

  it("may have entries of wrong types", function()
    for text, word in pairs {
      ['{"a":1}'] = "not an object", ['{"a":{}}'] = "dtype is missing",
        ['{"a":{"dtype":1}}'] = "dtype",
      ['{"a":{"dtype":"F32"}}'] = "shape is missing",
        ['{"a":{"dtype":"F32","shape":"x"}}'] = "shape",
      ['{"a":{"dtype":"F32","shape":[1.5],"data_offsets":[0,24]}}'] = "shape",
      ['{"a":{"dtype":"F32","shape":[-1],"data_offsets":[0,24]}}'] = "shape",
      ['{"a":{"dtype":"F32","shape":[null],"data_offsets":[0,24]}}'] = "shape",
      ['{"a":{"dtype":"F32","shape":{"0":6},"data_offsets":[0,24]}}'] = "shape",
      ['{"a":{"dtype":"F32","shape":[1,1,1,1,1,1,1,1,6],"data_offsets":[0,24]}}'] = "shape",
      ['{"a":{"dtype":"F32","shape":[6]}}'] = "data_offsets is missing",
      ['{"a":{"dtype":"F32","shape":[6],"data_offsets":[0]}}'] = "data_offsets",
      ['{"a":{"dtype":"F32","shape":[6],"data_offsets":[0,24,48]}}'] = "data_offsets",
      ['{"a":{"dtype":"F32","shape":[6],"data_offsets":["0","24"]}}'] = "data_offsets",
      ['{"a":{"dtype":"F32","shape":[6],"data_offsets":[0,1e300]}}'] = "data_offsets",
      ['{"__metadata__":1,"a":{"dtype":"F32","shape":[6],"data_offsets":[0,24]}}'] = "__metadata__",
      ['{"__metadata__":{"x":1},"a":{"dtype":"F32","shape":[6],"data_offsets":[0,24]}}'] = "__metadata__",
    } do
      file(header(text), word)
    end
    file(one { dtype = "F33" }, "tensor a is of dtype F33, which this build does not know "
      .. "(models can use: " .. table.concat(dtypes.loadable "safetensors", ", ") .. ")",
        "unsupported")
    file(one { shape = { 1 << 40, 1 << 40 } }, "overflow")
    file(one { shape = { 2, 4 } }, "need 32")
  end)

  it("may have offsets outside the data, overlaps and holes", function()
    file(one { offsets = { 0, 28 } }, "outside")
    file(one { offsets = { 4, 28 } }, "outside")
    file(one { offsets = { -24, 0 } }, "outside")
    file(one { offsets = { 24, 0 } }, "outside")
    local function two(first, second)
      return formats.safetensors {
        { name = "a", dtype = "F32", shape = { 3 }, data = ("a"):rep(12), offsets = first },
        { name = "b", dtype = "F32", shape = { 3 }, data = ("b"):rep(12), offsets = second },
      }
    end
    file(two({ 0, 12 }, { 8, 20 }), "overlaps")
    file(two({ 0, 12 }, { 0, 12 }), "overlaps")
    file(two({ 0, 8 }, nil), "need 12")
    file(one {} .. "tail", "after the last")
    file(formats.safetensors { { name = "a", dtype = "F32", shape = { 3 }, data = data,
      offsets = { 12, 24 } } }, "hole")
  end)

  it("may have names that come twice", function()
    local entry = '"a":{"dtype":"F32","shape":[6],"data_offsets":[0,24]}'
    file(header("{" .. entry .. "," .. entry .. "}"), "'a' comes twice")
    file(header('{"x\\"{":{"dtype":"F32","shape":[6],"data_offsets":[0,24]},"x\\"{":{}}'),
      "comes twice")
    file(header("{" .. entry .. ',"\\u0061":{"dtype":"F32","shape":[3],"data_offsets":[0,12]}}'))
  end)
end)

describe("a broken GGUF file", function()
  local path
  setup(function() path = helper.tmp ".gguf" end)
  teardown(function() os.remove(path) end)
  local function file(...) refuses(gguf.read, path, ...) end
  local function tensor(changes)
    local t = { name = "t", shape = { 2, 3 }, type = types.f32, data = ("d"):rep(24) }
    for k, v in pairs(changes or {}) do t[k] = v end
    return t
  end
  local function with(changes) return formats.gguf { tensors = { tensor(changes) } } end
  local good = formats.gguf { metadata = { kv("k", "array:string", { "one", "two" }),
    kv("n", "u32", 1) }, tensors = { tensor() } }

  it("may end anywhere", function()
    helper.write(path, good)
    assert(gguf.read(path))
    for cut = 0, #good - 9 do file(good:sub(1, cut)) end   -- the last bytes are padding
  end)

  it("may have another magic or version", function()
    file(formats.gguf { magic = "GGUX" }, "magic")
    file("GGML" .. good:sub(5), "magic")
    for _, version in ipairs { 0, 1, 4, 99, 0xffffffff } do
      file(formats.gguf { version = version }, "version", "unsupported")
    end
    file(formats.gguf { version = 0x03000000 }, "big-endian", "unsupported")
  end)

  it("may have absurd counts", function()
    for _, n in ipairs { -1, math.mininteger, math.maxinteger, 1 << 40, 1000 } do
      file(formats.gguf { tensor_count = n, tensors = { tensor() } }, "tensor count")
      file(formats.gguf { key_count = n, metadata = { kv("a", "u8", 1) } }, "metadata count")
    end
    file(formats.gguf { tensor_count = 2, tensors = { tensor(), } })
    file(formats.gguf { key_count = 2, metadata = { kv("a", "u8", 1) }, tail = ("\0"):rep(64) })
  end)

  it("may have strings longer than itself", function()
    for _, n in ipairs { -1, math.maxinteger, 1 << 32, 70000 } do
      file(formats.gguf { metadata = { u64(n) .. "abc" .. u32(4) .. u32(1) } }, "metadata key 1")
      file(formats.gguf { metadata = { kv("s", "string", ""):sub(1, -9) .. u64(n) } }, "metadata s")
    end
    file(formats.gguf { tensors = { tensor { name = ("n"):rep(2000) } } }, "name of tensor")
  end)

  it("may have unknown types, arrays too long or too deep", function()
    file(formats.gguf { metadata = { ("<s8"):pack "a" .. u32(13) .. u64(0) } }, "value type 13")
    file(formats.gguf { metadata = { ("<s8"):pack "a" .. u32(0xffffffff) .. u64(0) } },
      "value type")
    file(formats.gguf { metadata = { ("<s8"):pack "a" .. u32(9) .. u32(99) .. u64(0) } },
      "element type 99")
    for element = 0, 12 do
      for _, n in ipairs { -1, math.maxinteger, 1 << 24, 1 << 35, 100 } do
        file(formats.gguf { metadata = { ("<s8"):pack "a" .. u32(9) .. u32(element) .. u64(n) } },
          "metadata a")
      end
    end
    local deep = ("<s8"):pack "a" .. u32(9)
    for _ = 1, 1000 do deep = deep .. u32(9) .. u64(1) end
    file(formats.gguf { metadata = { deep .. u32(0) .. u64(0) } }, "nested")
    file(formats.gguf { metadata = { kv("b", "u8", 2):gsub(u32(0) .. "\2$", u32(7) .. "\2")
      .. "" } }, "boolean")
    file(formats.gguf { metadata = { kv("b", "u64", -1) } }, "2^63")
    file(formats.gguf { metadata = { kv("b", "array:u64", { -1 }) } }, "2^63")
  end)

  it("may have keys and names that come twice, or none", function()
    file(formats.gguf { metadata = { kv("a", "u8", 1), kv("a", "u8", 1) } }, "twice")
    file(formats.gguf { metadata = { kv("", "u8", 1) } }, "empty")
    file(formats.gguf { tensors = { tensor(), tensor() } }, "twice")
  end)

  it("may have impossible tensors", function()
    file(with { shape = {} }, "dimensions")
    file(with { shape = { 1, 1, 1, 2, 3 } }, "dimensions")
    file(with { shape = { 0, 3 } }, "dimension")
    file(with { shape = { -1, 3 } }, "tensor t")
    file(with { shape = { 1 << 40, 1 << 40 } }, "overflow")
    file(with { shape = { 1 << 62 } }, "overflow")
    file(with { type = 99 }, "tensor t is of GGUF's type 99, which this build does not know "
      .. "(models can use: " .. table.concat(dtypes.loadable "gguf", ", ") .. ")", "unsupported")
    file(with { type = 4 }, "type 4,", "unsupported")
    file(with { type = types.q8_0, shape = { 2, 31 } }, "block of 32")
    file(with { type = types.q4_k, shape = { 255 } }, "block of 256")
    file(with { shape = { 2, 300 } }, "outside")
    file(with { offset = 32 }, "outside")
    file(with { offset = math.maxinteger & ~31 }, "outside")
    file(with { offset = -32 }, "tensor t")
    file(with { offset = 4 }, "alignment")
    file(formats.gguf { tensors = { tensor(), tensor { name = "u", offset = 0 } } }, "overlap")
    file(formats.gguf { tensors = { tensor { offset = 32 }, tensor { name = "u", offset = 32 } } },
      "overlap")
  end)

  it("may have an impossible alignment", function()
    for _, case in ipairs { { "u32", 0 }, { "u32", 3 }, { "i32", -32 }, { "u32", 1 << 30 },
      { "string", "x" }, { "f32", 32 } } do
      local entry = kv("general.alignment", case[1], case[2])
      file(formats.gguf { metadata = { entry }, tensors = { tensor() } }, "general.alignment")
    end
  end)
end)

-- ---- whole models -------------------------------------------------------------------------------

describe("a broken model", function()
  local runtime
  setup(function() runtime = assert(core.runtime { threads = 1 }) end)
  teardown(function() runtime:close() end)

  local function load(path)
    local loaded, message, code = loaders.load(runtime, path)
    if loaded then loaded.handle:close() end
    return loaded, message, code
  end

  describe("in GGUF", function()
    local path
    setup(function() path = helper.tmp ".gguf" end)
    teardown(function() os.remove(path) end)
    local function file(...) refuses(load, path, ...) end

    it("may have metadata that makes no model", function()
      for key, cases in pairs {
        ["general.architecture"] = { { false, "general.architecture" },
          { { "u32", 1 }, "general.architecture" } },
        ["qwen3.block_count"] = {
          { false, "missing" }, { { "u32", 0 }, "outside" }, { { "u32", 4000000000 }, "outside" },
            { { "string", "3" }, "integer" },
          { { "u32", 2 }, "tensors that", "unsupported" }, { { "u32", 4 }, "missing" },
        },
        ["qwen3.attention.head_count"] = {
          { { "u32", 0 }, "outside" }, { { "u32", 3 }, "attention.head_count_kv" },
            { { "u32", 8 }, "shape" },
          { { "array:u32", { 4, 4, 2 } }, "differs", "unsupported" },
            { { "array:u32", {} }, "integer" },
        },
        ["qwen3.attention.head_count_kv"] = { { { "u32", 5 }, "outside" },
          { { "u32", 1 }, "shape" } },
        ["qwen3.attention.key_length"] = { { { "u32", 64 }, "value_length", "unsupported" },
          { { "u32", 31 }, "RoPE" } },
        ["qwen3.embedding_length"] = { { { "u32", 47 }, "shape" }, { { "i32", -48 }, "outside" } },
        ["qwen3.feed_forward_length"] = { { { "u32", 81 }, "shape" }, { { "u32", 0 }, "outside" } },
        ["qwen3.context_length"] = { { { "u32", 0 }, "outside" },
          { { "u64", 1 << 50 }, "outside" } },
        ["qwen3.attention.layer_norm_rms_epsilon"] = {
          { false, "missing" }, { { "f32", 0 }, "attention.layer_norm_rms_epsilon" },
          { { "f32", 0 / 0 }, "attention.layer_norm_rms_epsilon" },
        },
        ["qwen3.rope.freq_base"] = { { { "f32", 0 }, "freq_base" },
          { { "f32", 0 / 0 }, "freq_base" }, { { "string", "x" }, "number" } },
        ["qwen3.rope.dimension_count"] = { { { "u32", 33 }, "outside" },
          { { "u32", 31 }, "qwen3.rope.dimension_count: RoPE" } },
        ["qwen3.rope.scaling.type"] = {
          { { "string", "ntk" }, "rope.scaling.type: RoPE scaling 'ntk'", "unsupported" },
          { { "string", "linear" }, "rope.scaling.factor is missing" },
        },
        ["qwen3.expert_count"] = { { { "u32", 8 }, "experts", "unsupported" } },
        ["qwen3.attention.sliding_window"] = { { { "u32", 8 }, "sliding_window", "unsupported" } },
        ["qwen3.attention.causal"] = { { { "bool", 0 }, "causal", "unsupported" } },
        ["qwen3.attention.clamp_kqv"] = { { { "f32", 1 }, "clamp_kqv", "unsupported" } },
        ["split.count"] = { { { "u16", 2 }, "split.no is missing" },
          { { "string", "2" }, "split.count" } },
      } do
        for _, case in ipairs(cases) do
          local more = { [key] = case[1] and kv(key, case[1][1], case[1][2]) or false }
          if key:find "key_length" then
            more["qwen3.attention.value_length"] = kv("qwen3.attention.value_length", "u32", 32)
          end
          if key:find "key_length" and case[1][2] == 31 then
            more["qwen3.attention.value_length"] = nil
          end
          if key:find "key_length" then more["qwen3.rope.dimension_count"] = false end
          local parts = formats.gguf_of("qwen3", "bf16", more)
          helper.write(path, formats.gguf(parts))
          local loaded, message, code = load(path)
          assert.is_nil(loaded, key .. ": " .. case[2])
          assert.truthy(message:find(case[2], 1, true),
            ("%s: '%s' is not about '%s'"):format(key, message, case[2]))
          assert.equal(case[3] or "format", code, message)
        end
      end
    end)

    it("may be of an architecture that nobody knows", function()
      local parts = formats.gguf_of("qwen3", "bf16",
        { ["general.architecture"] = kv("general.architecture", "string", "mamba") })
      file(formats.gguf(parts), "known: " .. table.concat(families.gguf_list(), ", "),
        "unsupported")
      for _, name in ipairs { "init", "../x", "a.b", "" } do
        parts = formats.gguf_of("qwen3", "bf16",
          { ["general.architecture"] = kv("general.architecture", "string", name) })
        file(formats.gguf(parts), "architecture", "unsupported")
      end
    end)

    it("may lack weights, have more, or others", function()
      local parts = formats.gguf_of("qwen3", "bf16")
      for i = #parts.tensors, 1, -1 do
        local t = table.remove(parts.tensors, i)
        file(formats.gguf(parts), t.name)
        table.insert(parts.tensors, i, t)
      end
      parts.tensors[#parts.tensors + 1] = { name = "blk.0.attn_sinks.weight", shape = { 4 },
        type = 0, data = ("\0"):rep(16) }
      file(formats.gguf(parts), "attn_sinks", "unsupported")
      parts = formats.gguf_of("qwen3", "bf16")
      parts.tensors[3].type, parts.tensors[3].data = types.f32,
        parts.tensors[3].data .. parts.tensors[3].data
      -- leading ones do not count
      parts.tensors[3].shape = { 1, 1, table.unpack(parts.tensors[3].shape) }
      helper.write(path, formats.gguf(parts))
      assert(load(path))
      for _, t in ipairs(parts.tensors) do
        if t.name == "blk.1.ffn_up.weight" then t.shape = { t.shape[2], t.shape[1] } end
      end
      file(formats.gguf(parts), "blk.1.ffn_up.weight")
      parts = formats.gguf_of("qwen3", "bf16")
      parts.tensors[1].type, parts.tensors[1].shape = 26, { #parts.tensors[1].data // 4 }
      file(formats.gguf(parts), "i32", "unsupported")
      file(formats.gguf { metadata = parts.metadata }, "vocabulary only", "unsupported")
    end)

    it("may have RoPE factors of a wrong kind", function()
      for _, t in ipairs {
        { shape = { 16 }, type = types.f16, data = ("\0"):rep(32) },
          { shape = { 1, 1, 16 }, type = 0, data = ("\0"):rep(64) },
        { shape = { 16 }, type = 0, data = ("\0"):rep(64) },
          { shape = { 8 }, type = 0, data = ("\0\0\128\63"):rep(8) },
      } do
        local parts = formats.gguf_of("qwen3", "bf16")
        t.name = "rope_freqs.weight"
        table.insert(parts.tensors, t)
        helper.write(path, formats.gguf(parts))
        local loaded, message, code = load(path)
        assert.is_nil(loaded)
        assert.truthy(message:find("rope_freqs", 1, true) or message:find("RoPE factor", 1, true),
          message)
        assert.truthy(code == "format" or code == "unsupported")
      end
    end)

    it("may be cut anywhere", function()
      local whole = helper.read(helper.fixture "gguf/qwen3-f16.gguf")
      local cut = 0
      while cut < #whole do
        file(whole:sub(1, cut))
        cut = cut + (cut < 4000 and 37 or 9973)
      end
      file(whole:sub(1, -40))
    end)

    it("may have any bytes changed: it loads, or it is refused", function()
      math.randomseed(20240603)
      local whole = helper.read(helper.fixture "gguf/llama3-bf16.gguf")
      local header = assert(gguf.read(helper.fixture "gguf/llama3-bf16.gguf")).tensors[1].offset
      local refused = 0
      for round = 1, 400 do
        local bytes = whole
        for _ = 1, math.random(1, 3) do
          local at = round % 8 == 0 and math.random(#whole) or math.random(header)
          bytes = bytes:sub(1, at - 1) .. string.char(math.random(0, 255)) .. bytes:sub(at + 1)
        end
        helper.write(path, bytes)
        local loaded, message, code = load(path)
        if not loaded then
          assert.is_string(message)
          assert.is_string(code)
          refused = refused + 1
        end
      end
      assert.is_true(refused > 100)
    end)
  end)

  describe("in a directory", function()
    local dir
    local original = helper.fixture "families/qwen2"
    before_each(function()
      dir = helper.tmp ".model"
      assert(lfs.mkdir(dir))
    end)
    after_each(function()
      for name in lfs.dir(dir) do os.remove(dir .. "/" .. name) end
      lfs.rmdir(dir)
    end)

    local weights = helper.read(original .. "/model.safetensors")
    local function put(config, bytes)
      helper.write(dir .. "/config.json", type(config) == "table" and cjson.encode(config)
        or config)
      if bytes ~= false then helper.write(dir .. "/model.safetensors", bytes or weights) end
    end
    local function wants(word, code)
      local loaded, message, got = load(dir)
      assert.is_nil(loaded, word)
      assert.truthy(message:find(dir, 1, true) or message:find("^model: "), message)
      if word then
        assert.truthy(message:find(word, 1, true), ("'%s' is not about '%s'"):format(message, word))
      end
      assert.equal(code or "format", got, message)
    end

    it("may lack files", function()
      wants("config.json", "io")
      put(helper.json(original .. "/config.json"), false)
      wants("no model.safetensors", "io")
      helper.write(dir .. "/pytorch_model.bin", "x")
      wants("pytorch_model.bin", "unsupported")
    end)

    it("may have a config.json that is none", function()
      for _, text in ipairs { "", "{", "[]", "null", '"x"', "{}", '{"model_type":1}',
        '{"model_type":null}' } do
        put(text)
        wants("config.json")
      end
      local text = helper.read(original .. "/config.json")
      put((text:gsub("}%s*$", ', "vocab_size": 160}')))
      wants("'vocab_size' comes twice")
      for cut = 0, #text - 3, 7 do
        put(text:sub(1, cut))
        wants()
      end
    end)

    it("may have fields that make no model", function()
      local null = cjson.null
      for key, cases in pairs {
        model_type = {
          { "mamba", "known families: " .. known_families(), "unsupported" },
            { "../../x", "known", "unsupported" },
        },
        architectures = { { { "Qwen2ForSequenceClassification" }, "Qwen2ForSequence",
          "unsupported" }, { "x", "architectures" },
            { { null }, "architectures null", "unsupported" },
              { { { 1 } }, "architectures (a list or an object)", "unsupported" } },
        num_hidden_layers = {
          { null, "missing" }, { 0, "outside" }, { 1.5, "integer" }, { "3", "integer" },
            { 1e300, "integer" }, { 1e9, "outside" },
          { 2, "tensors that", "unsupported" }, { 4, "missing" },
        },
        hidden_size = { { 0, "outside" }, { -64, "outside" }, { 62, "multiple" },
          { 128, "shape" } },
        num_attention_heads = { { 0, "outside" }, { 1, "outside" }, { 8, "shape" } },
        num_key_value_heads = { { 3, "num_key_value_heads" }, { 5, "outside" }, { 1, "shape" },
          { null, "shape" } },
        head_dim = { { 15, "head_dim: RoPE" }, { 1024, "outside" }, { 32, "shape" },
          { {}, "integer" } },
        intermediate_size = { { 81, "shape" }, { 0, "outside" } },
        vocab_size = { { 161, "shape" }, { 0, "outside" }, { 1e12, "outside" } },
        max_position_embeddings = { { 0, "outside" }, { "x", "integer" } },
        rms_norm_eps = { { 0, "rms_norm_eps" }, { -1, "rms_norm_eps" }, { "x", "number" } },
        hidden_act = { { "xielu", "xielu", "unsupported" }, { 1, "hidden_act" } },
        mlp_bias = { { true, "gate_proj.bias is missing" }, { 1, "mlp_bias" } },
        attention_bias = { { 1, "attention_bias" } },
        tie_word_embeddings = { { false, "lm_head.weight" }, { 0, "tie_word_embeddings" } },
        rope_theta = { { 0, "rope_theta: RoPE base" }, { "x", "rope_theta" } },
        partial_rotary_factor = { { 0, "partial_rotary_factor" }, { 1.5, "outside (0, 1]" } },
        quantization_config = { { { quant_method = "hqq" }, "hqq", "unsupported" },
          { { quant_method = "gptq" }, "bits is missing" } },
        num_experts = { { 8, "experts", "unsupported" } },
        rope_scaling = {
          { { type = "ntk", factor = 2 }, "rope_type: RoPE scaling 'ntk'", "unsupported" },
          { { type = "dynamic" }, "factor is missing" },
          { { rope_type = "longrope", short_factor = { 1 } }, "short_factor has 1 values" },
          { { rope_type = "linear" }, "factor is missing" },
          { { rope_type = "linear", factor = 0 }, "factor" }, { "linear", "rope_scaling" },
          { { rope_type = "llama3", factor = 8 }, "low_freq_factor is missing" },
          { { rope_type = "yarn", factor = 4, beta_fast = -1 }, "beta_fast" },
          { { rope_type = "linear", factor = "4" }, "factor" },
          { { rope_type = "llama3", factor = 8, low_freq_factor = 4, high_freq_factor = 4 },
            "low_freq_factor >= high_freq_factor" },
        },
        rope_parameters = { { { chunked_attention = { rope_type = "default" } }, "layer to layer",
          "unsupported" } },
        layer_types = {
          { { "chunked_attention", "full_attention", "full_attention" }, "chunked_attention",
            "unsupported" },
          { { "full_attention" }, "layer 2", "unsupported" },
          { { "sliding_attention", "full_attention", "full_attention" }, "layer 1", "unsupported" },
        },
        sliding_window = { { -5, "sliding_window" } },
        eos_token_id = { { "x", "eos_token_id" }, { { 1, "x" }, "eos_token_id" } },
      } do
        for _, case in ipairs(cases) do
          local config = helper.json(original .. "/config.json")
          config[key] = case[1]
          put(config)
          wants(case[2], case[3])
        end
      end
    end)

    -- Fields of other families: of decoders whose switches they are.
    it("may have fields of a switch that make no model", function()
      local null = cjson.null
      for name, fields in pairs {
        gemma2 = {
          query_pre_attn_scalar = { { 0, "positive" }, { -8, "positive" }, { "x", "number" } },
          attn_logit_softcapping = { { -1, "positive" }, { 0, "positive" }, { {}, "number" } },
          final_logit_softcapping = { { -30, "positive" } },
        },
        gemma3 = {
          layer_types = { { { "sliding_attention" }, "layer 2", "unsupported" },
            { { 1, 2, 3 }, "layer 1 of type 1", "unsupported" }, { "x", "table" } },
          sliding_window = { { 0, "sliding_window" }, { 1.5, "integer" } },
          rope_parameters = { { { full_attention = {}, other = {} }, "layer to layer",
            "unsupported" }, { { full_attention = { rope_theta = -1 } }, "RoPE base" },
            { { full_attention = {}, sliding_attention = { rope_theta = 0 } }, "RoPE base" } },
        },
        ["gpt-neox"] = {
          rope_parameters = { { { partial_rotary_factor = 1e-30 }, "partial_rotary_factor: 0 of" },
            { { partial_rotary_factor = 0.4 }, "partial_rotary_factor: 3 of a head's 8" },
            { { partial_rotary_factor = "x" }, "number" } },
          rotary_dim = { { 0, "rotary_dim: 0 of" }, { -2, "rotary_dim: -2 of" },
            { 64, "rotary_dim: 64 of" }, { 3, "rotary_dim: 3 of" }, { 1e300, "integer" } },
          intermediate_size = { { 47, "shape" } },
        },
        gpt2 = { n_positions = { { 321, "wpe.weight: 320 rows, where 321" }, { 0, "outside" } },
          n_head = { { 0, "outside" }, { 3, "multiple" } }, n_inner = { { -1, "outside" } } },
        phi3 = { intermediate_size = { { 47, "gate_up_proj.weight: 96 rows" } },
          num_key_value_heads = { { 4, "qkv_proj.weight: 64 rows" } } },
        minicpm = { scale_depth = { { 0, "positive" } }, dim_model_base = { { -1, "positive" } } },
      } do
        local path = helper.fixture("decoders/" .. name)
        helper.write(dir .. "/model.safetensors", helper.read(path .. "/model.safetensors"))
        for key, cases in pairs(fields) do
          for _, case in ipairs(cases) do
            local config = helper.json(path .. "/config.json")
            config[key] = case[1]
            put(config, false)
            wants(case[2], case[3])
          end
        end
        -- whatever stands there: a model, or a failure that names the folder
        local config = helper.json(path .. "/config.json")
        for key, right in pairs(helper.json(path .. "/config.json")) do
          for _, value in ipairs { -1, 1e-300, null, { 1 } } do
            config[key] = value
            put(config, false)
            local loaded, message = load(dir)
            assert.truthy(loaded or message:find(dir, 1, true), message)
          end
          config[key] = right
        end
      end
    end)

    it("may say NaN or Infinity, as Python writes them, where no number is needed", function()
      local text = helper.read(original .. "/config.json"):gsub("}%s*$", "")
      put(text .. ',"time_step_limit":[0.0,Infinity,-Infinity],"unused":NaN}')
      assert(load(dir))
      for key, at in pairs { rms_norm_eps = "rms_norm_eps", rope_theta = "rope_theta",
        attention_factor = '"rope_scaling":{"rope_type":"yarn","attention_factor"',
        factor = '"rope_scaling":{"rope_type":"linear","factor"',
        logit_scale = "logit_scale" } do
        for _, word in ipairs { "NaN", "Infinity", "-Infinity" } do
          local config = helper.json(original .. "/config.json")
          config[key], config.rope_scaling = nil, key:find "factor" and nil or config.rope_scaling
          local open = at:find '"' and at or '"' .. at .. '"'
          put((cjson.encode(config):gsub("}$", "")) .. "," .. open .. ":" .. word
            .. (at:find "{" and "}}" or "}"))
          wants(("%s is %s"):format(key, word))
        end
      end
      put(text .. ',"vocab_size2":nan}')
      wants "not valid JSON"
      put(text .. "}", ("<i8"):pack(12) .. '{"x":   NaN}')
      wants "not valid JSON"
    end)

    it("may lack weights, have more, or cut ones", function()
      local file = assert(safetensors.read(original .. "/model.safetensors"))
      local list = {}
      for i, t in ipairs(file.tensors) do
        list[i] = { name = t.name, dtype = "BF16", shape = t.shape,
          data = weights:sub(t.offset + 1, t.offset + t.bytes) }
      end
      local config = helper.json(original .. "/config.json")
      for i = #list, 1, -1 do
        local t = table.remove(list, i)
        put(config, formats.safetensors(list))
        wants(t.name)
        table.insert(list, i, t)
      end
      local extra = { name = "model.layers.0.self_attn.sinks", dtype = "BF16", shape = { 4 },
        data = ("\0"):rep(8) }
      table.insert(list, extra)
      put(config, formats.safetensors(list))
      wants("sinks", "unsupported")
      extra.name = "model.layers.0.self_attn.rotary_emb.inv_freq"  -- of no use, and known to be
      put(config, formats.safetensors(list))
      assert(load(dir))
      list[1].dtype, list[1].shape = "I16", list[1].shape
      put(config, formats.safetensors(list))
      wants("i16", "unsupported")
      for cut = 0, #weights - 1, 4099 do
        put(config, weights:sub(1, cut))
        wants()
      end
    end)

    it("may have a broken index", function()
      local split = helper.fixture "families/qwen2-untied"
      local config = helper.read(split .. "/config.json")
      local index = helper.read(split .. "/model.safetensors.index.json")
      local function put_index(text) helper.write(dir .. "/model.safetensors.index.json", text) end
      put(config, false)
      put_index(index)
      wants("model-00001", "io")
      for i = 1, 2 do
        local name = ("/model-0000%d-of-00002.safetensors"):format(i)
        helper.write(dir .. name, helper.read(split .. name))
      end
      assert(load(dir))
      for _, text in ipairs { "", "{}", '{"weight_map":1}', '{"weight_map":{"a":1}}',
        '{"weight_map":["a"]}' } do
        put_index(text)
        wants("index.json")
      end
      for _, name in ipairs { "../x.safetensors", "/etc/passwd", "", "a\\u0000b", "sub/x" } do
        put_index('{"weight_map":{"a":"' .. name .. '"}}')
        wants("no file name")
      end
      put_index((index:gsub('("lm_head.weight": ")model%-00002', "%1model-00001")))
      wants(index:find '"lm_head.weight": "model%-00002' and "lm_head.weight" or nil)
    end)

    it("may have any bytes changed: it loads, or it is refused", function()
      math.randomseed(7)
      local config = helper.read(original .. "/config.json")
      local header = ("<i8"):unpack(weights) + 8
      local refused = 0
      for round = 1, 300 do
        local bytes, text = weights, config
        local at = math.random(round % 2 == 0 and header or #text)
        local byte = string.char(math.random(0, 255))
        if round % 2 == 0 then bytes = bytes:sub(1, at - 1) .. byte .. bytes:sub(at + 1)
        else text = text:sub(1, at - 1) .. byte .. text:sub(at + 1) end
        put(text, bytes)
        local loaded, message, code = load(dir)
        if not loaded then
          assert.is_string(message)
          assert.is_string(code)
          refused = refused + 1
        end
      end
      assert.is_true(refused > 100)
    end)
  end)
end)

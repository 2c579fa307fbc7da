-- Number formats, mapped files and bound tensors. The values of every block format are bit-equal to
-- those of the `gguf` Python package (scripts/maker/oracle/gguf_fixtures.py), and so are the blocks
-- that values become.
local helper = require "spec.helper"
local core = require "pyramid.core"
local ops = require "pyramid_specs"
local gguf = require "pyramid.loaders.gguf"
local file_blocks = require "spec.support.file_blocks"

local path = helper.fixture "gguf/dtypes.gguf"
local tensors, bytes = {}, helper.read(path)
local more = helper.read(helper.fixture "gguf/converted.gguf")
for _, t in ipairs(assert(gguf.read(helper.fixture "gguf/converted.gguf")).tensors) do
  tensors[t.name] = t
end
local from_gguf = {}
for _, t in ipairs(assert(gguf.read(helper.fixture "gguf/made.gguf")).tensors) do
  from_gguf[t.name] = helper.read(t.path):sub(t.offset + 1, t.offset + t.bytes)
end
for _, t in ipairs(assert(gguf.read(path)).tensors) do tensors[t.name] = t end

local function data_of(name)
  local t = tensors[name]
  return (t.path == path and bytes or more):sub(t.offset + 1, t.offset + t.bytes)
end

--- Fails at the first unit that differs, so that a report is a line and not a page.
local function assert_same_bytes(expected, got, unit)
  assert.equal(#expected, #got)
  for at = 1, #expected, unit do
    local e, g = expected:sub(at, at + unit - 1), got:sub(at, at + unit - 1)
    if e ~= g then error(("unit %d differs"):format((at - 1) // unit), 2) end
  end
end

describe("dtypes", function()
  for _, dtype in ipairs { "f16", "bf16", "q8_0", "q4_0", "q4_k", "q5_k", "q6_k" } do
    it(("gives the values of %s"):format(dtype), function()
      assert_same_bytes(data_of(dtype .. ".f32"), ops.to_f32(dtype, data_of(dtype)), 4)
    end)
  end

  for dtype in pairs(file_blocks.types) do
    it(("gives the values of %s, also at the ends of its scales"):format(dtype), function()
      assert_same_bytes(data_of(dtype .. ".f32"), ops.to_f32(dtype, data_of(dtype)), 4)
      assert_same_bytes(data_of(dtype .. ".edges.f32"),
        ops.to_f32(dtype, data_of(dtype .. ".edges")), 4)
    end)

    it(("gives what %s's definition does for blocks of this minute"):format(dtype), function()
      for _ = 1, 20 do
        local blocks, values = file_blocks.random(dtype, 16, os.time() + math.random(1 << 30))
        assert_same_bytes(values, ops.to_f32(dtype, blocks), 4)
      end
    end)
  end

  for _, dtype in ipairs { "f16", "bf16", "q8_0", "q4_0" } do
    it(("makes %s"):format(dtype), function()
      assert_same_bytes(data_of("from." .. dtype), ops.from_f32(dtype, data_of "from.f32"), 1)
    end)
  end

  for _, dtype in ipairs { "q4_1", "q5_0", "q5_1" } do
    it(("makes %s"):format(dtype), function()
      assert_same_bytes(from_gguf["from." .. dtype],
        ops.from_f32(dtype, from_gguf["from.f32"]), 1)
    end)
  end

  -- PyTorch's (scripts/maker/oracle/fp8_fixtures.py).
  it("reads and makes fp8_e4m3", function()
    local golden, all = helper.read(helper.fixture "fp8/e4m3.bin"), {}
    for byte = 0, 255 do all[byte + 1] = string.char(byte) end
    local values, from, to = golden:sub(1, 1024), golden:sub(1025, 13024), golden:sub(13025)
    assert.equal(3000, #to)
    local got = ops.numbers(ops.to_f32("fp8_e4m3", table.concat(all)))
    for i, want in ipairs(ops.numbers(values)) do
      assert(want ~= want and got[i] ~= got[i] or want == got[i] and 1 / want == 1 / got[i], i - 1)
    end
    assert_same_bytes(to, ops.from_f32("fp8_e4m3", from), 1)
  end)

  it("keeps what fp8_e4m3 cannot hold at its ends, and NaN", function()
    local made = ops.from_f32("fp8_e4m3", ops.floats { 449, 465, -1e9, 1e38 * 10, -1e38 * 10,
      0 / 0 })
    local got = ops.numbers(ops.to_f32("fp8_e4m3", made))
    assert.same({ 448, 448, -448, 448, -448 }, { table.unpack(got, 1, 5) })
    assert.is_true(got[6] ~= got[6])
  end)

  it("copies f32", function()
    assert.equal(data_of "f32", ops.to_f32("f32", data_of "f32"))
    assert.equal(data_of "f32", ops.from_f32("f32", data_of "f32"))
  end)

  it("knows every f16 and bf16, there and back", function()
    local halves = {}
    for h = 0, 65535 do halves[h + 1] = ("<I2"):pack(h) end
    local all = table.concat(halves)
    for dtype, infinity in pairs { f16 = 0x7c00, bf16 = 0x7f80 } do
      local values = ops.to_f32(dtype, all)
      local back = ops.from_f32(dtype, values)
      for h = 0, 65535 do
        local value, again = ("<f"):unpack(values, 4 * h + 1), ("<I2"):unpack(back, 2 * h + 1)
        if h & 0x7fff > infinity then                      -- not a number, then still none
          assert(value ~= value and again & 0x7fff > infinity, h)
        else
          assert(again == h, h)
        end
      end
    end
  end)

  it("rounds to the nearest f16 and bf16, ties to even", function()
    local function round(dtype, x) return (("<I2"):unpack(ops.from_f32(dtype, ("<f"):pack(x)))) end
    for _, case in ipairs {
      { "f16", 1 + 2 ^ -11, 0x3c00 }, { "f16", 1 + 3 * 2 ^ -11, 0x3c02 },
        { "f16", 1 + 2 ^ -11 + 2 ^ -20, 0x3c01 },
      { "f16", 65519, 0x7bff }, { "f16", 65520, 0x7c00 }, { "f16", -1e9, 0xfc00 },
        { "f16", 2 ^ -25, 0 },
      { "f16", 2 ^ -25 * 1.001, 1 }, { "f16", 3 * 2 ^ -25, 2 }, { "f16", -2 ^ -24, 0x8001 },
        { "f16", 2 ^ -14 - 2 ^ -26, 0x400 },
      { "bf16", 1 + 2 ^ -8, 0x3f80 }, { "bf16", 1 + 3 * 2 ^ -8, 0x3f82 },
        { "bf16", 3.4028234e38, 0x7f80 },
    } do
      assert.equal(case[3], round(case[1], case[2]), ("%s of %.17g"):format(case[1], case[2]))
    end
  end)

  it("makes finite blocks of anything", function()
    local odd = { 0 / 0, math.huge, -math.huge, 1e-45, -1e-45, 3e38, -3e38, 0 }
    local values = {}
    for i = 1, 64 do values[i] = ("<f"):pack(odd[i % #odd + 1] * (i % 3 - 1)) end
    for _, dtype in ipairs { "q8_0", "q4_0", "q4_1", "q5_0", "q5_1" } do
      assert.equal(#ops.to_f32(dtype, ops.from_f32(dtype, table.concat(values))), 256)
    end
  end)
end)

describe("files", function()
  local runtime
  setup(function() runtime = assert(core.runtime { threads = 1 }) end)
  teardown(function() runtime:close() end)

  it("are mapped and closed, once or often", function()
    local file = assert(core.file_open(runtime, path))
    assert.equal(#bytes, file:size())
    file:close()
    file:close()
    assert.has_error(function() file:size() end)
  end)

  it("say what is wrong", function()
    local empty = helper.tmp()
    local cases = { ["/no/such/file"] = "No such file", ["spec"] = "directory", [empty] = "empty",
      ["/dev/null"] = "regular" }
    for name, word in pairs(cases) do
      local file, message, code = core.file_open(runtime, name)
      assert.is_nil(file)
      assert.equal("io", code)
      assert.truthy(message:find(name, 1, true))
      assert.truthy(message:find(word, 1, true))
    end
    os.remove(empty)
  end)
end)

describe("binding", function()
  local runtime, file, model
  local config = {
    layers = 2, heads = 4, kv_heads = 2, head_dim = 128, width = 512, ff = 512, vocab = 3,
      context = 64, norm_eps = 1e-5,
    rope_style = "half", rope_dims = 2, rope_freq = { 1 }, rope_gain = 1,
  }

  local function with(changes)
    local out = {}
    for k, v in pairs(config) do out[k] = v end
    for k, v in pairs(changes) do out[k] = v end
    return out
  end

  local function spec(changes)
    local t = tensors.f16
    local out = { name = "t", file = file, offset = t.offset, bytes = t.bytes, dtype = "f16",
      shape = { 3, 512 } }
    for k, v in pairs(changes or {}) do out[k] = v end
    return out
  end

  before_each(function()
    runtime = assert(core.runtime { threads = 1 })
    file = assert(core.file_open(runtime, path))
    model = assert(core.model_new(runtime, config))
  end)
  after_each(function()
    model:close()
    file:close()
    runtime:close()
  end)

  it("checks every number of a configuration", function()
    for field, values in pairs {
      layers = { 0, -1, 1025, 1 << 40 }, heads = { 0, 3, 1 << 33 }, kv_heads = { 0, 3, 5 },
        head_dim = { 0, 1, 3, 514 },
      width = { 0, -5, 1 << 19 }, ff = { 0, 1 << 21 }, vocab = { 0, 1 << 23 },
        context = { 0, -(1 << 40) },
      norm_eps = { 0, -1, 1, 0 / 0, math.huge }, rope_gain = { 0, -1, 0 / 0, 1e9 },
      norm_offset = { 0 / 0, 1e9 }, embed_scale = { 0 / 0, math.huge },
      residual_scale = { 0 / 0, 1e9 }, logit_scale = { math.huge }, score_scale = { -1, 0 / 0 },
      score_cap = { -1, 0 / 0 }, logit_cap = { -1, math.huge }, activation_limit = { -1, 0 / 0 },
      slopes = { { 1, 1, 1, -1 }, { 0 / 0, 1, 1, 1 } },
    } do
      for _, value in ipairs(values) do
        local none, message, code = core.model_new(runtime, with { [field] = value })
        assert.is_nil(none)
        assert.equal("format", code)
        assert.truthy(message:find(field, 1, true), message)
      end
    end
    for _, freq in ipairs { 0 / 0, -1, math.huge } do
      local _, message, code = core.model_new(runtime, with { rope_freq = { freq } })
      assert.equal("format", code)
      assert.truthy(message:find("rope_freq", 1, true))
    end
    local _, _, code = core.model_new(runtime, with { window = { 4, -1 } })
    assert.equal("format", code)
    assert(core.model_new(runtime, with { window = { 4, 0 } })):close()
  end)

  it("raises for what is misuse", function()
    for _, changes in ipairs {
      { layers = "x" }, { norm_eps = {} }, { rope_style = "round" }, { rope_freq = { 1, 2 } },
        { rope_freq = { "x" } },
      { window = { 1 } }, { window = { 1, "x" } },
    } do
      assert.has_error(function() core.model_new(runtime, with(changes)) end)
    end
    assert.has_error(function() model:bind("soul", nil, spec()) end)
    assert.has_error(function() model:bind("embed", nil, spec { dtype = "f12" }) end)
    assert.has_error(function() model:bind("embed", nil, spec { file = false }) end)
    assert.has_error(function() model:bind("embed", nil, spec { shape = { 3, "x" } }) end)
    assert.has_error(function() model:bind("embed", nil, spec(), "q9") end)
    model:close()
    assert.has_error(function() model:bytes() end)
  end)

  it("believes no description of a tensor", function()
    local size = #bytes
    for _, case in ipairs {
      { { offset = size - 3071 }, "outside" }, { { offset = -1 }, "outside" },
        { { offset = math.maxinteger }, "outside" },
      { { offset = size + 1 }, "outside" }, { { bytes = 3071 }, "need" },
        { { bytes = -1 }, "need" }, { { shape = {} }, "rank" },
      { { shape = { 1, 3, 512 } }, "rank" }, { { shape = { 3, 0 } }, "dimension" },
        { { shape = { -3, 512 } }, "dimension" },
      { { shape = { 1 << 40, 1 << 40 } }, "overflow" },
        { { shape = { 3, math.maxinteger } }, "overflow" },
      { { shape = { 3, 500 }, dtype = "q4_k" }, "block" },
        { { shape = { 512, 3 } }, "where the model's embed is [3, 512]" },
      { { shape = { 1536 } }, "where the model's embed is [3, 512]" },
    } do
      local ok, message, code = model:bind("embed", nil, spec(case[1]))
      assert.is_nil(ok)
      assert.equal("format", code)
      assert.truthy(message:find(case[2], 1, true), message)
      assert.truthy(message:find(path, 1, true), message)
    end
    local ok, message = model:bind("attn_norm", 1, spec())
    assert.is_nil(ok)
    assert.truthy(message:find("attn_norm is [512]", 1, true))
    assert.is_true(model:bind("embed", nil, spec()))       -- none of that left a trace
  end)

  it("binds each weight once, at its place", function()
    local norm = spec { shape = { 512 }, bytes = 1024 }
    local before = model:bytes()
    assert.is_true(model:bind("attn_norm", 2, norm))
    assert.equal(before + 2048, model:bytes())
    for _, layer in ipairs { 0, 3, -1, 1 << 40 } do
      local ok, _, code = model:bind("attn_norm", layer, norm)
      assert.is_nil(ok)
      assert.equal("argument", code)
    end
    local ok, message, code = model:bind("attn_norm", 2, norm)
    assert.is_nil(ok)
    assert.equal("argument", code)
    assert.truthy(message:find("twice", 1, true))
    ok, message, code = model:bind("embed", nil, spec(), "q6_k")
    assert.is_nil(ok)
    assert.equal("argument", code)
    assert.truthy(message:find("q6_k", 1, true))
  end)

  it("refuses as they are the dtypes that no kernel reads, and any conversion to them", function()
    local infos = {}
    for _, info in ipairs(core.dtypes()) do infos[info.name] = info end
    for dtype, t in pairs(file_blocks.types) do
      local matrix = spec { dtype = dtype, bytes = 3 * 512 // t.block * t.bytes }
      local native = infos[dtype].weights
      if not native then
        local ok, message, code = model:bind("embed", nil, matrix)
        assert.is_nil(ok)
        assert.equal("unsupported", code)
        assert.truthy(message:find("weights of dtype " .. dtype .. " are not supported as they are",
          1, true), message)
      end
      if not (native and infos[dtype].writable) then
        local ok, message, code = model:bind("embed", nil, spec(), dtype)
        assert.is_nil(ok)
        assert.equal("argument", code)
        assert.truthy(message:find("cannot be converted to dtype " .. dtype, 1, true), message)
      end
    end
    assert.is_true(model:bind("embed", nil, spec { dtype = "mxfp4", bytes = 3 * 16 * 17 }, "f16"))
  end)

  helper.cpu_only("what it maps; a device has copies",
    it)("copies what lies askew, and maps what does not", function()
    local held = runtime:memory()
    assert.is_true(model:bind("embed", nil, spec()))
    local mapped = runtime:memory() - held                 -- lists of blocks and files only
    local other = assert(core.model_new(runtime, config))
    held = runtime:memory()
    assert.is_true(other:bind("embed", nil, spec { offset = tensors.f16.offset + 1 }))
    assert.is_true(runtime:memory() - held >= 3072)
    assert.is_true(mapped < 1024)
    file:close()                                           -- the models keep it
    other:close()
  end)

  it("knows what is missing", function()
    local ok, message, code = model:ready()
    assert.is_nil(ok)
    assert.equal("format", code)
    assert.truthy(message:find("embed", 1, true))
  end)

  it("wants optional weights in all layers or in none", function()
    local small = assert(core.model_new(runtime,
      with { heads = 1, kv_heads = 1, head_dim = 2, width = 2, ff = 2, vocab = 2 }))
    local vector = spec { shape = { 2 }, bytes = 4 }
    local matrix = spec { shape = { 2, 2 }, bytes = 8 }
    assert(small:bind("embed", nil, matrix))
    assert(small:bind("out_norm", nil, vector))
    for layer = 1, 2 do
      for _, role in ipairs { "attn_norm", "ffn_norm" } do
        assert(small:bind(role, layer, vector))
      end
      for _, role in ipairs { "q", "k", "v", "o", "gate", "up", "down" } do
        assert(small:bind(role, layer, matrix))
      end
    end
    assert(small:bind("q_bias", 2, vector))
    local ok, message, code = small:ready()
    assert.is_nil(ok)
    assert.equal("format", code)
    assert.truthy(message:find("q_bias of layer 1", 1, true), message)
    assert(small:bind("q_bias", 1, vector))
    assert.is_true(small:ready())
    assert.is_true(small:ready())
    ok, message, code = small:bind("k_bias", 1, vector)
    assert.is_nil(ok)
    assert.equal("argument", code)
    assert.truthy(message:find("ready", 1, true))
    small:close()
  end)
end)

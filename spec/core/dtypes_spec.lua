-- The table of dtypes (core/base/dtype.h): each entry against what the formats themselves say, and
-- everything that is made from it. A new entry is held by this file as soon as it is there.
local helper = require "spec.helper"
local core = require "pyramid.core"
local dtypes = require "pyramid.loaders.dtypes"
local file_blocks = require "spec.support.file_blocks"
local formats = require "spec.support.formats"
local gguf = require "pyramid.loaders.gguf"
local lfs = require "lfs"
local ops = require "pyramid_specs"

local all, known = core.dtypes(), {}
for _, info in ipairs(all) do known[info.name] = info end

-- The kernels that models of this run's device have.
local function kernels(info) return helper.device == "cpu" and info.cpu or info.device end

-- The files that the `gguf` package wrote: a tensor T, and T.f32 with its values.
local tensors = {}
for _, file in ipairs { "dtypes.gguf", "converted.gguf" } do
  local path = helper.fixture("gguf/" .. file)
  local bytes = helper.read(path)
  for _, t in ipairs(assert(gguf.read(path)).tensors) do
    t.data = bytes:sub(t.offset + 1, t.offset + t.bytes)
    tensors[t.name] = t
  end
end

describe("the table of dtypes", function()
  it("has each name and number once", function()
    local seen = {}
    for _, info in ipairs(all) do
      for _, key in ipairs { "name", "gguf", "safetensors" } do
        local value = info[key]
        if value then
          assert.is_nil(seen[key .. value], key .. " " .. value)
          seen[key .. value] = true
        end
      end
      assert.matches("^%l[%l%d_]*$", info.name)
    end
  end)

  it("says of GGUF and safetensors what these say", function()
    for name, number in pairs(formats.types) do assert.equal(number, known[name].gguf, name) end
    for name, t in pairs(file_blocks.types) do
      local info = assert(known[name], name)
      assert.same({ t.type, t.block, t.bytes }, { info.gguf, info.block, info.bytes }, name)
    end
    for name, tensor in pairs(tensors) do
      if known[name] then assert.equal(name, tensor.dtype) end
    end
    for name, bytes in pairs { F64 = 8, F32 = 4, F16 = 2, BF16 = 2 } do
      local info = assert(known[name:lower()])
      assert.same({ name, 1, bytes }, { info.safetensors, info.block, info.bytes })
    end
  end)

  -- Values that no decoder of ours made: of the `gguf` package, of spec/support/file_blocks.lua, of
  -- PyTorch's fp8 (loaders/weights_spec.lua compares them).
  it("has values of each entry to compare with", function()
    for _, info in ipairs(all) do
      local held = tensors[info.name] and tensors[info.name .. ".f32"]
        or info.name == "f32" or info.name == "fp8_e4m3"
      assert.truthy(held, info.name .. " is in no file of spec/fixtures/gguf")
      assert.truthy(kernels(info).weights or kernels(info).rows or file_blocks.types[info.name],
        info.name .. " has no plain decoder in spec/support/file_blocks.lua")
    end
  end)

  it("has what loaders call foreign nowhere else", function()
    local text = helper.read "lua/pyramid/loaders/dtypes.lua"
    local function foreign(name) return (text:match("\nlocal " .. name .. " = (%b{})")) end
    for _, info in ipairs(all) do
      if info.gguf then
        assert.is_nil(foreign "foreign_gguf":find(("[%d] ="):format(info.gguf), 1, true), info.name)
      end
      if info.safetensors then
        assert.is_nil(foreign "foreign_safetensors":find("%f[%w_]" .. info.safetensors .. " ="),
          info.name)
      end
    end
    assert.truthy(foreign "foreign_gguf":find("[9] =", 1, true))
    assert.truthy(foreign "foreign_safetensors":find("%f[%w_]I64 ="))
  end)

  it("has entries that the README names", function()
    local page = helper.read "README.md"
    local weights, cache = page:match "\n| weights | (.-) |\n", page:match "\n| cache | (.-) |\n"
    for _, info in ipairs(all) do
      local pattern = "%f[%w_]" .. info.name .. "%f[^%w_]"
      local loads = info.weights or dtypes.converted[info.name]
      assert.is_true(not loads or weights:find(pattern) ~= nil, "weights: " .. info.name)
      assert.is_true(not info.rows or cache:find(pattern) ~= nil, "cache: " .. info.name)
    end
  end)

  it("has blocks that become the values of their definitions", function()
    for _, info in ipairs(all) do
      if file_blocks.types[info.name] then
        local blocks, values = file_blocks.random(info.name, 64, math.random(1 << 30))
        assert.equal(#values, 64 * info.block * 4)
        assert.is_true(values == ops.to_f32(info.name, blocks), info.name)
      end
    end
  end)

  -- Half of a step, of a value or of the block's largest value; q4_0's steps go from -8 to 7, so
  -- that at the other end one is a whole step off, and so q5_0's; those of q4_1 and q5_1 share out
  -- at most twice the largest value. A scale is an f16, 2^-12 off.
  local of_value = { f32 = 0, f16 = 2 ^ -11, bf16 = 2 ^ -8, fp8_e4m3 = 2 ^ -4 }
  local of_largest = { q8_0 = 0.5 / 127 + 2 ^ -11, q4_0 = 1 / 8 + 2 ^ -11,
    q5_0 = 1 / 16 + 2 ^ -11, q4_1 = 1 / 15 + 2 ^ -9, q5_1 = 1 / 31 + 2 ^ -9 }

  it("comes back from what is written, within half a step", function()
    local values = {}
    for i = 1, 256 * 20 do
      local size = 2.0 ^ (math.random() * 10 - 5)
      values[i] = ("<f"):unpack(("<f"):pack(math.random() < 0.5 and -size or size))
    end
    local bytes = ops.floats(values)
    for _, info in ipairs(all) do
      local made = ops.from_f32(info.name, bytes)
      assert.equal(#values // info.block * info.bytes, #made)
      if not info.writable then
        assert.equal(("\xa5"):rep(#made), made)               -- as the operation filled it before
      else
        local relative, back = of_value[info.name], ops.numbers(ops.to_f32(info.name, made))
        for first = 1, #values, info.block do
          local largest = 0
          for i = first, first + info.block - 1 do
            largest = math.max(largest, math.abs(values[i]))
          end
          for i = first, first + info.block - 1 do
            local bound = relative and relative * math.abs(values[i])
              or of_largest[info.name] * largest
            assert(math.abs(back[i] - values[i]) <= bound, info.name)
          end
        end
      end
    end
  end)

  it("converts at load what no kernel reads, to what kernels read and values become", function()
    for _, info in ipairs(all) do
      if info.at_load ~= info.name then
        local target = known[info.at_load]
        assert.is_false(info.weights or info.rows)
        assert.is_true(target.weights and target.writable)
        assert.is_true(target.cpu.weights and target.device.weights)
      end
    end
  end)

  it("is what loaders and caches know", function()
    for _, info in ipairs(all) do
      local entry = info.gguf and dtypes.gguf[info.gguf]
      if entry then
        assert.same({ name = info.name, block = info.block, bytes = info.bytes,
          native = info.weights }, entry)
      end
      local converted = info.at_load ~= info.name and info.at_load or nil
      assert.equal(converted, dtypes.converted[info.name])
    end
    local rows = helper.dtypes "rows"             -- and of packed pages (core/packed_spec)
    for _, name in ipairs { "q4", "q3", "q2" } do table.insert(rows, name) end
    assert.same(rows, require "pyramid.cache".dtypes)
    local readme = helper.read "README.md"
    for _, info in ipairs(all) do
      assert.truthy(readme:find("%f[%w_]" .. info.name .. "%f[^%w_]"), info.name)
    end
  end)
end)

-- As weights and as cache rows every dtype is taken or refused in words.
describe("every dtype", function()
  local runtime, model
  local config = { layers = 1, heads = 2, kv_heads = 1, head_dim = 256, width = 512, ff = 512,
    vocab = 3, context = 64, norm_eps = 1e-5, rope_style = "half", rope_dims = 2,
    rope_freq = { 1 }, rope_gain = 1 }
  local path = helper.fixture "gguf/dtypes.gguf"

  before_each(function()
    runtime = assert(core.runtime { threads = 1 })
    model = assert(core.model_new(runtime, config))
  end)
  after_each(function()
    model:close()
    runtime:close()
  end)

  it("is bound as weights, or the message says what to do", function()
    local file = assert(core.file_open(runtime, path))
    for _, info in ipairs(all) do
      local fresh <close> = assert(core.model_new(runtime, config))
      local tensor = { name = "t", file = file, offset = 0, dtype = info.name, shape = { 3, 512 },
        bytes = 3 * 512 // info.block * info.bytes }
      local ok, message, code = fresh:bind("embed", nil, tensor)
      if kernels(info).weights then
        assert.is_true(ok, message)
      else
        assert.is_nil(ok)
        assert.equal("unsupported", code)
        local wanted = info.at_load ~= info.name and "converted, to " .. info.at_load
          or "known: f32, f16"
        assert.truthy(message:find("weights of dtype " .. info.name, 1, true), message)
        assert.truthy(message:find(wanted, 1, true), message)
        -- what the message names is all that can be bound, and all that can be converted
        for _, other in ipairs(info.at_load == info.name and all or {}) do
          local named = message:match "%(known.*":find("%f[%w_]" .. other.name .. "%f[^%w_]")
          assert.equal(other.weights or other.at_load ~= other.name, named ~= nil, other.name)
        end
      end
    end
    file:close()
  end)

  it("is taken as cache rows, or the message lists those that are", function()
    for _, info in ipairs(all) do
      local pool, message, code = core.pool(model, info.name)
      if kernels(info).rows then
        assert.truthy(pool, message)
        pool:close()
      else
        assert.is_nil(pool)
        assert.equal("unsupported", code)
        assert.equal(("cache dtype %s: use one of %s"):format(info.name,
          table.concat(dtypes.rows, ", ")), message)
      end
    end
    assert.error_matches(function() core.pool(model, "f12") end, "unknown dtype")
  end)
end)

-- A switch over dtypes says what it does with each of them, so that the compiler names those that
-- a new type is missing in: none has a `default:`.
describe("sources", function()
  local function each_file(folder, f)
    for name in lfs.dir(folder) do
      local path = folder .. "/" .. name
      if name:sub(1, 1) == "." then goto continue end
      if lfs.attributes(path, "mode") == "directory" then
        each_file(path, f)
      elseif name:find "%.[ch]u?h?$" or name:find "%.inc$" or name:find "%.cpp$" then
        f(path, helper.read(path))
      end
      ::continue::
    end
  end

  -- Calls f(body) for the body of each switch, without the switches in it.
  local function each_switch(text, f)
    for body in text:gmatch "%f[%w_]switch%s*%b()%s*(%b{})" do
      body = body:sub(2, -2)
      each_switch(body, f)
      f((body:gsub("%f[%w_]switch%s*%b()%s*%b{}", "")))
    end
  end

  local function faulty(text)
    local bad
    each_switch(text, function(body)
      local about = body:find "PYR_CASES_" or body:find "PYR_%u+_CASES"
      for number in body:gmatch "case PYR_([%u%d_]+)" do
        about = about or known[number:lower()] ~= nil
      end
      bad = bad or about and body:find "%f[%w_]default%s*:" ~= nil
    end)
    return bad or false
  end

  it("have no default in switches over dtypes", function()
    local looked = 0
    for _, folder in ipairs { "core", "kernels", "lua", "spec/support" } do
      each_file(folder, function(path, text)
        looked = looked + 1
        assert.is_false(faulty(text), path)
      end)
    end
    assert.is_true(looked > 80)
    assert.is_true(faulty "f() { switch (d) { case PYR_F16: break; default: { g(); } } }")
    assert.is_true(faulty "switch (a) { case 1: switch (d) { PYR_WEIGHT_CASES(x) default: } }")
    assert.is_false(faulty "switch (d) { case PYR_F16: switch (a) { default: g(); } break; }")
    assert.is_false(faulty "switch (d) { case PYR_ADD: break; default: }")
  end)
end)

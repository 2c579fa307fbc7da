-- Operations on each token by itself, and the backend's memory.
local helper = require "spec.helper"
local ops = require "pyramid_specs"
local reference = require "spec.support.ops_reference"

local lengths = { 1, 3, 8, 15, 16, 17, 33, 64, 100, 257 }

describe("embed", function()
  it("looks rows up in a table of any dtype", function()
    for dtype, cols in pairs { f32 = 37, f16 = 50, bf16 = 3, q8_0 = 96, q4_0 = 32, q4_k = 512,
      q5_k = 256, q6_k = 256 } do
      local table_bytes, values = reference.matrix(dtype, 11, cols)
      local ids, ref = {}, {}
      for i = 1, 9 do
        ids[i] = math.random(0, 10)
        table.move(values, ids[i] * cols + 1, (ids[i] + 1) * cols, (i - 1) * cols + 1, ref)
      end
      reference.each(function(rt) return ops.embed(rt, dtype, cols, table_bytes,
        ops.ints(ids)) end, function(result, fail)
        reference.near(result, ref, 1e-6, fail, dtype)
      end)
    end
  end)
end)

describe("rms_norm", function()
  it("scales tokens to a mean square of one, in place or apart", function()
    for _, d in ipairs(lengths) do
      for _, n in ipairs { 1, 5 } do
        local x, x_bytes = reference.random(n * d, 3)
        local weight, weight_bytes = reference.random(d)
        local ref = {}
        for t = 0, n - 1 do
          local sum = 0.0
          for i = 1, d do sum = sum + x[t * d + i] ^ 2 end
          for i = 1, d do ref[t * d + i] = x[t * d + i] / (sum / d + 1e-5) ^ 0.5 * weight[i] end
        end
        reference.each(function(rt)
          local apart = ops.rms_norm(rt, x_bytes, weight_bytes, 1e-5)
          assert.equal(apart, ops.rms_norm(rt, x_bytes, weight_bytes, 1e-5, true))
          return apart
        end, function(result, fail) reference.near(result, ref, 1e-6, fail, "norm of " .. d) end)
      end
    end
    local _, many = reference.random(300 * 256)
    local _, weight = reference.random(256)
    -- cut among threads
    reference.each(function(rt) return ops.rms_norm(rt, many, weight, 1e-6) end, function() end)
  end)
end)

describe("rope", function()
  it("rotates pairs of either style, and leaves the other dimensions alone", function()
    for _, style in ipairs { "half", "interleaved" } do
      for _, shape in ipairs { { 16, 16 }, { 20, 12 }, { 64, 64 }, { 128, 64 } } do
        local d, dims = shape[1], shape[2]
        local n, heads, gain = 5, 3, 1.25
        local x, x_bytes = reference.random(n * heads * d)
        local pos, pos_bytes = reference.ascending(n, 100, 900)
        local freq = {}
        for i = 0, dims // 2 - 1 do freq[i + 1] = 10000 ^ (-2 * i / dims) end
        local freq_bytes
        freq, freq_bytes = reference.pack(freq)
        local ref = table.move(x, 1, #x, 1, {})
        for t = 0, n - 1 do
          for h = 0, heads - 1 do
            for i = 0, dims // 2 - 1 do
              local base = (t * heads + h) * d + 1
              local a = base + (style == "half" and i or 2 * i)
              local b = a + (style == "half" and dims // 2 or 1)
              local angle = string.unpack("<f", string.pack("<f", pos[t + 1] * freq[i + 1]))
              local co, si = math.cos(angle) * gain, math.sin(angle) * gain
              ref[a], ref[b] = x[a] * co - x[b] * si, x[a] * si + x[b] * co
            end
          end
        end
        reference.each(function(rt) return ops.rope(rt, x_bytes, pos_bytes, freq_bytes, heads, d,
          style, gain) end,
          function(result, fail) reference.near(result, ref, 1e-6, fail, style) end)
      end
    end
  end)
end)

describe("silu_mul", function()
  it("multiplies silu(gate) with up, whatever the size", function()
    for _, n in ipairs(lengths) do
      for _, size in ipairs { 0.01, 4, 80 } do
        local gate, gate_bytes = reference.random(n, size)
        local up, up_bytes = reference.random(n)
        local ref = {}
        for i = 1, n do ref[i] = gate[i] / (1 + math.exp(-gate[i])) * up[i] end
        reference.each(function(rt) return ops.silu_mul(rt, gate_bytes, up_bytes) end,
          function(result, fail)
          reference.near(result, ref, 1e-6, fail, "silu")
        end)
      end
    end
    local _, many = reference.random(60000)
    -- cut among threads
    reference.each(function(rt) return ops.silu_mul(rt, many, many) end, function() end)
  end)

  it("is exact to some units of the last place", function()
    local gate, gate_bytes = reference.random(4000, 60)
    local ones = {}
    for i = 1, #gate do ones[i] = 1 end
    reference.each(function(rt) return ops.silu_mul(rt, gate_bytes, ops.floats(ones)) end,
      function(result, fail)
      for i, x in ipairs(ops.numbers(result)) do
        local ref = gate[i] / (1 + math.exp(-gate[i]))
        if math.abs(x - ref) > 5e-7 * math.abs(ref) then
          fail("silu(%.9g) is %.9g, not %.9g", gate[i], x, ref)
        end
      end
    end)
  end)
end)

describe("take", function()
  it("moves chosen rows and numbers to the front", function()
    for _, n in ipairs(lengths) do
      local d, idx = math.random(1, 20), {}
      for i = 0, n - 1 do if math.random() < 0.6 then idx[#idx + 1] = i end end
      local x, x_bytes = reference.random(n * d)
      local numbers, number_bytes = reference.ascending(n, 0, 50)
      local rows, taken = {}, {}
      for i, j in ipairs(idx) do
        table.move(x, j * d + 1, (j + 1) * d, (i - 1) * d + 1, rows)
        taken[i] = numbers[j + 1]
      end
      reference.each(function(rt)
        return { ops.take_rows(rt, x_bytes, ops.ints(idx), d),
          ops.take_i32(rt, number_bytes, ops.ints(idx)) }
      end, function(result, fail)
        if result[1] ~= ops.floats(rows) then fail("rows") end
        if result[2] ~= ops.ints(taken) then fail("numbers") end
      end)
    end
  end)
end)

describe("the backend", function()
  it("aligns its blocks, counts them and gives them back", function()
    local core = require "pyramid.core"
    local rt <close> = core.runtime { threads = 1 }
    local before = rt:memory()
    for _, bytes in ipairs { 0, 1, 63, 64, 65, 100000 } do assert.equal(0, ops.alloc(rt, bytes)) end
    assert.equal(before, rt:memory())
    assert.truthy(rt:memory_peak() >= before + 100000)
    local limited <close> = core.runtime { threads = 1, memory = before + 1000 }
    local result, _, code = ops.alloc(limited, 100000)
    assert.is_nil(result)
    assert.equal("memory", code)
  end)

  it("reserves only what is missing, and reports when there is no more", function()
    local core = require "pyramid.core"
    local rt <close> = core.runtime { threads = 2 }
    assert(ops.reserve(rt, { rows = 100, heads = 8, kv_heads = 2, head_dim = 64 }))
    local held = rt:memory()
    assert(ops.reserve(rt, { rows = 50, heads = 4, kv_heads = 2, head_dim = 32 }))
    assert.equal(held, rt:memory())
    assert(ops.reserve(rt, { rows = 100000, heads = 8, kv_heads = 1, head_dim = 64 }))
    assert.truthy(rt:memory() > held)
    local fresh <close> = core.runtime { threads = 2 }
    local limited <close> = assert(core.runtime { threads = 2, memory = fresh:memory() + 90000 })
    local result, _, code = ops.reserve(limited,
      { rows = 100000, heads = 8, kv_heads = 2, head_dim = 64 })
    assert.is_nil(result)
    assert.equal("memory", code)
  end)

  helper.cpu_only("its instruction sets", it)("knows no instruction set that the machine lacks",
    function()
    assert.equal("base", reference.isas()[1])
    assert.is_nil((require "pyramid.core".runtime { isa = "vax" }))
  end)
end)

-- Operations on each token by itself, and the backend's memory.
local helper = require "spec.helper"
local ops = require "pyramid_specs"
local reference = require "spec.support.ops_reference"

local lengths = { 1, 3, 8, 15, 16, 17, 33, 64, 100, 257 }

describe("embed", function()
  it("looks rows up in a table of any dtype", function()
    local _, blocks = helper.dtypes "weights"
    for dtype, block in pairs(blocks) do
      local cols = block == 1 and math.random(3, 50) or block * math.random(1, 512 // block)
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

describe("norm", function()
  -- Plain sums of what `norm` is to make of n rows of x; weights [period][d] in turn.
  local function normed(kind, x, n, d, weight, bias, eps)
    local out, period = {}, #weight // d
    for t = 0, n - 1 do
      local mean, sum = 0.0, 0.0
      if kind == "layer" then
        for i = 1, d do mean = mean + x[t * d + i] / d end
      end
      for i = 1, d do sum = sum + (x[t * d + i] - mean) ^ 2 end
      for i = 1, d do
        out[t * d + i] = (x[t * d + i] - mean) / (sum / d + eps) ^ 0.5
          * weight[t % period * d + i] + (bias and bias[i] or 0)
      end
    end
    return out
  end

  it("scales rows, in place or apart, with weights that they share or take in turn", function()
    for _, d in ipairs(lengths) do
      for _, case in ipairs { { "rms", 1, 1 }, { "rms", 6, 3 }, { "layer", 5, 1, true },
        { "layer", 4, 2 } } do
        local kind, n, period = case[1], case[2], case[3]
        local x, x_bytes = reference.random(n * d, 3)
        local weight, weight_bytes = reference.random(period * d)
        local bias, bias_bytes
        if case[4] then bias, bias_bytes = reference.random(d) end
        local ref = normed(kind, x, n, d, weight, bias, 1e-5)
        reference.each(function(rt)
          local apart = ops.norm(rt, kind, x_bytes, weight_bytes, d, 1e-5, bias_bytes)
          assert.equal(apart, ops.norm(rt, kind, x_bytes, weight_bytes, d, 1e-5, bias_bytes, true))
          return apart
        end, function(result, fail)
          reference.near(result, ref, 2e-6, fail, ("%s norm of %d"):format(kind, d))
        end)
      end
    end
    local _, many = reference.random(300 * 256)
    local _, weight = reference.random(256)
    -- cut among threads
    reference.each(function(rt) return ops.norm(rt, "layer", many, weight, 256, 1e-6) end,
      function() end)
  end)

  it("finds the variance of values far from 0", function()
    local d, x, ones = 257, {}, {}
    for i = 1, d do x[i], ones[i] = 1000 + i % 2 / 8, 1 end
    local ref = normed("layer", x, 1, d, ones, nil, 1e-6)
    reference.each(function(rt)
      return ops.norm(rt, "layer", ops.floats(x), ops.floats(ones), d, 1e-6)
    end, function(result, fail) reference.near(result, ref, 1e-3, fail, "far from 0") end)
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

describe("the angles of a rotation", function()
  -- A pair (1, 0) turned by an angle is its cosine and its sine.
  it("have their cosine and sine to an ulp, up to positions in the millions", function()
    local n, pairs = 9, 21
    local pos = { 0, 1, 3, 7, 500, 4096, 131071, 1048575, 2^24 - 1 }
    for i, p in ipairs(pos) do pos[i] = math.tointeger(p) end
    local x, freq = {}, {}
    for i = 1, n * 2 * pairs do x[i] = i % 2 end
    for i = 1, pairs do freq[i] = math.random() * 10 ^ -(i % 5) end
    freq[1], freq[2] = 1, 0
    local freq_bytes
    freq, freq_bytes = reference.pack(freq)
    reference.each(function(rt)
      return ops.rope(rt, ops.floats(x), ops.ints(pos), freq_bytes, 1, 2 * pairs, "interleaved", 1)
    end, function(bytes, fail)
      local result = ops.numbers(bytes)
      for t = 1, n do
        for i = 1, pairs do
          local angle = string.unpack("<f", string.pack("<f", pos[t] * freq[i]))
          for part, want in ipairs { math.cos(angle), math.sin(angle) } do
            local got = result[((t - 1) * pairs + i - 1) * 2 + part]
            local ulp = math.max(math.abs(want), 2 ^ -20) * 2 ^ -23
            if math.abs(got - want) > ulp then
              fail("%s of %.9g is %.9g, not %.9g", part == 1 and "cos" or "sin", angle, got, want)
            end
          end
        end
      end
    end)
  end)
end)

describe("activate", function()
  -- erf by its series, for 0 <= x < 2.5; beyond, erfc by its continued fraction.
  local function erf(x)
    local term, sum = x, x
    for i = 1, 80 do
      term = -term * x * x / i
      sum = sum + term / (2 * i + 1)
    end
    return 2 / math.sqrt(math.pi) * sum
  end
  -- 1 - erf(x), which loses no digits where erf is nearly 1.
  local function erfc(x)
    if x < 2.5 then return 1 - erf(x) end
    local tail = x
    for i = 60, 1, -1 do tail = x + i / 2 / tail end
    return math.exp(-x * x) / (tail * math.sqrt(math.pi))
  end
  local function tanh(x) return 1 - 2 / (math.exp(2 * x) + 1) end
  local function sigmoid(x) return 1 / (1 + math.exp(-x)) end
  local limit = 7
  local acts = {
    silu = function(x) return x * sigmoid(x) end,
    gelu = function(x)
      local tail = math.abs(x) / 2 * erfc(math.abs(x) / math.sqrt(2))
      return math.max(x, 0) - tail
    end,
    gelu_tanh = function(x)
      return x / 2 * (1 + tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x ^ 3)))
    end,
    relu = function(x) return math.max(x, 0) end,
    relu2 = function(x) return math.max(x, 0) ^ 2 end,
    swiglu_clamped = function(x, up)
      x, up = math.min(x, limit), math.max(-limit, math.min(up, limit))
      return x * sigmoid(1.702 * x) * (up + 1)
    end,
  }

  it("applies each activation, with another factor and without, whatever the size", function()
    for name, act in pairs(acts) do
      for _, n in ipairs(lengths) do
        for _, size in ipairs { 0.01, 4, 80 } do
          local gate, gate_bytes = reference.random(n, size)
          local up, up_bytes = reference.random(n, size)
          local plain, gated = {}, {}
          -- tails of GELU are e^(-x^2/2), whose exponent f32 rounds: 5e-6 of what is 1e-10 of x
          for i = 1, n do
            plain[i] = act(gate[i], up[i])
            gated[i] = name == "swiglu_clamped" and plain[i] or plain[i] * up[i]
          end
          reference.each(function(rt)
            return ops.activate(rt, gate_bytes, up_bytes, name, limit)
          end, function(result, fail)
            reference.near(result, gated, 1e-6, fail, name, size * size / 1000)
          end)
          if name ~= "swiglu_clamped" then
            reference.each(function(rt) return ops.activate(rt, gate_bytes, nil, name) end,
              function(result, fail)
                reference.near(result, plain, 1e-6, fail, name, size / 1000)
              end)
          end
        end
      end
    end
    local _, many = reference.random(60000)
    -- cut among threads
    reference.each(function(rt) return ops.activate(rt, many, many, "silu") end, function() end)
  end)

  it("is exact to some units of the last place", function()
    -- of GELU: of x, where Phi(x) is not small
    local exact = { silu = 60, gelu = 3, gelu_tanh = 3 }
    for name, size in pairs(exact) do
      local gate, gate_bytes = reference.random(2000, size)
      reference.each(function(rt) return ops.activate(rt, gate_bytes, nil, name) end,
        function(result, fail)
        for i, x in ipairs(ops.numbers(result)) do
          local ref = acts[name](gate[i])
          local unit = name == "silu" and math.abs(ref) or math.abs(gate[i])
          if math.abs(x - ref) > 5e-7 * unit then
            fail("%s(%.9g) is %.9g, not %.9g", name, gate[i], x, ref)
          end
        end
      end)
    end
  end)
end)

describe("scale and add", function()
  it("multiply, cap and add a multiple", function()
    for _, n in ipairs(lengths) do
      local x, x_bytes = reference.random(n, 50)
      local y, y_bytes = reference.random(n)
      local scaled, capped, added = {}, {}, {}
      for i = 1, n do
        scaled[i] = 0.75 * x[i]
        capped[i] = 30 * (1 - 2 / (math.exp(2 * scaled[i] / 30) + 1))
        added[i] = x[i] + 0.22 * y[i]
      end
      reference.each(function(rt) return ops.scale(rt, x_bytes, 0.75, 0) end,
        function(result, fail) reference.near(result, scaled, 1e-6, fail, "scaled") end)
      reference.each(function(rt) return ops.scale(rt, x_bytes, 0.75, 30) end,
        function(result, fail) reference.near(result, capped, 1e-6, fail, "capped") end)
      reference.each(function(rt) return ops.add(rt, x_bytes, y_bytes, 0.22) end,
        function(result, fail) reference.near(result, added, 1e-6, fail, "added") end)
    end
  end)
end)

describe("temper", function()
  it("lets rows grow with the whole lengths before their positions", function()
    for _, d in ipairs(lengths) do
      local n, length, beta = math.random(1, 9), math.random(1, 40), math.random() * 0.5
      local x, x_bytes = reference.random(n * d)
      local pos, ref = { 0, length - 1, length, 2 * length - 1 }, {}
      for i = 5, n do pos[i] = math.random(0, 1 << 20) end
      for i = n + 1, 4 do pos[i] = nil end
      for t = 0, n - 1 do
        local factor = 1 + beta * math.log(1 + pos[t + 1] // length)
        for i = 1, d do ref[t * d + i] = x[t * d + i] * factor end
      end
      reference.each(function(rt)
        return ops.temper(rt, x_bytes, ops.ints(pos), beta, length)
      end, function(result, fail) reference.near(result, ref, 1e-6, fail, "tempered") end)
    end
    local _, none = reference.random(0)
    reference.each(function(rt) return ops.temper(rt, none, ops.ints {}, 0.1, 8) end,
      function(result, fail) if result ~= "" then fail("something of nothing") end end)
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

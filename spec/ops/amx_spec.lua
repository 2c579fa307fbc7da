-- Matrix products of many tokens by matrix tiles (AMX): equal to plain sums over operands rounded
-- to bf16, whatever order weights lie in. Processors without tiles must say so.
-- What "amxbf16" shares with "avx512bf16" is in bf16_spec.lua.
local helper = require "spec.helper"
local core = require "pyramid.core"
local ops = require "pyramid_specs"
local reference = require "spec.support.ops_reference"

local _, blocks = helper.dtypes "bf16"
local _, interleaved = helper.dtypes "packs"
local fewest = ops.small_n  -- tokens from which interleaved weights go by tiles

local teams = reference.teams "amxint8"
local one, bytes = teams[1] and teams[1][1], core.runtime { isa = "avx512int8", threads = 1 }

local function rounded(values)
  return ops.numbers(ops.to_f32("bf16", ops.from_f32("bf16", ops.floats(values))))
end

--- Against plain sums; gives the result, x and w as bytes.
local function compare(dtype, n, rows, cols, o)
  o = o or {}
  local w, w_values = reference.matrix(dtype, rows, cols)
  local x, x_bytes = reference.random(n * cols)
  local bias, bias_bytes, out, out_bytes, stride
  if o.bias then bias, bias_bytes = reference.random(rows) end
  if o.accumulate then out, out_bytes = reference.random(n * rows) end
  local ref = reference.linear(rounded(x), rounded(w_values), rows, cols, bias, out)
  if o.pad then
    local row, padded = #w // rows, {}
    stride = row + o.pad
    for r = 0, rows - 1 do
      padded[r + 1] = w:sub(r * row + 1, (r + 1) * row) .. ("\xff"):rep(r < rows - 1 and o.pad or 0)
    end
    w = table.concat(padded)
  end
  local got
  reference.each(function(rt)
    return ops.linear(rt, x_bytes, dtype, w, rows, cols, bias_bytes, out_bytes, stride)
  end, function(result, fail)
    got = result
    reference.near(result, ref, 1e-5, fail, ("%s, %d x %d x %d"):format(dtype, n, rows, cols))
  end, teams)
  return got, x_bytes, w
end

local function tokens(bytes_of, width, first, count)
  return bytes_of:sub(first * width * 4 + 1, (first + count) * width * 4)
end

describe("products by matrix tiles", function()
  local it = helper.cpu_only("its instruction sets", it)

  it("are taken where they are, and asked for by name", function()
    for _, kind in ipairs { "bf16", "int8" } do
      local best, tiles = core.runtime { isa = kind }, core.runtime { isa = "amx" .. kind }
      local plain = core.runtime { isa = "avx512" .. kind }
      if best then
        assert.equal((tiles and "amx" or "avx512") .. kind, best:isa())
      else
        assert.is_nil(tiles)
      end
      if plain then assert.equal("avx512" .. kind, plain:isa()) end
    end
  end)
  if #teams == 0 then return end

  for dtype, block in pairs(blocks) do
    it("equal plain sums: " .. dtype, function()
      for _, n in ipairs { 48, 49, 63, 64, 65, 80, 81, 100 } do
        compare(dtype, n, 16 * math.random(1, 5), block * math.random(1, 256 // block * 2))
        compare(dtype, n, math.random(1, 70), block * math.random(1, 256 // block))
      end
      for _, rows in ipairs { 1, 15, 16, 17, 31, 32, 33, 63, 127, 144, 257, 304 } do
        compare(dtype, 51, rows, block == 1 and 33 or block)
      end
      compare(dtype, 520, 48, block == 1 and 31 or block)
    end)

    it("read rows that lie apart: " .. dtype, function()
      compare(dtype, 50, 48, 256, { pad = 2 * block })
      compare(dtype, 33, 13, 512, { pad = 2 })
    end)

    it("add a bias, and to what is there: " .. dtype, function()
      for _, shape in ipairs { { 48, 32 }, { 53, 48 }, { 64, 37 } } do
        compare(dtype, shape[1], shape[2], 256, { bias = true })
        compare(dtype, shape[1], shape[2], 256, { accumulate = true })
        compare(dtype, shape[1], shape[2], 256, { bias = true, accumulate = true })
      end
    end)

    it("give a token the same in any company: " .. dtype, function()
      for _, rows in ipairs { 48, 29 } do
        local cols, n = 512, 100
        local result, x, w = compare(dtype, n, rows, cols)
        for _, some in ipairs { { 0, 48 }, { 1, 49 }, { 17, 63 }, { 40, 60 }, { 3, 97 } } do
          local alone = assert(ops.linear(one, tokens(x, cols, some[1], some[2]), dtype, w, rows,
            cols))
          assert.is_true(alone == tokens(result, rows, some[1], some[2]),
            ("tokens from %d on"):format(some[1]))
        end
      end
    end)

    if interleaved[dtype] then
      it("are the same of weights as they lie: " .. dtype, function()
        local result, x, w = compare(dtype, 50, 80, 512)
        local plain = assert(ops.linear(one, x, dtype, w, 80, 512, nil, nil, #w // 80))
        reference.near(result, ops.numbers(plain), 1e-5, error, dtype .. ", two orders")
      end)

      it("leave few tokens to products of bytes: " .. dtype, function()
        for _, n in ipairs { 1, 8, 9, 16, 17, fewest - 1 } do
          local w, x = reference.matrix(dtype, 48, 256), select(2, reference.random(n * 256))
          assert.is_true(ops.linear(one, x, dtype, w, 48, 256)
            == ops.linear(bytes, x, dtype, w, 48, 256))
        end
      end)

      it("are those of bytes for any number of steps, to the bit: " .. dtype, function()
        for _, case in ipairs { { 9, 16, block }, { 40, 80, 3 * block }, { 100, 48, 8 * block } } do
          local n, rows, cols = case[1], case[2], case[3]
          local w, x = reference.matrix(dtype, rows, cols), select(2, reference.random(n * cols))
          local bias, out = select(2, reference.random(rows)), select(2, reference.random(n * rows))
          for _, rt in ipairs(teams[1]) do
            for _, b in ipairs { false, bias } do
              for _, o in ipairs { false, out } do
                assert.is_true(
                  ops.linear(rt, x, dtype, w, rows, cols, b or nil, o or nil, nil, true)
                  == ops.linear(bytes, x, dtype, w, rows, cols, b or nil, o or nil, nil, true),
                  ("%d x %d x %d"):format(n, rows, cols))
              end
            end
          end
        end
      end)
    end
  end

  it("make an MLP at once, to the bit what its parts make", function()
    local function random(count) return select(2, reference.random(count)) end
    for i, case in ipairs {
      { "q8_0", 48, 64, 96, "silu" }, { "q8_0", 65, 288, 160, "gelu_tanh", plain = true },
      { "q4_0", 50, 96, 352, "silu", bias = true }, { "q4_k", 97, 256, 512, "gelu", out = true },
      { "bf16", 16, 40, 64, "relu2", plain = true, bias = true }, { "bf16", 17, 70, 96, "silu" },
      { "q6_k", 530, 256, 256, "swiglu_clamped", limit = 0.5, out = true, bias = true },
    } do
      local dtype, n, width, ff, act = table.unpack(case)
      local m = { width = width, ff = ff, activation = act, limit = case.limit,
        gate_dtype = dtype, up_dtype = dtype, down_dtype = dtype }
      if not case.plain then m.gate = reference.matrix(dtype, ff, width) end
      m.up, m.down = reference.matrix(dtype, ff, width), reference.matrix(dtype, width, ff)
      if case.bias then
        m.gate_bias, m.up_bias, m.down_bias = random(ff), random(ff), random(width)
      end
      if case.out then m.out = random(n * width) end
      local x = random(n * width)
      for _, rt in ipairs(teams[1]) do
        local up = ops.linear(rt, x, dtype, m.up, ff, width, m.up_bias)
        local hidden = case.plain and ops.activate(rt, up, nil, act)
          or ops.activate(rt, ops.linear(rt, x, dtype, m.gate, ff, width, m.gate_bias), up, act,
            case.limit)
        assert.is_true(ops.mlp(rt, x, m) == ops.linear(rt, hidden, dtype, m.down, width, ff,
          m.down_bias, m.out), ("case %d"):format(i))
      end
    end
  end)

  it("leave to its parts an MLP that they do not all take", function()
    local function taken(dtype, n, width, ff, more)
      local m = { width = width, ff = ff, activation = "silu", gate_dtype = dtype, up_dtype = dtype,
        down_dtype = dtype, gate = reference.matrix(dtype, ff, width),
        up = reference.matrix(dtype, ff, width), down = reference.matrix(dtype, width, ff) }
      for key, value in pairs(more or {}) do m[key] = value end
      return ops.mlp(one, select(2, reference.random(n * width)), m) ~= nil
    end
    assert.is_true(taken("q8_0", fewest, 64, 64))
    assert.is_false(taken("q8_0", fewest - 1, 64, 64))
    assert.is_false(taken("q8_0", fewest, 64, 64, { steps = true }))
    assert.is_false(taken("f32", 100, 64, 64))
    assert.is_false(taken("bf16", 100, 64, 80))      -- ends within a tile
    assert.is_false(taken("q8_0", 100, 64, 64,
      { down_dtype = "f32", down = reference.matrix("f32", 64, 64) }))
    assert.is_nil(ops.mlp(bytes, select(2, reference.random(100 * 64)), { width = 64, ff = 64,
      activation = "silu", up_dtype = "q8_0", up = reference.matrix("q8_0", 64, 64),
      down_dtype = "q8_0", down = reference.matrix("q8_0", 64, 64) }))
  end)

  it("go in panels and blocks of tokens where k is long", function()
    compare("bf16", 70, 40, 6401)
    compare("q8_0", 49, 48, 13056)
    compare("q8_0", 130, 16, 3072, { accumulate = true })
  end)

  it("keep what is not finite to its token", function()
    local rows, cols, n = 48, 64, 50
    local w = reference.matrix("q8_0", rows, cols)
    local x, x_bytes = reference.random(n * cols)
    local clean = ops.numbers(assert(ops.linear(one, x_bytes, "q8_0", w, rows, cols)))
    for _, bad in ipairs { 0 / 0, math.huge } do
      x[20 * cols + 9] = bad
      local got = ops.numbers(assert(ops.linear(one, ops.floats(x), "q8_0", w, rows, cols)))
      for i, y in ipairs(got) do
        if (i - 1) // rows == 20 then assert.is_false(y == y and math.abs(y) < math.huge)
        else assert.equal(clean[i], y) end
      end
    end
  end)

  it("leave no tiles in use behind them", function()
    assert.is_false(ops.tiles_in_use())
    compare("q8_0", 64, 64, 256, { bias = true })
    assert.is_false(ops.tiles_in_use())
  end)

  it("leave f32 and f16 weights alone", function()
    local _, x = reference.random(50 * 64)
    for _, dtype in ipairs { "f32", "f16" } do
      local w = reference.matrix(dtype, 5, 64)
      assert.equal(ops.linear(reference.runtime(), x, dtype, w, 5, 64),
        ops.linear(one, x, dtype, w, 5, 64))
    end
  end)

  it("keep a prompt's logits nearer than bytes do, and single steps as bytes have them", function()
    local pyramid = require "pyramid"
    local ids = helper.ids(200, 2000, 7)
    local function open(isa)
      return assert(pyramid.model("models/tiny", { isa = isa, weights = "q8_0", threads = 2 }))
    end
    local exact <close> = open "avx512"
    local tiles <close> = open "amxint8"
    local by_bytes <close> = open "avx512int8"
    local function logits(model)
      local cache <close> = assert(model:cache { dtype = "f32" })
      return assert(cache:prefill(ids)):totable()
    end
    local ref = logits(exact)
    local off = helper.distance(logits(tiles), ref)
    local off_by_bytes = helper.distance(logits(by_bytes), ref)
    assert.is_true(off < 0.02 and off < off_by_bytes,
      ("relative error %.3g, by bytes %.3g"):format(off, off_by_bytes))
    local function steps(model)
      local cache <close> = assert(model:cache { dtype = "f32" })
      local last = assert(cache:prefill { ids[1] })
      for i = 2, 20 do last = assert(cache:step(ids[i])) end
      return last:tostring()
    end
    assert.is_true(steps(tiles) == steps(by_bytes))
  end)
end)

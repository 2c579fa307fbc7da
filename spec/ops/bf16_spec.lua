-- Matrix products of many tokens in bf16: equal to plain sums over operands rounded to bf16.
-- Processors that do not multiply bf16 must say so.
local helper = require "spec.helper"
local core = require "pyramid.core"
local ops = require "pyramid_specs"
local reference = require "spec.support.ops_reference"

local _, dtypes = helper.dtypes "bf16"
local fewest = 16     -- tokens from which products are made this way

local teams = reference.rounding

local function rounded(values)
  return ops.numbers(ops.to_f32("bf16", ops.from_f32("bf16", ops.floats(values))))
end

local function compare(dtype, n, rows, cols, o)
  o = o or {}
  local w, w_values = reference.matrix(dtype, rows, cols)
  local x, x_bytes = reference.random(n * cols)
  local bias, bias_bytes, out, out_bytes
  if o.bias then bias, bias_bytes = reference.random(rows) end
  if o.accumulate then out, out_bytes = reference.random(n * rows) end
  local ref = reference.linear(rounded(x), rounded(w_values), rows, cols, bias, out)
  reference.each(function(rt)
    return ops.linear(rt, x_bytes, dtype, w, rows, cols, bias_bytes, out_bytes, o.stride)
  end, function(result, fail)
    reference.near(result, ref, 1e-5, fail, ("%s, %d x %d x %d"):format(dtype, n, rows, cols))
  end, teams)
end

describe("bf16 products", function()
  local it = helper.cpu_only("its instruction sets", it)     -- the device's are in device_spec.lua
  if #teams == 0 then
    it("are refused by name where the processor has none", function()
      assert.is_nil((core.runtime { isa = "avx512bf16" }))
    end)
    return
  end

  it("are only for those who ask", function()
    local pyramid = require "pyramid"
    local exact <close> = assert(pyramid.model "models/tiny")
    local rounded_model <close> = assert(pyramid.model("models/tiny", { precision = "bf16" }))
    assert.equal("avx512", exact:runtime():isa())
    assert.equal(core.runtime { isa = "amxbf16" } and "amxbf16" or "avx512bf16",
      rounded_model:runtime():isa())
    assert.has_error(function() pyramid.model("models/tiny", { precision = "f64" }) end)
  end)

  it("keep a prompt's logits near, and decode steps as they are", function()
    local pyramid = require "pyramid"
    local ids = {}
    for i = 1, 200 do ids[i] = i * 37 % 2000 end
    local function logits(precision, steps)
      local model <close> = assert(pyramid.model("models/tiny",
        { precision = precision, threads = 1 }))
      local cache <close> = assert(model:cache { dtype = "f32" })
      local last = assert(cache:prefill(steps and { ids[1] } or ids))
      for i = 2, steps and 40 or 0 do last = assert(cache:step(ids[i])) end
      return last
    end
    helper.assert_near(logits "bf16", logits("f32"):totable(), "prompt", 0.02)
    assert.equal(logits("f32", true):tostring(), logits("bf16", true):tostring())
  end)

  for dtype, block in pairs(dtypes) do
    it("equal plain sums: " .. dtype, function()
      for _, n in ipairs { fewest, fewest + 1, 47, 48, 100 } do
        compare(dtype, n, math.random(1, 70), block == 1 and math.random(1, 300)
          or block * math.random(1, 2))
      end
      for _, rows in ipairs { 1, 63, 64, 65, 257, 301 } do
        compare(dtype, fewest + 3, rows, block == 1 and 33 or block)
      end
      compare(dtype, 520, 5, block == 1 and 7 or block)
      if block == 1 then compare(dtype, 40, 20, 1) end
    end)

    it("add a bias, and to what is there: " .. dtype, function()
      compare(dtype, 20, 37, 256, { bias = true })
      compare(dtype, 21, 130, 256, { accumulate = true })
      compare(dtype, 22, 70, 256, { bias = true, accumulate = true })
    end)
  end

  it("take many shapes, one after the other", function()
    local rt <close> = core.runtime { threads = 2, isa = "avx512bf16" }
    for round = 1, 2 do
      for n = fewest, fewest + 150 do
        local w, w_values = reference.matrix("bf16", 3, 8)
        local x, x_bytes = reference.random(n * 8)
        local result = assert(ops.linear(rt, x_bytes, "bf16", w, 3, 8))
        reference.near(result, reference.linear(rounded(x), w_values, 3, 8), 1e-5, error,
          "round " .. round)
      end
    end
  end)
end)

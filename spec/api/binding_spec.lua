-- The binding: what it offers, and what Lua may do to it.
local core = require "pyramid.core"
local shell = require "support.shell"

describe("the shipped library", function()
  it("has no operations for specs, which believe their arguments, and no probes", function()
    for name in pairs(core) do
      assert.is_nil(name:match "^probe" or name:match "^random" or name:match "^ops", name)
    end
    local out, err, status = shell.pyramid("-e", [[
      local rt = require "pyramid.core".runtime { threads = 1 }
      print(pcall(function() return require "pyramid.core".ops.embed(rt, "f32", 4, ("x"):rep(16), "\0\0\0\127") end))
      print(pcall(require, "pyramid_specs"))]])
    assert.equal(0, status, err)
    assert.matches("^false.*\nfalse.*\n$", out)
    -- a stock Lua cannot load the module then
    if (os.getenv "PYRAMID_CFLAGS" or ""):find "sanitize" then return end
    local lua = ("LUA_CPATH='%s/?.so' lua5.4 -e"):format(shell.build)
    out = shell.run(lua .. [[ 'require "pyramid" print(pcall(require, "pyramid.probe"))']])
    assert.matches("^false", out)
  end)

  it("refuses to measure with more memory than a machine has", function()
    local probe = require "pyramid.probe"
    local runtime <close> = assert(core.runtime { device = "cpu", threads = 1 })
    assert.error_matches(function() probe.read(runtime, 1 << 50) end,
      "half of this machine's memory")
  end)
end)

describe("what C holds", function()
  it("is not freed or changed under a call by finalizers that run at any of its allocations",
    function()
    local out, err, status = shell.run(("PYRAMID_BUILD=%s %s spec/support/hostile.lua"):format(
      shell.build, shell.program))
    assert.equal(0, status, out .. err)
    assert.is_true(tonumber(out:match "^(%d+) places tried, 0 wrong\n$") > 200, out)
  end)

  it("outlives the batch and the model that it came from", function()
    local pyramid = require "pyramid"
    local ids = { 1, 2, 3, 4, 5 }
    local handle, tokenizer
    do
      local model = assert(pyramid.model("models/tiny", { threads = 1 }))
      local batch = assert(model:batch {})
      handle, tokenizer = assert(batch:add(ids)), model.tokenizer
      assert(batch:step())
    end
    for _ = 1, 3 do collectgarbage() end
    assert.same({ 0, 1, 2, 3, 4 }, handle:positions(1, 1))
    assert(handle:step(6))
    assert.equal("Once upon", tokenizer:decode(tokenizer:encode "Once upon",
      { skip_special = true }))
  end)

  it("goes when nobody has it any more, however it was wrapped", function()
    local pyramid = require "pyramid"
    local function left(close)
      local runtime
      do
        local model = assert(pyramid.model("models/tiny", { threads = 1 }))
        runtime = model:runtime()
        local batch = assert(model:batch {})
        assert(batch:add { 1, 2, 3 })
        assert(batch:step())
        local run = assert(model:generate("Once", { max_tokens = 1 }))
        if close then
          run:close()
          batch:close()
          model.handle:close()
        end
      end
      for _ = 1, 3 do collectgarbage() end
      local bytes = runtime:memory()
      runtime:close()
      return bytes
    end
    assert.equal(left(true), left(false))
  end)

  it("is not closed by a callback of the call that uses it", function()
    local runtime <close> = assert(core.runtime { device = "cpu", threads = 1 })
    local path = os.tmpname()
    local file <close> = assert(io.open(path, "wb"))
    assert(file:write(("\0"):rep(1024)))
    file:close()
    local model = assert(core.model_new(runtime,
      { layers = 1, heads = 1, kv_heads = 1, head_dim = 32, width = 32, ff = 32, vocab = 8,
        context = 64, rope_dims = 2, norm_eps = 1e-5, rope_gain = 1, rope_style = "half",
          rope_freq = { 1 } }))
    local weights, refused = assert(core.file_open(runtime, path)), 0
    runtime:on_progress(function()
      for _, object in ipairs { model, weights } do
        local ok, message = pcall(object.close, object)
        refused = refused + (not ok and message:find "in use" and 1 or 0)
      end
    end)
    local spec = { file = weights, offset = 0, bytes = 1024, dtype = "f32", shape = { 8, 32 },
      name = "x" }
    assert(model:bind("embed", nil, spec, "bf16"))
    os.remove(path)
    assert.is_true(refused >= 2)
    weights:close()
    model:close()
  end)

  it("is not taken for what it isn't: a policy's tables are vectors or nothing", function()
    local pyramid = require "pyramid"
    local model <close> = assert(pyramid.model("models/tiny", { threads = 1 }))
    local pool = assert(core.pool(model:native(), "f32", 0))
    local program = ("<BBBxi4f"):pack(17, 0, 0, 1, 0)        -- the numbers of table 1
    local cache = assert(core.cache(model:native(), pool,
      { name = "odd", { [1] = io.stdout, [2] = pool },
      prefill = function(_, _, _, _, rows) return rows - 1, 0, 0, 0, 1, program, 0, 0, nil,
        0, nil, nil, nil, 0 end }))
    local _, message, code = cache:read_ids({ 1, 2, 3, 4, 5, 6 }, false, true)
    assert.equal("policy", code)
    assert.matches("a table that the policy does not have", message)
    assert.equal(0, cache:tokens())
  end)
end)

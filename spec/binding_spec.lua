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
    local lua = ("LUA_CPATH='%s/?.so' lua5.4 -e"):format(shell.build)
    out = shell.run(lua .. [[ 'require "pyramid" print(pcall(require, "pyramid.probe"))']])
    assert.matches("^false", out)
  end)

  it("refuses to measure with more memory than a machine has", function()
    local probe = require "pyramid.probe"
    local runtime <close> = assert(core.runtime { device = "cpu", threads = 1 })
    assert.error_matches(function() probe.read(runtime, 1 << 50) end, "half of this machine's memory")
  end)
end)

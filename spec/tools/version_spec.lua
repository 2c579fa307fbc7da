-- One version: the header's PYR_VERSION is what the program, the library, the installed files and
-- CHANGELOG.md say.
local helper = require "spec.helper"
local shell = require "support.shell"

local version = helper.read "core/pyramid.h":match '#define PYR_VERSION "(%d+%.%d+%.%d+)"'

describe("version", function()
  it("is the header's in the program, in Lua and in what make installs", function()
    assert.truthy(version)
    local out, _, status = shell.pyramid "--version"
    assert.equal(0, status)
    assert.equal(version, out:match "^Pyramid (%S+), Lua 5%.4")
    assert.equal(version, require "pyramid".version)
    local made = shell.run(("env -u MAKEFLAGS -u MAKELEVEL make -pn B=%s 2>&1 | grep '^VERSION := '")
      :format(shell.quote(shell.build)))
    assert.equal("VERSION := " .. version .. "\n", made)
  end)

  it("is the first that CHANGELOG.md tells of", function()
    local first, how = helper.read "CHANGELOG.md":match "\n## (%S+)([^\n]*)"
    assert.equal(version, first)
    assert.truthy(how == " (unreleased)" or how:find "^ %(%d%d%d%d%-%d%d%-%d%d%)$", how)
  end)

  it("goes with the number of the SONAME that the handbook names", function()
    local abi = helper.read "core/pyramid.h":match "#define PYR_ABI (%d+)"
    for _, page in ipairs { "CHANGELOG.md", "docs/embedding.md" } do
      local found = false
      for named in helper.read(page):gmatch "libpyramid%.so%.(%d+)%f[^%d.]" do
        assert.equal(abi, named, page)
        found = true
      end
      assert.is_true(found, page)
    end
  end)
end)

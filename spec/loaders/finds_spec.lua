-- What fuzzers once found (spec/fixtures/finds, where `make fuzz` leaves them): each is refused in
-- words or works, within limits of time and memory, in a process of its own.
local lfs = require "lfs"
local helper = require "spec.helper"
local shell = require "spec.support.shell"

local folder = helper.fixture "finds"
local names = {}
for name in lfs.dir(folder) do
  if name:find "^[%l_]+%.[^.]+%.%w+%.%l+$" then names[#names + 1] = name end
end
table.sort(names)

local function child(...)
  local words = { "PYRAMID_BUILD=" .. shell.quote(shell.build), "timeout 60",
    shell.quote(shell.program), "spec/fuzz/child.lua" }
  for _, word in ipairs { ... } do words[#words + 1] = shell.quote(word) end
  return shell.run(table.concat(words, " "))
end

describe("a find", function()
  for _, name in ipairs(names) do
    it(("stays mended: %s"):format(name), function()
      local out, err, status = child("--file", folder .. "/" .. name)
      assert.same({ "", 0 }, { out .. err, status })
    end)
  end
end)

describe("the fuzzer", function()
  local work
  setup(function() work = shell.folder() end)
  teardown(function() shell.remove(work) end)

  it("tries what a seed says, and the same again", function()
    local function tried(kind)
      local out, err, status = child(kind, "7", "1", "6", "60", work)
      assert.equal("", err)
      assert.equal(0, status)
      assert.truthy(out:find "^DONE 6 7 ", out)
      local endings = {}
      for ending in out:match("DONE 6 7 (.*)\n"):gmatch "%S+" do endings[#endings + 1] = ending end
      table.sort(endings)
      return endings
    end
    for _, kind in ipairs { "json", "policy" } do assert.same(tried(kind), tried(kind)) end
  end)

  -- A target that is wrong in every way must be found wrong.
  it("sees what is wrong", function()
    local judge = require "spec.fuzz.judge"
    local path = os.tmpname()
    local function of(...)
      local out = table.pack(...)
      return (judge({ try = function() return table.unpack(out, 1, out.n) end }, path, "base"))
    end
    assert.is_nil(of(true))
    assert.is_nil(of(nil, path .. ": broken", "format", true))
    assert.truthy(of(nil, "broken", "format", true):find "does not name")
    assert.truthy(of(nil, nil, "format"):find "no message")
    assert.truthy(of(nil, "broken", "odd"):find "code odd")
    assert.truthy(judge({ try = function() error "x" end }, path, "base"):find "raised")
    local held
    local function hold()
      held = ("x"):rep(64 << 20)
      return true
    end
    assert.truthy(judge({ try = hold }, path, "base",
      { seconds = 60, bytes = 16 << 20 }):find "MB")
    assert.truthy(held)
    local function dawdle()
      local ends = os.clock() + 0.1
      repeat until os.clock() > ends
      return true
    end
    assert.truthy(judge({ try = dawdle }, path, "base",
      { seconds = 0.05, bytes = 400 << 20 }):find "seconds")
    os.remove(path)
  end)
end)

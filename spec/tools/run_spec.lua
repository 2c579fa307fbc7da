-- spec/run.lua over files of its own: several processes make one report, and the end of one of them
-- costs no other its specs.
local cjson = require "cjson"
local helper = require "spec.helper"
local lfs = require "lfs"
local parts = require "spec.support.parts"
local shell = require "spec.support.shell"

local build = io.popen("realpath " .. shell.quote(shell.build)):read "l"

-- What each file of the folder holds.
local specs = {
  ["one/fine"] = [[
    it("first", function() print "said by the way" end)
    it("second", function() end)]],
  ["one/mixed"] = [[
    it("passes", function() end)
    it("fails", function() error "for this reason" end)
    it("waits", function() pending "for that" end)]],
  ["other/gone"] = [[it("is ended", function() os.execute "kill -9 $PPID" end)]],
  ["other/left"] = [[it("leaves", function() os.exit(0) end)]],
  ["other/broken"] = [[it("has no end"]],
}

describe("run.lua", function()
  local folder
  setup(function()
    folder = shell.folder()
    assert(os.execute(("cd %s && mkdir -p spec/one spec/other && ln -s %s/spec/support %s/spec/run.lua "
      .. "spec"):format(folder, lfs.currentdir(), lfs.currentdir())))
    for name, text in pairs(specs) do
      helper.write(("%s/spec/%s_spec.lua"):format(folder, name), text)
    end
  end)
  teardown(function() shell.remove(folder) end)

  local function run(words)
    return shell.run(("cd %s && PYRAMID_DEVICE=cpu PYRAMID_BUILD=%s %s/pyramid spec/run.lua %s"):format(folder,
      shell.quote(build), shell.quote(build), words))
  end

  -- The lines of a report, without its times.
  local function lines_of(out)
    return out:gsub("  %([%d.]+ s%)", ""):gsub(" +", " ")
  end

  for _, jobs in ipairs { 1, 3 } do
    it(("reports files in their order, failures behind them, with %d processes"):format(jobs),
      function()
      local out, err, status = run(("one/ --jobs=%d --record=record.json"):format(jobs))
      assert.equal("", err)
      assert.is_true(status ~= 0)
      out = lines_of(out)
      local fine = out:find("one/fine_spec said by the way\n 2 passed\n", 1, true)
      local mixed = out:find("one/mixed_spec 1 passed, 1 FAILED, 1 pending\n", 1, true)
      local waits = out:find("pending: waits", 1, true)
      local fails = out:find("FAILED spec/one/mixed_spec.lua:2: fails", 1, true)
      assert.is_true(fine < mixed and mixed < waits and waits < fails)
      assert.matches("for this reason.*\n3 passed, 1 failed, 1 pending\n$", out)
      local record = cjson.decode(helper.read(folder .. "/record.json"))
      assert.same({ 3, 1, 1, "cpu", 2, 1, 1 }, { record.passed, record.failed, record.pending,
        record.device, #record.files, #record.failures, #record.pendings })
      assert.same({ "one/fine_spec", "one/mixed_spec" },
        { record.files[1].name, record.files[2].name })
    end)
  end

  it("names the files whose process ended before its report, and runs the others", function()
    local out, _, status = run "fine other/ --jobs=2"
    assert.equal(1, status)
    assert.truthy(out:find("FAILED  other/gone_spec: ended by signal 9", 1, true), out)
    assert.truthy(out:find("FAILED  other/left_spec: ended with status 0", 1, true), out)
    assert.truthy(out:find("FAILED  spec/other/broken_spec.lua", 1, true), out)
    assert.matches("\n2 passed, 3 failed\n$", out)
  end)

  it("hands Busted its options", function()
    local out, err, status = run "one/ --jobs=2 --filter='first'"
    assert.equal(0, status, out .. err)
    assert.matches("\n1 passed, 0 failed\n$", out)
  end)

  it("refuses words that pick nothing and processes that are no number", function()
    for words, why in pairs { ["nonesuch"] = "no spec file's path contains: nonesuch",
      ["one/ --jobs=0"] = "--jobs=N: N is a whole number, at least 1" } do
      local _, err, status = run(words)
      assert.equal(1, status)
      assert.truthy(err:find(why, 1, true), err)
    end
  end)
end)

describe("the order of the spec files", function()
  it("begins with the longest, keeps those apart that run alone, and loses none", function()
    local files = require "spec.support.files" {}
    local first, alone = parts.order(files)
    assert.same(parts.ALONE, alone)
    assert.same(parts.LONGEST, helper.slice(first, 1, #parts.LONGEST))
    local all = table.move(alone, 1, #alone, #first + 1, first)
    table.sort(all)
    assert.same(files, all)
  end)
end)

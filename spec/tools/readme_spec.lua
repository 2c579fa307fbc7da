-- README.md cannot rot: its Lua samples run with the default model, its policy passes the check it
-- names, its C sample is compiled and run, and each command's script, options, policies and targets
-- are there. A block of a kind that nothing here runs fails.
local helper = require "spec.helper"
local lfs = require "lfs"
local samples = require "spec.support.samples"
local shell = require "spec.support.shell"
local testing = require "pyramid.testing"

local readme = helper.read "README.md"
local blocks = samples.blocks(readme)
local build = io.popen("realpath " .. shell.quote(shell.build)):read "l"
local folder

setup(function() folder = shell.folder() end)
teardown(function() shell.remove(folder) end)

-- What a sample leaves to those behind it: its names.
local names = "local pyramid, policy, score = require 'pyramid', require 'pyramid.policy', "
  .. "require 'pyramid.score'\n"

-- Each kind of block: what the spec does with it, and how it is called.
local runs = {}

function runs.lua(block)
  local path = folder .. "/sample.lua"
  if block.text:find "\nreturn policy" then
    local name = assert(block.text:match 'name = "([%w_]+)"')
    path = ("%s/%s.lua"):format(folder, name)
    helper.write(path, block.text)
    local report = assert(testing.check(path, { prunes = true, name = name }))
    assert.same({}, report.problems)
    assert.same({}, report.notes)
    local out, err, status = shell.pyramid("check", path)
    assert.equal(0, status, out .. err)
    out, err, status = shell.pyramid("generate", "--policy-file", path, "ratio=0.3", "-n", "5",
      ("Once there was a baker. "):rep(20))
    assert.equal(0, status, out .. err)
    assert.equal("", err)                                                -- it drops rows
    return
  end
  local own = block.text:find "require" and "" or names
  helper.write(path, own .. block.text)
  local out, err, status = shell.run(("PYRAMID_PATH=%s %s %s"):format(shell.quote(
    lfs.currentdir()), shell.quote(shell.program), path))
  assert.equal(0, status, out .. err)
  assert.equal("", err)
  local wanted = block.text:match 'print%(%("\\n(.-)"%)'
  if wanted then
    local pattern = wanted:gsub("%%%%", "\1"):gsub("%%%.?%d?[df]",
      "\2"):gsub("[%-%.%(%)%+%*%?%[%]%^%$%%]", "%%%0")
    assert.matches("\n" .. pattern:gsub("\1", "%%%%"):gsub("\2", "%%d+") .. "\n$", out)
  end
end

function runs.c(block)
  if helper.device ~= "cpu" then return pending "a C host of the default device" end
  local source, program = folder .. "/app.c", folder .. "/app"
  helper.write(source, block.text)
  local cflags = os.getenv "PYRAMID_CFLAGS" or "-g"
  local out, err, status = shell.run((
    "cc -std=c11 -Wall -Wextra -Werror %s -Icore -o %s %s -L%s -lpyramid -Wl,-rpath,%s -lpthread")
    :format(cflags, program, source, build, build))
  assert.equal(0, status, out .. err)
  out, err, status = shell.run(program)
  assert.equal(0, status, out .. err)
  assert.is_true(#out > 20, out)
end

function runs.sh(block)
  local commands = samples.commands(block.text)
  assert.is_true(#commands > 0)
  for _, line in ipairs(commands) do samples.check(line) end
end

-- What a command prints. The line before says which; its headings are those of the script.
runs[""] = function(block)
  local script = block.before:match "`?make (%w+)`?"
    or readme:sub(1, readme:find(block.text, 1, true)):match ".*`make (%w+)` ends"
  assert.truthy(script, "a block of no kind, and nothing says what prints it")
  local source = helper.read(("scripts/%s.lua"):format(script))
  for heading in block.text:gmatch "── (%a+ %a+)" do
    assert.truthy(source:find(heading, 1, true), heading)
  end
  for label in block.text:gmatch "\n  ([%l%u][%l%u ]-)  +%S" do
    assert.truthy(source:find(label, 1, true), label)
  end
end

describe("README.md", function()
  for i, block in ipairs(blocks) do
    local first = block.text:match "[^\n]*[%w][^\n]*" or ""
    it(("runs its sample %d, %s: %s"):format(i, block.kind, first:sub(1, 50)), function()
      assert.truthy(runs[block.kind], ("nothing runs samples of kind '%s'"):format(block.kind))
      runs[block.kind](block)
    end)
  end

  it("names only commands and options that there are in its lines, too", function()
    local count = 0
    for _, code in ipairs(samples.inline(readme)) do
      if code:find "^build/pyramid " or code:find "^pyramid " or code:find "^make " then
        count = count + 1
        local ok, message = pcall(samples.check, (code:gsub("%s*…$", "")))
        assert.is_true(ok, ("`%s`: %s"):format(code, message))
      elseif code:find "^for .* do " or code:find "^local " then
        count = count + 1
        assert(load((code:gsub("…", "nil"))))
      end
    end
    assert.is_true(count > 5, count)
  end)
end)

-- The checker itself: what is not there is found.
describe("samples", function()
  it("are refused where something in them is not there", function()
    for line, message in pairs {
      ["build/pyramid nonesuch"] = "there is no script nonesuch",
      ["pyramid inspect --lenght 3"] = "inspect has no option --lenght",
      ["build/pyramid compare --policy snapvk"] = "unknown policy 'snapvk'",
      ["build/pyramid compare --policy snapkv rato=1 --budgets 0.3"] = "unknown option 'rato'",
      ["sudo make instal PREFIX=/usr"] = "the Makefile has no target instal",
      ["make install PERFIX=/usr"] = "the Makefile knows no PERFIX",
      ["make bench BENCH=\"--shaep 134m\""] = "bench has no option --shaep",
      ["frobnicate it"] = "a command that nothing checks",
      ["kernels/nonesuch.sh"] = "nonesuch.sh",
    } do
      local ok, said = pcall(samples.check, line)
      assert.is_false(ok, line)
      assert.truthy(tostring(said):find(message, 1, true), said)
    end
    for _, line in ipairs { "make test SPEC=ops/rows",
      "build/pyramid compare --policy snapkv window=8 --budgets 0.3", "cd build && make build",
        "DEVICE=1 build/pyramid inspect --json" } do
      samples.check(line)
    end
    assert.same({ "a b c", "d" }, samples.commands "# one\na b \\\n  c   # two\n\nd\n")
    local found = samples.blocks "x\n```sh\nls\n```\ny `z`\n```\nout\n```\n"
    assert.same({ "sh", "" }, { found[1].kind, found[2].kind })
    assert.equal("ls\n", found[1].text)
    assert.same({ "z" }, samples.inline "x\n```sh\nls `q`\n```\ny `z`\n")
  end)
end)

-- No file brings code: what lies beside a model, or in the current directory, is never run,
-- whatever a model's metadata names.
local core = require "pyramid.core"
local families = require "pyramid.families"
local formats = require "spec.support.formats"
local helper = require "spec.helper"
local json = require "pyramid.json"
local shell = require "support.shell"
local quote = shell.quote

local program = io.popen("realpath " .. quote(shell.program)):read "l"
local here = io.popen("pwd"):read "l"
local library = io.popen("realpath " .. quote(shell.build)):read "l"

describe("no file brings code:", function()
  local folder, known

  setup(function()
    folder = shell.folder()
    -- asked of a program of its own: other specs register families in this one
    known = shell.run(program
      .. [[ -e 'io.write(table.concat(require("pyramid.families").list(), ", "))']])
    -- Code under every name that a search in the current directory could try.
    local shout = 'io.stderr:write("CODE RAN: ", ..., "\\n")\nreturn require("pyramid.families").family { name = "evil", '
      .. 'architectures = { "EvilForCausalLM" } }\n'
    for _, path in ipairs { "pyramid/families/evil.lua", "evil.lua", "pyramid/json.lua",
      "pyramid/evil/init.lua", "argparse.lua", "scripts/evil.lua", "policies/evil.lua",
        "pyramid/policies/evil.lua", "policy/evil.lua", "bit.lua" } do
      assert(os.execute(("mkdir -p %s/$(dirname %s)"):format(folder, path)))
      helper.write(folder .. "/" .. path, shout)
    end
    local config = helper.json(helper.fixture "families/qwen3/config.json")
    config.model_type, config.architectures = "evil", { "EvilForCausalLM" }
    config.auto_map = { AutoModelForCausalLM = "evil.EvilForCausalLM" }
    helper.write(folder .. "/config.json", json.encode(config))
    helper.write(folder .. "/evil.gguf",
      formats.gguf { metadata = { ("<s8I4s8"):pack("general.architecture", 8, "evil") } })
  end)
  teardown(function() shell.remove(folder) end)

  local function run(line, env)
    return shell.run(("cd %s && env %s %s %s </dev/null"):format(folder, env or "", program, line))
  end

  for _, name in ipairs { "evil", "../evil", "pyramid.families.evil", "init", "./evil",
    "evil/init", "policy" } do
    it(("a model of the family '%s' is refused by that name"):format(name), function()
      local config = json.decode(helper.read(folder .. "/config.json"))
      config.model_type = name
      assert(os.execute(("mkdir -p %s/model"):format(folder)))
      helper.write(folder .. "/model/config.json", json.encode(config))
      for _, line in ipairs { "inspect model", "inspect model/",
        "-e 'print(require \"pyramid\".model(\"model\"))'" } do
        local out, err = run(line)
        assert.truthy((out .. err):find("known families: " .. known, 1, true), out .. err)
        assert.not_matches("CODE RAN", out .. err)
      end
    end)
  end

  it("the GGUF file is refused, too, by every script", function()
    for _, line in ipairs { "inspect evil.gguf", "generate --model evil.gguf x", "inspect .",
      "generate --model . x" } do
      local out, err = run(line)
      assert.not_matches("CODE RAN", out .. err)
      assert.matches("architectures? '?[eE]vil", out .. err)
    end
  end)

  it("names of policies and scripts are looked for where the program's are, not here", function()
    for _, line in ipairs { "evil", "inspect " .. here
      .. "/spec/fixtures/families/qwen3 --policy evil" } do
      local _, err, status = run(line)
      assert.not_matches("CODE RAN", err)
      assert.matches("'evil'", err)
      assert.equal(1, status)
    end
  end)

  it("the program's search paths have no relative entries, with LUA_PATH or without", function()
    local show = [[-e 'io.write(package.path, "\n", package.cpath, "\n", table.concat(require "pyramid.paths", ";"), "\n")']]
    for _, env in ipairs { "",
      [[LUA_PATH='?.lua;./?.lua;/abs/?.lua;;' LUA_CPATH='./?.so;;' PYRAMID_PATH=.:lib:/there]],
      [[LUA_PATH_5_4='x/?.lua']] } do
      local out = run(show, env)
      local count = 0
      for line in out:gmatch "[^\n]*" do
        for entry in line:gmatch "[^;]+" do
          assert.equal("/", entry:sub(1, 1), entry)
          count = count + 1
        end
      end
      assert.is_true(count > 2, out)
      if env:find "abs" then assert.matches("^/abs/%?%.lua;", out) end
    end
    local _, err = run [[-e 'require "evil"']]
    assert.matches("module 'evil' not found", err)
    assert.not_matches("CODE RAN", err)
  end)

  it("a scripts folder above the program counts in a source tree only", function()
    local tree = shell.folder()
    assert(os.execute(("mkdir -p %s/bin %s/scripts %s/policies && cp %s %s/bin/"):format(tree,
      tree, tree, program, tree)))
    helper.write(tree .. "/scripts/above.lua", "print 'above'")
    local _, err, status = shell.run(tree .. "/bin/pyramid above </dev/null")
    assert.matches("there is no script 'above'", err)
    assert.equal(1, status)
    assert(os.execute(("mkdir -p %s/core %s/lua && touch %s/core/pyramid.h %s/lua/main.c"):format(
      tree, tree, tree, tree)))
    assert.equal("above\n", (shell.run(tree .. "/bin/pyramid above </dev/null")))
    shell.remove(tree)
  end)

  it("a backend is looked for beside the real program, however it was started", function()
    local away = shell.folder()
    assert(os.execute(("mkdir -p %s/real %s/links && cp %s %s/real/pyramid && ln -s "
      .. "../real/pyramid %s/links/pyramid")
      :format(away, away, program, away, away)))
    -- what would be loaded from here writes a file when it is
    helper.write(away .. "/evil.c",
      '#include <stdlib.h>\n__attribute__((constructor)) static void go(void) { system("touch '
      .. away .. '/ran"); }\n')
    for _, to in ipairs { "links", "." } do
      assert(os.execute(("cd %s && ${CC:-cc} -shared -fPIC -o %s/libpyramid_emulated.so evil.c"):format(away, to)))
    end
    local open = [[-e 'print(require "pyramid.core".runtime { device = "emulated" })']]
    local lines = { "cd %s && PATH=%s/real:$PATH pyramid ", "cd %s && %s/links/pyramid ",
      "cd %s/links && PATH=%s/links:$PATH pyramid ",
      "cd %s && LD_LIBRARY_PATH=: %s/real/pyramid ",
        "cd %s/links && (exec -a pyramid %s/real/pyramid " }
    for _, line in ipairs(lines) do
      line = line:format(away, away) .. open .. (line:find "%(exec" and ")" or "")
      local out, err = shell.run(("bash -c %s </dev/null"):format(quote(line)))
      assert.matches('device "emulated": libpyramid_emulated.so cannot be loaded', out .. err)
      assert.is_nil((io.open(away .. "/ran")), line)
    end
    assert(os.execute(("ln -s %s/libpyramid_emulated.so %s/real/"):format(quote(library), away)))
    for _, line in ipairs(lines) do
      line = line:format(away, away) .. open .. (line:find "%(exec" and ")" or "")
      local out, err = shell.run(("bash -c %s </dev/null"):format(quote(line)))
      assert.matches("^pyramid%.runtime", out, err)
      assert.is_nil((io.open(away .. "/ran")), line)
    end
    shell.remove(away)
  end)
end)

describe("families", function()
  it("are registered by a call, once", function()
    assert.is_nil(families.find "spec-made")
    local mine = families.family { name = "spec-made", architectures = { "MadeForCausalLM" } }
    assert.equal(mine, families.register(mine))
    assert.equal(mine, families.register(mine))
    assert.equal(mine, families.find "spec-made")
    assert.matches("spec%-made", table.concat(families.list(), " "))
    assert.error_matches(function()
      families.register(families.family { name = "spec-made", architectures = {} })
    end, "there is a family 'spec%-made' already")
    assert.error_matches(function()
      families.register(families.family { name = "llama", architectures = {} })
    end, "there is a family 'llama' already")
    assert.error_matches(function() families.register { name = "x" } end,
      "a value of families.family is wanted")
    assert.error_matches(function() families.family { name = "a/b", architectures = {} } end,
      "a name of letters")
    assert.error_matches(function()
      families.family { name = "a", architectures = {}, window = "some" }
    end, "known: all, every, none, upper, used")
  end)

  it("that are bundled are all known", function()
    local names = table.concat(families.list(), " ")
    for _, module in ipairs(core.bundled_list "module") do
      local name = module:match "^pyramid%.families%.(%w+)$"
      if name and name ~= "init" then
        assert.equal(name, families.find(name).name)
        assert.truthy(names:find(name, 1, true))
      end
    end
  end)
end)

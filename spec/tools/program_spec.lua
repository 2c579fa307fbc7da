-- The program: how scripts are found and run, what it says, how it exits.
local shell = require "support.shell"
local pyramid, quote = shell.pyramid, shell.quote

local function write(path, text)
  local file = assert(io.open(path, "wb"))
  file:write(text)
  file:close()
end

describe("pyramid", function()
  local folder

  setup(function()
    folder = shell.folder()
    os.execute("mkdir " .. folder .. "/scripts " .. folder .. "/policies")
  end)
  teardown(function() shell.remove(folder) end)

  it("shows help", function()
    for _, word in ipairs { "--help", "-h" } do
      local out, err, status = pyramid(word)
      assert.matches("usage: pyramid NAME", out)
      assert.equal("", err)
      assert.equal(0, status)
    end
    local out, err, status = pyramid()
    assert.equal("", out)
    assert.matches("usage: pyramid NAME", err)
    assert.equal(1, status)
  end)

  it("lists each bundled script with its summary", function()
    local out = pyramid "--help"
    for _, name in ipairs(require "pyramid.core".bundled_list "script") do
      assert.matches("\n  " .. name:gsub("%p", "%%%0") .. " +%S[^\n]+%.\n", out)  -- whole sentences
    end
  end)

  it("is what make builds if no target is named", function()
    local out = shell.run((
      "env -u MAKEFLAGS -u MAKELEVEL make -pn B=%s 2>&1 | grep '^.DEFAULT_GOAL'"):format(quote(
        shell.build)))
    assert.equal(".DEFAULT_GOAL := build\n", out)
  end)

  it("shows its version", function()
    local out, _, status = pyramid "--version"
    assert.matches("^Pyramid " .. require "pyramid.core".version:gsub("%p", "%%%0")
      .. ", Lua 5%.4", out)
    assert.equal(0, status)
  end)

  describe("-e", function()
    it("runs code with arguments in arg and ...", function()
      local out, err, status = pyramid("-e", "print(arg[1], arg[2], #arg, ...)", "a b", "c")
      assert.equal("a b\tc\t2\ta b\tc\n", out)
      assert.equal("", err)
      assert.equal(0, status)
    end)

    it("finds the library and what it is built with", function()
      local out = pyramid("-e", [[print(type(require "pyramid.core"), require "cjson".encode { 1 }, type(require "argparse"),
        type(require "cjson.safe"))]])
      assert.equal("table\t[1]\ttable\ttable\n", out)
    end)

    it("exits with what os.exit says", function()
      local _, _, status = pyramid("-e", "os.exit(42)")
      assert.equal(42, status)
      _, _, status = pyramid("-e", "os.exit(true)")
      assert.equal(0, status)
    end)

    it("exits with 1 and a traceback on an error", function()
      local out, err, status = pyramid("-e", "local function deep() error 'boom' end deep()")
      assert.equal("", out)
      assert.matches("pyramid: %(command line%):1: boom\nstack traceback:", err)
      assert.matches("'deep'", err)
      assert.equal(1, status)
    end)

    it("reports errors that are no strings", function()
      local _, err = pyramid("-e",
        "error(setmetatable({}, { __tostring = function() return 'made up' end }))")
      assert.matches("pyramid: made up", err)
      _, err = pyramid("-e", "error {}")
      assert.matches("error object is a table value", err)
    end)

    it("reports syntax errors and missing code", function()
      local _, err, status = pyramid("-e", "x x")
      assert.matches("syntax error", err)
      assert.equal(1, status)
      _, err, status = pyramid "-e"
      assert.matches("needs Lua code", err)
      assert.equal(1, status)
    end)

    it("sets no globals but arg", function()
      local out = pyramid("-e", [[
        local known = {}
        for name in ("_G _VERSION arg assert collectgarbage coroutine debug dofile error getmetatable io ipairs load loadfile "
          .. "math next os package pairs pcall print rawequal rawget rawlen rawset require select setmetatable string "
          .. "table tonumber tostring type utf8 warn xpcall"):gmatch "%S+" do known[name] = true end
        require "pyramid.core"
        for name in pairs(_G) do if not known[name] then print(name) end end]])
      assert.equal("", out)
    end)
  end)

  describe("given a path", function()
    it("runs the file", function()
      local path = folder .. "/hello.lua"
      write(path, "#!/usr/bin/env pyramid\nprint(arg[0], arg[1], ...)\nos.exit(3)\n")
      local out, _, status = pyramid(path, "x")
      assert.equal(path .. "\tx\tx\n", out)
      assert.equal(3, status)
      out = shell.run(("cd %s && %s hello.lua y"):format(folder,
        quote(io.popen("realpath " .. shell.program):read "l")))
      assert.equal("hello.lua\ty\ty\n", out)
    end)

    it("fails if there is none", function()
      local _, err, status = pyramid(folder .. "/none.lua")
      assert.matches("none%.lua", err)
      assert.equal(1, status)
    end)

    it("reads standard input for -", function()
      local out = shell.run(("echo 'print(...)' | %s - a"):format(quote(shell.program)))
      assert.equal("a\n", out)
    end)
  end)

  describe("given a name", function()
    it("looks on PYRAMID_PATH first, then beside the program", function()
      write(folder .. "/scripts/mine.lua",
        "-- mine.lua — says hello.\nprint('hello', arg[0], ...)\n")
      local line = ("PYRAMID_PATH=/nowhere:%s %s "):format(folder, quote(shell.program))
      local out, _, status = shell.run(line .. "mine 1 2")
      assert.equal("hello\tpyramid mine\t1\t2\n", out)
      assert.equal(0, status)
      out = shell.run(line .. "--help")
      assert.matches("\n  mine +says hello%.\n", out)
      out = shell.run(line
        .. [[-e 'for _, dir in ipairs(require "pyramid.paths") do print(dir) end']])
      assert.matches("^/nowhere\n" .. folder:gsub("%p", "%%%0") .. "\n/", out)

      os.execute(("cp %s %s/pyramid"):format(quote(shell.program), folder))
      out = shell.run(folder .. "/pyramid mine")
      assert.equal("hello\tpyramid mine\n", out)
    end)

    it("names the known ones if it is unknown", function()
      write(folder .. "/scripts/other.lua", "")
      local _, err, status = shell.run(("PYRAMID_PATH=%s %s nonesuch"):format(folder,
        quote(shell.program)))
      assert.matches("there is no script 'nonesuch' %(known: .*other.*%)", err)
      assert.equal(1, status)
      _, err, status = pyramid "--nonesuch"
      assert.matches("unknown option '%-%-nonesuch'", err)
      assert.equal(1, status)
    end)
  end)
end)

describe("the bundle", function()
  local core = require "pyramid.core"

  it("holds each module, policy and script of the repository", function()
    for kind, dir in pairs { module = "lua/pyramid", policy = "policies", script = "scripts" } do
      local find = io.popen(("find %s -maxdepth %d -name '*.lua'"):format(dir,
        kind == "module" and 9 or 1))
      for path in find:lines() do
        local name = path:gsub("^%w+/", "", 1):gsub("%.lua$", "")
        if kind == "module" then name = name:gsub("(/.*)/init$", "%1"):gsub("/", ".") end
        assert.is_string(core.bundled(kind, name), path)
      end
      find:close()
    end
  end)

  it("holds them byte for byte", function()
    for _, name in ipairs { "pyramid.sampler", "pyramid.paths" } do
      local file = assert(io.open("lua/" .. name:gsub("%.", "/") .. ".lua", "rb"))
      assert.equal(file:read "a", (core.bundled("module", name)))
      file:close()
    end
  end)

  it("names chunks so that messages are readable", function()
    local text, chunk = core.bundled("module", "pyramid.sampler")
    assert.equal("@pyramid/sampler.lua", chunk)
    assert.is_function(load(text, chunk))
    assert.is_nil(core.bundled("policy", "nonesuch"))
    assert.error(function() core.bundled("nonesuch", "x") end)
  end)
end)

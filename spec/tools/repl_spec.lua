-- pyramid repl: chunks, values, Ctrl-C; and pyramid help.
local helper = require "helper"
local repl = require "pyramid.tools.repl"
local shell = require "support.shell"
local terminal = require "pyramid.terminal"
local typist = require "support.typist"

describe("a chunk", function()
  it("is an expression, whose values it returns, or statements", function()
    assert.same({ 3, "x" }, { assert(repl.chunk "1 + 2, 'x'")() })
    assert.same({}, { assert(repl.chunk "local a = 1")() })
    assert.equal(4, assert(repl.chunk "return 4")())
  end)

  it("goes on where it lacks its end, and nowhere else", function()
    for _, text in ipairs { "if x then", "f(", "{ 1,", "for i = 1, 2 do\nprint(i)", "x = [[",
      "return function()", "a =" } do
      local chunk, message, incomplete = repl.chunk(text)
      assert.is_nil(chunk)
      assert.is_string(message)
      assert.is_true(incomplete, text)
    end
    for _, text in ipairs { "x x", "end", "1 +* 2", ")" } do
      local chunk, _, incomplete = repl.chunk(text)
      assert.is_nil(chunk)
      assert.is_false(incomplete, text)
    end
  end)
end)

describe("a value", function()
  it("is shown as Lua would read it", function()
    for text, value in pairs { ["1"] = 1, ["1.0"] = 1.0, ["true"] = true,
      ['"a\\n\\x1B[1m\\"\\\\"'] = 'a\n\27[1m"\\', ['"日本"'] = "日本", ['"\\xFF"'] = "\xFF",
      ['"<U+202E>"'] = "\u{202E}", ["{}"] = {}, ["{ 1, 2, a = { b = {} } }"] = { 1, 2, a = { b = {} } },
      ['{ [true] = 1, [2.5] = 2, ["end"] = 3 }'] = { ["end"] = 3, [2.5] = 2, [true] = 1 } } do
      assert.equal(text, repl.show(value))
    end
    assert.equal("nil", repl.show(nil))
  end)

  it("is no longer and no deeper than people read", function()
    local loop = {}
    loop[1] = loop
    assert.equal("{ { … } }", repl.show(loop))
    local deep = {}
    for _ = 1, 1000 do deep = { deep } end
    assert.is_true(#repl.show(deep) < 300)
    local long = {}
    for i = 1, 100000 do long[i], long["k" .. i] = i, i end
    assert.is_true(#repl.show(long) < 6000)
    assert.matches("more", repl.show(("x"):rep(1 << 20)))
    assert.is_true(#repl.show(("x"):rep(1 << 20)) < 5000)
    for line in repl.show(("a b "):rep(20):gsub("a", function() return "a" end) and { ("x"):rep(50),
      ("y"):rep(50) }):gmatch "[^\n]+" do
      assert.is_true(#line < 76)
    end
  end)

  it("says what it is by its own word, and survives one that fails", function()
    assert.equal("mine", repl.show(setmetatable({}, { __tostring = function() return "mine" end })))
    assert.matches("cannot be shown", repl.show(setmetatable({}, { __tostring = error })))
    assert.equal("named { 1 }", repl.show(setmetatable({ 1 }, { __name = "named" })))
    assert.equal("{ 1 }", repl.show(setmetatable({ 1 }, { __index = error, __len = error,
      __pairs = error })))
  end)
end)

describe("completion", function()
  it("knows globals and fields", function()
    assert.same({ "string.format" }, repl.complete "string.fo")
    assert.same({ "string.gmatch", "string.gsub" }, repl.complete "string.g")
    assert.same({ "coroutine" }, repl.complete "corou")
    assert.same({}, repl.complete "string.format.x")
    assert.same({}, repl.complete "nonesuch.x")
  end)
end)

describe("pyramid repl", function()
  local folder

  setup(function() folder = shell.folder() end)
  teardown(function() shell.remove(folder) end)

  it("reads standard input, and ends with 1 where something failed", function()
    helper.write(folder .. "/said", "1 + 1\nfor i = 1, 2 do\nprint(i)\nend\n'a', nil\n"
      .. "m = assert(pyramid.model 'models/tiny')\nm:encode 'Once'\nx = 5\nx\n")
    local out, err, status = shell.run(("%s repl <%s/said"):format(shell.quote(shell.program),
      folder))
    assert.equal("", err)
    assert.equal(0, status)
    assert.matches('^2\n1\n2\n"a"  nil\n{ [%d, ]+ }\n5\n$', out)
    helper.write(folder .. "/said", "error 'boo'\nx x\npyramid.model 'nope'\nif x then\n")
    out, err, status = shell.run(("%s repl <%s/said"):format(shell.quote(shell.program), folder))
    assert.equal(1, status)
    assert.equal('nil  "nope: No such file or directory"  "io"\n', out)
    assert.matches("^repl:1: boo\nrepl:1: [^\n]+\nrepl:[^\n]*<eof>\n$", err)
  end)

  it("ends what runs at Ctrl-C, and nothing else", function()
    local t <close> = typist.start(("env TERM=xterm NO_COLOR=1 XDG_STATE_HOME=%s/state %s repl -m "
      .. "models/tiny"):format(folder, shell.quote(shell.program)))
    t:expect "> $"
    for _, line in ipairs { "x = 1 while true do end",
      "pcall(function() while true do pcall(function() while true do end end) end end)",
      "c = model:cache() while true do c:clear() c:prefill(model:encode(('a b c '):rep(600))) end" }
      do
      t:type(line .. "\r")
      t:expect "\r\n"
      for _ = 1, 3 do t:look(0.1) end
      t:type "\3"
      t:expect "interrupted"
      t:expect "> $"
    end
    t:type "x, model.config.layers\r"
    t:expect "1  %d+\r\n"
    t:expect "> $"
    t:type "if x then\r"
    t:expect ">> $"
    t:type "\3"
    t:expect "[^>]> $"
    t:paste "y = {\n2,\n}\nz = 3"
    t:expect "z = 3"
    t:type "\r"
    t:expect "> $"
    t:type "y, z\r"
    t:expect "{ 2 }  3\r\n"
    t:expect "> $"
    if terminal.library() then
      t:type "pyramid.tok\t"
      t:expect "pyramid%.tokenizer"
      t:type "\21"
    end
    t:type "\4"
    assert.equal(0, t:finish())
    assert.is_true(t.pty:cooked())
    local history = helper.read(folder .. "/state/pyramid/repl_history")
    assert.matches("y = {\\n2,\\n}\\nz = 3\n", history, 1, true)
  end)
end)

describe("pyramid repl", function()
  it("ends, whatever runs, when it is told to", function()
    local t <close> = typist.start("env TERM=xterm NO_COLOR=1 " .. shell.quote(shell.program)
      .. " repl --no-history")
    t:expect "> $"
    t:type "while true do end\r"
    t:expect "\r\n"
    for _ = 1, 3 do t:look(0.1) end
    t.pty:signal(1)
    assert.equal(0, t:finish())
    assert.is_true(t.pty:cooked())
  end)
end)

describe("pyramid help", function()
  it("says what a command's --help says", function()
    for _, name in ipairs { "chat", "generate", "help", "repl", "man" } do
      local out, err, status = shell.pyramid("help", name)
      assert.equal("", err)
      assert.equal(0, status)
      assert.equal(shell.pyramid(name, "--help"), out)
    end
  end)

  it("lists the commands, each with what it does", function()
    local out = shell.pyramid "help"
    for _, name in ipairs { "chat", "eval", "help", "repl" } do
      assert.matches("\n  " .. name .. " +%l[^\n]+%.\n", "\n" .. out)
    end
    local none, err, status = shell.pyramid("help", "nonesuch")
    assert.equal("", none)
    assert.equal(1, status)
    assert.matches("there is no command 'nonesuch'\nKnown: .*chat.*\n", err)
  end)
end)

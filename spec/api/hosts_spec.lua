-- Hosts in other languages, and with other Luas than 5.4 in their process: what libpyramid.so and
-- pyramid.so do there.
local chat = require "pyramid.chat"
local helper = require "spec.helper"
local json = require "pyramid.json"
local make_model = require "support.small_model"
local shell = require "support.shell"
local quote = shell.quote

local build = io.popen("realpath " .. quote(shell.build)):read "l"
local cflags = os.getenv "PYRAMID_CFLAGS" or "-g"
local library = build .. "/libpyramid.so"
local shared = ("-L%s -lpyramid -Wl,-rpath,%s -lpthread"):format(build, build)

--- The sanitizers' run time comes first in programs that were made without it.
local function preload()
  if not cflags:find "sanitize" then return "" end
  local path = io.popen "cc -print-file-name=libasan.so":read "l"
  return ("LD_PRELOAD=%s ASAN_OPTIONS=detect_leaks=0 "):format(quote(path))
end

local function assert_run(line)
  local out, err, status = shell.run(line)
  assert.equal(0, status, line .. "\n" .. out .. err)
  assert.equal("", err, line)
  return out
end

local function has(command) return (select(3, shell.run("command -v " .. command))) == 0 end

describe("hosts:", function()
  if helper.device ~= "cpu" then
    setup, teardown = function() end, function() end  -- luacheck: ignore
  end
  local it = helper.cpu_only("hosts in C, which open it", it)
  local folder, model, wanted, asked, answer

  setup(function()
    folder = shell.folder()
    model = folder .. "/model"
    assert_run("mkdir " .. model)
    make_model(model)
    local pyramid, pieces = require "pyramid", {}
    local mine <close> = assert(pyramid.model(model, { threads = 1 }))
    local policy = assert(pyramid.policy("pyramidinfer", { recent = 0.3, floor = 4 }))
    for piece in assert(mine:generate("hello world", { policy = policy, max_tokens = 40 })) do
      pieces[#pieces + 1] = piece
    end
    wanted = table.concat(pieces)
    assert.is_true(#wanted > 10)
    asked = '[{"role": "system", "content": "be kind"}, {"role": "user", "content": "hello"}]'
    pieces = {}
    for piece in assert(mine:chat(json.decode(asked), { max_tokens = 12 })) do
      pieces[#pieces + 1] = piece
    end
    answer = table.concat(pieces)
    assert.is_true(#answer > 5)
  end)
  teardown(function() shell.remove(folder) end)

  --- A spec that is pending, with the reason, where a program or a header is missing.
  local function needing(found, package, name, body)
    if found then it(name, body)
    else pending(("%s (needs the package %s)"):format(name, package)) end
  end

  it("the library shows no Lua, takes none from outside, and has no text to relocate", function()
    local names = assert_run("nm -D " .. quote(library))
    assert.matches(" T pyr_host_open\n", names)
    for name in names:gmatch "[^\n]+" do assert.not_matches("lua", name:lower()) end
    for name in names:gmatch " [TDBR] (%S+)" do assert.matches("^pyr_", name) end
    local dynamic = assert_run("readelf -d " .. quote(library))
    assert.not_matches("TEXTREL", dynamic)
    assert.matches("soname: %[libpyramid%.so%.%d+%]", dynamic)
    assert.not_matches("TEXTREL", assert_run(("readelf -d %s/pyramid.so"):format(quote(build))))
  end)

  needing(has "luajit", "luajit", "LuaJIT, through its FFI", function()
    local header = folder .. "/pyramid.i"
    assert_run(("cc -E -P core/pyramid.h -o %s"):format(header))
    assert.equal(wanted,
      assert_run(("%sluajit spec/support/hosts/facade.lua %s %s %s"):format(preload(), library,
        model, header)))
  end)

  -- The templates of spec/text/chat_spec.lua, in the library's own Lua, under LuaJIT.
  needing(has "luajit", "luajit", "templates, tools and rows from LuaJIT", function()
    local root, cases, expected = helper.fixture "chat/", {}, {}
    local golden = helper.json(root .. "golden.json")
    local header = folder .. "/pyramid.i"
    assert_run(("cc -E -P core/pyramid.h -o %s"):format(header))
    local function add(case)
      cases[#cases + 1] = case
      local read = function(text) return text and json.decode(text, { ordered = true }) end
      local text, _, code = chat.render(case.format, read(case.messages), {
        tools = read(case.tools), variables = read(case.variables), bos = "<s>", eos = "<|im_end|>",
        add_generation_prompt = true, thinking = case.thinking and case.thinking > 0 })
      expected[#expected + 1] = text or code
    end
    add { messages = asked, format = "chatml" }
    local names = {}
    for name in pairs(golden.templates) do names[#names + 1] = name end
    table.sort(names)
    for _, name in ipairs(names) do
      local format = helper.read(root .. name .. ".jinja")
      add { format = format, messages = json.encode(golden.conversations[2]),
        variables = '{"date_string": "1 Jan 2025"}' }
      for _, call in ipairs(golden.calls) do
        add { format = format, messages = json.encode(call.messages), tools = call.tools
          and json.encode(call.tools), thinking = call.enable_thinking == false and -1 or nil,
          variables = '{"date_string": "1 Jan 2025"}' }
      end
    end
    local written = {}
    for i, case in ipairs(cases) do
      local fields = {}
      for key, value in pairs(case) do fields[#fields + 1] = ("%s = %q"):format(key, value) end
      written[i] = "{ " .. table.concat(fields, ", ") .. " }"
    end
    helper.write(folder .. "/cases.lua", "return { " .. table.concat(written, ",\n") .. " }")
    local out, at = assert_run(("%sluajit spec/support/hosts/chat.lua %s %s %s %s/cases.lua")
      :format(preload(), library, model, header, folder)), 0
    for text in out:gmatch "([^%z]*)%z" do
      at = at + 1
      if at <= #expected then assert.equal(expected[at], text, "case " .. at)
      else assert.equal(answer, text) end
    end
    assert.equal(#expected + 2, at)
  end)

  local has_lua53 = io.open "/usr/include/lua5.3/lua.h"
  if has_lua53 then has_lua53:close() end
  for _, order in ipairs { shared .. " -llua5.3", "-llua5.3 " .. shared } do
    local name = "a program with a Lua 5.3 of its own, linked as " .. order:gsub("%-[LW]%S+ ?", "")
    needing(has_lua53, "liblua5.3-dev", name, function()
      assert_run(("cc -std=c11 -Wall -Wextra -Werror %s -Icore spec/support/hosts/with_lua53.c "
        .. "-o %s/lua53 %s")
        :format(cflags, folder, order))
      assert.equal(wanted, assert_run(folder .. "/lua53 " .. model))
    end)
  end

  it("C++17", function()
    assert_run(("c++ -std=c++17 -Wall -Wextra -Wpedantic -Werror %s -Icore "
      .. "spec/support/hosts/facade.cpp -o %s/cpp %s")
      :format(cflags, folder, shared))
    assert.equal(wanted, assert_run(folder .. "/cpp " .. model))
    assert_run(("c++ -std=c++17 -Wall -Wextra -Wpedantic -Werror %s -Icore "
      .. "spec/support/hosts/chat.cpp -o %s/cpp %s")
      :format(cflags, folder, shared))
    assert.equal(answer, assert_run(("%s/cpp %s %s"):format(folder, model, quote(asked))))
  end)

  needing(has "python3", "python3", "Python, through ctypes", function()
    assert.equal(wanted,
      assert_run(("%spython3 spec/support/hosts/facade.py %s %s"):format(preload(), library,
        model)))
    assert.equal(answer,
      assert_run(("%spython3 spec/support/hosts/chat.py %s %s %s"):format(preload(), library,
        model, quote(asked))))
  end)

  for how, link in pairs {
    static = build .. "/libpyramid.a STATIC -lpthread -lm",
    shared = shared .. " -lm",
  } do
    it("conversations, tokens, cancelling, versions: " .. how .. " library", function()
      link = link:gsub("STATIC",
        assert_run("env -u MAKEFLAGS -u MAKELEVEL make -s print-static"):gsub("%s+$", ""))
      local program = ("%s/conversations_%s"):format(folder, how)
      assert_run(("cc -std=c11 -D_GNU_SOURCE -Wall -Wextra -Werror %s -Icore "
        .. "spec/support/hosts/conversations.c -o %s %s")
        :format(cflags, program, link))
      assert.equal("", assert_run(("%s %s %s"):format(program, model, folder)))
    end)
  end

  -- the sanitizers' run time is not in the programs that would load it
  if not cflags:find "sanitize" then
    for command, name in pairs { luajit = "LuaJIT", ["lua5.1"] = "Lua 5.1", ["lua5.2"] = "Lua 5.2",
      ["lua5.3"] = "Lua 5.3" } do
      needing(has(command), command, command .. " is told that pyramid.so is for Lua 5.4",
        function()
        local code = "package.cpath = arg[1] print(select(2, pcall(require, 'pyramid')))"
        helper.write(folder .. "/other.lua", code)
        assert.equal("pyramid: this module is for Lua 5.4, and the Lua that loads it is " .. name
          .. "\n", assert_run(("%s %s/other.lua %s/?.so"):format(command, folder, quote(build))))
      end)
    end
  end
end)

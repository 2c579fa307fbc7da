-- Hosts written in C: the examples of scripts/examples, the facade's edges, and an installed
-- library.
local helper = require "spec.helper"
local make_model = require "support.small_model"
local shell = require "support.shell"
local quote = shell.quote

local build = io.popen("realpath " .. quote(shell.build)):read "l"
local cflags = os.getenv "PYRAMID_CFLAGS" or "-g"
local sanitized = cflags:find "sanitize" ~= nil

--- How a host links with what was built. The shared library brings its own needs.
local link = {
  static = build .. "/libpyramid.a -llua5.4 -lpcre2-8 -ldnnl -lgomp -lpthread -lm -ldl",
  shared = ("-L%s -lpyramid -Wl,-rpath,%s -lpthread"):format(build, build),
  module = build .. "/pyramid.so -llua5.4",     -- for hosts with a lua_State of theirs
}

local function assert_run(line)
  local out, err, status = shell.run(line)
  assert.equal(0, status, line .. "\n" .. out .. err)
  return out, err
end

local function write(path, text)
  local file <close> = assert(io.open(path, "wb"))
  file:write(text)
end

local function has(command) return (select(3, shell.run("command -v " .. command))) == 0 end

describe("embedding:", function()
  if helper.device ~= "cpu" then                      -- nothing is made for what stays pending
    setup, teardown = function() end, function() end  -- luacheck: ignore
  end
  local it = helper.cpu_only("hosts in C, which open it", it)
  local folder, model

  setup(function()
    folder = shell.folder()
    model = folder .. "/model"
    assert_run("mkdir " .. model)
    make_model(model)
  end)
  teardown(function() shell.remove(folder) end)

  local function compile(source, how)
    local program = ("%s/%s_%s"):format(folder, source:match "([^/]*)%.c$", how)
    assert_run(("cc -std=c11 -D_GNU_SOURCE -Wall -Wextra -Werror %s -Icore $(pkg-config --cflags "
      .. "lua5.4) -o %s %s %s")
      :format(cflags, program, source, link[how]))
    return program
  end

  it("children of fork close what they have, and generate, on one thread", function()
    assert_run(("%s %s"):format(compile("spec/support/fork_checks.c", "shared"), model))
  end)

  it("any allocation may fail, once or from there on: memory is said, and all closes", function()
    if sanitized then pending "the sanitizer's malloc cannot be made to fail" return end
    local out = assert_run(("%s models/tiny spec/support/memory_checks.lua 5 0 997"):format(
      compile("spec/support/memory_checks.c", "static")))
    for _, way in ipairs { "facade, once", "facade, from there on", "Lua, once",
      "Lua, from there on" } do
      assert.is_true(tonumber(out:match(way .. ": (%d+) tried")) > 20, out)
    end
  end)

  for _, how in ipairs { "static", "shared" } do
    describe(how .. " library", function()
      it("serves a host that knows no Lua", function()
        local program = compile("scripts/examples/host_facade.c", how)
        local out, err = assert_run(("%s %s 'hello world'"):format(program, model))
        assert.matches("\n11? %+ %d+ tokens, %d+ tokens/s, %d+ bytes of cache, 100 %% of the "
          .. "rows\n$", out)
        assert.matches("reading the prompt: 100 %%\n$", err)
        local again = assert_run(("%s %s 'hello world'"):format(program, model))
        assert.equal(out:match "^(.*)\n%d", again:match "^(.*)\n%d")

        local _, message, status = shell.run(program .. " /nowhere/model x")
        assert.equal(1, status)
        assert.matches("io: .*/nowhere/model", message)
        _, message, status = shell.run(("%s %s x nonesuch"):format(program, model))
        assert.equal(1, status)
        assert.matches("policy: .*unknown policy 'nonesuch'", message)
      end)

      it("serves a host with a Lua of its own" .. (how == "shared" and ", by the Lua module"
        or ""), function()
        local program = compile("scripts/examples/host_lua.c", how == "shared" and "module" or how)
        local out, err = assert_run(("%s %s 'hello world'"):format(program, model))
        assert.is_true(#out > 10)
        assert.equal("", err)
        local _, message, status = shell.run(program .. " /nowhere/model x")
        assert.equal(1, status)
        assert.matches("/nowhere/model", message)
      end)
    end)
  end

  it("the facade says what the Lua API says", function()
    local program = compile("scripts/examples/host_facade.c", "static")
    local out = assert_run(("%s %s 'hello world' pyramidinfer 'recent=0.3 floor=4'"):format(
      program, model))
    local pyramid, pieces = require "pyramid", {}
    local mine = assert(pyramid.model(model))
    local policy = assert(pyramid.policy("pyramidinfer", { recent = 0.3, floor = 4 }))
    local sampler = { temperature = 0.8, top_k = 40, seed = 1 }
    for piece in assert(mine:generate("hello world",
      { policy = policy, sampler = sampler, max_tokens = 40 })) do
      pieces[#pieces + 1] = piece
    end
    mine:close()
    assert.equal(table.concat(pieces), out:match "^(.*)\n%d")
  end)

  it("the facade holds at its edges", function()
    local out, err, status = shell.run(("%s %s"):format(compile("spec/support/host_checks.c",
      "static"), model))
    assert.equal("", out)
    assert.equal("", err)
    assert.equal(0, status)
  end)

  describe("two Lua states", function()
    it("of one process see nothing of each other, and close in any order", function()
      local program = folder .. "/two_states"
      local source = folder .. "/two_states.c"
      local file = assert(io.open(source, "wb"))
      file:write [[
#include <lauxlib.h>
#include <lualib.h>
#include <stdio.h>
int luaopen_pyramid(lua_State *L);
static lua_State *make(const char *path) {
  lua_State *L = luaL_newstate();
  luaL_openlibs(L);
  luaL_requiref(L, "pyramid", luaopen_pyramid, 0);
  lua_pushstring(L, path);
  lua_setfield(L, LUA_REGISTRYINDEX, "path");
  if (luaL_loadstring(L, "local path = ...; model = assert(require 'pyramid'.model(path)); cache = model:cache {};"
                         "assert(cache:prefill { 1, 5, 6 })")) return NULL;
  lua_pushstring(L, path);
  if (lua_pcall(L, 1, 0, 0)) { puts(lua_tostring(L, -1)); return NULL; }
  return L;
}
int main(int argc, char **argv) {
  (void)argc;
  lua_State *a = make(argv[1]), *b = make(argv[1]);
  if (!a || !b) return 1;
  lua_close(a);
  if (luaL_dostring(b, "assert(cache:step(7)); model:close(); cache:close()")) { puts(lua_tostring(b, -1)); return 1; }
  lua_close(b);
  return 0;
}
]]
      file:close()
      assert_run(("cc -Wall %s $(pkg-config --cflags lua5.4) -o %s %s %s"):format(cflags, program,
        source, link.static))
      assert_run(program .. " " .. model)
    end)
  end)

  -- the sanitizers' run time is not in the programs that would load these
  if not sanitized then
    it("lua5.4 requires pyramid.so", function()
      local out = assert_run(([[LUA_CPATH='%s/?.so' lua5.4 -e 'local before = {}
        for k in pairs(_G) do before[k] = true end
        local pyramid = require "pyramid"
        for k in pairs(_G) do assert(before[k], k) end
        local model = assert(pyramid.model("%s"))
        print(pyramid.version, #assert(model:encode("hello")),
          require "pyramid.policy".list()[1])']]):format(build, model))
      assert.matches("^%d+%.%d+%.%d+\t%d\t%l+\n$", out)
    end)

    it("an installation is complete", function()
      local prefix = folder .. "/installed"
      assert_run(("env -u MAKEFLAGS -u MAKELEVEL make -s install B=%s PREFIX=%s"):format(quote(
        shell.build), prefix))
      for _, file in ipairs { "bin/pyramid", "include/pyramid.h", "lib/libpyramid.a",
        "lib/libpyramid.so", "lib/libpyramid.so.0", "lib/lua/5.4/pyramid.so",
          "lib/pkgconfig/pyramid.pc", "lib/pkgconfig/pyramid-lua.pc",
            "lib/cmake/Pyramid/PyramidConfig.cmake", "share/pyramid/README.md",
              "share/pyramid/policies/pyramidinfer.lua", "share/pyramid/lua/pyramid/model.lua",
                "share/pyramid/scripts/examples/host_facade.c" } do
        assert_run("test -s " .. prefix .. "/" .. file)
      end
      assert_run(("cp scripts/examples/*.c %s/"):format(prefix))
      local env = ("cd %s && export PKG_CONFIG_PATH=%s/lib/pkgconfig LD_LIBRARY_PATH=%s/lib; "):format(prefix, prefix, prefix)
      assert.matches("^%d+%.%d+%.%d+\n$", (assert_run(env .. "pkg-config --modversion pyramid")))
      -- as if no other .pc file were there
      local alone = ("PKG_CONFIG_LIBDIR=%s/lib/pkgconfig pkg-config "):format(prefix)
      assert.matches("%-I", (assert_run(alone .. "--cflags pyramid")))
      assert.matches("%-llua5%.4", (assert_run(alone .. "--static --libs pyramid")))
      assert_run(env .. "cc host_facade.c $(pkg-config --cflags --libs pyramid) -o facade")
      assert_run(env .. "cc host_lua.c $(pkg-config --cflags --libs pyramid-lua) -o with_lua")
      local static = "$(pkg-config --static --cflags --libs pyramid | sed "
        .. "s/-lpyramid/-l:libpyramid.a/)"
      assert_run(env .. "cc host_facade.c " .. static .. " -o static")
      for _, program in ipairs { "facade", "with_lua", "static" } do
        assert_run(env .. ("./%s %s hello"):format(program, model))
      end
      assert.matches("Pyramid", assert_run(("cd / && %s/bin/pyramid --version"):format(prefix)))
      -- what a program asks the loader for is the numbered name
      assert.matches("NEEDED.*%[libpyramid%.so%.0%]",
        (assert_run(("readelf -d %s/facade"):format(prefix))))

      if not has "cmake" then return pending "CMake's package file (needs the package cmake)" end
      write(prefix .. "/CMakeLists.txt", [[
cmake_minimum_required(VERSION 3.16)
project(hosts C)
find_package(Pyramid 0.1 REQUIRED)
find_package(PkgConfig REQUIRED)
pkg_check_modules(LUA REQUIRED lua5.4)
add_executable(made_facade host_facade.c)
target_link_libraries(made_facade Pyramid::pyramid)
add_executable(made_static host_facade.c)
target_link_libraries(made_static Pyramid::static)
add_executable(made_lua host_lua.c)
target_include_directories(made_lua PRIVATE ${LUA_INCLUDE_DIRS})
target_link_libraries(made_lua Pyramid::lua ${LUA_LIBRARIES})
find_package(Pyramid 0.99 QUIET)
if(Pyramid_FOUND)
  message(FATAL_ERROR "an older version than asked for")
endif()
]])
      assert_run(("cd %s && cmake -S . -B made -DCMAKE_PREFIX_PATH=%s && cmake --build made"):format(prefix, prefix))
      for _, program in ipairs { "made_facade", "made_static", "made_lua" } do
        assert_run(("cd %s && made/%s %s hello"):format(prefix, program, model))
      end
    end)

    it("what is installed is removed, and nothing else", function()
      local root = folder .. "/staged"
      local make = ("env -u MAKEFLAGS -u MAKELEVEL make -s %%s B=%s DESTDIR=%s PREFIX=/usr/local"):format(quote(shell.build), root)
      assert_run(("mkdir -p %s/usr/local/lib && echo mine >%s/usr/local/lib/mine"):format(root,
        root))
      local function all() return (assert_run(("cd %s && find . | sort"):format(root))) end
      local before = all()
      local _, message, status = shell.run(make:format "uninstall")
      assert.not_equal(0, status)
      assert.matches("nothing is installed", message)
      assert_run(make:format "install")
      local whole = assert_run(("wc -c <%s/usr/local/bin/pyramid"):format(root))
      assert.matches("prefix=/usr/local\n",
        (assert_run(("cat %s/usr/local/lib/pkgconfig/pyramid.pc"):format(root))))
      assert_run(make:format "install" .. " STRIP=1")
      local stripped = assert_run(("wc -c <%s/usr/local/bin/pyramid"):format(root))
      assert.is_true(tonumber(stripped) < tonumber(whole))
      assert.matches("Pyramid", (assert_run(("%s/usr/local/bin/pyramid --version"):format(root))))
      assert_run(make:format "uninstall")
      assert.equal(before, all())
    end)
  end
end)

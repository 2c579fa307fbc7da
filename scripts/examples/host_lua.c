/* host_lua.c — a host with a Lua of its own, to which it adds Pyramid; no files are needed beside
 * the model.
 *
 *     cc host_lua.c $(pkg-config --cflags --libs pyramid-lua) -o host_lua
 *     ./host_lua models/tiny "Once upon a time"
 *
 * What to keep of the cache is decided in Lua, here by a policy of the host's own. */
#include <lauxlib.h>
#include <lualib.h>
#include <stdio.h>

int luaopen_pyramid(lua_State *L);

static const char script[] =
  "local path, prompt = ...\n"
  "local pyramid, policy, score = require 'pyramid', require 'pyramid.policy', require "
  "'pyramid.score'\n"
  "\n"
  "-- Of each layer keep half: the first 4 rows, the last 16, and those whose keys are the "
  "shortest.\n"
  "local short_keys = policy {\n"
  "  name = 'short_keys',\n"
  "  defaults = { ratio = 0.5 },\n"
  "  prefill = function(o, l)\n"
  "    return { keep = math.ceil(o.ratio * l.rows), guard = { first = 4, last = 16 }, score = "
  "-score.key_norm() }\n"
  "  end,\n"
  "}\n"
  "\n"
  "local model <close> = assert(pyramid.model(path))\n"
  "for piece in assert(model:generate(prompt, { policy = short_keys, max_tokens = 40 })) do\n"
  "  host_write(piece)\n"
  "end\n";

static int host_write(lua_State *L) {
  fputs(luaL_checkstring(L, 1), stdout);
  return 0;
}

int main(int argc, char **argv) {
  if (argc < 3) {
    fprintf(stderr, "usage: %s MODEL PROMPT\n", argv[0]);
    return 2;
  }
  lua_State *L = luaL_newstate();
  if (L == NULL) return 1;
  luaL_openlibs(L);
  luaL_requiref(L, "pyramid", luaopen_pyramid, 0);     /* package.loaded.pyramid; no global */
  lua_pop(L, 1);
  lua_register(L, "host_write", host_write);

  int failed = luaL_loadstring(L, script);
  if (!failed) {
    lua_pushstring(L, argv[1]);
    lua_pushstring(L, argv[2]);
    failed = lua_pcall(L, 2, 0, 0);
  }
  if (failed) fprintf(stderr, "%s\n", lua_tostring(L, -1));
  else putchar('\n');
  lua_close(L);
  return failed ? 1 : 0;
}

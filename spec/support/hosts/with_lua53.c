/* with_lua53.c MODEL — a host that runs a Lua 5.3 of its own beside the facade, before, during and
 * after. Prints a text. */
#include "pyramid.h"

#include <lua5.3/lauxlib.h>
#include <lua5.3/lua.h>
#include <lua5.3/lualib.h>
#include <stdio.h>

/* Each piece goes through the host's Lua. */
static int on_piece(void *ud, const char *piece, size_t length) {
  lua_State *L = ud;
  lua_getglobal(L, "keep");
  lua_pushlstring(L, piece, length);
  lua_call(L, 1, 0);
  return 0;
}

int main(int argc, char **argv) {
  if (argc < 2) return 2;
  lua_State *L = luaL_newstate();
  luaL_openlibs(L);
  if (luaL_dostring(L,
                    "assert(_VERSION == 'Lua 5.3'); local all = {} function keep(piece) all[#all "
                    "+ 1] = piece end "
                       "function text() return table.concat(all) end")) return 1;
  pyr_host *host;
  pyr_host_options options = { .threads = 1, .policy = "pyramidinfer",
                               .policy_options = "recent=0.3 floor=4" };
  pyr_generate_options how = { .max_tokens = 40, .on_piece = on_piece, .ud = L };
  int failed = pyr_host_open(argv[1], &options, &host)
      || pyr_host_generate(host, "hello world", &how);
  if (failed) fprintf(stderr, "%s\n", pyr_host_error(host));
  pyr_host_close(host);
  lua_getglobal(L, "text");
  lua_call(L, 0, 1);
  fputs(lua_tostring(L, -1), stdout);
  lua_close(L);
  return failed;
}

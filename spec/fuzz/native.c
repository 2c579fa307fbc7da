/* native.c — clang's libFuzzer over the targets of spec/fuzz: what it learns of the C code's
 * branches leads it further into them than blind changes. `make fuzz` builds it where clang is,
 * with the whole library, and runs it kind by kind.
 *
 *   PYRAMID_FUZZ_KIND=json native CORPUS -max_total_time=30 … CORPUS begins as the targets' own
 *   cases
 *   PYRAMID_FUZZ_KIND=json native FILE                              what a file comes to
 *
 * The Lua half is spec/fuzz/native.lua: it hands bytes to the target, and returns what is wrong
 * with what came of it. */
#include <lauxlib.h>
#include <lua.h>
#include <lualib.h>

#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>

int luaopen_pyramid(lua_State *L);
int LLVMFuzzerInitialize(int *argc, char ***argv);
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static lua_State *state;       /* with the judging function on its stack */

int LLVMFuzzerInitialize(int *argc, char ***argv) {
  (void)argc, (void)argv;
  state = luaL_newstate();
  if (state == NULL) abort();
  luaL_openlibs(state);
  luaL_requiref(state, "pyramid", luaopen_pyramid, 0);
  lua_pop(state, 1);
  lua_pushstring(state, getenv("PYRAMID_FUZZ_KIND"));
  lua_setglobal(state, "KIND");
  if (luaL_dofile(state, "spec/fuzz/native.lua") != LUA_OK) {
    fprintf(stderr, "%s\n", lua_tostring(state, -1));
    exit(2);
  }
  return 0;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
  lua_pushvalue(state, 1);
  lua_pushlstring(state, (const char *)data, size);
  if (lua_pcall(state, 1, 1, 0) != LUA_OK || !lua_isnil(state, -1)) {
    fprintf(stderr, "FIND %s\n", lua_tostring(state, -1));
    abort();
  }
  lua_pop(state, 1);
  return 0;
}

/* lauxpyr.c — what the binding's files share: failures, options, classes, and the bracket around
 * core calls that call back.
 *
 * Lies below all classes and calls none of them; linit.c, above them, registers them all. */
#include "lauxpyr.h"

#include <stdio.h>
#include <string.h>
#include <time.h>

/* Addresses that serve as keys of the registry. */
static const char world_key = 'w', error_key = 'e';

double pyr_lua_now(void) {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return (double)t.tv_sec + (double)t.tv_nsec * 1e-9;
}

/* ---- failures and options -------------------------------------------------------------------- */

int pyr_lua_fail(lua_State *L, const pyr_runtime *rt, pyr_status status) {
  const char *message = rt ? pyr_runtime_error(rt) : "";
  lua_pushnil(L);
  lua_pushstring(L, *message ? message : pyr_status_name(status));
  lua_pushstring(L, pyr_status_name(status));
  return 3;
}

void pyr_lua_push_hash(lua_State *L, uint64_t hash) {
  char digits[17];
  snprintf(digits, sizeof digits, "%016llx", (unsigned long long)hash);
  lua_pushstring(L, digits);
}

void pyr_lua_check_keys(lua_State *L, int arg, const char *what, const char *const known[]) {
  if (lua_isnoneornil(L, arg)) return;
  luaL_checktype(L, arg, LUA_TTABLE);
  lua_pushnil(L);
  while (lua_next(L, arg)) {
    lua_pop(L, 1);
    const char *key = lua_type(L, -1) == LUA_TSTRING ? lua_tostring(L, -1) : NULL;
    int i = 0;
    while (known[i] && !(key && strcmp(known[i], key) == 0)) i++;
    if (known[i]) continue;
    luaL_Buffer list;
    const char *shown = luaL_tolstring(L, -1, NULL);
    luaL_buffinit(L, &list);
    for (i = 0; known[i]; i++) {
      if (i) luaL_addstring(&list, ", ");
      luaL_addstring(&list, known[i]);
    }
    luaL_pushresult(&list);
    luaL_error(L, "%s: unknown option '%s' (known: %s)", what, shown, lua_tostring(L, -1));
  }
}

void pyr_lua_new_class(lua_State *L, const char *name, const luaL_Reg *methods,
                       lua_CFunction close) {
  if (luaL_newmetatable(L, name)) {
    int metatable = lua_gettop(L);
    lua_newtable(L);
    for (; methods->name; methods++) {
      lua_pushcfunction(L, methods->func);
      lua_setfield(L, strncmp(methods->name, "__", 2) == 0 ? metatable : metatable + 1,
                   methods->name);
    }
    lua_pushcfunction(L, close);
    lua_setfield(L, -2, "close");
    lua_setfield(L, metatable, "__index");
    lua_pushcfunction(L, close);
    lua_setfield(L, metatable, "__close");
    lua_pushcfunction(L, close);
    lua_setfield(L, metatable, "__gc");
  }
  lua_pop(L, 1);
}

/* ---- callbacks ------------------------------------------------------------------------------- */

pyr_lua_world *pyr_lua_get_world(lua_State *L) {
  if (lua_rawgetp(L, LUA_REGISTRYINDEX, &world_key) != LUA_TUSERDATA) {
    lua_pop(L, 1);
    pyr_lua_world *world = lua_newuserdatauv(L, sizeof *world, 0);
    *world = (pyr_lua_world){ 0 };
    /* the error's slot first: from now on it exists, so that keep_error never allocates */
    lua_pushboolean(L, 0);
    lua_rawsetp(L, LUA_REGISTRYINDEX, &error_key);
    lua_pushvalue(L, -1);
    lua_rawsetp(L, LUA_REGISTRYINDEX, &world_key);
  }
  pyr_lua_world *world = lua_touserdata(L, -1);
  lua_pop(L, 1);
  return world;
}

/* A core call that guarded code makes takes no time of its guard's. */
static void pause_guard(pyr_lua_world *world, int on) {
  pyr_lua_guard *guard = world->guard;
  if (guard == NULL) return;
  if (on && guard->paused++ == 0) guard->since = pyr_lua_now();
  if (!on && --guard->paused == 0) guard->ends += pyr_lua_now() - guard->since;
}

lua_State *pyr_lua_enter(lua_State *L) {
  pyr_lua_world *world = pyr_lua_get_world(L);
  lua_State *outer = world->running;
  world->running = L;
  pause_guard(world, 1);
  return outer;
}

void pyr_lua_leave(lua_State *L, lua_State *outer) {
  pyr_lua_world *world = pyr_lua_get_world(L);
  world->running = outer;
  pause_guard(world, 0);
  if (!world->failed) return;
  world->failed = 0;
  luaL_checkstack(L, 2, NULL);
  lua_rawgetp(L, LUA_REGISTRYINDEX, &error_key);
  lua_pushboolean(L, 0);
  lua_rawsetp(L, LUA_REGISTRYINDEX, &error_key);
  lua_error(L);
}

void pyr_lua_keep_error(lua_State *L, pyr_lua_world *world) {
  if (lua_isnil(L, -1)) {     /* error(nil): a nil would take the slot away */
    lua_pop(L, 1);
    lua_pushboolean(L, 0);
  }
  lua_rawsetp(L, LUA_REGISTRYINDEX, &error_key);
  world->failed = 1;
}

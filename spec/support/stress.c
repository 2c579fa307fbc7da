/* stress.c — the garbage collector at its worst, for the specs: `require "pyramid_specs.stress"`.
 *
 *   stress.start([first [, every]])   from now on, in the binding's functions only: each allocation
 *                                     is refused once, so that Lua collects all that can be reached
 *                                     no more before it asks again, and the next place where Lua
 *                                     may collect does it whole and runs every finalizer that is
 *                                     due. Of each function its first `first` calls (default: all),
 *                                     then each `every`-th
 *   stress.stop() -> refusals, calls  no more
 *
 * What the binding's functions are: the C functions of pyramid.core and of the classes named
 * pyramid.…; a hook on calls and returns tells when one runs. Lua functions that they call back to
 * are left alone. Refusing alone would not do: Lua runs no finalizers in the collection that a
 * refusal makes it do. */
#include <lua.h>
#include <lauxlib.h>

#include <stdbool.h>
#include <stdint.h>
#include <string.h>

/* the collector's defaults */
enum { SLOTS = 1024, PAUSE = 200, STEP_MULTIPLIER = 100, STEP_SIZE = 13 };

typedef struct watched { lua_CFunction f; uint64_t calls; bool on; } watched;

typedef struct stress {
  lua_Alloc alloc;
  void *ud;
  bool on, waits;              /* waits: for the second request of what was refused */
  const void *block;
  size_t size;
  uint64_t refused, calls, first, every;
  watched functions[SLOTS];    /* a hash table */
} stress;

static const char key = 's';

static void *refuse_once(void *ud, void *block, size_t old, size_t size) {
  stress *s = ud;
  if (s->on && size > (block ? old : 0)) {
    bool again = s->waits && s->block == block && s->size == size;
    s->waits = !again;
    s->block = block;
    s->size = size;
    if (!again) {
      s->refused++;
      return NULL;
    }
  }
  return s->alloc(s->ud, block, old, size);
}

static watched *find(stress *s, lua_CFunction f) {
  size_t at = (size_t)((uintptr_t)f * 0x9e3779b97f4a7c15u >> 20) % SLOTS;
  while (s->functions[at].f && s->functions[at].f != f) at = (at + 1) % SLOTS;
  return &s->functions[at];
}

static void turn(lua_State *L, stress *s, bool on) {
  if (s->on == on) return;
  s->waits = false;
  if (on) lua_gc(L, LUA_GCINC, 1, 1000, 63);      /* a whole cycle as soon as anything has been
                                                     allocated */
  else lua_gc(L, LUA_GCINC, PAUSE, STEP_MULTIPLIER, STEP_SIZE);
  s->on = on;
}

static stress *get(lua_State *L) {
  lua_rawgetp(L, LUA_REGISTRYINDEX, &key);
  stress *s = lua_touserdata(L, -1);
  lua_pop(L, 1);
  return s;
}

/* The watched function that runs at a level, or NULL. */
static watched *at_level(lua_State *L, stress *s, int level) {
  lua_Debug ar;
  if (!lua_getstack(L, level, &ar) || !lua_getinfo(L, "f", &ar)) return NULL;
  lua_CFunction f = lua_tocfunction(L, -1);
  lua_pop(L, 1);
  watched *w = f ? find(s, f) : NULL;
  return w && w->f ? w : NULL;
}

static void on_call(lua_State *L, lua_Debug *ar) {
  stress *s = get(L);
  if (s == NULL) return;
  bool was = s->on;
  s->on = false;                     /* nothing of the hook's own counts */
  watched *w = at_level(L, s, ar->event == LUA_HOOKRET ? 1 : 0);
  if (w && ar->event != LUA_HOOKRET) {
    w->calls++;
    w->on = w->calls <= s->first || w->calls % s->every == 0;
    s->calls += w->on;
  }
  s->on = was;
  turn(L, s, w && w->on);
}

/* Adds the C functions of the table on top, but what is named __gc or __close, and those of the
 * tables in it. */
static void add_functions(lua_State *L, stress *s, int depth) {
  for (lua_pushnil(L); lua_next(L, -2); lua_pop(L, 1)) {
    lua_CFunction f = lua_tocfunction(L, -1);
    if (f) find(s, f)->f = f;
    else if (lua_istable(L, -1) && depth > 0) add_functions(L, s, depth - 1);
  }
}

static int stress_start(lua_State *L) {
  lua_Integer first = luaL_optinteger(L, 1, LUA_MAXINTEGER),
      every = luaL_optinteger(L, 2, LUA_MAXINTEGER);
  luaL_argcheck(L, first >= 0, 1, "not negative");
  luaL_argcheck(L, every >= 1, 2, "at least 1");
  stress *s = get(L);
  if (s) return luaL_error(L, "stress: it is on already");
  s = lua_newuserdatauv(L, sizeof *s, 0);
  memset(s, 0, sizeof *s);
  s->first = (uint64_t)first;
  s->every = (uint64_t)every;
  lua_rawsetp(L, LUA_REGISTRYINDEX, &key);
  luaL_getsubtable(L, LUA_REGISTRYINDEX, LUA_LOADED_TABLE);
  lua_getfield(L, -1, "pyramid.core");
  luaL_checktype(L, -1, LUA_TTABLE);
  add_functions(L, s, 1);
  lua_settop(L, 0);
  for (lua_pushnil(L); lua_next(L, LUA_REGISTRYINDEX); lua_pop(L, 1))
    if (lua_type(L, -2) == LUA_TSTRING && strncmp(lua_tostring(L, -2), "pyramid.", 8) == 0
        && lua_istable(L, -1))
      add_functions(L, s, 1);
  s->alloc = lua_getallocf(L, &s->ud);
  lua_setallocf(L, refuse_once, s);
  lua_sethook(L, on_call, LUA_MASKCALL | LUA_MASKRET, 0);
  return 0;
}

static int stress_stop(lua_State *L) {
  stress *s = get(L);
  if (s == NULL) return 0;
  lua_sethook(L, NULL, 0, 0);
  turn(L, s, false);
  lua_setallocf(L, s->alloc, s->ud);
  lua_pushinteger(L, (lua_Integer)s->refused);
  lua_pushinteger(L, (lua_Integer)s->calls);
  lua_pushnil(L);
  lua_rawsetp(L, LUA_REGISTRYINDEX, &key);
  return 2;
}

__attribute__((visibility("default"))) int luaopen_pyramid_specs_stress(lua_State *L);
int luaopen_pyramid_specs_stress(lua_State *L) {
  static const luaL_Reg functions[] = { { "start", stress_start }, { "stop", stress_stop },
                                        { NULL, NULL } };
  luaL_newlib(L, functions);
  return 1;
}

/* linit.c — the door to the library for Lua: bundled modules, the table `pyramid.core` with what
 * all classes add to it, and luaopen_pyramid.
 *
 * Owns: the bundle (constant data) and the way modules are found in it. Keeps no state outside the
 * lua_State: two states of one process see nothing of each other. Sets no globals. */
#include "lauxpyr.h"
#include "bundle.h"
#include "base/plain.h"

#include <dlfcn.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <unistd.h>
#include <lualib.h>

static const char searcher_key = 's';     /* its address is a key of the registry */

/* ---- the bundle ------------------------------------------------------------------------------ */

static const pyr_bundle_entry *find_entry(const char *kind, const char *name) {
  for (const pyr_bundle_entry *e = pyr_bundle; e->kind; e++)
    if (strcmp(e->kind, kind) == 0 && strcmp(e->name, name) == 0) return e;
  return NULL;
}

static const char *check_kind(lua_State *L, int arg) {
  static const char *const kinds[] = { "module", "policy", "script", "text", NULL };
  return kinds[luaL_checkoption(L, arg, NULL, kinds)];
}

/* core.bundled(kind, name) -> text, chunk name; or nil */
static int core_bundled(lua_State *L) {
  const pyr_bundle_entry *e = find_entry(check_kind(L, 1), luaL_checkstring(L, 2));
  if (e == NULL) return 0;
  lua_pushlstring(L, e->text, e->length);
  lua_pushstring(L, e->chunk);
  return 2;
}

/* core.bundled_list(kind) -> names, sorted */
static int core_bundled_list(lua_State *L) {
  const char *kind = check_kind(L, 1);
  lua_Integer n = 0;
  lua_newtable(L);
  for (const pyr_bundle_entry *e = pyr_bundle; e->kind; e++) {
    if (strcmp(e->kind, kind) != 0) continue;
    lua_pushstring(L, e->name);
    lua_rawseti(L, -2, ++n);
  }
  return 1;
}

/* The loader of one bundled module: upvalue 1 is its entry. */
static int load_module(lua_State *L) {
  const pyr_bundle_entry *e = lua_touserdata(L, lua_upvalueindex(1));
  lua_settop(L, 2);                                   /* name, what the searcher says of it */
  if (luaL_loadbufferx(L, e->text, e->length, e->chunk, "t") != LUA_OK) return lua_error(L);
  lua_insert(L, 1);
  lua_call(L, 2, 1);
  return 1;
}

/* ---- what standard Lua lacks and scripts need ------------------------------------------------ */

/* core.clock() -> seconds since some moment, as a watch counts them (os.clock adds up all threads)
 */
static int core_clock(lua_State *L) {
  lua_pushnumber(L, pyr_lua_now());
  return 1;
}

/* core.terminal(file) -> columns, rows of the terminal that an open file is (0 where it doesn't
 * say); or nil */
static int core_terminal(lua_State *L) {
  luaL_Stream *stream = luaL_checkudata(L, 1, LUA_FILEHANDLE);
  struct winsize size = { 0 };
  if (stream->closef == NULL || !isatty(fileno(stream->f))) return 0;
  ioctl(fileno(stream->f), TIOCGWINSZ, &size);
  lua_pushinteger(L, size.ws_col);
  lua_pushinteger(L, size.ws_row);
  return 2;
}

/* ---- locale ---------------------------------------------------------------------------------- */

#define PLAIN "pyramid.plain"

static int plain_close(lua_State *L) {
  locale_t *outer = luaL_checkudata(L, 1, PLAIN);
  pyr_plain_leave(*outer);
  *outer = (locale_t)0;
  return 0;
}

/* core.plain_locale() -> a value to be closed: `local _ <close> = core.plain_locale()`. Until the
 * block ends this thread writes and reads numbers, compares and classifies text as in the C locale,
 * whatever the process's locale is or becomes. nil where that is so already. No block that holds
 * one may yield. */
static int core_plain_locale(lua_State *L) {
  locale_t outer = pyr_plain_enter();
  bool already = outer == uselocale((locale_t)0);
  pyr_plain_leave(outer);
  if (already) return 0;
  locale_t *box = lua_newuserdatauv(L, sizeof *box, 0);
  *box = (locale_t)0;
  luaL_setmetatable(L, PLAIN);
  *box = pyr_plain_enter();
  return 1;
}

static int open_core(lua_State *L) {
  static const luaL_Reg functions[] = {
    { "bundled", core_bundled }, { "bundled_list", core_bundled_list },
    { "clock", core_clock }, { "terminal", core_terminal }, { "plain_locale", core_plain_locale },
        { NULL, NULL }
  };
  luaL_newlib(L, functions);
  luaL_newmetatable(L, PLAIN);
  lua_pushcfunction(L, plain_close);
  lua_setfield(L, -2, "__close");
  lua_pop(L, 1);
  lua_pushliteral(L, PYR_VERSION);
  lua_setfield(L, -2, "version");
  pyr_lua_open_runtime(L);
  pyr_lua_open_model(L);
  pyr_lua_open_tokenizer(L);
  pyr_lua_open_policy(L);
  pyr_lua_open_cache(L);
  pyr_lua_open_logits(L);
  pyr_lua_open_sampler(L);
  pyr_lua_open_vector(L);
  pyr_lua_open_fit(L);
  pyr_lua_open_guard(L);
  pyr_lua_open_json(L);
  pyr_lua_open_file(L);
  return 1;
}

static const luaL_Reg native[] = { { "pyramid", luaopen_pyramid }, { "pyramid.core", open_core },
                                   { NULL, NULL } };

static int is_ours(const char *name) { return strncmp(name, "pyramid", 7) == 0; }

/* Pushes the loader of other people's modules that we carry (argparse); pushes nothing if there is
 * none. */
static int push_vendored(lua_State *L, const char *name) {
  const pyr_bundle_entry *e = find_entry("module", name);
  if (e == NULL || is_ours(name)) return 0;
  lua_pushlightuserdata(L, (void *)e);
  lua_pushcclosure(L, load_module, 1);
  return 1;
}

/* The last of package.searchers in other people's hosts: their own argparse comes first. */
static int search_vendored(lua_State *L) {
  const char *name = luaL_checkstring(L, 1);
  if (push_vendored(L, name)) return 1;
  lua_pushfstring(L, "no module '%s' in libpyramid", name);
  return 1;
}

/* preload[name] = the value on top of the stack (popped), unless the host has put something there.
 */
static void set_preload(lua_State *L, int preload, const char *name) {
  if (lua_getfield(L, preload, name) == LUA_TNIL) {
    lua_pushvalue(L, -2);
    lua_setfield(L, preload, name);
  }
  lua_pop(L, 2);
}

void pyr_lua_preload(lua_State *L, int with_vendored) {
  luaL_checkstack(L, 6, NULL);
  luaL_getsubtable(L, LUA_REGISTRYINDEX, LUA_PRELOAD_TABLE);
  int preload = lua_gettop(L);
  for (const luaL_Reg *r = native; r->name; r++) {
    lua_pushcfunction(L, r->func);
    set_preload(L, preload, r->name);
  }
  for (const pyr_bundle_entry *e = pyr_bundle; e->kind; e++) {
    if (strcmp(e->kind, "module") != 0 || !is_ours(e->name)) continue;
    lua_pushlightuserdata(L, (void *)e);
    lua_pushcclosure(L, load_module, 1);
    set_preload(L, preload, e->name);
  }
  if (with_vendored && push_vendored(L, "argparse")) set_preload(L, preload, "argparse");
  lua_pop(L, 1);
}

void pyr_lua_absolute_paths(lua_State *L) {
  static const char code[] =
    "for _, key in ipairs { 'path', 'cpath' } do\n"
    "  local kept = {}\n"
    "  for entry in package[key]:gmatch '[^;]+' do\n"
    "    if entry:byte() == 47 then kept[#kept + 1] = entry end\n"
    "  end\n"
    "  package[key] = table.concat(kept, ';')\n"
    "end";
  if (luaL_loadbufferx(L, code, sizeof code - 1, "=paths", "t") != LUA_OK) lua_error(L);
  lua_call(L, 0, 0);
}

/* Appends search_vendored to package.searchers, once. */
static void add_searcher(lua_State *L) {
  if (lua_rawgetp(L, LUA_REGISTRYINDEX, &searcher_key) == LUA_TNIL
      && luaL_getsubtable(L, LUA_REGISTRYINDEX, LUA_LOADED_TABLE)
      && lua_getfield(L, -1, "package") == LUA_TTABLE
          && lua_getfield(L, -1, "searchers") == LUA_TTABLE) {
    lua_pushcfunction(L, search_vendored);
    lua_rawseti(L, -2, (lua_Integer)lua_rawlen(L, -2) + 1);
    lua_pushboolean(L, 1);
    lua_rawsetp(L, LUA_REGISTRYINDEX, &searcher_key);
  }
}

/* Another Lua than 5.4 may have loaded this module (its Lua functions are weak in pyramid.so): it
 * is told so with what every Lua since 5.1 has, and nothing else is called. Two Luas in one process
 * may each give a part of the functions. */
#pragma weak lua_newuserdatauv           /* since 5.4 */
#pragma weak lua_version  /* since 5.2, and in LuaJIT; until 5.3 it returned an address */

static void refuse_other_lua(lua_State *L) {
  Dl_info every, since;
  const char *found = NULL;
  if (!lua_newuserdatauv) {
    found = "Lua 5.1";
    if (lua_version) {
      const lua_Number *(*version)(lua_State *) =
          (const lua_Number *(*)(lua_State *))(void (*)(void))lua_version;
      found = *version(L) == 501 ? "LuaJIT" : *version(L) == 502 ? "Lua 5.2" : "Lua 5.3";
    }
  } else if (dladdr((void *)(uintptr_t)lua_pushstring, &every)
             && dladdr((void *)(uintptr_t)lua_newuserdatauv, &since)
             && every.dli_fbase != since.dli_fbase) {
    found = "one of two in this process";
  } else if (lua_version(L) != LUA_VERSION_NUM) {
    found = "a later one";
  }
  if (found == NULL) return;
  lua_pushfstring(L, "pyramid: this module is for Lua 5.4, and the Lua that loads it is %s", found);
  lua_error(L);
}

int luaopen_pyramid(lua_State *L) {
  refuse_other_lua(L);
  luaL_checkversion(L);
  pyr_lua_preload(L, 0);
  add_searcher(L);
  lua_settop(L, 0);
  if (lua_getglobal(L, "require") != LUA_TFUNCTION)
    return luaL_error(L, "pyramid needs the `package` library");
  lua_pushliteral(L, "pyramid.init");
  lua_call(L, 1, 1);
  return 1;
}

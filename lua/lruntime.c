/* lruntime.c — runtimes for Lua.
 *
 *   core.runtime { threads = 0, device = nil, isa = nil, memory = 0, ranks = nil } -> runtime; the
 *                                device is the host's default if neither it nor an isa is given,
 *                                "cpu" if only an isa is
 *   core.default_device() -> what the host chose (PYR_LUA_DEVICE), else "cpu"
 *   core.default_precision() -> the same of PYR_LUA_PRECISION, else "auto"
 *   runtime:threads()  :isa()  :memory()  :memory_peak()  :close()
 *   runtime:ranks() -> which of the run's processes it is (from 0), how many they are, traffic
 *   runtime:profile(true | false | nil) -> { { name=, calls=, seconds=, flops=, bytes= }, … }, what
 *   was counted so far
 *   runtime:on_progress(fn)      fn(done, total) is called now and then in long work; true cancels
 *                                it; nil: none
 *
 * The progress function is the box's user value, so that it lives as long as the box and no longer.
 * The core's callback gets the box's address and looks the box up in a table with weak values. What
 * the function raises is kept, cancels the work, and goes on from the binding function that made
 * the core call (pyr_lua_leave). The callback is there without a function, too: it looks at the
 * host's flag (pyr_lua_watch). */
#include "lauxpyr.h"

#include <stdbool.h>
#include <string.h>

#define RUNTIME "pyramid.runtime"

/* asks: there is a function */
typedef struct runtime_box { pyr_runtime *rt; pyr_lua_world *world; bool asks; } runtime_box;

static const char boxes_key = 'b';

/* ---- progress -------------------------------------------------------------------------------- */

typedef struct progress_call { runtime_box *box; int64_t done, total; bool stop; } progress_call;

/* Runs protected. */
static int call_progress(lua_State *L) {
  progress_call *call = lua_touserdata(L, 1);
  lua_rawgetp(L, LUA_REGISTRYINDEX, &boxes_key);
  if (lua_rawgetp(L, -1, call->box) != LUA_TUSERDATA) return 0;
  lua_getiuservalue(L, -1, 1);
  lua_pushinteger(L, call->done);
  lua_pushinteger(L, call->total);
  lua_call(L, 2, 1);
  call->stop = lua_toboolean(L, -1);
  return 0;
}

static int on_progress(void *ud, int64_t done, int64_t total) {
  progress_call call = { ud, done, total, false };
  pyr_lua_world *world = call.box->world;
  lua_State *L = world->running;
  if (world->interrupted && *world->interrupted) return 1;
  if (!call.box->asks) return 0;
  if (L == NULL) return 0;  /* a core call that was not bracketed: nowhere to run Lua */
  if (world->failed || !lua_checkstack(L, 2)) return 1;
  lua_pushcfunction(L, call_progress);
  lua_pushlightuserdata(L, &call);
  if (lua_pcall(L, 1, 0, 0) == LUA_OK) return call.stop;
  pyr_lua_keep_error(L, world);
  return 1;
}

/* ---- runtimes -------------------------------------------------------------------------------- */

static runtime_box *check_runtime_box(lua_State *L, int arg) {
  runtime_box *box = luaL_checkudata(L, arg, RUNTIME);
  if (box->rt == NULL) luaL_argerror(L, arg, "the runtime is closed");
  return box;
}

pyr_runtime *pyr_lua_check_runtime(lua_State *L, int arg) { return check_runtime_box(L, arg)->rt; }

/* Pushes the host's default device, and returns it. */
static const char *push_default_device(lua_State *L) {
  if (lua_getfield(L, LUA_REGISTRYINDEX, PYR_LUA_DEVICE) == LUA_TSTRING) return lua_tostring(L, -1);
  lua_pop(L, 1);
  return lua_pushliteral(L, "cpu");
}

static int core_default_device(lua_State *L) {
  push_default_device(L);
  return 1;
}

static int core_default_precision(lua_State *L) {
  if (lua_getfield(L, LUA_REGISTRYINDEX, PYR_LUA_PRECISION) != LUA_TSTRING)
    lua_pushliteral(L, "auto");
  return 1;
}

static int core_runtime(lua_State *L) {
  static const char *const known[] = { "threads", "device", "isa", "memory", "ranks", NULL };
  pyr_lua_check_keys(L, 1, "runtime", known);
  pyr_runtime_options options = { .size = sizeof options };
  lua_settop(L, 1);
  if (!lua_isnil(L, 1)) {
    lua_getfield(L, 1, "threads");
    lua_getfield(L, 1, "device");
    lua_getfield(L, 1, "isa");
    lua_getfield(L, 1, "memory");
    lua_getfield(L, 1, "ranks");
    lua_Integer threads = luaL_optinteger(L, 2, 0), memory = luaL_optinteger(L, 5, 0);
    if (threads < 0 || threads > 256)
      return luaL_error(L, "runtime: threads must be 0 (all processors) to 256");
    if (memory < 0)
      return luaL_error(L, "runtime: memory must be a number of bytes, or 0 for no limit");
    options.threads = (int)threads;
    options.device = luaL_optstring(L, 3, NULL);
    options.isa = luaL_optstring(L, 4, NULL);
    options.ranks = luaL_optstring(L, 6, NULL);
    options.memory_limit = (size_t)memory;
  }
  /* stays on the stack while it is used */
  if (!options.device && !options.isa) options.device = push_default_device(L);
  runtime_box *box = lua_newuserdatauv(L, sizeof *box, 1);
  *box = (runtime_box){ NULL, pyr_lua_get_world(L), false };
  luaL_setmetatable(L, RUNTIME);
  lua_rawgetp(L, LUA_REGISTRYINDEX, &boxes_key);
  lua_pushvalue(L, -2);
  lua_rawsetp(L, -2, box);
  lua_pop(L, 1);
  char why[512] = "";
  options.why = why;
  options.why_bytes = sizeof why;
  pyr_status status = pyr_runtime_new(&options, &box->rt);
  if (status == PYR_OK) {
    pyr_runtime_on_progress(box->rt, on_progress, box);
    return 1;
  }
  lua_pushnil(L);
  if (status == PYR_MEMORY)     /* there is no runtime to hold a message */
    lua_pushfstring(L, "runtime: out of memory (limit: %I bytes, 0 is none)",
                    (LUAI_UACINT)options.memory_limit);
  else if (options.ranks && *why)
    lua_pushfstring(L, "runtime: %s", why);
  else if (status != PYR_DEVICE)
    lua_pushfstring(L, "runtime: cannot start (%s)", pyr_status_name(status));
  else if (options.device && strcmp(options.device, "cpu") != 0 && *why)
    lua_pushfstring(L, "runtime: %s", why);
  else if (options.device && strcmp(options.device, "cpu") != 0)
    lua_pushfstring(L, "runtime: device '%s' is not available (there are: cpu, cuda)",
                    options.device);
  else
    lua_pushfstring(L, "runtime: isa '%s' is not available on this processor",
                    options.isa ? options.isa : "best");
  lua_pushstring(L, pyr_status_name(status));
  return 3;
}

static int runtime_close(lua_State *L) {
  runtime_box *box = luaL_checkudata(L, 1, RUNTIME);
  if (box->rt) {
    pyr_runtime_on_progress(box->rt, NULL, NULL);  /* children may keep the runtime; the box goes */
    pyr_runtime_free(box->rt);
    box->rt = NULL;
    lua_pushnil(L);
    lua_setiuservalue(L, 1, 1);
  }
  return 0;
}

static int runtime_on_progress(lua_State *L) {
  runtime_box *box = check_runtime_box(L, 1);
  bool set = !lua_isnoneornil(L, 2);
  if (set) luaL_checktype(L, 2, LUA_TFUNCTION);
  lua_settop(L, 2);
  lua_setiuservalue(L, 1, 1);
  box->asks = set;
  return 0;
}

static int runtime_threads(lua_State *L) {
  lua_pushinteger(L, pyr_runtime_threads(pyr_lua_check_runtime(L, 1)));
  return 1;
}

static int runtime_isa(lua_State *L) {
  lua_pushstring(L, pyr_runtime_isa(pyr_lua_check_runtime(L, 1)));
  return 1;
}

static int runtime_memory(lua_State *L) {
  lua_pushinteger(L, (lua_Integer)pyr_runtime_memory(pyr_lua_check_runtime(L, 1)));
  return 1;
}

static int runtime_memory_peak(lua_State *L) {
  lua_pushinteger(L, (lua_Integer)pyr_runtime_memory_peak(pyr_lua_check_runtime(L, 1)));
  return 1;
}

/* runtime:profile(on | nil) -> entries counted up to now | nil, message, code. true: counts from
 * zero; false: no more. */
static int runtime_profile(lua_State *L) {
  enum { ROOM = 32 };
  pyr_profile_entry entries[ROOM];
  int found = pyr_runtime_get_profile(pyr_lua_check_runtime(L, 1), entries, ROOM);
  if (found > ROOM) found = ROOM;
  lua_settop(L, 2);
  lua_createtable(L, found, 0);
  for (int i = 0; i < found; i++) {
    lua_createtable(L, 0, 5);
    lua_pushstring(L, entries[i].name);
    lua_setfield(L, -2, "name");
    lua_pushinteger(L, (lua_Integer)entries[i].calls);
    lua_setfield(L, -2, "calls");
    lua_pushnumber(L, entries[i].seconds);
    lua_setfield(L, -2, "seconds");
    lua_pushnumber(L, entries[i].flops);
    lua_setfield(L, -2, "flops");
    lua_pushnumber(L, entries[i].bytes);
    lua_setfield(L, -2, "bytes");
    lua_rawseti(L, -2, i + 1);
  }
  if (lua_isnil(L, 2)) return 1;
  pyr_runtime *rt = pyr_lua_check_runtime(L, 1);
  pyr_status status = pyr_runtime_profile(rt, lua_toboolean(L, 2));
  return status == PYR_OK ? 1 : pyr_lua_fail(L, rt, status);
}

/* runtime:ranks() -> { rank =, size =, sent =, received =, swaps = } */
static int runtime_ranks(lua_State *L) {
  pyr_ranks_info info = pyr_runtime_get_ranks(pyr_lua_check_runtime(L, 1));
  lua_createtable(L, 0, 5);
  lua_pushinteger(L, info.rank), lua_setfield(L, -2, "rank");
  lua_pushinteger(L, info.size), lua_setfield(L, -2, "size");
  lua_pushinteger(L, info.sent), lua_setfield(L, -2, "sent");
  lua_pushinteger(L, info.received), lua_setfield(L, -2, "received");
  lua_pushinteger(L, info.swaps), lua_setfield(L, -2, "swaps");
  return 1;
}

/* runtime:ranks_begin(): what follows may fail on one rank alone, and ends with
 * runtime:ranks_end(code, message) -> true | nil, message, code: what became of it on all of them.
 * */
static int runtime_ranks_begin(lua_State *L) {
  pyr_runtime_ranks_begin(pyr_lua_check_runtime(L, 1));
  return 0;
}

static int runtime_ranks_end(lua_State *L) {
  pyr_runtime *rt = pyr_lua_check_runtime(L, 1);
  const char *code = luaL_optstring(L, 2, NULL), *message = luaL_optstring(L, 3, "");
  pyr_status status = PYR_OK;
  while (code && status < PYR_DEVICE && strcmp(pyr_status_name(status), code) != 0) status++;
  if (status != PYR_OK) pyr_runtime_set_error(rt, status, "%s", message);
  status = pyr_runtime_ranks_end(rt, status);
  if (status != PYR_OK) return pyr_lua_fail(L, rt, status);
  lua_pushboolean(L, 1);
  return 1;
}

static int runtime_tostring(lua_State *L) {
  runtime_box *box = luaL_checkudata(L, 1, RUNTIME);
  if (box->rt == NULL) lua_pushliteral(L, "pyramid.runtime (closed)");
  else lua_pushfstring(L, "pyramid.runtime (%s, %d threads)", pyr_runtime_isa(box->rt),
                       pyr_runtime_threads(box->rt));
  return 1;
}

/* ---- entry ----------------------------------------------------------------------------------- */

void pyr_lua_open_runtime(lua_State *L) {
  static const luaL_Reg functions[] = {
    { "runtime", core_runtime }, { "default_device", core_default_device },
    { "default_precision", core_default_precision }, { NULL, NULL }
  };
  static const luaL_Reg runtime_methods[] = {
    { "on_progress", runtime_on_progress }, { "threads", runtime_threads },
    { "isa", runtime_isa }, { "memory", runtime_memory }, { "memory_peak", runtime_memory_peak },
    { "profile", runtime_profile }, { "ranks", runtime_ranks },
    { "ranks_begin", runtime_ranks_begin }, { "ranks_end", runtime_ranks_end },
    { "__tostring", runtime_tostring }, { NULL, NULL }
  };
  pyr_lua_new_class(L, RUNTIME, runtime_methods, runtime_close);
  if (lua_rawgetp(L, LUA_REGISTRYINDEX, &boxes_key) == LUA_TNIL) {
    lua_newtable(L);
    lua_createtable(L, 0, 1);
    lua_pushliteral(L, "v");
    lua_setfield(L, -2, "__mode");
    lua_setmetatable(L, -2);
    lua_rawsetp(L, LUA_REGISTRYINDEX, &boxes_key);
  }
  lua_pop(L, 1);
  luaL_setfuncs(L, functions, 0);
}

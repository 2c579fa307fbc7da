/* lguard.c — an end to Lua code that others wrote: policies, files of theirs, whatever is called
 * from afar.
 *
 *   core.limited(seconds | nil, fn, …) -> true, what fn returned | nil, "time" or "cancelled";
 *   raises what fn raises
 *
 * While a guard is on, a hook on the running thread (and on coroutines made meanwhile, which take
 * it along) comes by each EVERY instructions of Lua's and looks whether the host's flag is up
 * (pyr_lua_watch), whether the runtime's progress function says stop, and whether the guard's time
 * is over. Then it raises an error, and does so again and again, ever sooner, so that a pcall can
 * delay the end but not prevent it. The error's value does not matter: the guard knows why it
 * ended.
 *
 * A guard's clock stands still while a core call runs that its Lua code made. Guards nest: what
 * ends an outer one ends those within it. A debug hook of the user's is called on meanwhile and put
 * back afterwards. What no hook sees, a guard cannot end: one call of a C function, finalizers, and
 * an xpcall's handler while it is given the guard's own error; Lua runs the last two without hooks.
 */
#include "lauxpyr.h"

enum {
  EVERY = 10000,               /* instructions between two looks: some 50 microseconds */
  AGAIN = 1024,                /* … until it raises the second time; half as many each time */
};
static const double ASKS_EVERY = 0.02;     /* seconds between two questions to the progress
                                              function, which runs Lua in turn */

static int is_interrupted(const pyr_lua_world *world) {
  return world->interrupted && *world->interrupted;
}

/* Raises, and sees to it that it will be sooner next time. */
static void raise_again(lua_State *L, lua_Hook hook, int *raised, const char *why) {
  int count = *raised < 10 ? AGAIN >> *raised : 1;
  ++*raised;
  lua_sethook(L, hook, LUA_MASKCOUNT, count);
  luaL_error(L, "%s", why);
}

void pyr_lua_stop(lua_State *L, lua_Debug *ar) {
  (void)ar;
  pyr_lua_world *world = pyr_lua_get_world(L);
  if (is_interrupted(world)) raise_again(L, pyr_lua_stop, &world->raised, "interrupted");
  lua_sethook(L, NULL, 0, 0);
}

void pyr_lua_watch(lua_State *L, const volatile sig_atomic_t *flag) {
  pyr_lua_world *world = pyr_lua_get_world(L);
  world->interrupted = flag;
  world->raised = 0;
}

int pyr_lua_is_interrupted(lua_State *L) { return is_interrupted(pyr_lua_get_world(L)); }

/* In a coroutine that was made under a guard it stays, and does nothing until it is resumed under
 * another one. */
static void on_count(lua_State *L, lua_Debug *ar) {
  pyr_lua_world *world = pyr_lua_get_world(L);
  pyr_lua_guard *guard = world->guard;
  if (guard == NULL) return;
  if (guard->hook && guard->hook != on_count && guard->thread == L
      && (ar->event != LUA_HOOKCOUNT || guard->mask & LUA_MASKCOUNT)) guard->hook(L, ar);
  if (ar->event != LUA_HOOKCOUNT) return;
  if (guard->ended == PYR_OK) {
    double time = pyr_lua_now();
    if (is_interrupted(world)) guard->ended = PYR_CANCELLED;
    else if (guard->paused) return;  /* a callback of a core call that the guarded code has made */
    else if (guard->seconds > 0 && time > guard->ends) guard->ended = PYR_POLICY;
    else if (guard->rt && time > guard->asks) {
      guard->asks = time + ASKS_EVERY;
      lua_State *running = world->running;
      world->running = L;
      if (pyr_runtime_check(guard->rt) != PYR_OK) guard->ended = PYR_CANCELLED;
      world->running = running;
    }
  }
  if (guard->ended == PYR_CANCELLED) raise_again(L, on_count, &guard->raised, "cancelled");
  if (guard->ended != PYR_OK) raise_again(L, on_count, &guard->raised, "it did not return in time");
}

void pyr_lua_guard_on(lua_State *L, pyr_lua_world *world, pyr_lua_guard *guard, pyr_runtime *rt,
                      double seconds) {
  double time = pyr_lua_now();
  *guard = (pyr_lua_guard){ .outer = world->guard, .thread = L, .rt = rt, .seconds = seconds,
                            .ends = time + seconds, .asks = time + ASKS_EVERY,
                                .hook = lua_gethook(L), .mask = lua_gethookmask(L),
                                    .count = lua_gethookcount(L) };
  pyr_lua_guard *outer = world->guard;
  if (outer && !outer->paused) {                        /* what ends the outer one ends this one */
    guard->inherits = outer->seconds > 0 && (seconds <= 0 || outer->ends < guard->ends);
    if (guard->inherits) guard->ends = outer->ends, guard->seconds = outer->seconds;
    if (rt == NULL) guard->rt = outer->rt;
  }
  world->guard = guard;
  int counts = guard->mask & LUA_MASKCOUNT && guard->count < EVERY;
  lua_sethook(L, on_count, guard->mask | LUA_MASKCOUNT, counts ? guard->count : EVERY);
}

pyr_status pyr_lua_guard_off(lua_State *L, pyr_lua_world *world, pyr_lua_guard *guard) {
  pyr_lua_guard *outer = world->guard = guard->outer;
  if (outer && outer->ended == PYR_OK && guard->inherits && guard->ended == PYR_POLICY)
    outer->ended = PYR_POLICY;
  if (outer && outer->ended == PYR_OK && guard->rt == outer->rt && guard->ended == PYR_CANCELLED)
    outer->ended = PYR_CANCELLED;
  lua_sethook(L, guard->hook, guard->mask, guard->count);
  if (is_interrupted(world)) {
    lua_sethook(L, pyr_lua_stop, LUA_MASKCOUNT, 1);
    return PYR_CANCELLED;
  }
  return guard->ended;
}

pyr_status pyr_lua_call_guarded(pyr_lua_world *world, pyr_runtime *rt, double seconds,
                                const char *who, lua_CFunction fn, void *argument) {
  lua_State *L = world->running;
  pyr_lua_guard guard;
  if (L == NULL) return pyr_runtime_set_error(rt, PYR_POLICY, "%s: no Lua state is running", who);
  if (!lua_checkstack(L, 4))
    return pyr_runtime_set_error(rt, PYR_MEMORY, "%s: the Lua stack is full", who);
  pyr_lua_guard_on(L, world, &guard, rt, seconds);
  lua_pushcfunction(L, fn);
  lua_pushlightuserdata(L, argument);
  int code = lua_pcall(L, 1, 0, 0);
  pyr_status ended = pyr_lua_guard_off(L, world, &guard), status = PYR_OK;
  if (ended == PYR_CANCELLED)
    status = pyr_runtime_set_error(rt, PYR_CANCELLED, "%s: cancelled", who);
  else if (ended != PYR_OK)
    status = pyr_runtime_set_error(rt, PYR_POLICY,
                                   "%s: did not return within %g seconds (policy_seconds)", who,
                                   seconds);
  else if (code != LUA_OK)
    status = pyr_runtime_set_error(rt, code == LUA_ERRMEM ? PYR_MEMORY : PYR_POLICY, "%s: %s",
                                   who, lua_type(L, -1) == LUA_TSTRING ? lua_tostring(L, -1)
                                   : "an error that is not a string");
  if (code != LUA_OK) lua_pop(L, 1);
  return status;
}

static int core_limited(lua_State *L) {
  double seconds = luaL_optnumber(L, 1, 0);
  luaL_checktype(L, 2, LUA_TFUNCTION);
  pyr_lua_guard guard;
  pyr_lua_world *world = pyr_lua_get_world(L);
  luaL_checkstack(L, 4, NULL);
  pyr_lua_guard_on(L, world, &guard, NULL, seconds);
  int code = lua_pcall(L, lua_gettop(L) - 2, LUA_MULTRET, 0);
  pyr_status ended = pyr_lua_guard_off(L, world, &guard);
  if (ended != PYR_OK) {
    lua_settop(L, 0);
    lua_pushnil(L);
    if (ended == PYR_CANCELLED) lua_pushliteral(L, "cancelled");
    else lua_pushliteral(L, "time");
    return 2;
  }
  if (code != LUA_OK) return lua_error(L);
  lua_pushboolean(L, 1);
  lua_replace(L, 1);
  return lua_gettop(L);
}

void pyr_lua_open_guard(lua_State *L) {
  lua_pushcfunction(L, core_limited);
  lua_setfield(L, -2, "limited");
}

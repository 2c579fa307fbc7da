/* ltrace.c — what became of a plan, told to a Lua function.
 *
 *   cache:tell(fn or nil, seconds)       fn(record) after each plan; it may take so long (0: no
 *                                        limit)
 *
 * A record is a table of its own:
 *   policy, options                      its name, and what `options` of the bound policy says
 *   when                                 "prefill", "decode", "evict", or "prepared": a prefill's
 *   plan
 *                                        that ran after preparing passes
 *   layer, layers, heads, tokens         layer from 1; K/V heads; tokens that the cache has seen
 *   rows, candidates, kept               { min, mean, max } over the heads: before, what was
 *                                        ranked of them, after
 *   evicted                              rows, of all heads together
 *   hidden, hidden_kept                  prefill: tokens that reached the layer, that go on
 *   asked                                the plan: keep (a number, or a list), first, last, share,
 *                                        prune, and mass, above, least, merge, rotate, losers where
 *                                        it has them
 *   why                                  "no plan", "fits" or the score that ranked
 *   seconds, bytes                       that it took; of the layer's rows after it
 * What the function raises ends the call that the plan belongs to, as what a policy raises does. */
#include "lauxpyr.h"

#include <stdio.h>
#include <string.h>

typedef struct lua_tracer {        /* the callback's ud; as many references as caches use it. Its
                                      user value: the function */
  int refs;
  lua_State *main;                 /* for giving the reference back */
  pyr_lua_world *world;
  pyr_runtime *rt;                 /* retained, for messages */
  double seconds;
} lua_tracer;

typedef struct trace_call { const lua_tracer *tracer; const pyr_trace *record; } trace_call;

static const char *const whens[] = { "prefill", "decode", "evict", "prepared" };

/* ---- the record ------------------------------------------------------------------------------ */

static void set_number(lua_State *L, const char *key, int64_t value) {
  lua_pushinteger(L, (lua_Integer)value);
  lua_setfield(L, -2, key);
}

static void set_string(lua_State *L, const char *key, const char *value) {
  lua_pushstring(L, value);
  lua_setfield(L, -2, key);
}

static void set_float(lua_State *L, const char *key, double value) {
  lua_pushnumber(L, value);
  lua_setfield(L, -2, key);
}

static void set_spread(lua_State *L, const char *key, pyr_spread s, int32_t lanes) {
  lua_createtable(L, 0, 3);
  set_number(L, "min", s.min);
  set_number(L, "max", s.max);
  if (s.sum % lanes == 0) set_number(L, "mean", s.sum / lanes);
  else set_float(L, "mean", (double)s.sum / lanes);
  lua_setfield(L, -2, key);
}

static void set_keep(lua_State *L, const pyr_plan *plan) {
  if (plan->keep_count == 0) {
    set_number(L, "keep", plan->keep);
    return;
  }
  lua_createtable(L, plan->keep_count, 0);
  for (int32_t head = 0; head < plan->keep_count; head++) {
    lua_pushinteger(L, plan->keep_of[head]);
    lua_rawseti(L, -2, head + 1);
  }
  lua_setfield(L, -2, "keep");
}

static void set_asked(lua_State *L, const pyr_plan *plan) {
  static const char *const shares[] = { "layer", "head", "pool", "model" };
  static const char *const prunes[] = { "none", "cache", "hidden", "both" };
  lua_createtable(L, 0, 8);
  set_keep(L, plan);
  set_number(L, "first", plan->first);
  set_number(L, "last", plan->last);
  set_string(L, "share", shares[plan->share]);
  set_string(L, "prune", prunes[plan->prune]);
  if (plan->mass > 0) set_float(L, "mass", plan->mass);
  if (plan->bounded) set_float(L, "above", (double)plan->above);
  if (plan->least > 0) set_number(L, "least", plan->least);
  if (plan->merge) set_float(L, "merge", (double)plan->threshold);
  if (plan->rotate == PYR_ROTATE_COMPACT) set_string(L, "rotate", "compact");
  if (plan->losers) set_string(L, "losers", plan->losers == PYR_TIER_WARM ? "warm" : "cold");
  lua_setfield(L, -2, "asked");
}

/* Runs protected: (call) */
static int tell(lua_State *L) {
  const trace_call *call = lua_touserdata(L, 1);
  const pyr_trace *r = call->record;
  luaL_checkstack(L, 12, NULL);
  lua_settop(L, 0);
  lua_rawgetp(L, LUA_REGISTRYINDEX, call->tracer);
  lua_getiuservalue(L, -1, 1);
  lua_createtable(L, 0, 18);
  set_string(L, "policy", r->policy->name ? r->policy->name : "full");
  pyr_lua_push_policy_options(L, r->policy);
  lua_setfield(L, -2, "options");
  set_string(L, "when", whens[r->when]);
  set_number(L, "layer", r->layer + 1);
  set_number(L, "layers", r->layers);
  set_number(L, "heads", r->lanes);
  set_number(L, "tokens", r->tokens);
  set_spread(L, "rows", r->rows, r->lanes);
  set_spread(L, "candidates", r->judged, r->lanes);
  set_spread(L, "kept", r->kept, r->lanes);
  set_number(L, "evicted", r->evicted);
  if (r->when == PYR_WHEN_PREFILL) {
    set_number(L, "hidden", r->hidden);
    set_number(L, "hidden_kept", r->hidden_kept);
  }
  set_asked(L, r->plan);
  set_string(L, "why", r->why);
  set_float(L, "seconds", r->seconds);
  set_number(L, "bytes", (int64_t)r->bytes);
  lua_call(L, 1, 0);
  return 0;
}

static pyr_status on_trace(void *ud, const pyr_trace *record) {
  lua_tracer *tracer = ud;
  trace_call call = { tracer, record };
  char who[64];
  snprintf(who, sizeof who, "trace, layer %d, %s", (int)record->layer + 1, whens[record->when]);
  return pyr_lua_call_guarded(tracer->world, tracer->rt, tracer->seconds, who, tell, &call);
}

/* ---- life ------------------------------------------------------------------------------------ */

static void on_retain(void *ud) { ((lua_tracer *)ud)->refs++; }

static void on_release(void *ud) {
  lua_tracer *tracer = ud;
  if (--tracer->refs > 0) return;
  lua_State *L = tracer->main;
  pyr_runtime_free(tracer->rt);
  tracer->rt = NULL;
  lua_pushnil(L);
  lua_rawsetp(L, LUA_REGISTRYINDEX, tracer);
}

void pyr_lua_to_tracer(lua_State *L, int arg, double seconds, pyr_tracer *out) {
  memset(out, 0, sizeof *out);
  if (lua_isnoneornil(L, arg)) return;
  luaL_checktype(L, arg, LUA_TFUNCTION);
  arg = lua_absindex(L, arg);
  lua_tracer *tracer = lua_newuserdatauv(L, sizeof *tracer, 1);
  *tracer = (lua_tracer){ .world = pyr_lua_get_world(L), .seconds = seconds };
  lua_pushvalue(L, arg);
  lua_setiuservalue(L, -2, 1);
  lua_rawgeti(L, LUA_REGISTRYINDEX, LUA_RIDX_MAINTHREAD);
  tracer->main = lua_tothread(L, -1);
  lua_pop(L, 1);
  *out = (pyr_tracer){ .size = sizeof *out, .ud = tracer, .trace = on_trace, .retain = on_retain,
                       .release = on_release };
}

void pyr_lua_start_tracer(lua_State *L, int at, pyr_tracer *tracer, pyr_runtime *rt) {
  lua_tracer *box = tracer->ud;
  if (box == NULL) return;
  lua_pushvalue(L, at);
  lua_rawsetp(L, LUA_REGISTRYINDEX, box);
  box->refs = 1;
  box->rt = pyr_runtime_retain(rt);
}

/* lplan.c — policies: from Lua functions to the core's callbacks.
 *
 * Lua composes and checks (lua/pyramid/policy.lua); what crosses over is flat numbers and a packed score program. The
 * value given to pyr_lua_to_policy is a table { name =, prefill =, trigger =, decode = } of functions, each optional:
 *
 *   prefill(shape…) -> keep, first, last, share, prune, program, least, mass, threshold, rotate    or nothing: keep all
 *   trigger(shape…) -> every, over, window, once, program                                          or nothing: never fires
 *   decode(shape…)  -> as prefill
 *
 * keep is a number, or a string of one packed i4 for each head; threshold is nil where losers are not merged.
 * shape… is layer, layers, prompt, past, rows, waiting, tokens, heads, kv_heads, head_dim (layer from 1). A program is
 * packed operations, "<BBBxi4f" each. */
#include "lpyramid.h"

#include <string.h>

enum { OP_BYTES = 12 };

typedef struct lua_policy {        /* the callbacks' ud; as many references as caches use it */
  int refs;
  int functions;                   /* registry reference of the table */
  lua_State *main;                 /* for giving the reference back */
  pyr_lua_world *world;
  pyr_runtime *rt;                 /* retained, for messages */
  char name[64];
} lua_policy;

typedef struct policy_call {
  lua_policy *policy;
  const char *function;
  const pyr_shape *shape;
  pyr_plan *plan;
  pyr_trigger *trigger;
} policy_call;

/* ---- results ---------------------------------------------------------------------------------------------------------- */

static int read_program(lua_State *L, int arg, pyr_score_op *ops, int most) {
  size_t bytes = 0;
  const char *packed = lua_isnoneornil(L, arg) ? "" : luaL_checklstring(L, arg, &bytes);
  if (bytes % OP_BYTES != 0 || bytes / OP_BYTES > (size_t)most) return luaL_error(L, "a score of more than %d operations", most);
  int count = (int)(bytes / OP_BYTES);
  for (int i = 0; i < count; i++, packed += OP_BYTES) {
    ops[i].code = (uint8_t)packed[0];
    ops[i].a = (uint8_t)packed[1];
    ops[i].b = (uint8_t)packed[2];
    memcpy(&ops[i].n, packed + 4, 4);
    memcpy(&ops[i].x, packed + 8, 4);
  }
  return count;
}

static void read_keep(lua_State *L, int at, pyr_plan *plan) {
  size_t bytes;
  if (lua_type(L, at) != LUA_TSTRING) {
    plan->keep = luaL_checkinteger(L, at);
    return;
  }
  const char *packed = lua_tolstring(L, at, &bytes);
  if (bytes > sizeof plan->keep_of) luaL_error(L, "keep lists more than %d heads", PYR_KEEP_HEADS);
  memcpy(plan->keep_of, packed, bytes);
  plan->keep_count = (int32_t)(bytes / sizeof *plan->keep_of);
}

static void read_plan(lua_State *L, int at, pyr_plan *plan) {
  read_keep(L, at, plan);
  plan->first = luaL_checkinteger(L, at + 1);
  plan->last = luaL_checkinteger(L, at + 2);
  plan->share = (pyr_share)luaL_checkinteger(L, at + 3);
  plan->prune = (pyr_prune)luaL_checkinteger(L, at + 4);
  plan->score.length = read_program(L, at + 5, plan->score.ops, PYR_SCORE_MAX);
  plan->least = luaL_checkinteger(L, at + 6);
  plan->mass = luaL_checknumber(L, at + 7);
  plan->merge = !lua_isnil(L, at + 8);
  plan->threshold = (float)luaL_optnumber(L, at + 8, 0);
  plan->rotate = (pyr_rotate)luaL_checkinteger(L, at + 9);
}

static void read_trigger(lua_State *L, int at, pyr_trigger *trigger) {
  pyr_score_op track;
  trigger->every = luaL_checkinteger(L, at);
  trigger->over = luaL_checkinteger(L, at + 1);
  trigger->window = luaL_checkinteger(L, at + 2);
  trigger->once = lua_toboolean(L, at + 3);
  if (read_program(L, at + 4, &track, 1) == 1) trigger->track = track;
}

/* ---- calls -------------------------------------------------------------------------------------------------------------- */

/* Runs protected: pushes the shape, calls, reads the results. */
static int call_policy(lua_State *L) {
  policy_call *call = lua_touserdata(L, 1);
  const pyr_shape *s = call->shape;
  lua_settop(L, 0);
  luaL_checkstack(L, 24, NULL);
  lua_rawgeti(L, LUA_REGISTRYINDEX, call->policy->functions);
  lua_getfield(L, 1, call->function);
  const lua_Integer numbers[] = { s->layer + 1, s->layers, s->prompt, s->past, s->rows, s->waiting, s->tokens, s->heads,
                                  s->kv_heads, s->head_dim };
  for (size_t i = 0; i < sizeof numbers / sizeof *numbers; i++) lua_pushinteger(L, numbers[i]);
  lua_call(L, sizeof numbers / sizeof *numbers, call->plan ? 10 : 5);
  if (lua_isnil(L, 2)) return 0;
  if (call->plan) read_plan(L, 2, call->plan);
  else read_trigger(L, 2, call->trigger);
  return 0;
}

static pyr_status run(policy_call *call) {
  lua_policy *policy = call->policy;
  lua_State *L = policy->world->running;
  if (L == NULL) return pyr_runtime_set_error(policy->rt, PYR_POLICY, "policy %s: no Lua state is running", policy->name);
  if (!lua_checkstack(L, 4)) return pyr_runtime_set_error(policy->rt, PYR_MEMORY, "policy %s: the Lua stack is full", policy->name);
  lua_pushcfunction(L, call_policy);
  lua_pushlightuserdata(L, call);
  int code = lua_pcall(L, 1, 0, 0);
  if (code == LUA_OK) return PYR_OK;
  const char *message = lua_type(L, -1) == LUA_TSTRING ? lua_tostring(L, -1) : "an error that is not a string";
  pyr_status status = pyr_runtime_set_error(policy->rt, code == LUA_ERRMEM ? PYR_MEMORY : PYR_POLICY, "policy %s, layer %d, %s: %s",
                                            policy->name, (int)call->shape->layer + 1, call->function, message);
  lua_pop(L, 1);
  return status;
}

static pyr_status on_prefill(void *ud, const pyr_shape *shape, pyr_plan *plan) {
  policy_call call = { ud, "prefill", shape, plan, NULL };
  return run(&call);
}

static pyr_status on_trigger(void *ud, const pyr_shape *shape, pyr_trigger *trigger) {
  policy_call call = { ud, "trigger", shape, NULL, trigger };
  return run(&call);
}

static pyr_status on_decode(void *ud, const pyr_shape *shape, pyr_plan *plan) {
  policy_call call = { ud, "decode", shape, plan, NULL };
  return run(&call);
}

/* ---- life ---------------------------------------------------------------------------------------------------------------- */

static void on_retain(void *ud) { ((lua_policy *)ud)->refs++; }

/* The last cache to go frees the box, a userdata anchored in the registry beside the functions. */
static void on_release(void *ud) {
  lua_policy *policy = ud;
  if (--policy->refs > 0) return;
  lua_State *L = policy->main;
  pyr_runtime_free(policy->rt);
  policy->rt = NULL;
  luaL_unref(L, LUA_REGISTRYINDEX, policy->functions);
  lua_pushnil(L);
  lua_rawsetp(L, LUA_REGISTRYINDEX, policy);
}

/* Fills *out and returns true; the caller makes a cache from it and then calls out->release once (the box starts with one
 * reference, so that an error between the two is the only thing that could leak: there is none). */
void pyr_lua_to_policy(lua_State *L, int arg, pyr_runtime *rt, pyr_policy *out) {
  memset(out, 0, sizeof *out);
  if (lua_isnoneornil(L, arg)) return;
  luaL_checktype(L, arg, LUA_TTABLE);
  arg = lua_absindex(L, arg);
  lua_policy *policy = lua_newuserdatauv(L, sizeof *policy, 0);
  memset(policy, 0, sizeof *policy);
  lua_getfield(L, arg, "name");
  const char *name = lua_tostring(L, -1);
  strncpy(policy->name, name ? name : "?", sizeof policy->name - 1);
  static const char *const functions[3] = { "prefill", "trigger", "decode" };
  int has[3];
  for (int i = 0; i < 3; i++) {
    int type = lua_getfield(L, arg, functions[i]);
    if (type != LUA_TNIL && type != LUA_TFUNCTION) luaL_error(L, "policy %s: %s is not a function", policy->name, functions[i]);
    has[i] = type == LUA_TFUNCTION;
    lua_pop(L, 1);
  }
  policy->world = pyr_lua_get_world(L);
  lua_rawgeti(L, LUA_REGISTRYINDEX, LUA_RIDX_MAINTHREAD);
  policy->main = lua_tothread(L, -1);
  lua_pop(L, 2);                                   /* main thread, name */
  lua_pushvalue(L, -1);
  lua_rawsetp(L, LUA_REGISTRYINDEX, policy);       /* anchors the box */
  lua_pop(L, 1);
  lua_pushvalue(L, arg);
  policy->functions = luaL_ref(L, LUA_REGISTRYINDEX);
  policy->refs = 1;
  policy->rt = pyr_runtime_retain(rt);
  *out = (pyr_policy){ .ud = policy, .name = policy->name, .prefill = has[0] ? on_prefill : NULL,
                       .trigger = has[1] ? on_trigger : NULL, .decode = has[2] ? on_decode : NULL, .retain = on_retain,
                       .release = on_release };
}

void pyr_lua_open_policy(lua_State *L) { (void)L; }

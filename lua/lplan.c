/* lplan.c — policies: from Lua functions to the core's callbacks.
 *
 * Lua composes and checks (lua/pyramid/policy.lua); what crosses over is flat numbers and a packed
 * score program. The value given to pyr_lua_to_policy is a table { name =, seconds =, prefill =,
 * trigger =, decode =, prepare =, [1] = }, all optional: how long a call may take (nil or 0:
 * without a limit), and functions
 *
 *   prepare(shape…) -> program, block, first, lead, among, sinks or nothing: no preparing pass;
 *   first and lead are strings of packed i4
 *   prefill(shape…) -> keep, first, last, share, prune, program, least, mass, threshold, rotate,
 *   above, weight (a program), read, losers (0, or the tier that they go to) or nothing: keep all
 *   trigger(shape…) -> every, over, window, once, program, recall or nothing: never fires
 *   decode(shape…)  -> as prefill
 *
 * keep is a number, or a string of one packed i4 for each head; threshold is nil where losers are
 * not merged, above where scores are not bounded, weight where layers do not divide a budget, read
 * where steps go on reading what they do; else it is a string of four packed i8: a pyr_read.
 * shape… is layer, layers, prompt, past, rows, waiting, tokens, heads, kv_heads, head_dim (layer
 * from 1). A program is packed operations, "<BBBxi4f" each.
 *
 * [1] of the table holds what programs refer to by number: vectors (tables of numbers) and {
 * function, names of its inputs } (custom scores). policy.lua puts them there and keeps them while
 * they may be asked for.
 *
 * A custom score's function gets a lane: { layer, head, rows, positions, and an input by each name
 * }, and keys and values when first asked for. All of these are vectors that end with the call
 * (lvector.c). */
#include "lvector.h"

#include <stdio.h>
#include <string.h>

enum { OP_BYTES = 12 };

typedef struct lua_policy {        /* the callbacks' ud; as many references as caches use it. Its
                                      user values: the table; what the last preparation points to */
  int refs;
  lua_State *main;                 /* for giving the reference back */
  pyr_lua_world *world;
  pyr_runtime *rt;                 /* retained, for messages */
  double seconds;                  /* that a call may take; 0: no limit */
  bool prepares;                   /* there is a function `prepare` */
  char name[64];
} lua_policy;

typedef struct policy_call {
  lua_policy *policy;
  const char *function;
  const pyr_shape *shape;
  pyr_plan *plan;
  pyr_trigger *trigger;
  pyr_preparation *preparation;
} policy_call;

/* ---- results --------------------------------------------------------------------------------- */

int pyr_lua_read_program(lua_State *L, int arg, pyr_score_op *ops, int most) {
  size_t bytes = 0;
  const char *packed = lua_isnoneornil(L, arg) ? "" : luaL_checklstring(L, arg, &bytes);
  if (bytes % OP_BYTES != 0 || bytes / OP_BYTES > (size_t)most)
    return luaL_error(L, "a score of more than %d operations", most);
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

static void read_read(lua_State *L, int at, pyr_read *read) {
  int64_t numbers[4];
  size_t bytes;
  if (lua_isnoneornil(L, at)) return;
  const char *packed = luaL_checklstring(L, at, &bytes);
  if (bytes != sizeof numbers) luaL_error(L, "read is not packed");
  memcpy(numbers, packed, bytes);
  *read = (pyr_read){ numbers[0], numbers[1], numbers[2], (pyr_digest)numbers[3] };
}

static void read_plan(lua_State *L, int at, pyr_plan *plan) {
  read_keep(L, at, plan);
  plan->first = luaL_checkinteger(L, at + 1);
  plan->last = luaL_checkinteger(L, at + 2);
  plan->share = (pyr_share)luaL_checkinteger(L, at + 3);
  plan->prune = (pyr_prune)luaL_checkinteger(L, at + 4);
  plan->score.length = pyr_lua_read_program(L, at + 5, plan->score.ops, PYR_SCORE_MAX);
  plan->least = luaL_checkinteger(L, at + 6);
  plan->mass = luaL_checknumber(L, at + 7);
  plan->merge = !lua_isnil(L, at + 8);
  plan->threshold = (float)luaL_optnumber(L, at + 8, 0);
  plan->rotate = (pyr_rotate)luaL_checkinteger(L, at + 9);
  plan->bounded = !lua_isnil(L, at + 10);
  plan->above = (float)luaL_optnumber(L, at + 10, 0);
  plan->weight.length = pyr_lua_read_program(L, at + 11, plan->weight.ops, PYR_SCORE_MAX);
  read_read(L, at + 12, &plan->read);
  plan->losers = (int32_t)luaL_checkinteger(L, at + 13);
}

static void read_trigger(lua_State *L, int at, pyr_trigger *trigger) {
  pyr_score_op track;
  trigger->every = luaL_checkinteger(L, at);
  trigger->over = luaL_checkinteger(L, at + 1);
  trigger->window = luaL_checkinteger(L, at + 2);
  trigger->once = lua_toboolean(L, at + 3);
  if (pyr_lua_read_program(L, at + 4, &track, 1) == 1) trigger->track = track;
  trigger->recall = luaL_checkinteger(L, at + 5);
}

/* The strings at `at` and `at + 1` are kept with the policy, as what is read points into them. */
static const int32_t *read_ids(lua_State *L, int at, int64_t *count) {
  size_t bytes;
  const char *packed = luaL_checklstring(L, at, &bytes);
  *count = (int64_t)(bytes / sizeof(int32_t));
  return (const int32_t *)packed;
}

static void read_preparation(lua_State *L, int at, const lua_policy *policy, pyr_preparation *out) {
  pyr_score_op track;
  if (pyr_lua_read_program(L, at, &track, 1) != 1) luaL_error(L, "track is no single signal");
  out->track = track;
  out->block = luaL_checkinteger(L, at + 1);
  out->first = read_ids(L, at + 2, &out->first_count);
  out->lead = read_ids(L, at + 3, &out->lead_count);
  out->among = (pyr_among)luaL_checkinteger(L, at + 4);
  out->sinks = luaL_checkinteger(L, at + 5);
  lua_rawgetp(L, LUA_REGISTRYINDEX, policy);
  lua_createtable(L, 2, 0);
  for (int i = 0; i < 2; i++) {
    lua_pushvalue(L, at + 2 + i);
    lua_rawseti(L, -2, i + 1);
  }
  lua_setiuservalue(L, -2, 2);
  lua_pop(L, 1);
}

/* ---- calls ----------------------------------------------------------------------------------- */

/* Pushes the table that the policy was made from; needs two places of stack. */
static void push_functions(lua_State *L, const lua_policy *policy) {
  lua_rawgetp(L, LUA_REGISTRYINDEX, policy);
  lua_getiuservalue(L, -1, 1);
  lua_replace(L, -2);
}

/* Runs protected: pushes the shape, calls, reads the results. */
static int call_policy(lua_State *L) {
  policy_call *call = lua_touserdata(L, 1);
  const pyr_shape *s = call->shape;
  lua_settop(L, 0);
  luaL_checkstack(L, 24, NULL);
  push_functions(L, call->policy);
  lua_getfield(L, 1, call->function);
  const lua_Integer numbers[] = { s->layer + 1, s->layers, s->prompt, s->past, s->rows, s->waiting,
                                  s->tokens, s->heads, s->kv_heads, s->head_dim };
  for (size_t i = 0; i < sizeof numbers / sizeof *numbers; i++) lua_pushinteger(L, numbers[i]);
  lua_call(L, sizeof numbers / sizeof *numbers, call->plan ? 14 : 6);
  if (lua_isnil(L, 2)) return 0;
  if (call->plan) read_plan(L, 2, call->plan);
  else if (call->trigger) read_trigger(L, 2, call->trigger);
  else read_preparation(L, 2, call->policy, call->preparation);
  return 0;
}

/* Calls fn(argument) in the state that is running, under a guard. */
static pyr_status run_protected(lua_policy *policy, lua_CFunction fn, void *argument,
                                int32_t layer, const char *when) {
  char who[128];
  snprintf(who, sizeof who, "policy %s, layer %d, %s", policy->name, (int)layer + 1, when);
  return pyr_lua_call_guarded(policy->world, policy->rt, policy->seconds, who, fn, argument);
}

static pyr_status run(policy_call *call) {
  return run_protected(call->policy, call_policy, call, call->shape->layer, call->function);
}

static pyr_status on_prefill(void *ud, const pyr_shape *shape, pyr_plan *plan) {
  policy_call call = { ud, "prefill", shape, plan, NULL, NULL };
  return run(&call);
}

static pyr_status on_trigger(void *ud, const pyr_shape *shape, pyr_trigger *trigger) {
  policy_call call = { ud, "trigger", shape, NULL, trigger, NULL };
  return run(&call);
}

static pyr_status on_decode(void *ud, const pyr_shape *shape, pyr_plan *plan) {
  policy_call call = { ud, "decode", shape, plan, NULL, NULL };
  return run(&call);
}

static pyr_status on_prepare(void *ud, const pyr_shape *shape, pyr_preparation *out) {
  policy_call call = { ud, "prepare", shape, NULL, NULL, out };
  return run(&call);
}

/* ---- what programs refer to ------------------------------------------------------------------ */

/* Pushes slot `number` of the policy. Raises nothing: three places of stack are there. */
static int push_slot(lua_State *L, const lua_policy *policy, int32_t number) {
  push_functions(L, policy);
  int type = lua_rawgeti(L, -1, 1) == LUA_TTABLE ? lua_rawgeti(L, -1, number)
      : (lua_pushnil(L), LUA_TNIL);
  lua_replace(L, -3);
  lua_pop(L, 1);
  return type;
}

static pyr_status on_table(void *ud, int32_t number, pyr_table *out) {
  lua_policy *policy = ud;
  lua_State *L = policy->world->running;
  int64_t rows, cols;
  if (L == NULL || !lua_checkstack(L, 6)) return PYR_POLICY;
  const float *values = push_slot(L, policy, number) == LUA_TUSERDATA
      ? pyr_lua_to_vector(L, -1, &rows, &cols) : NULL;
  if (values) {
    *out = (pyr_table){ cols ? PYR_BY_HEAD : PYR_BY_POSITION, cols ? rows * cols : rows, cols,
                        values };
    lua_pop(L, 1);
    return PYR_OK;
  }
  lua_pop(L, 1);
  return PYR_POLICY;
}

typedef struct custom_call {
  lua_policy *policy;
  int32_t number;
  const pyr_custom_view *view;
  float *out;
  pyr_status status;               /* of the core calls that the function made through its lane */
} custom_call;

/* __index of a lane, upvalue: its scope. */
static int lane_index(lua_State *L) {
  pyr_lua_scope *scope = lua_touserdata(L, lua_upvalueindex(1));
  const char *key = lua_tostring(L, 2);
  bool values = key && strcmp(key, "values") == 0, hidden = key && strcmp(key, "hidden") == 0,
      turned = key && strcmp(key, "turned") == 0,
      queries = turned || (key && strcmp(key, "queries") == 0);
  if (!values && !hidden && !queries && !(key && strcmp(key, "keys") == 0))
    return luaL_error(L, "a lane has no '%s'", luaL_tolstring(L, 2, NULL));
  if (!scope->view) return luaL_error(L, "a lane is valid only while its custom score runs");
  float *rows = pyr_lua_new_vector(L, scope->view->rows,
                                   hidden ? scope->view->width
                                   : scope->view->head_dim * (queries ? scope->view->group : 1));
  lua_pushvalue(L, lua_upvalueindex(1));
  lua_insert(L, -2);
  pyr_lua_bind_vector(L, lua_gettop(L) - 1);
  scope->status = hidden ? pyr_custom_hidden(scope->view, rows)
      : queries ? pyr_custom_queries(scope->view, turned, rows)
                         : pyr_custom_rows(scope->view, values, rows);
  if (scope->status == PYR_ARGUMENT) {
    scope->status = PYR_OK;               /* the function's mistake, which the policy answers for */
    return luaL_error(L, "a lane has no %s unless score.custom is told `%s = true`",
                      hidden ? "hidden states" : "queries", hidden ? key : "queries");
  }
  if (scope->status != PYR_OK) return luaL_error(L, "no memory for the lane's %s", key);
  lua_pushvalue(L, 2);
  lua_pushvalue(L, -2);
  lua_rawset(L, 1);                       /* asked for again, it is there */
  return 1;
}

/* (call, scope): shows the lane to the function and reads what it returns. */
static int call_custom(lua_State *L) {
  custom_call *call = lua_touserdata(L, 1);
  const pyr_custom_view *view = call->view;
  luaL_checkstack(L, 12, NULL);
  if (push_slot(L, call->policy, call->number) != LUA_TTABLE)
    return luaL_error(L, "a custom score is gone: its plan was asked for anew");
  lua_rawgeti(L, 3, 1);                   /* 4: the function */
  lua_createtable(L, 0, 6 + view->inputs);
  lua_pushinteger(L, view->layer + 1);
  lua_setfield(L, 5, "layer");
  lua_pushinteger(L, view->head + 1);
  lua_setfield(L, 5, "head");
  lua_pushinteger(L, view->rows);
  lua_setfield(L, 5, "rows");
  float *positions = pyr_lua_new_vector(L, view->rows, 0);
  for (int64_t i = 0; i < view->rows; i++) positions[i] = (float)view->positions[i];
  pyr_lua_bind_vector(L, 2);
  lua_setfield(L, 5, "positions");
  for (int i = 0; i < view->inputs; i++) {
    lua_rawgeti(L, 3, i + 2);
    pyr_lua_push_view(L, 2, view->input[i], view->rows);
    lua_rawset(L, 5);
  }
  lua_createtable(L, 0, 1);
  lua_pushvalue(L, 2);
  lua_pushcclosure(L, lane_index, 1);
  lua_setfield(L, -2, "__index");
  lua_setmetatable(L, 5);
  lua_call(L, 1, 1);
  pyr_lua_read_vector(L, 4, call->out, view->rows);
  return 0;
}

/* (call): the scope ends with the call, whether it returned or failed. */
static int scoped_custom(lua_State *L) {
  custom_call *call = lua_touserdata(L, 1);
  pyr_lua_scope *scope = lua_newuserdatauv(L, sizeof *scope, 0);
  *scope = (pyr_lua_scope){ call->view, PYR_OK };
  lua_pushcfunction(L, call_custom);
  lua_pushvalue(L, 1);
  lua_pushvalue(L, 2);
  int code = lua_pcall(L, 2, 0, 0);
  scope->view = NULL;
  call->status = scope->status;
  return code == LUA_OK ? 0 : lua_error(L);
}

static pyr_status on_custom(void *ud, int32_t number, const pyr_custom_view *view, float *out) {
  custom_call call = { ud, number, view, out, PYR_OK };
  pyr_status status = run_protected(ud, scoped_custom, &call, view->layer, "prefill");
  if (status != PYR_POLICY || call.status == PYR_OK) return status;
  return pyr_runtime_set_error(call.policy->rt, call.status,
                               "policy %s, layer %d, prefill: no memory for the rows of a lane",
                                   call.policy->name, (int)view->layer + 1);
}

/* ---- life ------------------------------------------------------------------------------------ */

static void on_retain(void *ud) { ((lua_policy *)ud)->refs++; }

/* The last cache to go frees the box, a userdata anchored in the registry, and with it the table of
 * functions. */
static void on_release(void *ud) {
  lua_policy *policy = ud;
  if (--policy->refs > 0) return;
  lua_State *L = policy->main;
  pyr_runtime_free(policy->rt);
  policy->rt = NULL;
  lua_pushnil(L);
  lua_rawsetp(L, LUA_REGISTRYINDEX, policy);
}

void pyr_lua_to_policy(lua_State *L, int arg, pyr_policy *out) {
  memset(out, 0, sizeof *out);
  if (lua_isnoneornil(L, arg)) return;
  luaL_checktype(L, arg, LUA_TTABLE);
  arg = lua_absindex(L, arg);
  lua_policy *policy = lua_newuserdatauv(L, sizeof *policy, 2);
  memset(policy, 0, sizeof *policy);
  lua_pushvalue(L, arg);
  lua_setiuservalue(L, -2, 1);
  lua_getfield(L, arg, "name");
  const char *name = lua_tostring(L, -1);
  strncpy(policy->name, name ? name : "?", sizeof policy->name - 1);
  lua_getfield(L, arg, "seconds");
  policy->seconds = lua_tonumber(L, -1);
  lua_pop(L, 2);
  static const char *const functions[] = { "prefill", "trigger", "decode", "prepare" };
  int has[4];
  for (int i = 0; i < 4; i++) {
    int type = lua_getfield(L, arg, functions[i]);
    if (type != LUA_TNIL && type != LUA_TFUNCTION)
      luaL_error(L, "policy %s: %s is not a function", policy->name, functions[i]);
    has[i] = type == LUA_TFUNCTION;
    lua_pop(L, 1);
  }
  policy->prepares = has[3];
  policy->world = pyr_lua_get_world(L);
  lua_rawgeti(L, LUA_REGISTRYINDEX, LUA_RIDX_MAINTHREAD);
  policy->main = lua_tothread(L, -1);
  lua_pop(L, 1);
  *out = (pyr_policy){ .ud = policy, .name = policy->name, .prefill = has[0] ? on_prefill : NULL,
                       .trigger = has[1] ? on_trigger : NULL, .decode = has[2] ? on_decode : NULL,
                           .retain = on_retain,
                       .release = on_release, .table = on_table, .custom = on_custom };
}

pyr_preparer pyr_lua_preparer_of(const pyr_policy *policy) {
  const lua_policy *own = policy->ud;
  if (own == NULL || !own->prepares) return (pyr_preparer){ 0 };
  return (pyr_preparer){ .size = sizeof(pyr_preparer), .ud = policy->ud, .prepare = on_prepare,
                         .retain = on_retain, .release = on_release };
}

int pyr_lua_push_policy_options(lua_State *L, const pyr_policy *policy) {
  if (policy->retain != on_retain) return lua_pushnil(L), LUA_TNIL;
  push_functions(L, policy->ud);
  int type = lua_getfield(L, -1, "options");
  lua_replace(L, -2);
  return type;
}

void pyr_lua_start_policy(lua_State *L, int at, pyr_policy *out, pyr_runtime *rt) {
  lua_policy *policy = out->ud;
  if (policy == NULL) return;
  lua_pushvalue(L, at);
  lua_rawsetp(L, LUA_REGISTRYINDEX, policy);
  policy->refs = 1;
  policy->rt = pyr_runtime_retain(rt);
}

void pyr_lua_open_policy(lua_State *L) { (void)L; }

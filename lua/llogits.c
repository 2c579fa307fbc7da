/* llogits.c — one position's logits for Lua: a read-only view of vocab floats. Ids are 0-based
 * data.
 *
 *   logits[id]  #logits  logits:argmax() -> id, value   logits:logprob(id) -> number (natural log)
 *   logits:kl(other) -> number                          KL(softmax(logits) || softmax(other)) in
 *                                                       nats
 *   logits:totable() -> { [1] = logits[0], … }          logits:tostring() -> packed native f32
 *
 * Several positions of one prefill view one buffer, which is the user value of each. */
#include "llogits.h"

#include <math.h>
#include <string.h>

#define LOGITS "pyramid.logits"

typedef struct logits_view {
  const float *data;
  int32_t vocab;
  int has_lse;
  double lse;              /* log of the sum of exponentials, computed when first asked for */
} logits_view;

float *pyr_lua_new_logits_buffer(lua_State *L, int64_t count, int32_t vocab) {
  return lua_newuserdatauv(L, (size_t)count * (size_t)vocab * sizeof(float), 0);
}

void pyr_lua_push_logits(lua_State *L, int buffer, int64_t index, int32_t vocab) {
  buffer = lua_absindex(L, buffer);
  const float *data = lua_touserdata(L, buffer);
  logits_view *view = lua_newuserdatauv(L, sizeof *view, 1);
  *view = (logits_view){ data + index * vocab, vocab, 0, 0.0 };
  lua_pushvalue(L, buffer);
  lua_setiuservalue(L, -2, 1);
  luaL_setmetatable(L, LOGITS);
}

static logits_view *check_view(lua_State *L, int arg) { return luaL_checkudata(L, arg, LOGITS); }

const float *pyr_lua_check_logits(lua_State *L, int arg, int32_t *vocab) {
  logits_view *view = check_view(L, arg);
  *vocab = view->vocab;
  return view->data;
}

/* logits[id], or a method by name (upvalue 1: the methods) */
static int logits_index(lua_State *L) {
  logits_view *view = check_view(L, 1);
  int exact;
  lua_Integer id = lua_tointegerx(L, 2, &exact);
  if (exact && lua_type(L, 2) == LUA_TNUMBER) {
    if (id < 0 || id >= view->vocab) return 0;
    lua_pushnumber(L, (lua_Number)view->data[id]);
    return 1;
  }
  lua_settop(L, 2);
  lua_rawget(L, lua_upvalueindex(1));
  return 1;
}

static int logits_len(lua_State *L) {
  lua_pushinteger(L, check_view(L, 1)->vocab);
  return 1;
}

static int logits_argmax(lua_State *L) {
  logits_view *view = check_view(L, 1);
  int32_t best = 0;
  for (int32_t i = 1; i < view->vocab; i++)
    if (view->data[i] > view->data[best] || isnan(view->data[best])) best = i;
  lua_pushinteger(L, best);
  lua_pushnumber(L, (lua_Number)view->data[best]);
  return 2;
}

static double lse_of(logits_view *view) {
  if (!view->has_lse) {
    float highest = -INFINITY;
    double sum = 0;
    for (int32_t i = 0; i < view->vocab; i++) highest = fmaxf(highest, view->data[i]);
    for (int32_t i = 0; i < view->vocab; i++) sum += exp((double)view->data[i] - (double)highest);
    view->lse = (double)highest + log(sum);
    view->has_lse = 1;
  }
  return view->lse;
}

static int logits_logprob(lua_State *L) {
  logits_view *view = check_view(L, 1);
  lua_Integer id = luaL_checkinteger(L, 2);
  luaL_argcheck(L, id >= 0 && id < view->vocab, 2, "no such id");
  lua_pushnumber(L, (double)view->data[id] - lse_of(view));
  return 1;
}

/* Whether id a comes before id b: the higher logit first, then the lower id; what is no number
 * comes last. */
static int goes_before(const float *logits, int32_t a, int32_t b) {
  float x = isnan(logits[a]) ? -INFINITY : logits[a], y = isnan(logits[b]) ? -INFINITY : logits[b];
  return x != y ? x > y : a < b;
}

/* heap[0] comes last of all; what moves down from `at` goes before its new children no more. */
static void sink(const float *logits, int32_t *heap, int32_t count, int32_t at) {
  for (int32_t child; (child = 2 * at + 1) < count; at = child) {
    if (child + 1 < count && goes_before(logits, heap[child], heap[child + 1])) child++;
    if (!goes_before(logits, heap[at], heap[child])) return;
    int32_t id = heap[at];
    heap[at] = heap[child];
    heap[child] = id;
  }
}

/* logits:top(k) -> the k most probable ids, the first most, and their log-probabilities; fewer if
 * there are fewer */
static int logits_top(lua_State *L) {
  logits_view *view = check_view(L, 1);
  lua_Integer wanted = luaL_checkinteger(L, 2);
  luaL_argcheck(L, wanted >= 0, 2, "how many cannot be negative");
  int32_t k = wanted < view->vocab ? (int32_t)wanted : view->vocab;
  int32_t *heap = lua_newuserdatauv(L, (size_t)(k ? k : 1) * sizeof *heap, 0);
  lua_createtable(L, k, 0);
  lua_createtable(L, k, 0);
  for (int32_t id = 0; id < k; id++) heap[id] = id;
  for (int32_t at = k / 2 - 1; at >= 0; at--) sink(view->data, heap, k, at);
  for (int32_t id = k; id < view->vocab && k > 0; id++) {
    if (!goes_before(view->data, id, heap[0])) continue;
    heap[0] = id;
    sink(view->data, heap, k, 0);
  }
  double lse = k ? lse_of(view) : 0;
  for (int32_t left = k; left > 0; left--) {
    lua_pushinteger(L, heap[0]);
    lua_rawseti(L, -3, left);
    lua_pushnumber(L, (double)view->data[heap[0]] - lse);
    lua_rawseti(L, -2, left);
    heap[0] = heap[left - 1];
    sink(view->data, heap, left - 1, 0);
  }
  return 2;
}

/* Sum of p (log p - log q). What p gives no weight (a logit of -inf) adds nothing, whatever q says
 * of it. */
static int logits_kl(lua_State *L) {
  logits_view *p = check_view(L, 1), *q = check_view(L, 2);
  luaL_argcheck(L, p->vocab == q->vocab, 2, "logits over another vocabulary");
  double p_lse = lse_of(p), q_lse = lse_of(q), sum = 0;
  for (int32_t i = 0; i < p->vocab; i++) {
    double log_p = (double)p->data[i] - p_lse, weight = exp(log_p);
    if (weight != 0) sum += weight * (log_p - ((double)q->data[i] - q_lse));
  }
  lua_pushnumber(L, sum);
  return 1;
}

static int logits_totable(lua_State *L) {
  logits_view *view = check_view(L, 1);
  lua_createtable(L, view->vocab, 0);
  for (int32_t i = 0; i < view->vocab; i++) {
    lua_pushnumber(L, (lua_Number)view->data[i]);
    lua_rawseti(L, -2, (lua_Integer)i + 1);
  }
  return 1;
}

static int logits_bytes(lua_State *L) {
  logits_view *view = check_view(L, 1);
  lua_pushlstring(L, (const char *)view->data, (size_t)view->vocab * sizeof(float));
  return 1;
}

static int logits_show(lua_State *L) {
  lua_pushfstring(L, "pyramid.logits (%d)", (int)check_view(L, 1)->vocab);
  return 1;
}

void pyr_lua_open_logits(lua_State *L) {
  static const luaL_Reg methods[] = { { "argmax", logits_argmax }, { "logprob", logits_logprob },
                                      { "top", logits_top }, { "totable", logits_totable },
                                      { "kl", logits_kl }, { "tostring", logits_bytes },
                                          { NULL, NULL } };
  if (luaL_newmetatable(L, LOGITS)) {
    luaL_newlib(L, methods);
    lua_pushcclosure(L, logits_index, 1);
    lua_setfield(L, -2, "__index");
    lua_pushcfunction(L, logits_len);
    lua_setfield(L, -2, "__len");
    lua_pushcfunction(L, logits_show);
    lua_setfield(L, -2, "__tostring");
  }
  lua_pop(L, 1);
}

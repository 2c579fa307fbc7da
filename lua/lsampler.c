/* lsampler.c — samplers for Lua.
 *
 *   core.sampler(runtime or nil, options or nil) -> sampler; raises on unknown or impossible
 *   options
 *   sampler:pick(logits) -> id, remembered       logits: of a cache, or a sequence of numbers, the
 *                                                first for id 0
 *   sampler:accept(ids)                          ids seen elsewhere, such as the prompt's
 *   sampler:reset()                              as new: seed and history        sampler:close()
 *
 * Without a runtime the sampler makes a small one of its own. What the options mean is in
 * core/sample/sampler.c. */
#include "lauxpyr.h"

#include <math.h>

#define SAMPLER "pyramid.sampler"

typedef struct sampler_box { pyr_sampler *sampler; pyr_runtime *rt; int busy; } sampler_box;

static sampler_box *check_sampler(lua_State *L, int arg) {
  sampler_box *box = luaL_checkudata(L, arg, SAMPLER);
  if (box->sampler == NULL) luaL_argerror(L, arg, "the sampler is closed");
  if (box->busy)
    luaL_argerror(L, arg,
                  "the sampler is busy: a callback may not use the sampler whose step is running");
  return box;
}

pyr_sampler *pyr_lua_check_sampler(lua_State *L, int arg) { return check_sampler(L, arg)->sampler; }

void pyr_lua_hold_sampler(lua_State *L, int arg, int busy) {
  ((sampler_box *)luaL_checkudata(L, arg, SAMPLER))->busy = busy;
}

static int32_t check_id(lua_State *L, int index, const char *what) {
  int ok;
  lua_Integer id = lua_tointegerx(L, index, &ok);
  if (!ok || id < 0 || id > INT32_MAX)
    luaL_error(L, "sampler: %s must be token ids, integers from 0; got %s", what,
               luaL_tolstring(L, index, NULL));
  return (int32_t)id;
}

/* ---- options --------------------------------------------------------------------------------- */

static float number_option(lua_State *L, const char *key) {
  double value = 0;
  if (lua_getfield(L, 2, key) != LUA_TNIL) {
    int ok;
    value = lua_tonumberx(L, -1, &ok);
    if (!ok) luaL_error(L, "sampler: %s must be a number, not a %s", key, luaL_typename(L, -1));
    if (isfinite(value) && !isfinite((float)value))
      luaL_error(L, "sampler: %s is out of range", key);
  }
  lua_pop(L, 1);
  return (float)value;
}

static lua_Integer integer_option(lua_State *L, const char *key, lua_Integer low,
                                  lua_Integer high) {
  lua_Integer value = 0;
  if (lua_getfield(L, 2, key) != LUA_TNIL) {
    int ok;
    value = lua_tointegerx(L, -1, &ok);
    if (!ok)
      luaL_error(L, "sampler: %s must be an integer, not %s", key, luaL_tolstring(L, -1, NULL));
    if (value < low || value > high)
      luaL_error(L, "sampler: %s must be between %I and %I", key, (LUAI_UACINT)low,
                 (LUAI_UACINT)high);
  }
  lua_pop(L, 1);
  return value;
}

/* Reads logit_bias = { [id] = bias, … }; the array is a userdata left on the stack. */
static void read_bias(lua_State *L, pyr_sampler_options *o) {
  if (lua_getfield(L, 2, "logit_bias") == LUA_TNIL) return;
  if (!lua_istable(L, -1)) luaL_error(L, "sampler: logit_bias must be a table from ids to numbers");
  int table = lua_gettop(L);
  size_t count = 0;
  for (lua_pushnil(L); lua_next(L, table); lua_pop(L, 1)) count++;
  pyr_logit_bias *bias = lua_newuserdatauv(L, (count + 1) * sizeof *bias, 0);
  o->bias = bias;
  for (lua_pushnil(L); lua_next(L, table); lua_pop(L, 1), bias++) {
    int ok;
    if (bias == o->bias + count) luaL_error(L, "sampler: logit_bias was changed while it was read");
    bias->id = check_id(L, -2, "the keys of logit_bias");
    bias->bias = (float)lua_tonumberx(L, -1, &ok);
    if (!ok) luaL_error(L, "sampler: the values of logit_bias must be numbers");
  }
  o->bias_count = (int32_t)(bias - o->bias);
}

static int core_sampler(lua_State *L) {
  static const char *const known[] = {
    "temperature", "top_k", "top_p", "min_p", "repeat_penalty", "frequency_penalty",
        "presence_penalty", "penalty_last",
    "seed", "logit_bias", NULL
  };
  pyr_lua_check_keys(L, 2, "sampler", known);
  lua_settop(L, 2);
  sampler_box *box = lua_newuserdatauv(L, sizeof *box, 0);
  *box = (sampler_box){ NULL, NULL, 0 };
  luaL_setmetatable(L, SAMPLER);
  pyr_sampler_options o = { 0 };
  if (!lua_isnil(L, 2)) {
    o.temperature = number_option(L, "temperature");
    o.top_k = (int32_t)integer_option(L, "top_k", 0, INT32_MAX);
    o.top_p = number_option(L, "top_p");
    o.min_p = number_option(L, "min_p");
    o.repeat_penalty = number_option(L, "repeat_penalty");
    o.frequency_penalty = number_option(L, "frequency_penalty");
    o.presence_penalty = number_option(L, "presence_penalty");
    o.penalty_last = (int32_t)integer_option(L, "penalty_last", 0, INT32_MAX);
    o.seed = (uint64_t)integer_option(L, "seed", LUA_MININTEGER, LUA_MAXINTEGER);
    read_bias(L, &o);
  }
  pyr_status status = PYR_OK;
  if (!lua_isnil(L, 1)) {
    box->rt = pyr_runtime_retain(pyr_lua_check_runtime(L, 1));
  } else {
    pyr_runtime_options small = { .threads = 1 };
    status = pyr_runtime_new(&small, &box->rt);
  }
  if (status == PYR_OK) status = pyr_sampler_new(box->rt, &o, &box->sampler);
  if (status == PYR_ARGUMENT) return luaL_error(L, "%s", pyr_runtime_error(box->rt));
  if (status != PYR_OK) return pyr_lua_fail(L, box->rt, status);
  lua_pushvalue(L, 3);
  return 1;
}

/* ---- methods --------------------------------------------------------------------------------- */

/* A sequence of numbers as floats, in a userdata left on the stack. */
static const float *logits_of_table(lua_State *L, int arg, int32_t *vocab) {
  lua_Unsigned n = lua_rawlen(L, arg);
  luaL_argcheck(L, n > 0 && n <= INT32_MAX, arg, "a sequence of numbers is needed");
  float *logits = lua_newuserdatauv(L, (size_t)n * sizeof *logits, 0);
  for (lua_Unsigned i = 0; i < n; i++) {
    int ok;
    lua_rawgeti(L, arg, (lua_Integer)i + 1);
    logits[i] = (float)lua_tonumberx(L, -1, &ok);
    if (!ok) luaL_argerror(L, arg, "the logits must be numbers");
    lua_pop(L, 1);
  }
  *vocab = (int32_t)n;
  return logits;
}

static int sampler_pick(lua_State *L) {
  int32_t vocab, id;
  check_sampler(L, 1);
  const float *logits = lua_istable(L, 2) ? logits_of_table(L, 2, &vocab)
      : pyr_lua_check_logits(L, 2, &vocab);
  sampler_box *box = check_sampler(L, 1);
  pyr_status status = pyr_sampler_pick(box->sampler, logits, vocab, &id);
  if (status != PYR_OK) return pyr_lua_fail(L, box->rt, status);
  lua_pushinteger(L, id);
  return 1;
}

static int sampler_accept(lua_State *L) {
  check_sampler(L, 1);
  luaL_checktype(L, 2, LUA_TTABLE);
  lua_Unsigned n = lua_rawlen(L, 2);
  int32_t *ids = lua_newuserdatauv(L, (size_t)(n + 1) * sizeof *ids, 0);
  for (lua_Unsigned i = 0; i < n; i++) {
    lua_rawgeti(L, 2, (lua_Integer)i + 1);
    ids[i] = check_id(L, -1, "what it accepts");
    lua_pop(L, 1);
  }
  sampler_box *box = check_sampler(L, 1);
  pyr_status status = pyr_sampler_accept(box->sampler, ids, (int64_t)n);
  if (status != PYR_OK) return pyr_lua_fail(L, box->rt, status);
  lua_pushvalue(L, 1);
  return 1;
}

static int sampler_reset(lua_State *L) {
  pyr_sampler_reset(check_sampler(L, 1)->sampler);
  lua_pushvalue(L, 1);
  return 1;
}

static int sampler_close(lua_State *L) {
  sampler_box *box = luaL_checkudata(L, 1, SAMPLER);
  if (box->busy)
    return luaL_error(L,
                      "the sampler is busy: a callback may not close the sampler whose step is "
                      "running");
  pyr_sampler_free(box->sampler);
  pyr_runtime_free(box->rt);
  *box = (sampler_box){ NULL, NULL, 0 };
  return 0;
}

void pyr_lua_open_sampler(lua_State *L) {
  static const luaL_Reg methods[] = {
    { "pick", sampler_pick }, { "accept", sampler_accept }, { "reset", sampler_reset },
        { NULL, NULL }
  };
  pyr_lua_new_class(L, SAMPLER, methods, sampler_close);
  lua_pushcfunction(L, core_sampler);
  lua_setfield(L, -2, "sampler");
}

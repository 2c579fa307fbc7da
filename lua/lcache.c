/* lcache.c — page pools and caches for Lua.
 *
 *   core.pool(model, dtype, budget [, k, v]) -> pool   pool:bytes()  :close()  :press()
 *                                                      :add_tier(name, dtype, bytes, rows, file,
 *                                                                k, v)
 *   core.cache(model, pool, policy or nil) -> cache    core.load_cache(model, pool, policy, path)
 *                                                      -> cache
 *   core.step({ cache, … }, { id, … } [, { sampler or false, … }]) -> { logits, … }; where there is
 *   a sampler, what it picked: an id,
 *                                or false if no logit was finite
 *   core.cache_methods                                 the class's methods, to which
 *                                                      lua/pyramid/cache.lua adds
 *   cache:read_ids(ids, all, prune, whole) -> logits, or { logits, … } with all; whole: rows held
 *   are judged as the prompt's own
 *   cache:read_embeddings(rows, all, prune, whole)     likewise; rows: packed f32, a matrix, or a
 *                                                      sequence of sequences or vectors
 *   core.embed(model, ids) -> packed f32, a row of the model's width for each id
 *   cache:verify(ids) -> { logits, … }             cache:verifiable() -> how many ids at most
 *   cache:step(id) -> logits   :rows(layer, head, tier)
 *                              :positions(layer, head, tier) -> { position, … }
 *                              :bytes(tier)     tier: nil: of all tiers
 *                              :has_tier(tier) :fraction() :reading()
 *   cache:bring_up(program, rows) -> true        rows of lower tiers to the hot one
 *   cache:evaluate(program, layer, head) -> a vector of one number a token seen; layer, head 0: the
 *   mean over all
 *   cache:cut(bound policy or nothing) -> true   :truncate(n) -> true
 *   cache:see(ids, program) -> true              tracks what reading them would look at
 *   cache:tell(fn or nil, seconds)     who is told of its plans: ltrace.c
 *   cache:load_prefix(path, n) -> true           an empty cache takes the first n tokens of a file
 *   cache:identity() -> what such a file must match, as 16 hexadecimal digits
 *   cache:fork()  :clear()  :save(path)  :tokens()  :computed()  :evicted()  :close()
 *
 * Layers and heads count from 1. A cache's user value is whatever Lua wants to keep with it (its
 * model). */
#include "llogits.h"
#include "lvector.h"
#include "model/flight.h"

#include <stdlib.h>
#include <string.h>

#define POOL "pyramid.pool"
#define CACHE "pyramid.cache"

typedef struct pool_box { pyr_pool *pool; } pool_box;
typedef struct cache_box {
  pyr_cache *cache;   /* NULL: closed */
  bool busy;          /* inside a core call that may call back: may be looked at, but not changed or
                         closed */
} cache_box;

static pyr_pool *check_pool(lua_State *L, int arg) {
  pool_box *box = luaL_checkudata(L, arg, POOL);
  if (box->pool == NULL) luaL_argerror(L, arg, "the pool is closed");
  return box->pool;
}

static pyr_cache *check_cache(lua_State *L, int arg) {
  cache_box *box = luaL_checkudata(L, arg, CACHE);
  if (box->cache == NULL) luaL_argerror(L, arg, "the cache is closed");
  return box->cache;
}

/* … for a call that changes it. */
static cache_box *check_idle(lua_State *L, int arg) {
  cache_box *box = luaL_checkudata(L, arg, CACHE);
  check_cache(L, arg);
  if (box->busy)
    luaL_argerror(L, arg,
                  "the cache is in use: a callback of its own prefill or step may only look at it");
  return box;
}

static pyr_runtime *runtime_of(const pyr_cache *cache) {
  return pyr_model_runtime(pyr_cache_model(cache));
}

static int fail(lua_State *L, const pyr_cache *cache, pyr_status status) {
  return pyr_lua_fail(L, runtime_of(cache), status);
}

/* A path at `arg`; NULL, and nil, message, code on the stack, where C would take it for a shorter
 * one. */
static const char *check_path(lua_State *L, int arg) {
  size_t length;
  const char *path = luaL_checklstring(L, arg, &length);
  if (strlen(path) == length) return path;
  lua_pushnil(L);
  lua_pushliteral(L, "a path with a zero byte");
  lua_pushliteral(L, "io");
  return NULL;
}

/* ---- pools ----------------------------------------------------------------------------------- */

/* What a plane of packed pages is packed to; nothing: it is plain. */
static pyr_bits check_bits(lua_State *L, int arg) {
  static const char *const names[] = { "", "q8_0", "q4", "q3", "q2", NULL };
  return (pyr_bits)luaL_checkoption(L, arg, "", names);
}

static int core_pool(lua_State *L) {
  const char *name = luaL_checkstring(L, 2);
  lua_Integer budget = luaL_optinteger(L, 3, 0);
  luaL_argcheck(L, budget >= 0, 3, "the budget is a number of bytes");
  int dtype = pyr_dtype_of_name(name);
  luaL_argcheck(L, dtype >= 0, 2, "unknown dtype");
  pyr_bits k = check_bits(L, 4), v = check_bits(L, 5);
  pool_box *box = lua_newuserdatauv(L, sizeof *box, 0);
  box->pool = NULL;
  luaL_setmetatable(L, POOL);
  pyr_model *model = pyr_lua_check_model(L, 1);
  pyr_status status = pyr_pool_new_packed(model, (pyr_dtype)dtype, k, v, (size_t)budget,
                                          &box->pool);
  return status == PYR_OK ? 1 : pyr_lua_fail(L, pyr_model_runtime(model), status);
}

static int pool_close(lua_State *L) {
  pool_box *box = luaL_checkudata(L, 1, POOL);
  pyr_pool_free(box->pool);
  box->pool = NULL;
  return 0;
}

static int pool_bytes(lua_State *L) {
  lua_pushinteger(L, (lua_Integer)pyr_pool_bytes(check_pool(L, 1)));
  return 1;
}

static const char *const tiers[] = { "hot", "warm", "cold", NULL };

/* pool:add_tier("warm", dtype, bytes, rows, file or nil, k, v) -> true */
static int pool_add_tier(lua_State *L) {
  size_t length = 0;
  pyr_pool *pool = check_pool(L, 1);
  int dtype = pyr_dtype_of_name(luaL_checkstring(L, 3));
  luaL_argcheck(L, dtype >= 0, 3, "unknown dtype");
  pyr_tier_options tier = { .size = sizeof tier, .dtype = (pyr_dtype)dtype,
                            .tier = (pyr_tier)luaL_checkoption(L, 2, NULL, tiers),
                            .bytes = (size_t)luaL_checkinteger(L, 4),
                            .rows = luaL_checkinteger(L, 5), .k = check_bits(L, 7),
                            .v = check_bits(L, 8) };
  tier.file = luaL_optlstring(L, 6, NULL, &length);
  if (tier.file && strlen(tier.file) != length) return check_path(L, 6), 3;
  pyr_status status = pyr_pool_add_tier(pool, &tier);
  if (status != PYR_OK) return pyr_lua_fail(L, pyr_pool_runtime(pool), status);
  lua_pushboolean(L, 1);
  return 1;
}

/* pool:press(): a full budget moves rows down a tier */
static int pool_press(lua_State *L) {
  pyr_pool_set_pressure(check_pool(L, 1), 1);
  return 0;
}

/* ---- making caches --------------------------------------------------------------------------- */

static cache_box *new_box(lua_State *L) {
  cache_box *box = lua_newuserdatauv(L, sizeof *box, 1);
  *box = (cache_box){ NULL, false };
  luaL_setmetatable(L, CACHE);
  return box;
}

/* (model, pool, policy, path or nothing) */
static int make_cache(lua_State *L, const char *path) {
  pyr_policy policy;
  lua_settop(L, 4);
  cache_box *box = new_box(L);
  pyr_lua_to_policy(L, 3, &policy);
  int at = lua_gettop(L);
  pyr_pool *pool = check_pool(L, 2);
  pyr_model *model = pyr_lua_check_model(L, 1);
  pyr_lua_start_policy(L, at, &policy, pyr_model_runtime(model));
  const pyr_policy *given = policy.ud ? &policy : NULL;
  lua_State *outer = pyr_lua_enter(L);     /* a policy may be asked what it tracks */
  pyr_status status = path ? pyr_cache_load(model, pool, given, path, &box->cache)
      : pyr_cache_new(model, pool, given, &box->cache);
  pyr_preparer preparer = pyr_lua_preparer_of(&policy);
  if (status == PYR_OK) status = pyr_cache_on_prepare(box->cache, &preparer);
  if (given) policy.release(policy.ud);
  pyr_lua_leave(L, outer);
  if (status != PYR_OK) return pyr_lua_fail(L, pyr_model_runtime(model), status);
  lua_settop(L, 5);
  return 1;
}

static int core_cache(lua_State *L) { return make_cache(L, NULL); }
static int core_load_cache(lua_State *L) {
  const char *path = check_path(L, 4);
  return path ? make_cache(L, path) : 3;
}

static int cache_fork(lua_State *L) {
  check_idle(L, 1);
  cache_box *box = new_box(L);
  lua_getiuservalue(L, 1, 1);
  lua_setiuservalue(L, -2, 1);
  pyr_cache *cache = check_idle(L, 1)->cache;
  pyr_status status = pyr_cache_fork(cache, &box->cache);
  return status == PYR_OK ? 1 : fail(L, cache, status);
}

static int cache_close(lua_State *L) {
  cache_box *box = luaL_checkudata(L, 1, CACHE);
  if (box->busy) check_idle(L, 1);
  pyr_cache *cache = box->cache;
  box->cache = NULL;
  pyr_cache_free(cache);
  return 0;
}

/* ---- reading and stepping -------------------------------------------------------------------- */

/* The id at the top of the stack; what no int32 can hold becomes -1, which the core refuses with
 * its own message. */
static int32_t to_id(lua_State *L, lua_Integer place) {
  int exact;
  lua_Integer id = lua_tointegerx(L, -1, &exact);
  if (!exact || lua_type(L, -1) != LUA_TNUMBER)
    luaL_error(L, "token %I is not an integer (%s)", (LUAI_UACINT)place, luaL_typename(L, -1));
  lua_pop(L, 1);
  return id < 0 || id > INT32_MAX ? -1 : (int32_t)id;
}

/* Pushes a buffer of the ids in the sequence at `arg`. */
static int32_t *read_ids(lua_State *L, int arg, lua_Integer *n) {
  luaL_checktype(L, arg, LUA_TTABLE);
  *n = luaL_len(L, arg);
  if (*n < 0 || *n > INT32_MAX) luaL_argerror(L, arg, "a sequence of ids is wanted");
  int32_t *ids = lua_newuserdatauv(L, (size_t)(*n > 0 ? *n : 1) * sizeof *ids, 0);
  for (lua_Integer i = 1; i <= *n; i++) {
    lua_geti(L, arg, i);
    ids[i - 1] = to_id(L, i);
  }
  return ids;
}

/* A sequence of the logits of n positions, all in one buffer. */
static int push_rows_of_logits(lua_State *L, int buffer, lua_Integer n, int32_t vocab) {
  lua_createtable(L, (int)n, 0);
  for (lua_Integer i = 0; i < n; i++) {
    pyr_lua_push_logits(L, buffer, i, vocab);
    lua_rawseti(L, -2, i + 1);
  }
  return 1;
}

/* The rows at `arg`, n of them, each of `width` numbers: a matrix's own, which the stack holds, or
 * a copy that is pushed. Raises on another shape; what the numbers are is the core's to judge. */
static const float *read_rows(lua_State *L, int arg, int64_t width, lua_Integer *n) {
  int64_t rows, cols;
  size_t bytes, row_bytes = (size_t)width * sizeof(float);
  if (lua_type(L, arg) == LUA_TSTRING) {
    const char *packed = lua_tolstring(L, arg, &bytes);
    if (bytes % row_bytes)
      luaL_error(L, "embeddings: %I bytes are no rows of %I numbers in f32 (%I bytes each)",
                 (LUAI_UACINT)bytes, (LUAI_UACINT)width, (LUAI_UACINT)row_bytes);
    *n = (lua_Integer)(bytes / row_bytes);
    float *out = pyr_lua_new_vector(L, *n, width);
    memcpy(out, packed, bytes);
    return out;
  }
  const float *data = pyr_lua_to_vector(L, arg, &rows, &cols);
  if (data) {
    if (cols != width)
      luaL_error(L, "embeddings: the matrix has %I columns, and the model's width is %I",
                 (LUAI_UACINT)cols, (LUAI_UACINT)width);
    *n = rows;
    return data;
  }
  if (!lua_istable(L, arg))
    luaL_error(L, "embeddings: packed f32, a matrix or a sequence of rows is wanted, not a %s",
               luaL_typename(L, arg));
  *n = luaL_len(L, arg);
  float *out = pyr_lua_new_vector(L, *n, width);
  for (lua_Integer i = 0; i < *n; i++) {
    lua_geti(L, arg, i + 1);
    lua_Integer length = lua_isnil(L, -1) || lua_isnumber(L, -1) ? -1 : luaL_len(L, -1);
    if (length >= 0 && length != width)
      luaL_error(L, "embeddings: row %I has %I numbers, and the model's width is %I",
                 (LUAI_UACINT)(i + 1), (LUAI_UACINT)length, (LUAI_UACINT)width);
    pyr_lua_read_vector(L, lua_gettop(L), out + i * width, width);
    lua_pop(L, 1);
  }
  return out;
}

/* cache:read_ids and cache:read_embeddings: what is at 2 is one or the other; then all, prune,
 * whole, states. With `states` a matrix comes back in the place of logits. */
static int read_prompt(lua_State *L, bool embeddings) {
  lua_Integer n;
  bool all = lua_toboolean(L, 3), prune = lua_isnoneornil(L, 4) || lua_toboolean(L, 4),
      whole = lua_toboolean(L, 5), states = lua_toboolean(L, 6);
  const pyr_model_config *config = pyr_model_get_config(pyr_cache_model(check_idle(L, 1)->cache));
  int32_t vocab = config->vocab, width = config->width;
  const float *rows = embeddings ? read_rows(L, 2, width, &n) : NULL;
  const int32_t *ids = embeddings ? NULL : read_ids(L, 2, &n);
  int64_t count = all ? n : 1;
  if (count > INT64_MAX / 8 / vocab)
    return luaL_error(L, "logits of %I positions are too many", (LUAI_UACINT)count);
  float *results = states ? pyr_lua_new_vector(L, count, width)
      : pyr_lua_new_logits_buffer(L, count, vocab);
  int buffer = lua_gettop(L);
  cache_box *box = check_idle(L, 1);
  pyr_cache *cache = box->cache;
  lua_State *outer = pyr_lua_enter(L);
  box->busy = true;
  int flags = (all ? PYR_PREFILL_ALL : 0) | (prune ? 0 : PYR_PREFILL_NO_PRUNE)
      | (whole ? PYR_PREFILL_WHOLE : 0) | (states ? PYR_PREFILL_STATES : 0);
  pyr_status status = rows ? pyr_cache_prefill_embeddings(cache, rows, n, flags, results)
      : pyr_cache_prefill(cache, ids, n, flags, results);
  box->busy = false;
  pyr_lua_leave(L, outer);
  if (status != PYR_OK) return fail(L, cache, status);
  if (states) return 1;                                  /* the buffer is the matrix */
  if (!all) {
    pyr_lua_push_logits(L, buffer, 0, vocab);
    return 1;
  }
  return push_rows_of_logits(L, buffer, n, vocab);
}

static int cache_read_ids(lua_State *L) { return read_prompt(L, false); }
static int cache_read_embeddings(lua_State *L) { return read_prompt(L, true); }

/* core.read_together(caches, prompts) -> the last logits of the first so many that were read; which
 * are none, where they are to be read one by one, and fewer than all where one fails: then message
 * and code follow. */
static int core_read_together(lua_State *L) {
  luaL_checktype(L, 1, LUA_TTABLE);
  luaL_checktype(L, 2, LUA_TTABLE);
  lua_settop(L, 2);
  lua_Integer count = luaL_len(L, 1);
  luaL_argcheck(L, count >= 1 && count <= 1 << 20 && luaL_len(L, 2) == count, 2,
                "one prompt for each cache");
  size_t n = (size_t)count;
  luaL_checkstack(L, 16, "prompts");
  lua_createtable(L, 2 * (int)count, 0);                 /* keeps caches and ids: at 3 */
  cache_box **boxes = lua_newuserdatauv(L, n * sizeof *boxes, 0);
  pyr_cache **caches = lua_newuserdatauv(L, n * sizeof *caches, 0);
  const int32_t **ids = lua_newuserdatauv(L, n * sizeof *ids, 0);
  int64_t *lengths = lua_newuserdatauv(L, n * sizeof *lengths, 0);
  float **logits = lua_newuserdatauv(L, n * sizeof *logits, 0);
  for (lua_Integer i = 0; i < count; i++) {
    lua_Integer length;
    lua_geti(L, 1, i + 1);
    (void)check_idle(L, -1);
    lua_rawseti(L, 3, i + 1);
    lua_geti(L, 2, i + 1);
    ids[i] = read_ids(L, lua_gettop(L), &length);
    lengths[i] = length;
    lua_rawseti(L, 3, count + i + 1);
    lua_pop(L, 1);
  }
  lua_rawgeti(L, 3, 1);
  int32_t vocab = pyr_model_get_config(pyr_cache_model(check_idle(L, -1)->cache))->vocab;
  float *all = pyr_lua_new_logits_buffer(L, count, vocab);
  int buffer = lua_gettop(L), done;
  for (lua_Integer i = 0; i < count; i++) {
    lua_rawgeti(L, 3, i + 1);
    boxes[i] = check_idle(L, -1);
    caches[i] = boxes[i]->cache, logits[i] = all + i * vocab;
    lua_pop(L, 1);
  }
  lua_State *outer = pyr_lua_enter(L);
  for (lua_Integer i = 0; i < count; i++) boxes[i]->busy = true;
  pyr_status status = pyr_prefill_flight(caches, ids, lengths, (int)count, logits, &done);
  for (lua_Integer i = 0; i < count; i++) boxes[i]->busy = false;
  pyr_lua_leave(L, outer);
  (void)push_rows_of_logits(L, buffer, done, vocab);
  if (status == PYR_OK) return 1;
  (void)pyr_lua_fail(L, pyr_model_runtime(pyr_cache_model(caches[0])), status);
  lua_remove(L, -3);                                     /* its nil: the read ones are there */
  return 3;
}

static int core_embed(lua_State *L) {
  lua_Integer n;
  lua_settop(L, 2);
  const int32_t *ids = read_ids(L, 2, &n);
  int64_t width = pyr_model_get_config(pyr_lua_check_model(L, 1))->width;
  float *rows = pyr_lua_new_vector(L, n, width);
  pyr_model *model = pyr_lua_check_model(L, 1);
  pyr_status status = pyr_model_embed(model, ids, n, rows);
  if (status != PYR_OK) return pyr_lua_fail(L, pyr_model_runtime(model), status);
  lua_pushlstring(L, (const char *)rows, (size_t)(n * width) * sizeof *rows);
  return 1;
}

/* (cache, ids, program of one signal) */
static int cache_see(lua_State *L) {
  lua_Integer n;
  pyr_score_op track = { .code = PYR_SCORE_CODES };
  lua_settop(L, 3);
  (void)pyr_lua_read_program(L, 3, &track, 1);
  const int32_t *ids = read_ids(L, 2, &n);
  cache_box *box = check_idle(L, 1);
  pyr_cache *cache = box->cache;
  lua_State *outer = pyr_lua_enter(L);
  box->busy = true;
  pyr_status status = pyr_cache_probe(cache, ids, n, &track);
  box->busy = false;
  pyr_lua_leave(L, outer);
  if (status != PYR_OK) return fail(L, cache, status);
  lua_pushboolean(L, 1);
  return 1;
}

static int cache_step(lua_State *L) {
  lua_settop(L, 2);
  int32_t id = to_id(L, 1), vocab = pyr_model_get_config(pyr_cache_model(check_idle(L,
      1)->cache))->vocab;
  float *logits = pyr_lua_new_logits_buffer(L, 1, vocab);
  cache_box *box = check_idle(L, 1);
  pyr_cache *cache = box->cache;
  lua_State *outer = pyr_lua_enter(L);
  box->busy = true;
  pyr_status status = pyr_step(&cache, &id, 1, &logits);
  box->busy = false;
  pyr_lua_leave(L, outer);
  if (status != PYR_OK) return fail(L, cache, status);
  pyr_lua_push_logits(L, -1, 0, vocab);
  return 1;
}

/* (cache, ids) */
static int cache_verify(lua_State *L) {
  lua_Integer n;
  lua_settop(L, 2);
  const int32_t *ids = read_ids(L, 2, &n);
  luaL_argcheck(L, n >= 1 && n <= 1 << 20, 2, "ids are wanted");
  int32_t vocab = pyr_model_get_config(pyr_cache_model(check_idle(L, 1)->cache))->vocab;
  float *logits = pyr_lua_new_logits_buffer(L, n, vocab);
  int buffer = lua_gettop(L);
  cache_box *box = check_idle(L, 1);
  pyr_cache *cache = box->cache;
  lua_State *outer = pyr_lua_enter(L);
  box->busy = true;
  pyr_status status = pyr_cache_verify(cache, ids, n, logits);
  box->busy = false;
  pyr_lua_leave(L, outer);
  if (status != PYR_OK) return fail(L, cache, status);
  return push_rows_of_logits(L, buffer, n, vocab);
}

/* What one step of several caches takes: arrays of n, in userdata. */
typedef struct step_call {
  lua_Integer n, picking;
  cache_box **boxes;
  pyr_cache **caches;
  pyr_sampler **samplers;          /* NULL where logits are wanted */
  float **logits;
  int32_t *picks;
  int held;                        /* stack index of a table that keeps caches and samplers,
                                      whatever callbacks do with the arguments */
} step_call;

/* Copies the arguments' caches (at 1 to n) and samplers (n + 1 to 2 n, false where there is none)
 * into the table. */
static void keep_step(lua_State *L, step_call *c) {
  lua_createtable(L, (int)(2 * c->n), 0);
  c->held = lua_gettop(L);
  for (lua_Integer i = 1; i <= c->n; i++) {
    lua_geti(L, 1, i);
    lua_rawseti(L, c->held, i);
    if (lua_isnoneornil(L, 3)) lua_pushboolean(L, 0);
    else lua_geti(L, 3, i);
    if (lua_toboolean(L, -1)) c->picking++;
    lua_rawseti(L, c->held, c->n + i);
  }
}

/* Takes pointers out of it. Nothing is allocated here, so that no finalizer can close one before it
 * is busy. */
static void read_step(lua_State *L, step_call *c) {
  for (lua_Integer i = 0; i < c->n; i++) {
    lua_rawgeti(L, c->held, i + 1);
    c->boxes[i] = check_idle(L, -1);
    c->caches[i] = c->boxes[i]->cache;
    lua_rawgeti(L, c->held, c->n + i + 1);
    c->samplers[i] = lua_toboolean(L, -1) ? pyr_lua_check_sampler(L, -1) : NULL;
    lua_pop(L, 2);
  }
}

static void hold_step(lua_State *L, const step_call *c, bool busy) {
  for (lua_Integer i = 0; i < c->n; i++) {
    c->boxes[i]->busy = busy;
    if (!c->samplers[i]) continue;
    lua_rawgeti(L, c->held, c->n + i + 1);
    pyr_lua_hold_sampler(L, -1, busy);
    lua_pop(L, 1);
  }
}

static int core_step(lua_State *L) {
  step_call c = { 0 };
  luaL_checktype(L, 1, LUA_TTABLE);
  if (!lua_isnoneornil(L, 3)) luaL_checktype(L, 3, LUA_TTABLE);
  lua_settop(L, 3);
  const int32_t *ids = read_ids(L, 2, &c.n);
  luaL_argcheck(L, c.n >= 1 && c.n <= 1 << 20 && luaL_len(L, 1) == c.n, 2, "one id for each cache");
  luaL_checkstack(L, 16, "a step");
  keep_step(L, &c);
  size_t n = (size_t)c.n;
  c.boxes = lua_newuserdatauv(L, n * sizeof *c.boxes, 0);
  c.caches = lua_newuserdatauv(L, n * sizeof *c.caches, 0);
  c.samplers = lua_newuserdatauv(L, n * sizeof *c.samplers, 0);
  c.logits = lua_newuserdatauv(L, n * sizeof *c.logits, 0);
  c.picks = lua_newuserdatauv(L, n * sizeof *c.picks, 0);
  for (lua_Integer i = 1; c.picking && i <= c.n; i++) {
    lua_rawgeti(L, c.held, c.n + i);
    if (lua_toboolean(L, -1)) pyr_lua_ask_sampler(L, -1);
    lua_pop(L, 1);
  }
  lua_rawgeti(L, c.held, 1);
  int32_t vocab = pyr_model_get_config(pyr_cache_model(check_idle(L, -1)->cache))->vocab;
  int64_t wanted = c.n - c.picking, at = 0;
  float *logits = pyr_lua_new_logits_buffer(L, wanted > 0 ? wanted : 1, wanted > 0 ? vocab : 1);
  int buffer = lua_gettop(L);
  read_step(L, &c);
  for (lua_Integer i = 0; i < c.n; i++) c.logits[i] = c.samplers[i] ? NULL : logits + at++ * vocab;
  lua_State *outer = pyr_lua_enter(L);
  hold_step(L, &c, true);
  pyr_status status = pyr_step_pick(c.caches, ids, (int)c.n, c.logits,
                                    c.picking ? c.samplers : NULL, c.picks);
  hold_step(L, &c, false);
  pyr_lua_leave(L, outer);
  if (status != PYR_OK) return fail(L, c.caches[0], status);
  lua_createtable(L, (int)c.n, 0);
  at = 0;
  for (lua_Integer i = 0; i < c.n; i++) {
    if (!c.samplers[i]) pyr_lua_push_logits(L, buffer, at++, vocab);
    else if (c.picks[i] >= 0) {
      lua_rawgeti(L, c.held, c.n + i + 1);
      pyr_lua_tell_sampler(L, -1, c.picks[i]);
      lua_pop(L, 1);
      lua_pushinteger(L, c.picks[i]);
    } else lua_pushboolean(L, 0);
    lua_rawseti(L, -2, i + 1);
  }
  return 1;
}

static int cache_clear(lua_State *L) {
  pyr_cache *cache = check_idle(L, 1)->cache;
  pyr_status status = pyr_cache_clear(cache);
  if (status != PYR_OK) return fail(L, cache, status);
  lua_pushboolean(L, 1);
  return 1;
}

/* (cache, bound policy or nothing) */
static int cache_cut(lua_State *L) {
  pyr_policy policy;
  lua_settop(L, 2);
  check_idle(L, 1);
  pyr_lua_to_policy(L, 2, &policy);
  int at = lua_gettop(L);
  cache_box *box = check_idle(L, 1);
  pyr_cache *cache = box->cache;
  pyr_lua_start_policy(L, at, &policy, runtime_of(cache));
  lua_State *outer = pyr_lua_enter(L);
  box->busy = true;
  pyr_status status = pyr_cache_evict(cache, policy.ud ? &policy : NULL);
  box->busy = false;
  pyr_lua_leave(L, outer);
  if (policy.ud) policy.release(policy.ud);
  if (status != PYR_OK) return fail(L, cache, status);
  lua_pushboolean(L, 1);
  return 1;
}

static int cache_tell(lua_State *L) {
  pyr_tracer tracer;
  double seconds = luaL_optnumber(L, 3, 0);
  lua_settop(L, 2);
  pyr_lua_to_tracer(L, 2, seconds, &tracer);
  int at = lua_gettop(L);
  pyr_cache *cache = check_idle(L, 1)->cache;
  pyr_lua_start_tracer(L, at, &tracer, runtime_of(cache));
  pyr_status status = pyr_cache_on_trace(cache, tracer.ud ? &tracer : NULL);
  if (tracer.ud) tracer.release(tracer.ud);
  if (status != PYR_OK) return fail(L, cache, status);
  lua_pushboolean(L, 1);
  return 1;
}

static int cache_truncate(lua_State *L) {
  lua_Integer n = luaL_checkinteger(L, 2);
  pyr_cache *cache = check_idle(L, 1)->cache;
  pyr_status status = pyr_cache_truncate(cache, n);
  if (status != PYR_OK) return fail(L, cache, status);
  lua_pushboolean(L, 1);
  return 1;
}

/* cache:save(path, note); the note is what cache:note() of the loaded cache gives */
static int cache_save(lua_State *L) {
  size_t length;
  const char *note = luaL_optlstring(L, 3, "", &length), *path = check_path(L, 2);
  if (path == NULL) return 3;
  pyr_cache *cache = check_idle(L, 1)->cache;
  pyr_status status = pyr_cache_save_note(cache, path, note, length);
  if (status != PYR_OK) return fail(L, cache, status);
  lua_pushboolean(L, 1);
  return 1;
}

/* A policy may be asked what it tracks, as when a cache is loaded. */
static int cache_load_prefix(lua_State *L) {
  lua_settop(L, 3);
  lua_Integer tokens = luaL_checkinteger(L, 3);
  check_idle(L, 1);
  const char *path = check_path(L, 2);
  if (!path) return 3;
  cache_box *box = check_idle(L, 1);
  pyr_cache *cache = box->cache;
  lua_State *outer = pyr_lua_enter(L);
  box->busy = true;
  pyr_status status = pyr_cache_load_prefix(cache, path, tokens);
  box->busy = false;
  pyr_lua_leave(L, outer);
  if (status != PYR_OK) return fail(L, cache, status);
  lua_pushboolean(L, 1);
  return 1;
}

static int cache_identity(lua_State *L) {
  pyr_lua_push_hash(L, pyr_cache_identity(check_cache(L, 1)));
  return 1;
}

static int cache_note(lua_State *L) {
  size_t length;
  const char *note = pyr_cache_note(check_idle(L, 1)->cache, &length);
  if (note == NULL) return 0;
  lua_pushlstring(L, note, length);
  return 1;
}

/* ---- questions ------------------------------------------------------------------------------- */

/* Reads (layer, head) from arguments 2 and 3; head is 1 if not given. */
static void check_lane(lua_State *L, pyr_cache *cache, int *layer, int *head) {
  lua_Integer l = luaL_checkinteger(L, 2), h = luaL_optinteger(L, 3, 1);
  const pyr_model_config *config = pyr_model_get_config(pyr_cache_model(cache));
  luaL_argcheck(L, l >= 1 && l <= config->layers, 2, "no such layer");
  luaL_argcheck(L, h >= 1 && h <= config->kv_heads, 3, "no such head");
  *layer = (int)l - 1;
  *head = (int)h - 1;
}

/* The tiers that `arg` asks for, [*first, *last]: one by its name, or all. */
static void check_tiers(lua_State *L, int arg, const pyr_cache *cache, int *first, int *last) {
  *first = PYR_TIER_HOT, *last = PYR_TIER_COLD;
  if (lua_isnoneornil(L, arg)) return;
  *first = *last = luaL_checkoption(L, arg, NULL, tiers);
  luaL_argcheck(L, pyr_cache_has_tier(cache, (pyr_tier)*first), arg, "the cache has no such tier");
}

/* Of tiers that the cache has; sums of others are 0. */
static int64_t rows_of(const pyr_cache *cache, int first, int last, int layer, int head) {
  int64_t rows = 0;
  for (int tier = first; tier <= last; tier++)
    if (pyr_cache_has_tier(cache, (pyr_tier)tier))
      rows += pyr_cache_tier_rows(cache, (pyr_tier)tier, layer, head);
  return rows;
}

static int cache_rows(lua_State *L) {
  int layer, head, first, last;
  pyr_cache *cache = check_cache(L, 1);
  check_lane(L, cache, &layer, &head);
  check_tiers(L, 4, cache, &first, &last);
  lua_pushinteger(L, rows_of(cache, first, last, layer, head));
  return 1;
}

static int by_position(const void *a, const void *b) {
  int32_t x, y;
  memcpy(&x, a, sizeof x), memcpy(&y, b, sizeof y);
  return (x > y) - (x < y);
}

/* Tier behind tier, and then in order. */
static pyr_status read_positions(const pyr_cache *cache, int first, int last, int layer, int head,
                                 int32_t *out) {
  int64_t rows = 0;
  bool sorted = true;
  for (int tier = first; tier <= last; tier++) {
    if (!pyr_cache_has_tier(cache, (pyr_tier)tier)) continue;
    pyr_status status = pyr_cache_tier_positions(cache, (pyr_tier)tier, layer, head, out + rows);
    if (status != PYR_OK) return status;
    int64_t more = pyr_cache_tier_rows(cache, (pyr_tier)tier, layer, head);
    sorted = sorted && (rows == 0 || more == 0);
    rows += more;
  }
  if (!sorted) qsort(out, (size_t)rows, sizeof *out, by_position);
  return PYR_OK;
}

static int cache_positions(lua_State *L) {
  lua_settop(L, 5);
  pyr_cache *cache = check_cache(L, 1);
  int layer, head, first, last;
  check_lane(L, cache, &layer, &head);
  check_tiers(L, 4, cache, &first, &last);
  int64_t rows = rows_of(cache, first, last, layer, head), room = -1;
  int32_t *positions = NULL;
  while (rows > room) {                  /* again where a finalizer has read more into it */
    room = rows;
    positions = lua_newuserdatauv(L, (size_t)(room + 1) * sizeof *positions, 0);
    lua_replace(L, 5);
    cache = check_cache(L, 1);
    rows = rows_of(cache, first, last, layer, head);
  }
  pyr_status status = read_positions(cache, first, last, layer, head, positions);
  if (status != PYR_OK) return fail(L, cache, status);
  lua_createtable(L, (int)rows, 0);
  for (int64_t i = 0; i < rows; i++) {
    lua_pushinteger(L, positions[i]);
    lua_rawseti(L, -2, i + 1);
  }
  return 1;
}

/* Adds 1 to counts[position / bin] for each row that a lane holds in tiers first to last, of the
 * first `tokens` positions; `positions` has room for the rows of a tier. In the middle of a prefill
 * there are rows of later tokens, which the cache does not count as seen yet. */
static pyr_status count_rows(const pyr_cache *cache, int first, int last, int layer, int head,
                             int64_t tokens, int64_t bin, int32_t *positions, int64_t *counts) {
  for (int tier = first; tier <= last; tier++) {
    if (!pyr_cache_has_tier(cache, (pyr_tier)tier)) continue;
    pyr_status status = pyr_cache_tier_positions(cache, (pyr_tier)tier, layer, head, positions);
    if (status != PYR_OK) return status;
    int64_t rows = pyr_cache_tier_rows(cache, (pyr_tier)tier, layer, head);
    for (int64_t i = 0; i < rows; i++)
      if (positions[i] < tokens) counts[positions[i] / bin]++;
  }
  return PYR_OK;
}

/* The most rows of a lane of layers low to past - 1, in tiers first to last. */
static int64_t longest_lane(const pyr_cache *cache, int first, int last, int low, int past,
                            int heads) {
  int64_t most = 0;
  for (int layer = low; layer < past; layer++)
    for (int head = 0; head < heads; head++) {
      int64_t rows = rows_of(cache, first, last, layer, head);
      most = rows > most ? rows : most;
    }
  return most;
}

/* cache:held(layer, tier, bin) -> a vector: of each token (of each `bin` of them: the mean), the
 * share of the lanes of a layer, or of all, that hold it. Lanes are counted before they are
 * divided: all of 3 are 1, not 0.99999994. */
static int cache_held(lua_State *L) {
  pyr_cache *cache = check_cache(L, 1);
  const pyr_model_config *config = pyr_model_get_config(pyr_cache_model(cache));
  int first, last, heads = config->kv_heads, low = 0, past = config->layers;
  lua_Integer layer = luaL_optinteger(L, 2, 0), bin = luaL_optinteger(L, 4, 1);
  if (!lua_isnoneornil(L, 2)) {
    luaL_argcheck(L, layer >= 1 && layer <= past, 2, "no such layer");
    low = (int)layer - 1, past = low + 1;
  }
  check_tiers(L, 3, cache, &first, &last);
  luaL_argcheck(L, bin >= 1 && bin <= INT32_MAX, 4, "a bin is 1 token or more");
  int64_t tokens = -1, bins = 0, room = -1, *counts = NULL;
  float *out = NULL;
  while (tokens != pyr_cache_tokens(cache)
         || room < longest_lane(cache, first, last, low, past, heads)) {
    tokens = pyr_cache_tokens(cache);    /* again where a finalizer has changed that */
    room = longest_lane(cache, first, last, low, past, heads);
    bins = (tokens + bin - 1) / bin;
    lua_settop(L, 4);
    counts = lua_newuserdatauv(L, (size_t)(bins + 1) * sizeof *counts
                                  + (size_t)room * sizeof(int32_t), 0);
    out = pyr_lua_new_vector(L, bins, 0);
    cache = check_cache(L, 1);
  }
  memset(counts, 0, (size_t)bins * sizeof *counts);
  for (int l = low; l < past; l++)
    for (int head = 0; head < heads; head++) {
      pyr_status status = count_rows(cache, first, last, l, head, tokens, bin,
                                     (int32_t *)(counts + bins), counts);
      if (status != PYR_OK) return fail(L, cache, status);
    }
  for (int64_t i = 0; i < bins; i++) {
    int64_t covered = i + 1 < bins ? bin : tokens - i * bin;
    out[i] = (float)((double)counts[i] / (double)(covered * (past - low) * heads));
  }
  return 1;
}

static int cache_evaluate(lua_State *L) {
  pyr_score score = { 0 };
  score.length = pyr_lua_read_program(L, 2, score.ops, PYR_SCORE_MAX);
  lua_Integer layer = luaL_checkinteger(L, 3), head = luaL_checkinteger(L, 4);  /* from 1; 0: all */
  luaL_argcheck(L, layer >= 0 && layer <= INT32_MAX, 3, "no such layer");
  luaL_argcheck(L, head >= 0 && head <= INT32_MAX, 4, "no such head");
  int64_t tokens = -1;
  cache_box *box = check_idle(L, 1);
  float *out = NULL;
  while (tokens != pyr_cache_tokens(box->cache)) {    /* again where a finalizer has changed that */
    tokens = pyr_cache_tokens(box->cache);
    lua_settop(L, 4);
    out = pyr_lua_new_vector(L, tokens, 0);
    box = check_idle(L, 1);
  }
  pyr_cache *cache = box->cache;
  lua_State *outer = pyr_lua_enter(L);
  box->busy = true;
  pyr_status status = pyr_cache_scores(cache, (int)(layer - 1), (int)(head - 1), &score, out);
  box->busy = false;
  pyr_lua_leave(L, outer);
  return status == PYR_OK ? 1 : fail(L, cache, status);
}

static int cache_bytes(lua_State *L) {
  const pyr_cache *cache = check_cache(L, 1);
  int first, last;
  check_tiers(L, 2, cache, &first, &last);
  lua_pushinteger(L, (lua_Integer)(first < last ? pyr_cache_bytes(cache)
                                   : pyr_cache_tier_bytes(cache, (pyr_tier)first)));
  return 1;
}

static int cache_has_tier(lua_State *L) {
  const pyr_cache *cache = check_cache(L, 1);
  lua_pushboolean(L, pyr_cache_has_tier(cache, (pyr_tier)luaL_checkoption(L, 2, NULL, tiers)));
  return 1;
}

/* cache:bring_up(program, rows) -> true */
static int cache_bring_up(lua_State *L) {
  pyr_score score = { 0 };
  score.length = pyr_lua_read_program(L, 2, score.ops, PYR_SCORE_MAX);
  lua_Integer rows = luaL_checkinteger(L, 3);
  cache_box *box = check_idle(L, 1);
  lua_State *outer = pyr_lua_enter(L);
  box->busy = true;
  pyr_status status = pyr_cache_promote(box->cache, &score, rows);
  box->busy = false;
  pyr_lua_leave(L, outer);
  if (status != PYR_OK) return fail(L, box->cache, status);
  lua_pushboolean(L, 1);
  return 1;
}

static int cache_fraction(lua_State *L) {
  lua_pushnumber(L, pyr_cache_fraction(check_cache(L, 1)));
  return 1;
}

static int cache_verifiable(lua_State *L) {
  lua_pushinteger(L, pyr_cache_verifiable(check_cache(L, 1)));
  return 1;
}

static int cache_reading(lua_State *L) {
  lua_pushnumber(L, pyr_cache_reading(check_cache(L, 1)));
  return 1;
}

static int cache_workspace(lua_State *L) {
  lua_pushinteger(L, (lua_Integer)pyr_cache_workspace(check_cache(L, 1)));
  return 1;
}

static int cache_tokens(lua_State *L) {
  lua_pushinteger(L, pyr_cache_tokens(check_cache(L, 1)));
  return 1;
}

static int cache_computed(lua_State *L) {
  lua_pushinteger(L, pyr_cache_computed(check_cache(L, 1)));
  return 1;
}

static int cache_evicted(lua_State *L) {
  lua_pushinteger(L, pyr_cache_evicted(check_cache(L, 1)));
  return 1;
}

static int cache_owner(lua_State *L) {
  luaL_checkudata(L, 1, CACHE);
  lua_getiuservalue(L, 1, 1);
  return 1;
}

static int cache_set_owner(lua_State *L) {
  luaL_checkudata(L, 1, CACHE);
  lua_settop(L, 2);
  lua_setiuservalue(L, 1, 1);
  return 0;
}

static int cache_show(lua_State *L) {
  cache_box *box = luaL_checkudata(L, 1, CACHE);
  if (box->cache == NULL) lua_pushliteral(L, "pyramid.cache (closed)");
  else lua_pushfstring(L, "pyramid.cache (%I tokens, %I bytes)",
                       (LUAI_UACINT)pyr_cache_tokens(box->cache),
                           (LUAI_UACINT)pyr_cache_bytes(box->cache));
  return 1;
}

/* ---- entry ----------------------------------------------------------------------------------- */

void pyr_lua_open_cache(lua_State *L) {
  static const luaL_Reg pool_methods[] = { { "bytes", pool_bytes }, { "add_tier", pool_add_tier },
                                           { "press", pool_press }, { NULL, NULL } };
  static const luaL_Reg cache_methods[] = {
    { "read_ids", cache_read_ids }, { "read_embeddings", cache_read_embeddings },
        { "step", cache_step }, { "verify", cache_verify },
        { "verifiable", cache_verifiable }, { "rows", cache_rows },
        { "positions", cache_positions }, { "held", cache_held },
    { "evaluate", cache_evaluate }, { "has_tier", cache_has_tier },
    { "bring_up", cache_bring_up },
    { "bytes", cache_bytes }, { "fraction", cache_fraction },
    { "reading", cache_reading }, { "tokens", cache_tokens },
    { "workspace", cache_workspace },
        { "computed", cache_computed },
    { "evicted", cache_evicted }, { "fork", cache_fork }, { "clear", cache_clear },
        { "cut", cache_cut }, { "see", cache_see }, { "tell", cache_tell },
        { "truncate", cache_truncate }, { "save", cache_save },
    { "note", cache_note }, { "load_prefix", cache_load_prefix }, { "identity", cache_identity },
    { "owner", cache_owner }, { "__tostring", cache_show }, { NULL, NULL }
  };
  static const luaL_Reg functions[] = { { "pool", core_pool }, { "cache", core_cache },
                                        { "load_cache", core_load_cache },
                                        { "step", core_step },
                                        { "read_together", core_read_together },
                                        { "embed", core_embed },
                                        { "set_owner", cache_set_owner },
                                            { NULL, NULL } };
  pyr_lua_new_class(L, POOL, pool_methods, pool_close);
  pyr_lua_new_class(L, CACHE, cache_methods, cache_close);
  luaL_setfuncs(L, functions, 0);
  luaL_getmetatable(L, CACHE);
  lua_getfield(L, -1, "__index");
  lua_setfield(L, -3, "cache_methods");
  lua_pop(L, 1);
}

/* lops.c — the backend's single operations for Lua, so that specs can hold each against a
 * reference: `require "pyramid_specs"`.
 *
 * Not part of the library: they believe their arguments. pyramid_specs.so holds them, which
 * spec/run.lua finds, with a copy of what of the core they call by name; the operations themselves
 * are reached through the backend's table of the program's own runtimes.
 *
 * Numbers travel as packed strings (little-endian f32 or i32): ops.floats, ops.ints and ops.numbers
 * convert. Each input is copied into a userdata block of exactly its size, so that a sanitizer sees
 * any read beyond it, and blocks that an error leaves behind are collected. Outputs are poisoned
 * first (NaN, or 0xA5 for integers), so that what an operation leaves out is seen. Scratch is
 * reserved for exactly the call at hand. Where the backend has memory of its own, so have the
 * blocks.
 *
 *   lane    { pages = bytes, positions = ints, history = floats | nil, born = ints | nil }; pages
 *           of pyr_page_bytes one after the other, wide ones where there is `born`; and `packed`,
 *           `frame` where some are packed, in the bits that layout's k and v name
 *   layout { dtype = "f16", head_dim = 64, heads = 8, kv_heads = 2, scale = 0.125 } (what a call
 *   has no use for, left out)
 *   weighting, track   { queries, ramp, due, threshold, every, decay, max }
 *   ranges  { { begin, end, origin }, … }, one a lane */
#include "lauxpyr.h"
#include "backend/backend.h"
#include "base/dtype.h"
#include "base/rowbits.h"
#include "sample/sample_batch.h"

#include <stdbool.h>
#include <string.h>

#include "lops_blocks.inc"
#include "lops_fields.inc"

/* ---- packing --------------------------------------------------------------------------------- */

static int ops_floats(lua_State *L) {
  pyr_backend *const be = NULL;
  luaL_checktype(L, 1, LUA_TTABLE);
  int64_t n = (int64_t)lua_rawlen(L, 1);
  float *x = new_floats(L, be, n);
  for (int64_t i = 0; i < n; i++) {
    lua_rawgeti(L, 1, i + 1);
    x[i] = (float)luaL_checknumber(L, -1);
    lua_pop(L, 1);
  }
  return push_floats(L, be, x, n);
}

static int ops_ints(lua_State *L) {
  pyr_backend *const be = NULL;
  luaL_checktype(L, 1, LUA_TTABLE);
  int64_t n = (int64_t)lua_rawlen(L, 1);
  int32_t *x = new_ints(L, be, n);
  for (int64_t i = 0; i < n; i++) {
    lua_rawgeti(L, 1, i + 1);
    x[i] = (int32_t)luaL_checkinteger(L, -1);
    lua_pop(L, 1);
  }
  return push_ints(L, be, x, n);
}

/* numbers(bytes [, "ints"]) -> sequence */
static int ops_numbers(lua_State *L) {
  size_t size;
  const char *bytes = luaL_checklstring(L, 1, &size);
  bool ints = lua_toboolean(L, 2);
  lua_createtable(L, (int)(size / 4), 0);
  for (size_t i = 0; i < size / 4; i++) {
    float x;
    int32_t k;
    memcpy(&x, bytes + 4 * i, 4);
    memcpy(&k, bytes + 4 * i, 4);
    if (ints) lua_pushinteger(L, k); else lua_pushnumber(L, x);
    lua_rawseti(L, -2, (lua_Integer)i + 1);
  }
  return 1;
}

/* to_f32(dtype, bytes), from_f32(dtype, floats): the reference conversions of dtype.h. */
static int ops_to_f32(lua_State *L) {
  pyr_backend *const be = NULL;
  pyr_dtype dtype = check_dtype(L, 1);
  int64_t blocks;
  const void *bytes = copy_block(L, be, 2, pyr_dtype_block_bytes(dtype), &blocks);
  int64_t n = blocks * pyr_dtype_block(dtype);
  float *out = new_floats(L, be, n);
  pyr_row_to_f32(out, bytes, dtype, n);
  return push_floats(L, be, out, n);
}

static int ops_from_f32(lua_State *L) {
  pyr_backend *const be = NULL;
  pyr_dtype dtype = check_dtype(L, 1);
  int64_t n;
  const float *x = copy_floats(L, be, 2, &n);
  size_t size = pyr_dtype_bytes(dtype, n);
  void *out = data_block(L, be, size, NULL, 0xa5);
  pyr_row_from_f32(out, dtype, x, n);
  lua_pushlstring(L, out, size);
  return 1;
}

#include "lops_bits.inc"

/* ---- memory ---------------------------------------------------------------------------------- */

/* alloc(runtime, bytes) -> the address modulo 64; the block is written, and given back */
static int ops_alloc(lua_State *L) {
  pyr_backend *be = begin_call(L);
  size_t bytes = (size_t)luaL_checkinteger(L, 2);
  void *block = be->alloc(be, bytes);
  if (block == NULL) return fail(L, be, pyr_nomem(be->rt, bytes, "a block"));
  if (!be->own_memory) memset(block, 0xa5, bytes);
  lua_pushinteger(L, (lua_Integer)((uintptr_t)block % 64));
  be->release(be, block, bytes);
  return 1;
}

/* reserve(runtime, { tokens, rows, sequences, heads, kv_heads, head_dim, cols, outputs }) -> true
 */
static int ops_reserve(lua_State *L) {
  pyr_backend *be = begin_call(L);
  pyr_work work = { .tokens = int_field(L, 2, "tokens", 1), .rows = int_field(L, 2, "rows", 1),
                    .sequences = int_field(L, 2, "sequences", 1),
                        .heads = (int32_t)int_field(L, 2, "heads", 1),
                    .kv_heads = (int32_t)int_field(L, 2, "kv_heads", 1),
                        .head_dim = (int32_t)int_field(L, 2, "head_dim", 1),
                    .cols = int_field(L, 2, "cols", 1), .outputs = int_field(L, 2, "outputs", 0) };
  pyr_status status = be->reserve(be, &work);
  if (status != PYR_OK) return fail(L, be, status);
  lua_pushboolean(L, 1);
  return 1;
}

/* ---- tokens ---------------------------------------------------------------------------------- */

/* embed(runtime, dtype, cols, table, ids) -> floats */
static int ops_embed(lua_State *L) {
  pyr_backend *be = begin_call(L);
  pyr_dtype dtype = check_dtype(L, 2);
  int64_t cols = luaL_checkinteger(L, 3), rows, n;
  size_t stride = pyr_dtype_bytes(dtype, cols);
  const void *data = copy_block(L, be, 4, stride, &rows);
  const int32_t *ids = copy_ints(L, be, 5, &n);
  pyr_tensor table = { data, dtype, 2, { rows, cols }, stride, 0 };
  float *out = new_floats(L, be, n * cols);
  pyr_status status = be->embed(be, out, &table, ids, n);
  return status == PYR_OK ? push_floats(L, be, out, n * cols) : fail(L, be, status);
}

/* norm(runtime, "rms" | "layer", x, weight, d, eps [, bias [, in_place]]) -> floats; weight: one or
 * several rows of d, taken in turn */
static int ops_norm(lua_State *L) {
  static const char *const kinds[] = { "rms", "layer", NULL };
  pyr_backend *be = begin_call(L);
  int64_t count, weights, d = luaL_checkinteger(L, 5);
  float *x = copy_floats(L, be, 3, &count);
  const float *weight = copy_floats(L, be, 4, &weights);
  pyr_norm norm = { .kind = (pyr_norm_kind)luaL_checkoption(L, 2, NULL, kinds),
                    .eps = (float)luaL_checknumber(L, 6), .weight = weight,
                    .bias = copy_floats(L, be, 7, NULL), .period = weights / d };
  float *out = lua_toboolean(L, 8) ? x : new_floats(L, be, count);
  pyr_status status = be->norm(be, out, x, &norm, count / d, d);
  return status == PYR_OK ? push_floats(L, be, out, count) : fail(L, be, status);
}

/* Brings w into the order in which the backend wants a model's weights; the block stays on the
 * stack. */
static pyr_status order_weights(lua_State *L, pyr_backend *be, pyr_tensor *w) {
  int32_t interleaved = be->interleaved ? be->interleaved(be, w) : 0;
  if (!interleaved) return PYR_OK;
  void *to = data_block(L, be, (size_t)w->shape[0] * w->stride, NULL, 0xa5);
  pyr_status status = be->interleave(be, to, w);
  w->data = to, w->interleaved = interleaved;
  return status;
}

/* linear(runtime, x, dtype, w, rows, cols [, bias [, out [, stride [, steps]]]]) -> floats; out:
 * accumulates to it. Without a stride w is brought into the order in which the backend wants a
 * model's weights. `steps`: tokens are decode steps, which get the same in any company. */
static int ops_linear(lua_State *L) {
  pyr_backend *be = begin_call(L);
  pyr_dtype dtype = check_dtype(L, 3);
  int64_t rows = luaL_checkinteger(L, 5), cols = luaL_checkinteger(L, 6), count;
  int steps = lua_toboolean(L, 10) ? PYR_LINEAR_EXACT : 0;
  size_t stride = (size_t)luaL_optinteger(L, 9, (lua_Integer)pyr_dtype_bytes(dtype, cols));
  const float *x = copy_floats(L, be, 2, &count);
  const void *data = copy_block(L, be, 4, 1, NULL);
  const float *bias = copy_floats(L, be, 7, NULL);
  float *out = copy_floats(L, be, 8, NULL);
  bool accumulate = out != NULL;
  int64_t n = count / cols;
  pyr_tensor w = { data, dtype, 2, { rows, cols }, stride, 0 };
  pyr_status status = lua_isnoneornil(L, 9) ? order_weights(L, be, &w) : PYR_OK;
  pyr_work work = { .tokens = n, .rows = 1, .sequences = 1, .heads = 1, .kv_heads = 1,
                    .head_dim = 1, .cols = cols, .outputs = rows };
  if (out == NULL) out = new_floats(L, be, n * rows);
  if (status == PYR_OK) status = be->reserve(be, &work);
  int flags = (accumulate ? PYR_LINEAR_ADD : 0) | steps;
  if (status == PYR_OK) status = be->linear(be, out, x, &w, bias, n, flags);
  return status == PYR_OK ? push_floats(L, be, out, n * rows) : fail(L, be, status);
}

/* mlp(runtime, x, { gate, up, down, gate_bias, up_bias, down_bias, gate_dtype, …, width, ff,
 * activation, limit, out, steps }) -> floats, or nil where the backend takes it by its parts.
 * Weights are brought into the order in which the backend wants a model's; out: accumulates. */
static int ops_mlp(lua_State *L) {
  static const char *const activations[] = { "silu", "gelu", "gelu_tanh", "relu", "relu2",
                                             "swiglu_clamped", NULL };
  static const char *const names[] = { "gate", "up", "down" };
  pyr_backend *be = begin_call(L);
  int64_t width = int_field(L, 3, "width", 0), ff = int_field(L, 3, "ff", 0), count;
  const float *x = copy_floats(L, be, 2, &count), *bias[3];
  pyr_tensor w[3];
  pyr_status status = PYR_OK;
  for (int i = 0; i < 3; i++) {
    char field[32];
    snprintf(field, sizeof field, "%s_dtype", names[i]);
    lua_getfield(L, 3, field);
    pyr_dtype dtype = lua_isnil(L, -1) ? PYR_F32 : check_dtype(L, lua_gettop(L));
    int64_t rows = i < 2 ? ff : width, cols = i < 2 ? width : ff;
    snprintf(field, sizeof field, "%s_bias", names[i]);
    lua_getfield(L, 3, field);
    bias[i] = copy_floats(L, be, lua_gettop(L), NULL);
    lua_getfield(L, 3, names[i]);
    w[i] = (pyr_tensor){ NULL, dtype, 2, { rows, cols }, pyr_dtype_bytes(dtype, cols), 0 };
    if (lua_isnil(L, -1)) continue;
    w[i].data = copy_block(L, be, lua_gettop(L), 1, NULL);
    if (status == PYR_OK) status = order_weights(L, be, &w[i]);
  }
  lua_getfield(L, 3, "activation");
  int act = luaL_checkoption(L, lua_gettop(L), NULL, activations);
  lua_getfield(L, 3, "limit");
  float limit = (float)luaL_optnumber(L, lua_gettop(L), 0);
  lua_getfield(L, 3, "steps");
  int flags = lua_toboolean(L, -1) ? PYR_LINEAR_EXACT : 0;
  lua_getfield(L, 3, "out");
  float *out = copy_floats(L, be, lua_gettop(L), NULL);
  if (out) flags |= PYR_LINEAR_ADD;
  int64_t n = count / width, cols = width > ff ? width : ff;
  if (!out) out = new_floats(L, be, n * width);
  pyr_work work = { .tokens = n, .rows = 1, .sequences = 1, .heads = 1, .kv_heads = 1,
                    .head_dim = 1, .cols = cols, .outputs = cols };
  pyr_mlp mlp = { .out = out, .x = x, .gate = w[0].data ? &w[0] : NULL, .up = &w[1],
                  .down = &w[2], .gate_bias = bias[0], .up_bias = bias[1], .down_bias = bias[2],
                  .n = n, .activation = (pyr_activation)act, .limit = limit, .flags = flags };
  if (!be->takes_mlp || !be->takes_mlp(be, &mlp)) {
    lua_pushnil(L);
    return 1;
  }
  if (status == PYR_OK) status = be->reserve(be, &work);
  if (status == PYR_OK) status = be->mlp(be, &mlp);
  return status == PYR_OK ? push_floats(L, be, out, n * width) : fail(L, be, status);
}

/* rope(runtime, x, pos, freq, heads, head_dim, "half" | "interleaved", gain) -> floats */
static int ops_rope(lua_State *L) {
  static const char *const styles[] = { "half", "interleaved", NULL };
  pyr_backend *be = begin_call(L);
  int64_t count, n, pairs;
  float *x = copy_floats(L, be, 2, &count);
  const int32_t *pos = copy_ints(L, be, 3, &n);
  const float *freq = copy_floats(L, be, 4, &pairs);
  pyr_status status = be->rope(be, x, pos, freq, n, (int32_t)luaL_checkinteger(L, 5),
                               (int32_t)luaL_checkinteger(L, 6), (int32_t)(2 * pairs),
                                   (pyr_rope_style)luaL_checkoption(L, 7, NULL, styles),
                                       (float)luaL_checknumber(L, 8));
  return status == PYR_OK ? push_floats(L, be, x, count) : fail(L, be, status);
}

/* activate(runtime, gate, up | nil, name [, limit]) -> floats */
static int ops_activate(lua_State *L) {
  static const char *const names[] = { "silu", "gelu", "gelu_tanh", "relu", "relu2",
                                       "swiglu_clamped", NULL };   /* in pyr_activation's order */
  pyr_backend *be = begin_call(L);
  int64_t n;
  float *gate = copy_floats(L, be, 2, &n);
  const float *up = copy_floats(L, be, 3, NULL);
  pyr_activation act = (pyr_activation)luaL_checkoption(L, 4, NULL, names);
  pyr_status status = be->activate(be, gate, up, n, act, (float)luaL_optnumber(L, 5, 0));
  return status == PYR_OK ? push_floats(L, be, gate, n) : fail(L, be, status);
}

/* scale(runtime, x, factor, cap) -> floats */
static int ops_scale(lua_State *L) {
  pyr_backend *be = begin_call(L);
  int64_t n;
  float *x = copy_floats(L, be, 2, &n);
  pyr_status status = be->scale(be, x, n, (float)luaL_checknumber(L, 3),
                                (float)luaL_checknumber(L, 4));
  return status == PYR_OK ? push_floats(L, be, x, n) : fail(L, be, status);
}

/* add(runtime, x, y, factor) -> floats */
static int ops_add(lua_State *L) {
  pyr_backend *be = begin_call(L);
  int64_t n;
  float *x = copy_floats(L, be, 2, &n);
  const float *y = copy_floats(L, be, 3, NULL);
  pyr_status status = be->add(be, x, y, n, (float)luaL_checknumber(L, 4));
  return status == PYR_OK ? push_floats(L, be, x, n) : fail(L, be, status);
}

/* gate_rows(runtime, x, logits, d) -> floats */
static int ops_gate_rows(lua_State *L) {
  pyr_backend *be = begin_call(L);
  int64_t n, d = luaL_checkinteger(L, 4);
  float *x = copy_floats(L, be, 2, NULL);
  const float *logits = copy_floats(L, be, 3, &n);
  pyr_status status = be->gate_rows(be, x, logits, n, d);
  return status == PYR_OK ? push_floats(L, be, x, n * d) : fail(L, be, status);
}

/* temper(runtime, x, pos, beta, length) -> floats */
static int ops_temper(lua_State *L) {
  pyr_backend *be = begin_call(L);
  int64_t count, n;
  float *x = copy_floats(L, be, 2, &count);
  const int32_t *pos = copy_ints(L, be, 3, &n);
  pyr_status status = be->temper(be, x, pos, n, n > 0 ? count / n : 1,
                                 (float)luaL_checknumber(L, 4),
                                 (int32_t)luaL_checkinteger(L, 5));
  return status == PYR_OK ? push_floats(L, be, x, count) : fail(L, be, status);
}

/* route(runtime, logits, { experts, used, sigmoid (0), renormalise (0), scale (1), groups (0),
 * groups_used (0) } [, correction]) -> ids, weights */
static int ops_route(lua_State *L) {
  pyr_backend *be = begin_call(L);
  int64_t count;
  const float *logits = copy_floats(L, be, 2, &count);
  pyr_route r = { .logits = logits, .correction = copy_floats(L, be, 4, NULL),
                  .experts = (int32_t)int_field(L, 3, "experts", 1),
                  .used = (int32_t)int_field(L, 3, "used", 1),
                  .groups = (int32_t)int_field(L, 3, "groups", 0),
                  .groups_used = (int32_t)int_field(L, 3, "groups_used", 0),
                  .kind = int_field(L, 3, "sigmoid", 0) ? PYR_ROUTER_SIGMOID : PYR_ROUTER_SOFTMAX,
                  .renormalise = (int32_t)int_field(L, 3, "renormalise", 0),
                  .scale = (float)number_field(L, 3, "scale", 1) };
  r.n = count / r.experts;
  r.ids = new_ints(L, be, r.n * r.used);
  r.weights = new_floats(L, be, r.n * r.used);
  pyr_status status = be->route(be, &r);
  if (status != PYR_OK) return fail(L, be, status);
  push_ints(L, be, r.ids, r.n * r.used);
  push_floats(L, be, r.weights, r.n * r.used);
  return 2;
}

/* Field `key` of the table at `arg`, one matrix of each expert in a row, as those of `experts`. */
static pyr_status expert_matrices(lua_State *L, pyr_backend *be, int arg, const char *key,
                                  int64_t rows, int64_t cols, size_t place, pyr_expert *experts,
                                  int32_t count) {
  lua_getfield(L, arg, "dtype");
  pyr_dtype dtype = check_dtype(L, lua_gettop(L));
  size_t stride = pyr_dtype_bytes(dtype, cols), bytes;
  if (lua_getfield(L, arg, key) == LUA_TNIL) return PYR_OK;
  const char *data = luaL_checklstring(L, -1, &bytes);
  if (bytes != (size_t)count * (size_t)rows * stride) luaL_argerror(L, arg, key);
  for (int32_t i = 0; i < count; i++) {
    size_t each = (size_t)rows * stride;
    pyr_tensor w = { data_block(L, be, each, data + (size_t)i * each, 0), dtype, 2,
                     { rows, cols }, stride, 0 };
    pyr_status status = order_weights(L, be, &w);
    if (status != PYR_OK) return status;
    *(pyr_tensor *)(void *)((char *)&experts[i] + place) = w;
  }
  return PYR_OK;
}

/* The same of biases, floats. */
static void expert_biases(lua_State *L, pyr_backend *be, int arg, const char *key, int64_t n,
                          size_t place, pyr_expert *experts, int32_t count) {
  size_t bytes;
  if (lua_getfield(L, arg, key) == LUA_TNIL) return;
  const char *data = luaL_checklstring(L, -1, &bytes);
  if (bytes != (size_t)(count * n) * sizeof(float)) luaL_argerror(L, arg, key);
  for (int32_t i = 0; i < count; i++) {
    size_t each = (size_t)n * sizeof(float);
    *(void **)(void *)((char *)&experts[i] + place) = data_block(L, be, each,
                                                                 data + (size_t)i * each, 0);
  }
}

/* experts(runtime, x, ids, weights, { experts, used, width, ff, dtype, gate | nil, up, down and
 * gate_bias, up_bias, down_bias | nil: those of all experts in a row; activation, limit } [, out])
 * -> floats; out: accumulates to it */
static int ops_experts(lua_State *L) {
  static const char *const names[] = { "silu", "gelu", "gelu_tanh", "relu", "relu2",
                                       "swiglu_clamped", NULL };   /* in pyr_activation's order */
  pyr_backend *be = begin_call(L);
  int64_t pairs, width = int_field(L, 5, "width", 1), ff = int_field(L, 5, "ff", 1);
  pyr_experts e = { .x = copy_floats(L, be, 2, NULL), .ids = copy_ints(L, be, 3, &pairs),
                    .weights = copy_floats(L, be, 4, NULL), .out = copy_floats(L, be, 6, NULL),
                    .experts = (int32_t)int_field(L, 5, "experts", 1),
                    .used = (int32_t)int_field(L, 5, "used", 1),
                    .limit = (float)number_field(L, 5, "limit", 0) };
  e.n = pairs / e.used;
  e.flags = e.out ? PYR_LINEAR_ADD : 0;
  if (!e.out) e.out = new_floats(L, be, e.n * width);
  lua_getfield(L, 5, "activation");
  e.activation = (pyr_activation)luaL_checkoption(L, -1, "silu", names);
  size_t bytes = (size_t)e.experts * sizeof(pyr_expert);
  pyr_expert *each = new_block(L, bytes, 0);
  const struct { const char *name; int64_t rows, cols; size_t place; } matrices[] = {
    { "gate", ff, width, offsetof(pyr_expert, gate) },
    { "up", ff, width, offsetof(pyr_expert, up) },
    { "down", width, ff, offsetof(pyr_expert, down) } };
  pyr_status status = PYR_OK;
  for (int i = 0; i < 3 && status == PYR_OK; i++)
    status = expert_matrices(L, be, 5, matrices[i].name, matrices[i].rows, matrices[i].cols,
                             matrices[i].place, each, e.experts);
  expert_biases(L, be, 5, "gate_bias", ff, offsetof(pyr_expert, gate_bias), each, e.experts);
  expert_biases(L, be, 5, "up_bias", ff, offsetof(pyr_expert, up_bias), each, e.experts);
  expert_biases(L, be, 5, "down_bias", width, offsetof(pyr_expert, down_bias), each, e.experts);
  e.each = each;
  if (be->own_memory) e.table = data_block(L, be, bytes, each, 0);
  int64_t cols = width > ff ? width : ff;
  pyr_work work = { .tokens = e.n, .rows = 1, .sequences = 1, .heads = 1, .kv_heads = 1,
                    .head_dim = 1, .cols = cols, .outputs = cols, .experts = e.experts,
                    .experts_used = e.used, .expert_ff = ff };
  if (status == PYR_OK) status = be->reserve(be, &work);
  if (status == PYR_OK) status = be->experts(be, &e);
  return status == PYR_OK ? push_floats(L, be, e.out, e.n * width) : fail(L, be, status);
}

/* take_rows(runtime, x, idx, d), take_i32(runtime, x, idx) -> the first #idx rows or values after
 * the call */
static int ops_take_rows(lua_State *L) {
  pyr_backend *be = begin_call(L);
  int64_t k, d = luaL_checkinteger(L, 4);
  float *x = copy_floats(L, be, 2, NULL);
  const int32_t *idx = copy_ints(L, be, 3, &k);
  pyr_status status = be->take_rows(be, x, idx, k, d);
  return status == PYR_OK ? push_floats(L, be, x, k * d) : fail(L, be, status);
}

static int ops_take_i32(lua_State *L) {
  pyr_backend *be = begin_call(L);
  int64_t k;
  int32_t *x = copy_ints(L, be, 2, NULL);
  const int32_t *idx = copy_ints(L, be, 3, &k);
  pyr_status status = be->take_i32(be, x, idx, k);
  return status == PYR_OK ? push_ints(L, be, x, k) : fail(L, be, status);
}

/* ---- cache rows ------------------------------------------------------------------------------ */

/* store(runtime, layout, calls) -> for each call its lanes; call: { lanes, k = floats, v = floats,
 * positions = ints, learned = floats or nil }, whose lanes have pages and positions for all rows
 * they will hold (and a history for what is learned), and `rows`: how many they hold */
static int ops_store(lua_State *L) {
  pyr_backend *be = begin_call(L);
  layout_args l = check_layout(L, 2);
  luaL_checktype(L, 3, LUA_TTABLE);
  int count = (int)lua_rawlen(L, 3);
  pyr_work work = { .tokens = 1, .rows = 1, .sequences = count, .heads = l.kv_heads,
                    .kv_heads = l.kv_heads, .head_dim = l.layout.head_dim, .cols = 1 };
  pyr_append *calls = new_block(L, (size_t)count * sizeof *calls, 0);
  int64_t *room = new_block(L, (size_t)count * sizeof *room, 0);
  for (int i = 0; i < count; i++) {
    lua_rawgeti(L, 3, i + 1);
    int call = lua_gettop(L);
    int64_t keys, values;
    calls[i].k = block_field(L, be, call, "k", sizeof(float), &keys);
    calls[i].v = block_field(L, be, call, "v", sizeof(float), &values);
    calls[i].positions = block_field(L, be, call, "positions", sizeof(int32_t), &calls[i].n);
    int64_t learned = calls[i].n * l.kv_heads;
    lua_getfield(L, call, "learned");
    calls[i].learned = lua_isnil(L, -1) ? NULL
        : block_field(L, be, call, "learned", sizeof(float), &learned);
    if (learned != calls[i].n * l.kv_heads) return luaL_argerror(L, 3, "learned differs");
    pyr_lane_view *lanes = check_lanes(L, be, call, l.layout, l.kv_heads);
    calls[i].lanes = lanes;
    if (keys != values || keys != calls[i].n * l.kv_heads * l.layout.head_dim)
      return luaL_argerror(L, 3, "k, v and positions differ");
    room[i] = lanes[0].rows;
    for (int g = 0; g < l.kv_heads; g++) {
      lua_getfield(L, call, "lanes");
      lua_rawgeti(L, -1, g + 1);
      lanes[g].rows = int_field(L, lua_gettop(L), "rows", 0);
      lua_pop(L, 2);
      if (lanes[g].rows + calls[i].n > room[i]) return luaL_argerror(L, 3, "a lane has no room");
    }
    if (calls[i].n > work.tokens) work.tokens = calls[i].n;
    if (room[i] > work.rows) work.rows = room[i];
  }
  pyr_status status = be->reserve(be, &work);
  if (status == PYR_OK) status = be->store(be, calls, count, l.layout, l.kv_heads);
  if (status != PYR_OK) return fail(L, be, status);
  luaL_checkstack(L, 8, NULL);
  lua_createtable(L, count, 0);
  for (int i = 0; i < count; i++) {
    lua_createtable(L, l.kv_heads, 0);
    for (int g = 0; g < l.kv_heads; g++) {
      push_lane(L, be, &calls[i].lanes[g], l.layout, room[i]);
      lua_rawseti(L, -2, g + 1);
    }
    lua_rawseti(L, -2, i + 1);
  }
  return 1;
}

/* gather(runtime, layout, lanes, idx [, pages [, packed]]) -> lanes; pages: of each lane, gathered
 * into these, with positions and history of their own, instead of in place; packed: their kinds */
static int ops_gather(lua_State *L) {
  pyr_backend *be = begin_call(L);
  layout_args l = check_layout(L, 2);
  luaL_checktype(L, 3, LUA_TTABLE);
  int count = (int)lua_rawlen(L, 3);
  int64_t k;
  const int32_t *idx = copy_ints(L, be, 4, &k);
  pyr_work work = { .tokens = 1, .rows = 1, .sequences = 1, .heads = count, .kv_heads = count,
                    .head_dim = l.layout.head_dim, .cols = 1 };
  pyr_lane_view *src = new_block(L, (size_t)count * sizeof *src, 0),
      *dst = new_block(L, (size_t)count * sizeof *dst, 0);
  for (int i = 0; i < count; i++) {
    lua_rawgeti(L, 3, i + 1);
    src[i] = dst[i] = check_lane(L, be, lua_gettop(L), l.layout);
    if (src[i].rows > work.rows) work.rows = src[i].rows;
    if (lua_isnoneornil(L, 5)) continue;
    lua_createtable(L, 0, 2);
    lua_pushvalue(L, 5);
    lua_setfield(L, -2, "pages");
    if (!lua_isnoneornil(L, 6)) {
      lua_pushvalue(L, 6);
      lua_setfield(L, -2, "packed");
    }
    dst[i] = check_lane(L, be, lua_gettop(L), l.layout);
    dst[i].frame = src[i].frame;
    dst[i].positions = new_ints(L, be, k);
    dst[i].history = src[i].history ? new_floats(L, be, k) : NULL;
  }
  pyr_status status = be->reserve(be, &work);
  if (status == PYR_OK) status = be->gather(be, dst, src, count, l.layout, idx, k);
  if (status != PYR_OK) return fail(L, be, status);
  luaL_checkstack(L, 8, NULL);
  lua_createtable(L, count, 0);
  for (int i = 0; i < count; i++) {
    push_lane(L, be, &dst[i], l.layout, k);
    lua_rawseti(L, -2, i + 1);
  }
  return 1;
}

#include "lops_tiers.inc"

/* Ranges of `count` lanes from the field `ranges`; without it, rows from <= j < to of every lane,
 * counted from 0. */
static const pyr_range *check_ranges(lua_State *L, int arg, int count) {
  pyr_range *ranges = new_block(L, (size_t)count * sizeof *ranges, 0);
  lua_getfield(L, arg, "ranges");
  int list = lua_gettop(L);
  for (int g = 0; g < count; g++) {
    ranges[g] = (pyr_range){ int_field(L, arg, "from", 0), int_field(L, arg, "to", 0), 0 };
    if (!lua_istable(L, list)) continue;
    lua_rawgeti(L, list, g + 1);
    for (int i = 0; i < 3; i++) {
      lua_rawgeti(L, list + 1, i + 1);
      *(i == 0 ? &ranges[g].begin : i == 1 ? &ranges[g].end
        : &ranges[g].origin) = luaL_checkinteger(L, -1);
      lua_pop(L, 1);
    }
    lua_pop(L, 1);
  }
  return ranges;
}

static pyr_reduce reduce_named(const char *name) {
  if (strcmp(name, "variance") == 0) return PYR_VARIANCE;
  if (strcmp(name, "entropy") == 0) return PYR_ENTROPY;
  return strcmp(name, "max") == 0 ? PYR_MAX : PYR_SUM;
}

/* What is asked for of the last `last` queries of an attention: see ops_mass. */
static pyr_mass check_mass(lua_State *L, pyr_backend *be, int table, const pyr_attention *a,
                           layout_args l) {
  int64_t last = int_field(L, table, "last", a->n), skip = a->n - last;
  pyr_mass m = { .ranges = check_ranges(L, table, l.kv_heads), .window = a->window,
                 .weighting = check_weighting(L, table), .n = last, .lanes = a->lanes,
                 .q = a->q + skip * l.heads * l.layout.head_dim, .q_pos = a->q_pos + skip,
                 .lse = a->lse + skip * l.heads, .cap = a->cap, .slopes = a->slopes };
  m.stride = int_field(L, table, "stride", 0);
  m.place = (int32_t)int_field(L, table, "place", -1);
  m.by_place = m.place >= 0;
  lua_getfield(L, table, "reduce");
  m.reduce = strcmp(luaL_optstring(L, -1, "sum"), "max") == 0 ? PYR_MAX : PYR_SUM;
  lua_pop(L, 1);
  m.out = block_field(L, be, table, "out", sizeof(float), NULL);
  return m;
}

/* The call's field `masses`, a list; NULL if it has none. */
static pyr_masses *check_masses(lua_State *L, pyr_backend *be, int call, const pyr_attention *a,
                                layout_args l) {
  lua_getfield(L, call, "masses");
  if (!lua_istable(L, -1)) return NULL;
  int list = lua_gettop(L), count = (int)lua_rawlen(L, list);
  pyr_masses *masses = new_block(L, sizeof *masses, 0);
  pyr_mass *each = new_block(L, (size_t)count * sizeof *each, 0);
  for (int i = 0; i < count; i++) {
    luaL_checkstack(L, 16, NULL);
    lua_rawgeti(L, list, i + 1);
    each[i] = check_mass(L, be, lua_gettop(L), a, l);
  }
  *masses = (pyr_masses){ .list = each, .count = count };
  return masses;
}

/* attention(runtime, layout, { { q, q_pos, lanes, window, track, cap, slopes, sinks, masses }, … }
 * [, unreserved]) -> { { out, lse, history, masses, summed }, … }; lanes without history and a
 * track are not tracked. masses: { out, stride, ranges | from, to, reduce, last, place,
 * <weighting> } each; what attention does not sum is summed after it. summed: whether it did.
 * `no_lse` in a call leaves the lse out. */
static int ops_attention(lua_State *L) {
  pyr_backend *be = begin_call(L);
  layout_args l = check_layout(L, 2);
  luaL_checktype(L, 3, LUA_TTABLE);
  int count = (int)lua_rawlen(L, 3);
  pyr_work work = { .tokens = 1, .rows = 1, .sequences = count, .heads = l.heads,
                    .kv_heads = l.kv_heads, .head_dim = l.layout.head_dim, .cols = 1 };
  bool reserved = !lua_toboolean(L, 4);
  pyr_attention *calls = new_block(L, (size_t)count * sizeof *calls, 0);
  for (int i = 0; i < count; i++) {
    lua_rawgeti(L, 3, i + 1);
    int call = lua_gettop(L);
    pyr_attention *a = &calls[i];
    int64_t values;
    a->q = block_field(L, be, call, "q", sizeof(float), &values);
    a->q_pos = block_field(L, be, call, "q_pos", sizeof(int32_t), &a->n);
    if (values != a->n * l.heads * l.layout.head_dim)
      return luaL_argerror(L, 3, "q and q_pos differ");
    a->lanes = check_lanes(L, be, call, l.layout, l.kv_heads);
    a->window = (int32_t)int_field(L, call, "window", 0);
    a->cap = number_field(L, call, "cap", 0);
    a->slopes = block_field(L, be, call, "slopes", sizeof(float), NULL);
    a->sinks = block_field(L, be, call, "sinks", sizeof(float), NULL);
    a->out = new_floats(L, be, values);
    a->lse = int_field(L, call, "no_lse", 0) ? NULL : new_floats(L, be, a->n * l.heads);
    lua_getfield(L, call, "track");
    if (lua_istable(L, -1)) {
      int at = lua_gettop(L);
      pyr_track *track = new_block(L, sizeof *track, 0);
      *track = (pyr_track){ check_weighting(L, at), number_field(L, at, "decay", 1),
                            (int32_t)int_field(L, at, "max", 0),
                            block_field(L, be, at, "more", sizeof(float), NULL),
                             block_field(L, be, at, "all", sizeof(float), NULL) };
      a->track = track;
    }
    a->masses = check_masses(L, be, call, a, l);
    if (a->masses) work.masses = a->masses->count;
    if (a->n > work.tokens) work.tokens = a->n;
    for (int g = 0; g < l.kv_heads; g++)
      if (a->lanes[g].rows > work.rows) work.rows = a->lanes[g].rows;
  }
  pyr_status status = reserved ? be->reserve(be, &work) : PYR_OK;
  if (status == PYR_OK)
    status = be->attention(be, calls, count, l.layout, l.heads, l.kv_heads, l.scale);
  for (int i = 0; i < count && calls[i].masses && !calls[i].masses->summed; i++)
    for (int k = 0; k < calls[i].masses->count && status == PYR_OK; k++)
      status = be->mass(be, &calls[i].masses->list[k], l.layout, l.heads, l.kv_heads, l.scale);
  if (status != PYR_OK) return fail(L, be, status);
  luaL_checkstack(L, 8, NULL);
  lua_createtable(L, count, 0);
  for (int i = 0; i < count; i++) {
    lua_createtable(L, 0, 3);
    push_floats(L, be, calls[i].out, calls[i].n * l.heads * l.layout.head_dim);
    lua_setfield(L, -2, "out");
    if (calls[i].lse) {
      push_floats(L, be, calls[i].lse, calls[i].n * l.heads);
      lua_setfield(L, -2, "lse");
    }
    lua_createtable(L, l.kv_heads, 0);
    for (int g = 0; g < l.kv_heads; g++)
      if (calls[i].lanes[g].history) {
        push_floats(L, be, calls[i].lanes[g].history, calls[i].lanes[g].rows);
        lua_rawseti(L, -2, g + 1);
      }
    lua_setfield(L, -2, "history");
    const pyr_masses *masses = calls[i].masses;
    lua_pushboolean(L, masses && masses->summed);
    lua_setfield(L, -2, "summed");
    lua_createtable(L, masses ? masses->count : 0, 0);
    for (int k = 0; masses && k < masses->count; k++) {
      push_floats(L, be, masses->list[k].out, l.heads * masses->list[k].stride);
      lua_rawseti(L, -2, k + 1);
    }
    lua_setfield(L, -2, "masses");
    lua_rawseti(L, -2, i + 1);
  }
  return 1;
}

#include "lops_digests.inc"

/* merge(runtime, layout, lane, idx, threshold) -> lane */
static int ops_merge(lua_State *L) {
  pyr_backend *be = begin_call(L);
  layout_args l = check_layout(L, 2);
  int64_t k;
  pyr_lane_view lane = check_lane(L, be, 3, l.layout);
  const int32_t *idx = copy_ints(L, be, 4, &k);
  pyr_work work = { .tokens = 1, .rows = 1, .sequences = 1, .heads = 1, .kv_heads = 1,
                    .head_dim = l.layout.head_dim, .cols = 1 };
  int32_t *links = new_ints(L, be, 2 * lane.rows);
  pyr_status status = be->reserve(be, &work);
  if (status == PYR_OK)
    status = be->merge(be, &lane, l.layout, idx, k, (float)luaL_checknumber(L, 5), links);
  if (status != PYR_OK) return fail(L, be, status);
  push_lane(L, be, &lane, l.layout, lane.rows);
  return 1;
}

/* rotate(runtime, layout, lane, from, freq, "half" | "interleaved" [, stood]) -> lane */
static int ops_rotate(lua_State *L) {
  static const char *const styles[] = { "half", "interleaved", NULL };
  pyr_backend *be = begin_call(L);
  layout_args l = check_layout(L, 2);
  int64_t pairs;
  pyr_lane_view lane = check_lane(L, be, 3, l.layout);
  const int32_t *from = copy_ints(L, be, 4, NULL);
  const float *freq = copy_floats(L, be, 5, &pairs);
  const int32_t *stood = lua_isnoneornil(L, 7) ? NULL : copy_ints(L, be, 7, NULL);
  pyr_work work = { .tokens = 1, .rows = 1, .sequences = 1, .heads = 1, .kv_heads = 1,
                    .head_dim = l.layout.head_dim, .cols = 1 };
  pyr_status status = be->reserve(be, &work);
  if (status == PYR_OK)
    status = be->rotate(be, &lane, l.layout, from, stood, freq, (int32_t)(2 * pairs),
                        (pyr_rope_style)luaL_checkoption(L, 6, NULL, styles));
  if (status != PYR_OK) return fail(L, be, status);
  push_lane(L, be, &lane, l.layout, lane.rows);
  return 1;
}

/* mass(runtime, layout, { out, q, lse, q_pos, lanes, ranges | from, to, stride, window, reduce =
 * "sum" | "max", cap, slopes, <weighting> }) -> floats */
static int ops_mass(lua_State *L) {
  pyr_backend *be = begin_call(L);
  layout_args l = check_layout(L, 2);
  luaL_checktype(L, 3, LUA_TTABLE);
  int64_t size;
  pyr_mass m = { .ranges = check_ranges(L, 3, l.kv_heads),
                 .window = (int32_t)int_field(L, 3, "window", 0),
                     .weighting = check_weighting(L, 3) };
  m.stride = int_field(L, 3, "stride", 0);
  lua_getfield(L, 3, "reduce");
  m.reduce = reduce_named(luaL_optstring(L, -1, "sum"));
  m.out = block_field(L, be, 3, "out", sizeof(float), &size);
  m.q = block_field(L, be, 3, "q", sizeof(float), NULL);
  m.lse = block_field(L, be, 3, "lse", sizeof(float), NULL);
  m.q_pos = block_field(L, be, 3, "q_pos", sizeof(int32_t), &m.n);
  m.cap = number_field(L, 3, "cap", 0);
  m.slopes = block_field(L, be, 3, "slopes", sizeof(float), NULL);
  m.lanes = check_lanes(L, be, 3, l.layout, l.kv_heads);
  pyr_work work = { .tokens = m.n, .rows = m.lanes[0].rows, .sequences = 1, .heads = l.heads,
                    .kv_heads = l.kv_heads, .head_dim = l.layout.head_dim, .cols = 1 };
  pyr_status status = be->reserve(be, &work);
  if (status == PYR_OK) status = be->mass(be, &m, l.layout, l.heads, l.kv_heads, l.scale);
  return status == PYR_OK ? push_floats(L, be, m.out, size) : fail(L, be, status);
}

/* row_norms(runtime, layout, lane, from, to, what [, absolute]) -> floats */
static int ops_row_norms(lua_State *L) {
  pyr_backend *be = begin_call(L);
  layout_args l = check_layout(L, 2);
  pyr_lane_view lane = check_lane(L, be, 3, l.layout);
  int64_t begin = luaL_checkinteger(L, 4), end = luaL_checkinteger(L, 5);
  float *out = new_floats(L, be, end - begin);
  pyr_status status = be->row_norms(be, out, &lane, l.layout, begin, end,
                                    (pyr_plane)luaL_checkinteger(L, 6),
                                    lua_toboolean(L, 7));
  return status == PYR_OK ? push_floats(L, be, out, end - begin) : fail(L, be, status);
}

/* ---- signals of rows ------------------------------------------------------------------------- */

static pyr_status reserve_rows(pyr_backend *be, layout_args l, int64_t rows) {
  pyr_work work = { .tokens = 1, .rows = rows, .sequences = 1, .heads = l.heads,
                    .kv_heads = l.kv_heads, .head_dim = l.layout.head_dim, .cols = 1 };
  return be->reserve(be, &work);
}

/* read_rows(runtime, layout, lane, from, to, what) -> floats */
static int ops_read_rows(lua_State *L) {
  pyr_backend *be = begin_call(L);
  layout_args l = check_layout(L, 2);
  pyr_lane_view lane = check_lane(L, be, 3, l.layout);
  int64_t begin = luaL_checkinteger(L, 4), end = luaL_checkinteger(L, 5),
      n = (end - begin) * l.layout.head_dim;
  float *out = new_floats(L, be, n);
  pyr_status status = be->read_rows(be, out, &lane, l.layout, begin, end,
                                    (pyr_plane)luaL_checkinteger(L, 6));
  return status == PYR_OK ? push_floats(L, be, out, n) : fail(L, be, status);
}

/* What an operation on rows [from, to) of one lane is given, by (runtime, layout, lane, from, to),
 * with room for a number of each row; scratch is reserved. */
typedef struct rows_call {
  pyr_backend *be;
  pyr_layout layout;
  pyr_lane_view lane;
  int64_t begin, end;
  float *out;
  pyr_status status;
} rows_call;

static rows_call begin_rows(lua_State *L) {
  pyr_backend *be = begin_call(L);
  layout_args l = check_layout(L, 2);
  rows_call c = { .be = be, .layout = l.layout, .lane = check_lane(L, be, 3, l.layout),
                  .begin = luaL_checkinteger(L, 4), .end = luaL_checkinteger(L, 5) };
  c.out = new_floats(L, be, c.end - c.begin);
  c.status = reserve_rows(be, l, c.lane.rows);
  return c;
}
static int end_rows(lua_State *L, const rows_call *c) {
  return c->status == PYR_OK ? push_floats(L, c->be, c->out, c->end - c->begin)
      : fail(L, c->be, c->status);
}

/* key_similarity(runtime, layout, lane, from, to) -> floats */
static int ops_key_similarity(lua_State *L) {
  rows_call c = begin_rows(L);
  if (c.status == PYR_OK)
    c.status = c.be->key_similarity(c.be, c.out, &c.lane, c.layout, c.begin, c.end);
  return end_rows(L, &c);
}

/* redundancy(runtime, layout, lane, from, to, threshold) -> floats */
static int ops_redundancy(lua_State *L) {
  rows_call c = begin_rows(L);
  if (c.status == PYR_OK)
    c.status = c.be->redundancy(c.be, c.out, &c.lane, c.layout, c.begin, c.end,
                                (float)luaL_checknumber(L, 6));
  return end_rows(L, &c);
}

/* lag(runtime, layout, lane, from, to, lag, ranked) -> floats */
static int ops_lag(lua_State *L) {
  rows_call c = begin_rows(L);
  if (c.status == PYR_OK)
    c.status = c.be->lag(c.be, c.out, &c.lane, c.layout, c.begin, c.end, luaL_checkinteger(L, 6),
                         lua_toboolean(L, 7));
  return end_rows(L, &c);
}

/* output_norm(runtime, layout, lane, { from, to, first, count, dtype, rows, o }) -> floats [count,
 * to-from] */
static int ops_output_norm(lua_State *L) {
  pyr_backend *be = begin_call(L);
  layout_args l = check_layout(L, 2);
  pyr_lane_view lane = check_lane(L, be, 3, l.layout);
  int64_t begin = int_field(L, 4, "from", 0), end = int_field(L, 4, "to", 0),
      count = int_field(L, 4, "count", 1);
  lua_getfield(L, 4, "dtype");
  pyr_dtype dtype = check_dtype(L, lua_gettop(L));
  int64_t cols = (int64_t)l.heads * l.layout.head_dim;
  pyr_tensor o = { block_field(L, be, 4, "o", 1, NULL), dtype, 2,
                   { int_field(L, 4, "rows", 0), cols }, pyr_dtype_bytes(dtype, cols), 0 };
  float *out = new_floats(L, be, count * (end - begin));
  pyr_status status = order_weights(L, be, &o);
  if (status == PYR_OK) status = reserve_rows(be, l, lane.rows);
  if (status == PYR_OK)
    status = be->output_norm(be, out, &lane, l.layout, begin, end, &o,
                             (int32_t)int_field(L, 4, "first", 0), (int32_t)count);
  return status == PYR_OK ? push_floats(L, be, out, count * (end - begin)) : fail(L, be, status);
}

/* along(runtime, layout, lane, { from, to, count, vectors, spreads, dims, style }) -> floats
 * [count, to-from]; without spreads lengths do not count */
static int ops_along(lua_State *L) {
  pyr_backend *be = begin_call(L);
  layout_args l = check_layout(L, 2);
  pyr_lane_view lane = check_lane(L, be, 3, l.layout);
  int64_t begin = int_field(L, 4, "from", 0), end = int_field(L, 4, "to", 0),
      count = int_field(L, 4, "count", 1), spreads = 0;
  pyr_along a = { .vectors = block_field(L, be, 4, "vectors", sizeof(float), NULL),
                  .dims = (int32_t)int_field(L, 4, "dims", 0),
                  .style = (pyr_rope_style)int_field(L, 4, "style", 0) };
  const float *own = block_field(L, be, 4, "spreads", sizeof(float), &spreads);
  if (spreads > 0) a.spreads = own;
  float *out = new_floats(L, be, count * (end - begin));
  pyr_status status = reserve_rows(be, l, lane.rows);
  if (status == PYR_OK)
    status = be->along(be, out, &lane, l.layout, begin, end, &a, (int32_t)count);
  return status == PYR_OK ? push_floats(L, be, out, count * (end - begin)) : fail(L, be, status);
}

/* expected(runtime, layout, lane, { from, to, first, count, q, q_pos, pieces, freq, style, gain,
 * next, future, covariance }) -> floats [count, to-from]; the queries are added in `pieces` calls
 */
static int ops_expected(lua_State *L) {
  pyr_backend *be = begin_call(L);
  layout_args l = check_layout(L, 2);
  pyr_lane_view lane = check_lane(L, be, 3, l.layout);
  int64_t begin = int_field(L, 4, "from", 0), end = int_field(L, 4, "to", 0),
      count = int_field(L, 4, "count", 1), n, pairs;
  int64_t each = (int64_t)l.heads * l.layout.head_dim, pieces = int_field(L, 4, "pieces", 1),
      added = 0;
  const float *q = block_field(L, be, 4, "q", sizeof(float), NULL);
  const int32_t *q_pos = block_field(L, be, 4, "q_pos", sizeof(int32_t), &n);
  pyr_moments m = { .heads = l.heads, .head_dim = l.layout.head_dim,
                    .gain = number_field(L, 4, "gain", 1) };
  m.style = (pyr_rope_style)int_field(L, 4, "style", 0);
  m.freq = block_field(L, be, 4, "freq", sizeof(float), &pairs);
  m.dims = (int32_t)(2 * pairs);
  m.shift = new_floats(L, be, each);
  m.sum = new_floats(L, be, each);
  m.turns = new_floats(L, be, (n > 0 ? n : 1) * m.dims);
  if (int_field(L, 4, "covariance", 1)) m.outer = new_floats(L, be, each * l.layout.head_dim);
  float *out = new_floats(L, be, count * (end - begin));
  pyr_status status = reserve_rows(be, l, lane.rows);
  for (int64_t i = 0; i < pieces && status == PYR_OK; i++) {
    int64_t at = n * i / pieces, some = n * (i + 1) / pieces - at;
    status = be->moments(be, &m, q + at * each, q_pos + at, some, added == 0);
    added += some;
  }
  if (status == PYR_OK)
    status = be->moments_end(be, &m, n, int_field(L, 4, "next", 0), int_field(L, 4, "future", 1),
                             l.scale);
  int32_t first = (int32_t)int_field(L, 4, "first", 0);
  if (status == PYR_OK)
    status = be->expected(be, out, &lane, l.layout, begin, end, &m, first, (int32_t)count);
  return status == PYR_OK ? push_floats(L, be, out, count * (end - begin)) : fail(L, be, status);
}

/* ---- vectors of scores ----------------------------------------------------------------------- */

/* reduce_rows(runtime, x, count, stride, n, "mean" | "sum" | "max", scale) -> floats */
static int ops_reduce_rows(lua_State *L) {
  static const char *const names[] = { "mean", "sum", "max", NULL };
  pyr_backend *be = begin_call(L);
  const float *in = copy_floats(L, be, 2, NULL);
  int64_t n = luaL_checkinteger(L, 5);
  float *out = new_floats(L, be, n);
  pyr_status status = be->reduce_rows(be, out, in, (int32_t)luaL_checkinteger(L, 3),
                                      luaL_checkinteger(L, 4), n,
                                          (pyr_reduce)luaL_checkoption(L, 6, NULL, names),
                                              (float)luaL_optnumber(L, 7, 1));
  return status == PYR_OK ? push_floats(L, be, out, n) : fail(L, be, status);
}

/* arith(runtime, a, b, "add" | "sub" | "mul" | "div") -> floats */
static int ops_arith(lua_State *L) {
  static const char *const names[] = { "add", "sub", "mul", "div", NULL };
  pyr_backend *be = begin_call(L);
  int64_t n;
  float *a = copy_floats(L, be, 2, &n);
  const float *b = copy_floats(L, be, 3, NULL);
  pyr_status status = be->arith(be, a, b, n, (pyr_score_code)(PYR_S_ADD
                                                              + luaL_checkoption(L, 4, NULL,
                                                                  names)));
  return status == PYR_OK ? push_floats(L, be, a, n) : fail(L, be, status);
}

/* pool(runtime, x, width, "average" | "maximum") -> floats */
static int ops_pool(lua_State *L) {
  static const char *const names[] = { "average", "maximum", NULL };
  pyr_backend *be = begin_call(L);
  int64_t n;
  const float *in = copy_floats(L, be, 2, &n);
  float *out = new_floats(L, be, n);
  pyr_status status = be->pool(be, out, in, n, (int32_t)luaL_checkinteger(L, 3),
                               (pyr_pooling)luaL_checkoption(L, 4, NULL, names));
  return status == PYR_OK ? push_floats(L, be, out, n) : fail(L, be, status);
}

/* What operations do to a vector in its place, which need nothing else. */
static int in_place(lua_State *L, pyr_backend *be,
                    pyr_status (*op)(pyr_backend *be, float *x, int64_t n)) {
  int64_t n;
  float *x = copy_floats(L, be, 2, &n);
  pyr_status status = op(be, x, n);
  return status == PYR_OK ? push_floats(L, be, x, n) : fail(L, be, status);
}

/* normalize(runtime, x), softmax(runtime, x), standardize(runtime, x) -> floats */
#define IN_PLACE(op) static int ops_##op(lua_State *L) { \
  pyr_backend *be = begin_call(L); return in_place(L, be, be->op); }
IN_PLACE(normalize)
IN_PLACE(softmax)
IN_PLACE(standardize)

/* total(runtime, x [, highest]) -> floats */
static int ops_total(lua_State *L) {
  pyr_backend *be = begin_call(L);
  int64_t n;
  float *x = copy_floats(L, be, 2, &n);
  pyr_status status = be->total(be, x, n, lua_toboolean(L, 3) ? PYR_MAX : PYR_SUM);
  return status == PYR_OK ? push_floats(L, be, x, n) : fail(L, be, status);
}

/* map(runtime, x, "log" | "power" | "above", value) -> floats */
static int ops_map(lua_State *L) {
  static const char *const names[] = { "log", "power", "above", NULL };
  pyr_backend *be = begin_call(L);
  int64_t n;
  float *x = copy_floats(L, be, 2, &n);
  pyr_mapping how = (pyr_mapping)luaL_checkoption(L, 3, NULL, names);
  pyr_status status = be->map(be, x, n, how, (float)luaL_optnumber(L, 4, 0));
  return status == PYR_OK ? push_floats(L, be, x, n) : fail(L, be, status);
}

/* chunk(runtime, x, width) -> floats */
static int ops_chunk(lua_State *L) {
  pyr_backend *be = begin_call(L);
  int64_t n;
  float *x = copy_floats(L, be, 2, &n);
  pyr_status status = be->chunk(be, x, n, luaL_checkinteger(L, 3));
  return status == PYR_OK ? push_floats(L, be, x, n) : fail(L, be, status);
}

/* mark(runtime, n, idx) -> floats */
static int ops_mark(lua_State *L) {
  pyr_backend *be = begin_call(L);
  int64_t n = luaL_checkinteger(L, 2), k;
  const int32_t *idx = copy_ints(L, be, 3, &k);
  float *out = new_floats(L, be, n);
  pyr_status status = be->mark(be, out, n, idx, k);
  return status == PYR_OK ? push_floats(L, be, out, n) : fail(L, be, status);
}

/* select(runtime, scores, k, offset) -> ints */
static int ops_select(lua_State *L) {
  pyr_backend *be = begin_call(L);
  int64_t n, k = luaL_checkinteger(L, 3);
  const float *score = copy_floats(L, be, 2, &n);
  int32_t *idx = new_ints(L, be, k < 0 ? 0 : k);
  pyr_status status = be->select(be, idx, score, n, k, (int32_t)luaL_optinteger(L, 4, 0));
  return status == PYR_OK ? push_ints(L, be, idx, k) : fail(L, be, status);
}

/* pick(runtime, { logits, … }, { sampler, … }) -> ints, -1 where no logit is finite; all logits of
 * one length */
static int ops_pick(lua_State *L) {
  pyr_backend *be = begin_call(L);
  int count = (int)luaL_len(L, 2);
  int64_t vocab = 0;
  luaL_Buffer buffer;
  pyr_sampler **samplers = new_block(L, (size_t)count * sizeof *samplers, 0);
  luaL_buffinit(L, &buffer);
  for (int i = 0; i < count; i++) {
    lua_geti(L, 2, i + 1);
    vocab = (int64_t)lua_rawlen(L, -1) / 4;
    luaL_addvalue(&buffer);
  }
  luaL_pushresult(&buffer);
  for (int i = 0; i < count; i++) {
    lua_geti(L, 3, i + 1);
    samplers[i] = check_sampler(L, -1);
    lua_pop(L, 1);
  }
  const float *logits = copy_floats(L, be, lua_gettop(L), NULL);
  int32_t *ids = new_block(L, (size_t)count * sizeof *ids, 0xa5);
  pyr_sample_batch batch;
  pyr_arena size = { 0 }, room = { 0 };
  pyr_sample_batch_layout(&batch, count, &size);
  room.block = new_block(L, size.used, 0xa5);
  pyr_sample_batch_layout(&batch, count, &room);
  pyr_status status = pyr_sample_batch_prepare(be, samplers, count, (int32_t)vocab);
  if (status == PYR_OK)
    status = pyr_sample_batch_pick(&batch, be, samplers, logits, (int32_t)vocab, count, ids);
  if (status != PYR_OK) return fail(L, be, status);
  lua_pushlstring(L, (const char *)ids, (size_t)count * sizeof *ids);
  return 1;
}

/* choose(runtime, { scores, … }, { least, … }, most, mass [, offset [, above]]) -> { ints, … }:
 * each segment's chosen rows + offset */
static int ops_choose(lua_State *L) {
  pyr_backend *be = begin_call(L);
  luaL_checktype(L, 2, LUA_TTABLE);
  luaL_checktype(L, 3, LUA_TTABLE);
  int32_t count = (int32_t)lua_rawlen(L, 2);
  luaL_Buffer buffer;
  pyr_segment *segments = new_block(L, (size_t)count * sizeof *segments, 0);
  int64_t n = 0;
  luaL_buffinit(L, &buffer);
  for (int32_t s = 0; s < count; s++) {
    size_t bytes;
    lua_rawgeti(L, 2, s + 1);
    luaL_tolstring(L, -1, &bytes);
    lua_remove(L, -2);
    luaL_addvalue(&buffer);
    segments[s] = (pyr_segment){ .n = (int64_t)(bytes / sizeof(float)), .at = n,
                                 .offset = (int32_t)luaL_optinteger(L, 6, 0) };
    n += segments[s].n;
  }
  luaL_pushresult(&buffer);
  for (int32_t s = 0; s < count; s++) {
    lua_rawgeti(L, 3, s + 1);
    segments[s].least = luaL_checkinteger(L, -1);
    lua_pop(L, 1);
  }
  pyr_choice c = { .segments = segments, .count = count, .most = luaL_checkinteger(L, 4),
                   .mass = luaL_checknumber(L, 5), .bounded = !lua_isnoneornil(L, 7),
                   .above = (float)luaL_optnumber(L, 7, 0) };
  c.score = copy_floats(L, be, lua_gettop(L), NULL);
  c.idx = new_ints(L, be, n);
  c.chosen = new_ints(L, be, count);
  c.work = new_ints(L, be, 2 * (int64_t)count);
  pyr_status status = be->choose(be, &c);
  if (status != PYR_OK) return fail(L, be, status);
  lua_createtable(L, count, 0);
  for (int32_t s = 0; s < count; s++) {
    push_ints(L, be, c.idx + segments[s].at, c.chosen[s]);
    lua_rawseti(L, -2, s + 1);
  }
  return 1;
}

static int ops_iota(lua_State *L) {
  pyr_backend *be = begin_call(L);
  int64_t n = luaL_checkinteger(L, 3);
  int32_t *out = new_ints(L, be, n);
  pyr_status status = be->iota(be, out, (int32_t)luaL_checkinteger(L, 2), n);
  return status == PYR_OK ? push_ints(L, be, out, n) : fail(L, be, status);
}

/* fill(runtime, n, "positions" | "hash" | "value" | "place", positions | nil [, seed [, value]]) ->
 * floats */
static int ops_fill(lua_State *L) {
  static const char *const names[] = { "positions", "hash", "value", "place", NULL };
  pyr_backend *be = begin_call(L);
  int64_t n = luaL_checkinteger(L, 2);
  const int32_t *positions = copy_ints(L, be, 4, NULL);
  float *out = new_floats(L, be, n);
  pyr_filling what = (pyr_filling)luaL_checkoption(L, 3, NULL, names);
  pyr_status status = be->fill(be, out, positions, n, what, (uint64_t)luaL_optinteger(L, 5, 0),
                               (float)luaL_optnumber(L, 6, 0));
  return status == PYR_OK ? push_floats(L, be, out, n) : fail(L, be, status);
}

/* look_up(runtime, positions, ids, values) -> floats */
static int ops_look_up(lua_State *L) {
  pyr_backend *be = begin_call(L);
  int64_t n, known, count;
  const int32_t *at = copy_ints(L, be, 2, &n), *ids = copy_ints(L, be, 3, &known);
  const float *values = copy_floats(L, be, 4, &count);
  float *out = new_floats(L, be, n);
  pyr_status status = be->look_up(be, out, at, n, ids, known, values, count);
  return status == PYR_OK ? push_floats(L, be, out, n) : fail(L, be, status);
}

/* tiles_in_use() -> whether this thread holds anything in matrix tiles, or their shapes (AMX): on
 * x86 with xgetbv's second register alone */
static int ops_tiles_in_use(lua_State *L) {
  unsigned low = 0, high = 0;
#if defined(__x86_64__)
  __asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(1));
#endif
  lua_pushboolean(L, (low >> 17 & 3) != 0);
  return 1;
}

/* ---- entry ----------------------------------------------------------------------------------- */

__attribute__((visibility("default"))) int luaopen_pyramid_specs(lua_State *L);
int luaopen_pyramid_specs(lua_State *L) {
  static const luaL_Reg functions[] = {
    { "floats", ops_floats }, { "ints", ops_ints }, { "numbers", ops_numbers },
        { "to_f32", ops_to_f32 },
    { "frame", ops_frame }, { "pack_row", ops_pack_row }, { "unpack_row", ops_unpack_row },
    { "frame_query", ops_frame_query },
    { "from_f32", ops_from_f32 }, { "alloc", ops_alloc }, { "reserve", ops_reserve },
        { "embed", ops_embed },
    { "norm", ops_norm }, { "linear", ops_linear }, { "mlp", ops_mlp }, { "rope", ops_rope },
    { "activate", ops_activate }, { "scale", ops_scale }, { "add", ops_add },
    { "gate_rows", ops_gate_rows }, { "temper", ops_temper },
    { "route", ops_route }, { "experts", ops_experts },
    { "take_rows", ops_take_rows }, { "take_i32", ops_take_i32 }, { "store", ops_store },
        { "gather", ops_gather }, { "move_rows", ops_move_rows }, { "join", ops_join },
    { "digest", ops_digest }, { "pick_pages", ops_pick_pages },
    { "merge", ops_merge }, { "rotate", ops_rotate }, { "choose", ops_choose },
    { "attention", ops_attention }, { "mass", ops_mass }, { "row_norms", ops_row_norms },
    { "read_rows", ops_read_rows }, { "key_similarity", ops_key_similarity },
    { "redundancy", ops_redundancy }, { "along", ops_along },
    { "standardize", ops_standardize }, { "lag", ops_lag },
    { "output_norm", ops_output_norm }, { "expected", ops_expected },
    { "total", ops_total }, { "map", ops_map },
    { "softmax", ops_softmax }, { "chunk", ops_chunk }, { "mark", ops_mark },
    { "reduce_rows", ops_reduce_rows }, { "arith", ops_arith }, { "pool", ops_pool },
        { "normalize", ops_normalize },
    { "select", ops_select }, { "pick", ops_pick }, { "iota", ops_iota }, { "fill", ops_fill },
    { "look_up", ops_look_up }, { "tiles_in_use", ops_tiles_in_use }, { NULL, NULL }
  };
  if (luaL_newmetatable(L, DEVICE_BLOCK)) {
    lua_pushcfunction(L, free_device_block);
    lua_setfield(L, -2, "__gc");
  }
  lua_pop(L, 1);
  luaL_newlib(L, functions);
  lua_pushinteger(L, PYR_PAGE_ROWS);
  lua_setfield(L, -2, "page_rows");
  lua_pushinteger(L, PYR_SLIDE_ROWS);
  lua_setfield(L, -2, "slide_rows");
  lua_pushinteger(L, PYR_SMALL_N);
  lua_setfield(L, -2, "small_n");
  return 1;
}

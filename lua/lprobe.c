/* lprobe.c — what measuring needs: the limits of this machine, and weights that mean nothing.
 * `require "pyramid.probe"`.
 *
 *   probe.read(runtime, bytes, times) -> seconds a pass     the runtime's threads read a buffer of
 *                                                           so many bytes, in
 *                                      turn as the hardware looks ahead by itself and asking ahead;
 *                                      the faster way's
 *   probe.matmul(kind, threads, size, times) -> seconds     oneDNN multiplies two square matrices;
 *                                                           "f32", "bf16", "int8"
 *   probe.linear(runtime, dtype, rows, cols, tokens, bytes, times) -> seconds, processor seconds
 *                                      one of the backend's own products with weights of any dtype,
 *                                      in the order of a model's; so many matrices in turn as take
 *                                      `bytes`, as a model's layers do. What all threads together
 *                                      computed says more where other programs run, too
 *   probe.device(runtime) -> { name=, arch=, driver=, runtime=, memory=, free=, processors= }
 *   probe.device_steps(runtime) -> { single, launched, built, told }: how kernels were launched
 *   (backend.h)
 *   probe.device_ways(runtime) -> { library, refused, stream, plain, …, slow }: by which ways
 *   products went (op_args.h); slow: how
 *                                 many of them by ways that are slow
 *   probe.device_time(runtime, what, size, times) -> seconds "copy" of size bytes within its
 *   memory; "f32", "f16", "bf16":
 *                                  a product of square matrices. Both: nil, message, "unsupported"
 *                                  where it is the processor
 *   probe.version() -> oneDNN's, such as "2.6.3"; "none" in a build without it, where probe.matmul
 *   knows no product
 *   probe.trim(runtime | nil)     freed memory goes back to the system, so that what is resident is
 *                                 what is held; the
 *                                      runtime's device's, too
 *   probe.reset_peak(runtime)     runtime:memory_peak() begins anew
 *   probe.random_rows(runtime, dtype, seed, stream, first, rows, cols, deviation) -> bytes of rows
 *   [first, first+rows) of a
 *                                      matrix, made by the runtime's threads
 *
 * Not part of the library: a module of the program `pyramid` alone, for the scripts that measure.
 * It is the one file beside the binding that sees oneDNN (as a yardstick, with its own threads),
 * the thread team and the number formats. Like the binding it allocates first and takes the runtime
 * out of its box last. */
#include "lauxpyr.h"
#include "backend/backend.h"
#include "base/dtype.h"
#include "base/runtime.h"

#if !defined(PYR_NO_DNNL)
#include "cpu/onednn.h"
#endif

#include <fcntl.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>
#ifdef __GLIBC__
#include <malloc.h>
#endif

static double now(void) {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return (double)t.tv_sec + (double)t.tv_nsec * 1e-9;
}

/* ---- reading --------------------------------------------------------------------------------- */

/* Wide enough that loads, not additions, are what takes time; compilers cut it into what the
 * machine has. */
typedef uint64_t wide __attribute__((vector_size(64)));

enum { SPAN = 1 << 20, AHEAD = 4096 };   /* bytes a task, and from what is read to what is asked for
                                            */

typedef enum reading { FILL, READ, READ_AHEAD } reading;
typedef struct buffer { wide *data; uint64_t *sums; reading what; } buffer;

static void read_span(void *ctx, int64_t task, int worker) {
  const buffer *b = ctx;
  wide *at = b->data + task * (SPAN / (int64_t)sizeof(wide));
  (void)worker;
  if (b->what == FILL) {
    memset(at, (int)task + 1, SPAN);
    return;
  }
  wide sum[4] = { { 0 } };
  for (size_t i = 0; i < SPAN / sizeof(wide); i += 4)
    for (int j = 0; j < 4; j++) {
      if (b->what == READ_AHEAD) __builtin_prefetch((const char *)(at + i + (size_t)j) + AHEAD);
      sum[j] += at[i + (size_t)j];
    }
  sum[0] += sum[1] + sum[2] + sum[3];
  b->sums[task] = sum[0][0] + sum[0][7];
}

static int probe_read(lua_State *L) {
  pyr_runtime *rt = pyr_lua_check_runtime(L, 1);
  lua_Integer spans = luaL_checkinteger(L, 2) / SPAN, times = luaL_optinteger(L, 3, 1);
  lua_Integer most = (lua_Integer)sysconf(_SC_PHYS_PAGES) / 2 * (lua_Integer)sysconf(
      _SC_PAGESIZE) / SPAN;
  /* all of it is written */
  luaL_argcheck(L, spans >= 1 && spans <= most, 2, "1 MiB to half of this machine's memory");
  luaL_argcheck(L, times >= 1, 3, "at least once");
  buffer b = { aligned_alloc(64, (size_t)spans * SPAN), malloc((size_t)spans * sizeof *b.sums),
               FILL };
  if (b.data == NULL || b.sums == NULL) {
    free(b.data);
    free(b.sums);
    return pyr_lua_fail(L, NULL, PYR_MEMORY);
  }
  pyr_parallel(rt, read_span, &b, spans);   /* pages that are written are pages of their own */
  double seconds[] = { 0, 0 };
  for (lua_Integer i = 0; i < 2 * times; i++) {
    double began = now();
    b.what = i % 2 ? READ_AHEAD : READ;
    pyr_parallel(rt, read_span, &b, spans);
    seconds[i % 2] += (now() - began) / (double)times;
  }
  free(b.data);
  free(b.sums);
  lua_pushnumber(L, fmin(seconds[0], seconds[1]));
  return 1;
}

/* ---- multiplying ----------------------------------------------------------------------------- */

#if defined(PYR_NO_DNNL)

#define NO_PRODUCT "this build has no oneDNN, whose %s products are the yardstick"

static pyr_status time_products(int kind, int threads, int64_t size, lua_Integer times,
                                double *seconds) {
  return (void)kind, (void)threads, (void)size, (void)times, (void)seconds, PYR_UNSUPPORTED;
}

#else

#define NO_PRODUCT "oneDNN has no %s product for this processor"

/* One product out = x . w of square matrices, w packed as oneDNN likes it best; what it costs is
 * measured by run. */
typedef struct product {
  dnnl_engine_t engine;
  dnnl_stream_t stream;
  dnnl_primitive_t primitive;
  dnnl_memory_t x, w, out;
} product;

static dnnl_status_t make_memory(dnnl_memory_t *memory, const_dnnl_primitive_desc_t pd,
                                 dnnl_query_t what, dnnl_engine_t engine) {
  pyr_dnnl_layout_ref md = dnnl_primitive_desc_query_md(pd, what, 0);
  dnnl_status_t s = dnnl_memory_create(memory, md, engine, DNNL_MEMORY_ALLOCATE);
  void *data = NULL;
  if (s == dnnl_success) s = dnnl_memory_get_data_handle(*memory, &data);
  /* ordinary numbers in all dtypes */
  if (s == dnnl_success && data) memset(data, 0x3c, dnnl_memory_desc_get_size(md));
  return s;
}

static dnnl_status_t make_desc(dnnl_primitive_desc_t *pd, dnnl_engine_t engine,
                               const dnnl_dims_t dims, const dnnl_data_type_t types[3]) {
  pyr_dnnl_layout l[3] = { 0 };
  const dnnl_dims_t strides = { dims[1], 1 };
  dnnl_status_t s = dnnl_success;
  for (int i = 0; i < 3 && s == dnnl_success; i++)
    s = pyr_dnnl_layout_make(&l[i], dims, types[i], i == 1 ? NULL : strides);
  if (s == dnnl_success) s = pyr_dnnl_matmul(pd, engine, &l[0], &l[1], &l[2], NULL);
  for (int i = 0; i < 3; i++) pyr_dnnl_layout_free(&l[i]);
  return s;
}

static dnnl_status_t make_product(product *p, int64_t size, const dnnl_data_type_t types[3]) {
  dnnl_primitive_desc_t pd = NULL;
  dnnl_dims_t dims = { size, size };
  dnnl_status_t s = dnnl_engine_create(&p->engine, dnnl_cpu, 0);
  if (s == dnnl_success) s = dnnl_stream_create(&p->stream, p->engine, dnnl_stream_default_flags);
  if (s == dnnl_success) s = make_desc(&pd, p->engine, dims, types);
  if (s == dnnl_success) s = dnnl_primitive_create(&p->primitive, pd);
  if (s == dnnl_success) s = make_memory(&p->x, pd, dnnl_query_src_md, p->engine);
  if (s == dnnl_success) s = make_memory(&p->w, pd, dnnl_query_weights_md, p->engine);
  if (s == dnnl_success) s = make_memory(&p->out, pd, dnnl_query_dst_md, p->engine);
  if (pd) dnnl_primitive_desc_destroy(pd);
  return s;
}

static dnnl_status_t run_product(const product *p, lua_Integer times) {
  dnnl_exec_arg_t args[] = { { DNNL_ARG_SRC, p->x }, { DNNL_ARG_WEIGHTS, p->w },
                             { DNNL_ARG_DST, p->out } };
  dnnl_status_t s = dnnl_success;
  for (lua_Integer i = 0; i < times && s == dnnl_success; i++)
    s = dnnl_primitive_execute(p->primitive, p->stream, 3, args);
  return s == dnnl_success ? dnnl_stream_wait(p->stream) : s;
}

static void free_product(product *p) {
  if (p->x) dnnl_memory_destroy(p->x);
  if (p->w) dnnl_memory_destroy(p->w);
  if (p->out) dnnl_memory_destroy(p->out);
  if (p->primitive) dnnl_primitive_destroy(p->primitive);
  if (p->stream) dnnl_stream_destroy(p->stream);
  if (p->engine) dnnl_engine_destroy(p->engine);
}

/* Seconds a product of two square matrices takes; PYR_UNSUPPORTED where there is none of that kind.
 */
static pyr_status time_products(int kind, int threads, int64_t size, lua_Integer times,
                                double *seconds) {
  static const dnnl_data_type_t types[][3] = {
    { dnnl_f32, dnnl_f32, dnnl_f32 }, { dnnl_bf16, dnnl_bf16, dnnl_f32 },
        { dnnl_u8, dnnl_s8, dnnl_s32 },
  };
  int before = pyr_dnnl_threads();
  pyr_dnnl_set_threads(threads);
  product p = { 0 };
  dnnl_status_t s = make_product(&p, size, types[kind]);
  if (s == dnnl_success) s = run_product(&p, 1);
  if (s == dnnl_success) {
    double began = now();
    s = run_product(&p, times);
    *seconds = (now() - began) / (double)times;
  }
  free_product(&p);
  pyr_dnnl_set_threads(before);
  return s == dnnl_success ? PYR_OK : s == dnnl_out_of_memory ? PYR_MEMORY : PYR_UNSUPPORTED;
}

#endif

static int probe_matmul(lua_State *L) {
  static const char *const kinds[] = { "f32", "bf16", "int8", NULL };
  int kind = luaL_checkoption(L, 1, NULL, kinds);
  lua_Integer threads = luaL_checkinteger(L, 2), size = luaL_checkinteger(L, 3),
      times = luaL_optinteger(L, 4, 1);
  luaL_argcheck(L, threads >= 1 && threads <= 256, 2, "1 to 256");
  luaL_argcheck(L, size >= 16 && size <= 16384, 3, "16 to 16384");
  luaL_argcheck(L, times >= 1, 4, "at least once");
  double seconds = 0;
  pyr_status status = time_products(kind, (int)threads, size, times, &seconds);
  if (status == PYR_OK) {
    lua_pushnumber(L, seconds);
    return 1;
  }
  lua_pushnil(L);
  lua_pushfstring(L, NO_PRODUCT, kinds[kind]);
  lua_pushstring(L, pyr_status_name(status));
  return 3;
}

/* Weights, tokens and results of products that are timed. All bytes of weights are the same: that
 * makes ordinary numbers of every format, and how long a product takes does not depend on them. */
typedef struct timed {
  pyr_backend *be;
  pyr_tensor w;
  float *x, *out;
  int64_t tokens, matrices;
  size_t each;
} timed;

enum { SAME = 0x2c };                      /* f16 0x2c2c is 0.065 */

/* The matrices lie one after the other; each is brought into the backend's order by itself. */
static pyr_status order_matrices(timed *t, void *plain, uint8_t *data) {
  pyr_backend *be = t->be;
  pyr_status status = PYR_OK;
  memset(plain, SAME, t->each);
  int32_t interleaved = be->interleaved ? be->interleaved(be, &t->w) : 0;
  for (int64_t i = 0; i < t->matrices && status == PYR_OK; i++) {
    t->w.data = plain;
    if (interleaved) status = be->interleave(be, data + (size_t)i * t->each, &t->w);
    else memset(data + (size_t)i * t->each, SAME, t->each);
  }
  t->w.data = data, t->w.interleaved = interleaved;
  return status;
}

static double processor_now(void) {
  struct timespec t;
  clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &t);
  return (double)t.tv_sec + (double)t.tv_nsec * 1e-9;
}

/* A first round is not counted. */
static pyr_status run_linear(timed *t, lua_Integer times, double seconds[2]) {
  pyr_work work = { .tokens = t->tokens, .rows = 1, .sequences = 1, .heads = 1, .kv_heads = 1,
                    .head_dim = 1, .cols = t->w.shape[1], .outputs = t->w.shape[0] };
  pyr_status status = t->be->reserve(t->be, &work);
  pyr_tensor w = t->w;
  double began = 0, processor = 0, count = (double)(times * t->matrices);
  for (int64_t i = 0; i < (times + 1) * t->matrices && status == PYR_OK; i++) {
    if (i == t->matrices) began = now(), processor = processor_now();
    w.data = (const uint8_t *)t->w.data + (size_t)(i % t->matrices) * t->each;
    status = t->be->linear(t->be, t->out, t->x, &w, NULL, t->tokens, 0);
  }
  seconds[0] = (now() - began) / count;
  seconds[1] = (processor_now() - processor) / count;
  return status;
}

static pyr_status time_linear(timed *t, lua_Integer times, double seconds[2]) {
  size_t values = (size_t)(t->tokens * t->w.shape[1]);
  void *plain = aligned_alloc(64, t->each / 64 * 64 + 64);
  uint8_t *data = aligned_alloc(64, ((size_t)t->matrices * t->each) / 64 * 64 + 64);
  t->x = malloc(values * sizeof *t->x);
  t->out = malloc((size_t)(t->tokens * t->w.shape[0]) * sizeof *t->out);
  pyr_status status = plain && data && t->x && t->out ? order_matrices(t, plain, data)
      : PYR_MEMORY;
  for (size_t i = 0; i < values && status == PYR_OK; i++)
    t->x[i] = (float)((int)(i * 7 % 29) - 14);
  if (status == PYR_OK) status = run_linear(t, times, seconds);
  free(plain);
  free(data);
  free(t->x);
  free(t->out);
  return status;
}

static int probe_linear(lua_State *L) {
  pyr_runtime *rt = pyr_lua_check_runtime(L, 1);
  int dtype = pyr_dtype_of_name(luaL_checkstring(L, 2));
  lua_Integer rows = luaL_checkinteger(L, 3), cols = luaL_checkinteger(L, 4),
      tokens = luaL_checkinteger(L, 5), bytes = luaL_checkinteger(L, 6),
      times = luaL_optinteger(L, 7, 1);
  luaL_argcheck(L, pyr_dtype_valid(dtype) && pyr_dtype_kernels((pyr_dtype)dtype, false), 2,
                "no dtype of weights that are multiplied");
  luaL_argcheck(L, rows >= 1 && rows <= 1 << 20, 3, "1 to 1048576");
  luaL_argcheck(L, cols >= 1 && cols <= 1 << 16 && pyr_dtype_bytes((pyr_dtype)dtype, cols) > 0, 4,
                "no whole number of blocks");
  luaL_argcheck(L, tokens >= 1 && tokens <= 1 << 16, 5, "1 to 65536");
  luaL_argcheck(L, bytes >= 0 && bytes <= (lua_Integer)1 << 32, 6, "0 to 4 GiB");
  luaL_argcheck(L, times >= 1, 7, "at least once");
  size_t stride = pyr_dtype_bytes((pyr_dtype)dtype, cols);
  timed t = { .be = pyr_runtime_backend(rt), .tokens = tokens, .each = (size_t)rows * stride,
              .w = { NULL, (pyr_dtype)dtype, 2, { rows, cols }, stride, 0 } };
  if (t.be->own_memory) {
    lua_pushnil(L);
    lua_pushliteral(L, "the runtime's device is no processor");
    lua_pushstring(L, pyr_status_name(PYR_UNSUPPORTED));
    return 3;
  }
  t.matrices = (int64_t)(((size_t)bytes + t.each - 1) / t.each);
  if (t.matrices < 1) t.matrices = 1;
  double seconds[2] = { 0, 0 };
  pyr_status status = time_linear(&t, times, seconds);
  if (status != PYR_OK) return pyr_lua_fail(L, rt, status);
  lua_pushnumber(L, seconds[0]);
  lua_pushnumber(L, seconds[1]);
  return 2;
}

static int no_device(lua_State *L) {
  lua_pushnil(L);
  lua_pushliteral(L, "the runtime's device is the processor");
  lua_pushstring(L, pyr_status_name(PYR_UNSUPPORTED));
  return 3;
}

static int probe_device(lua_State *L) {
  pyr_runtime *rt = pyr_lua_check_runtime(L, 1);
  pyr_backend *be = pyr_runtime_backend(rt);
  if (be->facts == NULL) return no_device(L);
  pyr_facts facts;
  pyr_status status = be->facts(be, &facts);
  if (status != PYR_OK) return pyr_lua_fail(L, rt, status);
  const char *const texts[][2] = { { "name", facts.name }, { "arch", facts.arch },
                                   { "driver", facts.driver },
                                   { "runtime", facts.runtime } };
  lua_createtable(L, 0, 7);
  for (size_t i = 0; i < sizeof texts / sizeof *texts; i++) {
    lua_pushstring(L, texts[i][1]);
    lua_setfield(L, -2, texts[i][0]);
  }
  lua_pushinteger(L, (lua_Integer)facts.memory);
  lua_setfield(L, -2, "memory");
  lua_pushinteger(L, (lua_Integer)facts.free);
  lua_setfield(L, -2, "free");
  lua_pushinteger(L, facts.processors);
  lua_setfield(L, -2, "processors");
  return 1;
}

struct counted { const char *name; int64_t count; };
static int push_counts(lua_State *L, const struct counted *fields, size_t count) {
  lua_createtable(L, 0, (int)count);
  for (size_t i = 0; i < count; i++) {
    lua_pushinteger(L, (lua_Integer)fields[i].count);
    lua_setfield(L, -2, fields[i].name);
  }
  return 1;
}

static int probe_device_steps(lua_State *L) {
  pyr_backend *be = pyr_runtime_backend(pyr_lua_check_runtime(L, 1));
  if (be->step_counts == NULL) return no_device(L);
  pyr_step_counts counts;
  be->step_counts(be, &counts);
  const struct counted fields[] = {
    { "single", counts.single }, { "launched", counts.launched }, { "built", counts.built },
        { "told", counts.told }
  };
  return push_counts(L, fields, sizeof fields / sizeof *fields);
}

static int probe_device_ways(lua_State *L) {
  pyr_backend *be = pyr_runtime_backend(pyr_lua_check_runtime(L, 1));
  if (be->way_counts == NULL) return no_device(L);
  pyr_way_counts c;
  be->way_counts(be, &c);
  const struct counted fields[] = {
    { "library", c.library }, { "refused", c.refused }, { "stream", c.stream },
        { "plain", c.plain },
    { "attention", c.attention }, { "attention_plain", c.attention_plain }, { "mass", c.mass },
        { "mass_plain", c.mass_plain },
    { "slow", c.plain + c.attention_plain + c.mass_plain }
  };
  return push_counts(L, fields, sizeof fields / sizeof *fields);
}

static int probe_device_time(lua_State *L) {
  static const char *const kinds[] = { "copy", "f32", "f16", "bf16", NULL };
  static const pyr_ceiling ceilings[] = { PYR_CEILING_COPY, PYR_CEILING_F32, PYR_CEILING_F16,
                                          PYR_CEILING_BF16 };
  pyr_runtime *rt = pyr_lua_check_runtime(L, 1);
  pyr_backend *be = pyr_runtime_backend(rt);
  pyr_ceiling what = ceilings[luaL_checkoption(L, 2, NULL, kinds)];
  lua_Integer size = luaL_checkinteger(L, 3), times = luaL_optinteger(L, 4, 1);
  bool copies = what == PYR_CEILING_COPY;
  luaL_argcheck(L, size >= 16 && size <= (copies ? (lua_Integer)1 << 40 : 1 << 16)
                && size % 16 == 0, 3, "no such size");
  luaL_argcheck(L, times >= 1 && times <= 10000, 4, "1 to 10000");
  if (be->measure == NULL) return no_device(L);
  double seconds = 0;
  pyr_status status = be->measure(be, what, size, (int)times, &seconds);
  if (status != PYR_OK) return pyr_lua_fail(L, rt, status);
  lua_pushnumber(L, seconds);
  return 1;
}

static int probe_version(lua_State *L) {
#if defined(PYR_NO_DNNL)
  lua_pushliteral(L, "none");
#else
  const dnnl_version_t *v = dnnl_version();
  lua_pushfstring(L, "%d.%d.%d", v->major, v->minor, v->patch);
#endif
  return 1;
}

static int probe_trim(lua_State *L) {
  if (!lua_isnoneornil(L, 1)) {
    pyr_runtime *rt = pyr_lua_check_runtime(L, 1);
    pyr_backend *be = pyr_runtime_backend(rt);
    pyr_status status = be->trim ? be->trim(be) : PYR_OK;
    if (status != PYR_OK) return pyr_lua_fail(L, rt, status);
  }
#ifdef __GLIBC__
  malloc_trim(0);
#endif
  lua_pushboolean(L, 1);
  return 1;
}

static int probe_reset_peak(lua_State *L) {
  pyr_runtime_reset_peak(pyr_lua_check_runtime(L, 1));
  return 0;
}

/* ---- random weights -------------------------------------------------------------------------- */

/* splitmix64: a value's bits depend on its place only, so that a matrix is the same however it is
 * cut. */
static uint64_t mix(uint64_t z) {
  z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
  z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
  return z ^ (z >> 31);
}

/* n (even) normal values from the pair of that index on, by Box and Muller: of two uniform numbers
 * one gives the length, the other the angle. */
static void fill_normal(float *out, uint64_t key, uint64_t pair, int64_t n, float deviation) {
  for (int64_t i = 0; i < n; i += 2, pair++) {
    uint64_t bits = mix(key + (pair + 1) * 0x9e3779b97f4a7c15u);
    float u = ((float)(bits >> 40) + 1.0f) * 0x1p-24f,
        angle = (float)(bits & 0xffffff) * (0x1p-24f * 6.2831853f);
    float length = deviation * sqrtf(-2.0f * logf(u));
    out[i] = length * cosf(angle);
    out[i + 1] = length * sinf(angle);
  }
}

typedef struct random_matrix {
  char *out;
  float *values;               /* [threads, cols] */
  pyr_dtype dtype;
  uint64_t key;
  int64_t first, cols;
  size_t stride;
  float deviation;
} random_matrix;

static void random_row(void *ctx, int64_t row, int worker) {
  const random_matrix *m = ctx;
  float *values = m->values + worker * m->cols;
  fill_normal(values, m->key, (uint64_t)(m->first + row) * (uint64_t)(m->cols / 2), m->cols,
              m->deviation);
  pyr_row_from_f32(m->out + (size_t)row * m->stride, m->dtype, values, m->cols);
}

static int random_rows(lua_State *L) {
  int threads = pyr_runtime_threads(pyr_lua_check_runtime(L, 1));
  int dtype = pyr_dtype_of_name(luaL_checkstring(L, 2));
  uint64_t seed = (uint64_t)luaL_checkinteger(L, 3), stream = (uint64_t)luaL_checkinteger(L, 4);
  lua_Integer first = luaL_checkinteger(L, 5), rows = luaL_checkinteger(L, 6),
      cols = luaL_checkinteger(L, 7);
  float deviation = (float)luaL_checknumber(L, 8);
  luaL_argcheck(L, pyr_dtype_valid(dtype) && pyr_dtype_writable((pyr_dtype)dtype), 2,
                "f32, f16, bf16, q8_0 or q4_0");
  luaL_argcheck(L, first >= 0, 5, "rows count from 0");
  luaL_argcheck(L, rows >= 1 && rows <= 1 << 24, 6, "no such number of rows");
  luaL_argcheck(L, cols >= 2 && cols <= 1 << 24 && cols % 2 == 0, 7, "must be even");
  size_t stride = pyr_dtype_bytes((pyr_dtype)dtype, cols);
  luaL_argcheck(L, stride > 0, 7, "no whole number of blocks");
  luaL_Buffer packed;
  float *values = lua_newuserdatauv(L, (size_t)threads * (size_t)cols * sizeof *values, 0);
  char *out = luaL_buffinitsize(L, &packed, (size_t)rows * stride);
  pyr_runtime *rt = pyr_lua_check_runtime(L, 1);  /* a finalizer may have closed it meanwhile */
  uint64_t key = mix(seed * 0x9e3779b97f4a7c15u + mix(stream + 1));
  random_matrix m = { out, values, (pyr_dtype)dtype, key, first, cols, stride, deviation };
  pyr_parallel(rt, random_row, &m, rows);
  luaL_pushresultsize(&packed, (size_t)rows * stride);
  return 1;
}

/* probe.mute(): standard output and error of this process go nowhere from here on. Of several ranks
 * one speaks. */
static int probe_mute(lua_State *L) {
  (void)L;
  int nowhere = open("/dev/null", O_WRONLY | O_CLOEXEC);
  if (nowhere < 0) return 0;
  for (int fd = STDOUT_FILENO; fd <= STDERR_FILENO; fd++) (void)dup2(nowhere, fd);
  close(nowhere);
  return 0;
}

int pyr_luaopen_probe(lua_State *L) {
  static const luaL_Reg functions[] = {
    { "read", probe_read }, { "matmul", probe_matmul }, { "linear", probe_linear },
    { "version", probe_version }, { "mute", probe_mute },
    { "trim", probe_trim }, { "reset_peak", probe_reset_peak },
    { "device", probe_device }, { "device_time", probe_device_time },
    { "device_steps", probe_device_steps }, { "device_ways", probe_device_ways },
    { "random_rows", random_rows }, { NULL, NULL }
  };
  luaL_newlib(L, functions);
  return 1;
}

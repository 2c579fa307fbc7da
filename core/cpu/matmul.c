/* matmul.c — see matmul.h. Without oneDNN (PYR_NO_DNNL) there is no bf16 product and linear.c uses
 * its own kernels.
 *
 * oneDNN makes code for each shape of a product (a primitive), which takes longer than to run it:
 * it is kept, by shape, in a list that is searched from its beginning. A prompt of any length asks
 * for the same few again: chunks are of one length but the last. When PRODUCTS are kept, the one
 * that was asked for longest ago makes room. A primitive may run on several workers at once, as
 * each has a stream and scratch of its own; only `prepare`, which one thread calls before the team
 * begins, changes the list. */
#include "cpu/matmul.h"

#if defined(PYR_NO_DNNL)

pyr_status pyr_matmul_open(pyr_runtime *rt, pyr_matmul **out) {
  return (void)rt, *out = NULL, PYR_OK;
}
void pyr_matmul_close(pyr_matmul *mm) { (void)mm; }
pyr_status pyr_matmul_prepare(pyr_matmul *mm, const pyr_matmul_shape *shape,
                              const pyr_product **out) {
  return (void)mm, (void)shape, (void)out, PYR_UNSUPPORTED;
}
bool pyr_matmul_run(pyr_matmul *mm, const pyr_product *p, int worker, float *out,
                    const uint16_t *a, const uint16_t *b) {
  return (void)mm, (void)p, (void)worker, (void)out, (void)a, (void)b, false;
}

#else

#include "cpu/isa/tiles.h"
#include "cpu/onednn.h"

#include <math.h>
#include <string.h>
#include <time.h>

enum { PRODUCTS = 128, ALIGN = 64 };         /* shapes kept; a model has a dozen, for each number of
                                                tokens */

/* Owns its primitive and layouts (free_primitive); zeroed it owns nothing. */
struct pyr_product {
  pyr_matmul_shape shape;
  dnnl_primitive_t primitive;
  pyr_dnnl_layout a, b, out, scratch;
  uint64_t used;                             /* when it was last asked for */
};

/* A stream is one worker's: primitives that run at once do not meet. */
typedef struct worker_state {                /* what one worker needs of its own */
  dnnl_stream_t stream;
  void *scratch;                             /* aligned, inside block */
  uint8_t *block;
  size_t bytes;
} worker_state;

/* Owns everything below; `clock` counts what was asked for, so the least `used` is the oldest. */
struct pyr_matmul {
  pyr_runtime *rt;
  dnnl_engine_t engine;
  worker_state *workers;                     /* [threads] */
  int threads;
  pyr_product *products[PRODUCTS];
  int count;
  uint64_t clock;
};

/* oneDNN's own lack of memory is ours: the message and the status are those of any other. */
static pyr_status failed(pyr_matmul *mm, dnnl_status_t status, const char *what) {
  if (status == dnnl_out_of_memory) return pyr_nomem(mm->rt, 0, what);
  return pyr_runtime_set_error(mm->rt, PYR_DEVICE, "oneDNN failed (%d) in %s", (int)status, what);
}

#if defined(__x86_64__)
enum { ROUNDS = 4096, TIMES = 4, CHAINS = 8 };   /* chains: more than an instruction's latency over
                                                    its throughput */

typedef float vector __attribute__((vector_size(64)));

/* Seconds of as many multiply-adds of pairs of bf16, or of f32, as each other: the first does twice
 * the work an instruction. */
__attribute__((target("avx512f,avx512bf16"))) static double time_products(bool pairs) {
  vector sum[CHAINS] = { 0 }, x = { 0 };
  struct timespec began, ended;
  clock_gettime(CLOCK_MONOTONIC, &began);
  for (int i = 0; i < (pairs ? ROUNDS / 2 : ROUNDS); i++)
    for (int c = 0; c < CHAINS; c++) {
      if (pairs) __asm__ volatile("vdpbf16ps %1, %1, %0" : "+v"(sum[c]) : "v"(x));
      else __asm__ volatile("vfmadd231ps %1, %1, %0" : "+v"(sum[c]) : "v"(x));
    }
  clock_gettime(CLOCK_MONOTONIC, &ended);
  return (double)(ended.tv_sec - began.tv_sec) + 1e-9 * (double)(ended.tv_nsec - began.tv_nsec);
}

/* Having the instruction is not enough: AMD's processors do pairs of bf16 at twice the rate of f32,
 * Intel's, without their matrix tiles, at half of it. That factor of four is told apart in 50 us,
 * by the fastest of a few runs each. */
static bool has_fast_bf16(void) {
  if (!__builtin_cpu_supports("avx512bf16") || !__builtin_cpu_supports("avx512bw")) return false;
  if (pyr_tiles_present()) return true;
  double pairs = INFINITY, single = INFINITY;
  for (int i = 0; i < TIMES; i++) {
    pairs = fmin(pairs, time_products(true));
    single = fmin(single, time_products(false));
  }
  return pairs < single;
}
#else
static bool has_fast_bf16(void) { return false; }
#endif

/* *out is NULL where bf16 would be no faster: then linear.c's own products serve. An engine for
 * all, a stream for each worker; what there is of it goes back on failure. */
pyr_status pyr_matmul_open(pyr_runtime *rt, pyr_matmul **out) {
  *out = NULL;
  if (!has_fast_bf16()) return PYR_OK;
  pyr_matmul *mm = pyr_alloc_zero(rt, sizeof *mm);
  if (!mm) return pyr_nomem(rt, sizeof *mm, "the matrix products");
  mm->rt = rt;
  mm->threads = pyr_runtime_threads(rt);
  mm->workers = pyr_alloc_zero(rt, (size_t)mm->threads * sizeof *mm->workers);
  pyr_status status = mm->workers ? PYR_OK : pyr_nomem(rt,
                                                       (size_t)mm->threads * sizeof *mm->workers,
                                                           "the matrix products");
  if (status == PYR_OK) {
    dnnl_status_t code = dnnl_engine_create(&mm->engine, dnnl_cpu, 0);
    for (int i = 0; i < mm->threads && code == dnnl_success; i++)
      code = dnnl_stream_create(&mm->workers[i].stream, mm->engine, dnnl_stream_default_flags);
    if (code != dnnl_success) status = failed(mm, code, "the matrix products");
  }
  if (status != PYR_OK) {
    pyr_matmul_close(mm);
    return status;
  }
  *out = mm;
  return PYR_OK;
}

/* Gives back what make_primitive made, all or a part of it. */
static void free_primitive(pyr_product *p) {
  if (p->primitive) dnnl_primitive_destroy(p->primitive);
  pyr_dnnl_layout_free(&p->a);
  pyr_dnnl_layout_free(&p->b);
  pyr_dnnl_layout_free(&p->out);
  pyr_dnnl_layout_free(&p->scratch);
}

/* Also on one that was half made: members are NULL until they are there. */
void pyr_matmul_close(pyr_matmul *mm) {
  if (mm == NULL) return;
  pyr_runtime *rt = mm->rt;
  for (int i = 0; i < mm->count; i++) {
    free_primitive(mm->products[i]);
    pyr_release(rt, mm->products[i], sizeof *mm->products[i]);
  }
  for (int i = 0; mm->workers && i < mm->threads; i++) {
    if (mm->workers[i].stream) dnnl_stream_destroy(mm->workers[i].stream);
    pyr_release(rt, mm->workers[i].block, mm->workers[i].bytes);
  }
  if (mm->engine) dnnl_engine_destroy(mm->engine);
  pyr_release(rt, mm->workers, (size_t)mm->threads * sizeof *mm->workers);
  pyr_release(rt, mm, sizeof *mm);
}

/* ---- primitives ------------------------------------------------------------------------------ */

/* A model's matrices have about a dozen shapes, and each number of tokens makes them anew. */
static bool same_shape(const pyr_matmul_shape *a, const pyr_matmul_shape *b) {
  return a->m == b->m && a->n == b->n && a->k == b->k && a->ldb == b->ldb;
}

/* out [m][n] f32 = a [m][k] bf16 times b, which is read as [k][n] though it lies as n weight rows,
 * ldb values apart: strides say so, and nothing is transposed beforehand. */

/* Makes p's primitive; the caller has set one OpenMP thread, which oneDNN plans for. The layouts
 * and the primitive stay with p, made or not; the description and the attributes are given back
 * here. */
static dnnl_status_t make_primitive(pyr_matmul *mm, pyr_product *p) {
  const pyr_matmul_shape *s = &p->shape;
  dnnl_dims_t a = { s->m, s->k }, b = { s->k, s->n }, out = { s->m, s->n };
  const dnnl_dims_t a_strides = { s->k, 1 }, b_strides = { 1, s->ldb }, out_strides = { s->n, 1 };
  dnnl_primitive_attr_t attr = NULL;
  dnnl_primitive_desc_t pd = NULL;
  dnnl_status_t code = pyr_dnnl_layout_make(&p->a, a, dnnl_bf16, a_strides);
  if (code == dnnl_success) code = pyr_dnnl_layout_make(&p->b, b, dnnl_bf16, b_strides);
  if (code == dnnl_success) code = pyr_dnnl_layout_make(&p->out, out, dnnl_f32, out_strides);
  if (code == dnnl_success) code = dnnl_primitive_attr_create(&attr);
  if (code == dnnl_success)
    code = dnnl_primitive_attr_set_scratchpad_mode(attr, dnnl_scratchpad_mode_user);
  if (code == dnnl_success) code = pyr_dnnl_matmul(&pd, mm->engine, &p->a, &p->b, &p->out, attr);
  if (code == dnnl_success)
    code = pyr_dnnl_layout_copy(&p->scratch, dnnl_primitive_desc_query_md(pd,
        dnnl_query_scratchpad_md, 0));
  if (code == dnnl_success) code = dnnl_primitive_create(&p->primitive, pd);
  if (pd) dnnl_primitive_desc_destroy(pd);
  if (attr) dnnl_primitive_attr_destroy(attr);
  return code;
}

/* Every worker's scratch at least as large as the primitive asks. Where one worker's cannot
 * grow, those before it are larger than needed, which does no harm. */
static pyr_status grow_scratch(pyr_matmul *mm, size_t bytes) {
  for (int i = 0; i < mm->threads; i++) {
    worker_state *w = &mm->workers[i];
    if (w->scratch && w->bytes >= bytes + ALIGN) continue;
    uint8_t *block = pyr_alloc(mm->rt, bytes + ALIGN);
    if (!block) return pyr_nomem(mm->rt, bytes + ALIGN, "a matrix product");
    pyr_release(mm->rt, w->block, w->bytes);
    w->block = block;
    w->bytes = bytes + ALIGN;
    w->scratch = block + (ALIGN - (uintptr_t)block % ALIGN);
  }
  return PYR_OK;
}

/* The place for one more primitive: a new one, or that of the primitive longest unused. A place
 * is only emptied when its successor is made (pyr_matmul_prepare): nothing is lost if that
 * fails. */
static pyr_product *take_place(pyr_matmul *mm) {
  if (mm->count < PRODUCTS) {
    pyr_product *place = pyr_alloc_zero(mm->rt, sizeof *place);
    if (place) mm->products[mm->count++] = place;
    return place;
  }
  pyr_product *place = mm->products[0];
  for (int i = 1; i < PRODUCTS; i++)
    if (mm->products[i]->used < place->used) place = mm->products[i];
  return place;
}

/* Search first: a prompt asks for the same shapes in each layer. Then all that can fail, and at
 * the end the place: *out stays good until PRODUCTS other shapes have been asked for. */
pyr_status pyr_matmul_prepare(pyr_matmul *mm, const pyr_matmul_shape *shape,
                              const pyr_product **out) {
  for (int i = 0; i < mm->count; i++)
    if (same_shape(&mm->products[i]->shape, shape)) {
      mm->products[i]->used = ++mm->clock;
      *out = mm->products[i];
      return PYR_OK;
    }
  pyr_product fresh = { .shape = *shape, .used = ++mm->clock };
  int threads = pyr_dnnl_threads();          /* the caller's, given back below */
  pyr_dnnl_set_threads(1);
  dnnl_status_t code = make_primitive(mm, &fresh);
  pyr_dnnl_set_threads(threads);
  if (code != dnnl_success) {
    free_primitive(&fresh);
    return failed(mm, code, "a matrix product");
  }
  pyr_status status = grow_scratch(mm,
                                   dnnl_memory_desc_get_size(pyr_dnnl_layout_of(&fresh.scratch)));
  pyr_product *place = status == PYR_OK ? take_place(mm) : NULL;
  if (place == NULL) {
    free_primitive(&fresh);
    return status != PYR_OK ? status : pyr_nomem(mm->rt, sizeof *place, "a matrix product");
  }
  free_primitive(place);
  *place = fresh;
  *out = place;
  return PYR_OK;
}

/* ---- running --------------------------------------------------------------------------------- */

/* oneDNN asks OpenMP, thread by thread, how many threads it may use: one, as the runtime's team
 * already has them all at work. What the thread had before is put back. */
bool pyr_matmul_run(pyr_matmul *mm, const pyr_product *p, int worker, float *out,
                    const uint16_t *a, const uint16_t *b) {
  worker_state *w = &mm->workers[worker];
  dnnl_exec_arg_t args[4] = { { DNNL_ARG_SRC, NULL }, { DNNL_ARG_WEIGHTS, NULL },
                              { DNNL_ARG_DST, NULL }, { DNNL_ARG_SCRATCHPAD, NULL } };
  const pyr_dnnl_layout *layouts[4] = { &p->a, &p->b, &p->out, &p->scratch };
  void *data[4] = { (void *)(uintptr_t)a, (void *)(uintptr_t)b, out, w->scratch };
  dnnl_status_t code = dnnl_success;
  int threads = pyr_dnnl_threads();
  pyr_dnnl_set_threads(1);
  for (int i = 0; i < 4 && code == dnnl_success; i++)
    code = dnnl_memory_create(&args[i].memory, pyr_dnnl_layout_of(layouts[i]), mm->engine, data[i]);
  if (code == dnnl_success) code = dnnl_primitive_execute(p->primitive, w->stream, 4, args);
  if (code == dnnl_success) code = dnnl_stream_wait(w->stream);
  for (int i = 0; i < 4; i++)
    if (args[i].memory) dnnl_memory_destroy(args[i].memory);
  pyr_dnnl_set_threads(threads);
  return code == dnnl_success;
}

#endif

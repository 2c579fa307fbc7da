/* linear_int8.c — matrix products with quantised weights by products of bytes: decode steps and
 * small batches run at the speed of reading the weights, prompts faster than by vectors of bf16.
 *
 * Only where the runtime was asked for it (isa "avx512int8" or "amxint8"; precision = "int8" in
 * Lua). Activations are rounded to 8 bits in groups of 32, each with its scale, once for the whole
 * call; products and the sums of four are exact, what follows is f32 (int8.inc). Where weights lie
 * interleaved (interleave.c) any number of tokens is taken, but for prompts that go by matrix tiles
 * (linear_amx.c); otherwise few. A token's result does not depend on the others of the call. */
#include "cpu/cpu.h"

enum {
  BEFORE_BF16 = 16,          /* tokens from which bf16 (linear_bf16.c) is faster with rows as they
                                lie, where the processor has it */
  TOKENS = 96,               /* of many, so many at a time stay in the second cache while a task's
                                packs go by */
};

typedef struct call {
  pyr_cpu *cpu;
  const pyr_tensor *w;
  const float *x, *bias;
  float *out;
  int64_t n, rows, cols;
  pyr_runs runs;
  int64_t together;           /* tokens that are rounded together */
  size_t each;                /* bytes of a token as int8 */
  bool accumulate;
} call;

/* Interleaved weights have no other way but tiles, so any number of tokens is taken. */
bool pyr_cpu_int8_takes(const pyr_cpu *cpu, const pyr_tensor *w, int64_t n) {
  bool bytes = pyr_dtype_kernels(w->dtype, false) & PYR_KERNEL_BYTES;
  bool rounds = cpu->matmul || cpu->tiles;
  return cpu->int8 && (w->interleaved
                       || (bytes && n < (rounds ? BEFORE_BF16 : PYR_SMALL_N)));
}

/* Tokens of groups [begin, end), each of those that are multiplied together. 8 tokens that are
 * multiplied together lie value beside value (quantize_tokens); else each token is a row of its
 * own. Either takes 2.25 bytes a value: a byte, an offset of 4 bytes for each 4 and a scale and
 * a sum for each 32. */
static void quantize_groups(const void *ctx, int64_t begin, int64_t end) {
  const call *c = ctx;
  const pyr_kernels *k = c->cpu->kernels;
  for (int64_t t = begin * c->together; t < pyr_min(end * c->together, c->n); t += c->together) {
    uint8_t *to = c->cpu->x8 + (size_t)t * c->each;
    if (c->w->interleaved)
      k->quantize_tokens(to, c->x + t * c->cols, (int)pyr_min(c->together, c->n - t), c->cols,
                         c->w->dtype);
    else k->quantize(to, c->x + t * c->cols, c->cols, c->w->dtype);
  }
}

/* Packs of interleaved weight rows times tokens [begin, end). The packs stay in a near cache while
 * tokens go by, PYR_PACK_TOKENS at a time: the first turn (`t == begin`) is told that it reads them
 * from memory, and asks for what lies behind them. sum[t][s][i]: token t, pack s of two, row i
 * of 16. Bound by the weights' bytes where few tokens come. */
static void run_packs(const call *c, int64_t row, int packs, int64_t begin, int64_t end) {
  const uint8_t *w = (const uint8_t *)c->w->data + (size_t)row * c->w->stride;
  for (int64_t t = begin; t < end; t += PYR_PACK_TOKENS) {
    float sum[PYR_PACK_TOKENS * PYR_PACKS * PYR_PACK];
    int some = (int)pyr_min(PYR_PACK_TOKENS, end - t);
    c->cpu->kernels->dot_packs(sum, w, c->w->dtype, packs, c->cpu->x8 + (size_t)t * c->each,
                                some, c->cols, t == begin);
    pyr_cpu_put_dots(c->out + t * c->rows + row, c->rows, sum, PYR_PACKS * PYR_PACK, some,
                     packs * PYR_PACK, c->bias ? c->bias + row : NULL, c->accumulate);
  }
}

/* A run of weight rows. Where there are many tokens, TOKENS of them are multiplied with the whole
 * run before the next: their bytes stay in the second cache, and the run is read once for each
 * TOKENS. Bytes read: the run once for each 96 tokens, and the tokens once for each 32 rows of
 * it, from the second cache. */
static void run_task(void *ctx, int64_t task, int worker) {
  const call *c = ctx;
  const pyr_kernels *k = c->cpu->kernels;
  (void)worker;
  pyr_span run = pyr_cpu_run(&c->runs, task);
  if (c->w->interleaved) {
    for (int64_t t = 0; t < c->n; t += TOKENS)
      for (int64_t row = run.low; row < run.high; row += PYR_PACKS * PYR_PACK)
        run_packs(c, row, (int)pyr_min(PYR_PACKS, (run.high - row) / PYR_PACK), t,
                   pyr_min(c->n, t + TOKENS));
    return;
  }
  for (int64_t row = run.low; row < run.high; row += PYR_DOT_WEIGHTS) {
    int rows = (int)pyr_min(PYR_DOT_WEIGHTS, run.high - row);
    const uint8_t *w = (const uint8_t *)c->w->data + (size_t)row * c->w->stride;
    for (int64_t t = 0; t < c->n; t += k->dot_rows) {
      float sum[PYR_DOT_ROWS_MAX * PYR_DOT_WEIGHTS];
      int some = (int)pyr_min(k->dot_rows, c->n - t);
      k->dot_int8(sum, w, c->w->stride, c->w->dtype, rows, c->cpu->x8 + (size_t)t * c->each, some,
                  c->cols);
      pyr_cpu_put_dots(c->out + t * c->rows + row, c->rows, sum, PYR_DOT_WEIGHTS, some, rows,
                       c->bias ? c->bias + row : NULL, c->accumulate);
    }
  }
}

/* 96 tokens of 1,536 values are 324 KiB as bytes: that is what TOKENS keeps in the second cache. */
pyr_status pyr_cpu_linear_int8(pyr_backend *be, float *out, const float *x, const pyr_tensor *w,
                               const float *bias, int64_t n, int flags) {
  pyr_cpu *cpu = pyr_cpu_of(be);
  call c = { .cpu = cpu, .w = w, .x = x, .bias = bias, .out = out, .n = n, .rows = w->shape[0],
             .cols = w->shape[1], .together = w->interleaved ? PYR_PACK_TOKENS : 1,
                 .each = cpu->kernels->int8_bytes(w->shape[1]),
                     .accumulate = flags & PYR_LINEAR_ADD };
  if ((size_t)n * c.each > cpu->x8_bytes)
    return pyr_runtime_set_error(be->rt, PYR_ARGUMENT, "linear: more tokens than are reserved");
  c.runs = pyr_cpu_runs(c.rows, w->stride, w->interleaved ? PYR_PACK : PYR_DOT_WEIGHTS,
                        pyr_runtime_threads(be->rt));
  pyr_cpu_spans(be, quantize_groups, &c, pyr_ceil_div(n, c.together), c.together * c.cols);
  pyr_parallel(be->rt, run_task, &c, pyr_cpu_run_count(&c.runs));
  return PYR_OK;
}

/* linear_bf16.c — matrix products of many tokens where the processor multiplies bf16 in hardware:
 * twice the rate of f32. Matrix tiles have a file of their own (linear_amx.c).
 *
 * Only where the runtime was asked for it (isa "avx512bf16" or "avx512int8"; precision = "bf16" or
 * "int8" in Lua): it costs about 1e-2 of a logit vector's norm. Under "avx512bf16" decode steps
 * never come here (PYR_LINEAR_EXACT). x is rounded to bf16 once for the whole call. bf16 weights
 * are used where they lie; quantised ones are turned into bf16 a panel of rows at a time, by the
 * task that needs the panel. f32 and f16 weights hold more than bf16 can and stay with linear.c.
 * Sums are f32 throughout.
 *
 * An f32 has 24 bits of a number, a bf16 8: x = 1.2345 becomes 1.234375, an error of at most one
 * part in 256. Of a sum of many such products the errors mostly cancel, which no bound says.
 *
 * A task is a panel of weight rows for all tokens (PYR_CHUNK of the forward pass bounds them). Its
 * product is made in the worker's scratch and then put where it belongs. */
#include "cpu/cpu.h"

#include <stdatomic.h>

enum {
  FEWEST = 16,  /* tokens that pay for it; fewer are bound by reading weights, and stay exact */
  PANEL = 256,              /* weight rows a task at most, … */
  PANEL_LEAST = 64,         /* … at least where there are many, … */
  QUANT_PANEL = 128,        /* … and at most where they are turned into bf16 first, to stay in the
                               second cache */
};

typedef struct call {
  pyr_cpu *cpu;
  const pyr_tensor *w;
  const float *x, *bias;
  float *out;
  uint16_t *x16;                         /* [n, cols] */
  int64_t n, rows, cols, panel;
  bool accumulate;
  const pyr_product *whole, *rest;       /* for full panels, and for the last one */
  atomic_bool failed;
} call;

bool pyr_cpu_bf16_takes(const pyr_cpu *cpu, pyr_dtype dtype, int64_t n) {
  bool fits = pyr_dtype_kernels(dtype, false) & PYR_KERNEL_BF16;
  return cpu->matmul != NULL && n >= FEWEST && fits;
}

typedef struct panel_scratch {
  float *out;                            /* [tokens, panel] */
  uint16_t *panel;                       /* [panel, cols], and */
  float *values;                         /* [cols], of quantised weights */
} panel_scratch;

/* 512 tokens take 512 * 256 * 4 bytes of results, 512 KiB, and 128 rows of 1,536 values 384 KiB. */
static panel_scratch scratch_of(pyr_arena *arena, int64_t tokens, int64_t cols) {
  return (panel_scratch){ .out = pyr_arena_take(arena, tokens * PANEL, sizeof(float)),
                          .panel = pyr_arena_take(arena, QUANT_PANEL * cols, sizeof(uint16_t)),
                          .values = pyr_arena_take(arena, cols, sizeof(float)) };
}

size_t pyr_cpu_bf16_scratch(int64_t tokens, int64_t cols) {
  pyr_arena arena = { NULL, 0 };
  scratch_of(&arena, tokens, cols);
  return arena.used;
}

/* Once a call, whatever the number of panels. */
static void round_rows(const void *ctx, int64_t begin, int64_t end) {
  const call *c = ctx;
  c->cpu->kernels->from_f32(c->x16 + begin * c->cols, PYR_BF16, c->x + begin * c->cols,
                            (end - begin) * c->cols);
}

/* Every panel is turned into bf16 once a call, by the one task that has it: so a task takes all
 * tokens, and panels are no larger than stays in the second cache meanwhile. */

/* Weight rows [row, row + count) as bf16, in the worker's scratch. */
static const uint16_t *load_panel(const call *c, const panel_scratch *s, int64_t row,
                                  int64_t count) {
  for (int64_t r = 0; r < count; r++) {
    pyr_cpu_weights(c->cpu->kernels, s->values, c->w, row + r, 0, c->cols);
    c->cpu->kernels->from_f32(s->panel + r * c->cols, PYR_BF16, s->values, c->cols);
  }
  return s->panel;
}

/* Its product is contiguous, [n][count], as oneDNN is fastest so; put_dots spreads it over
 * `out`. A failure is noted and told when all tasks have ended: tasks cannot return one. */
static void panel_task(void *ctx, int64_t task, int worker) {
  call *c = ctx;
  pyr_arena arena = pyr_cpu_arena(c->cpu, worker);
  panel_scratch s = scratch_of(&arena, c->n, c->cols);
  int64_t row = task * c->panel, count = pyr_min(c->panel, c->rows - row);
  const uint16_t *b = c->w->dtype == PYR_BF16
      ? (const uint16_t *)(const void *)((const uint8_t *)c->w->data + (size_t)row * c->w->stride)
                                              : load_panel(c, &s, row, count);
  const pyr_product *product = count == c->panel ? c->whole : c->rest;
  if (!pyr_matmul_run(c->cpu->matmul, product, worker, s.out, c->x16, b)) {
    atomic_store(&c->failed, true);
    return;
  }
  for (int64_t t = 0; t < c->n; t++)
    pyr_cpu_put_dots(c->out + t * c->rows + row, c->rows, s.out + t * count, (int)count, 1,
                     (int)count, c->bias ? c->bias + row : NULL, c->accumulate);
}

/* 1,536 rows on 4 threads: a sixteenth is 96, rounded up to 128, so 12 panels. At most two
 * shapes a call: whole panels, and the last one. Both are made before the team begins. */
pyr_status pyr_cpu_linear_bf16(pyr_backend *be, float *out, const float *x, const pyr_tensor *w,
                               const float *bias, int64_t n, int flags) {
  pyr_cpu *cpu = pyr_cpu_of(be);
  call c = { .cpu = cpu, .w = w, .x = x, .bias = bias, .out = out,
             .x16 = (uint16_t *)(void *)cpu->tokens, .n = n, .rows = w->shape[0],
                 .cols = w->shape[1], .accumulate = flags & PYR_LINEAR_ADD };
  bool direct = w->dtype == PYR_BF16;
  pyr_status status = pyr_cpu_check(be, "linear", pyr_cpu_bf16_scratch(n, c.cols));
  if (status == PYR_OK && (size_t)(n * c.cols) * 2 > cpu->tokens_bytes)
    status = pyr_runtime_set_error(be->rt, PYR_ARGUMENT, "linear: more tokens than are reserved");
  if (status != PYR_OK) return status;
  int64_t share = pyr_round_up(pyr_ceil_div(c.rows, 4 * pyr_runtime_threads(be->rt)), PANEL_LEAST);
  c.panel = pyr_min(pyr_min(share, direct ? PANEL : QUANT_PANEL), c.rows);
  pyr_matmul_shape shape = { .m = n, .n = c.panel, .k = c.cols,
                             .ldb = direct ? (int64_t)(w->stride / 2) : c.cols };
  status = pyr_matmul_prepare(cpu->matmul, &shape, &c.whole);
  if (status == PYR_OK && c.rows % c.panel != 0) {
    shape.n = c.rows % c.panel;
    status = pyr_matmul_prepare(cpu->matmul, &shape, &c.rest);
  }
  if (status != PYR_OK) return status;
  pyr_cpu_spans(be, round_rows, &c, n, c.cols);
  pyr_parallel(be->rt, panel_task, &c, pyr_ceil_div(c.rows, c.panel));
  return atomic_load(&c.failed) ? pyr_runtime_set_error(be->rt, PYR_DEVICE,
                                                        "linear: oneDNN failed") : PYR_OK;
}

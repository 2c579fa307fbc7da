/* linear.c — matrix products with a weight: out[n, rows] = x[n, k] . w[rows, k]^T (+ bias), w of
 * any dtype.
 *
 * Few tokens (n < PYR_SMALL_N; decode, small batches): the weight is what must be read, so its rows
 * are streamed once, four at a time (or one, for one token), and multiplied with every token while
 * they are in registers or in the first cache (`dot`). Where there are more tokens than `dot`
 * takes, rows in blocks are turned into f32 once, not once for each few tokens; the result is the
 * same. Tasks are runs of weight rows.
 *
 * Many tokens: the arithmetic is what costs. Tokens are transposed once, in groups of FEW. The
 * product is cut into blocks of tokens x panels of weight rows, each a task. A task walks k in
 * steps of STEP; for each it turns its panel into f32, transposed into slices of nr rows (a slice
 * of nr x STEP stays in the first cache, the panel in the second), and then runs over its groups of
 * tokens:
 *
 *     out[t, r] += sum over j in the step of x[t, j] * w[r, j]
 *
 * For 1,000 tokens, 576 weight rows and one thread, with slices of 32 rows, 8 to a panel:
 *
 *                     0 .. 255    256 .. 511    512 .. 575
 *     tokens 0..503   task 0      task 1        task 2          a task walks k: STEP of its panel,
 *     tokens 504..999 task 3      task 4        task 5          all its tokens, the next STEP
 *
 * by the `gemm` primitive, whose result for one element does not depend on how tokens and rows are
 * cut. So the cut may follow the number of threads, and still a token's result depends neither on
 * it nor on the other tokens.
 *
 * Does not own: dequantisation (formats.inc, dtype.c); products in lower precision (linear_bf16.c,
 * linear_int8.c, linear_amx.c). */
#include "cpu/cpu.h"

#include <string.h>

/* A slice of 32 rows and a step of 256 takes 32 KiB, a panel of 8 slices 256 KiB: what is used
 * again for the next tokens stays in the first and in the second cache. */
enum {
  STEP = 256,             /* of k; a multiple of every dtype's block */
  PANEL = 256,            /* weight rows a task at most */
  TOKENS = 516,  /* tokens a task at most: a chunk of a prompt and what fills its last group */
  LEAST_PANEL = 64,       /* weight rows, if there are tasks for all threads then */
  FEW = PYR_TOKEN_GROUP,  /* tokens at a time: a multiple of PYR_UNIT, and gemm's own tile at its
                             widest */
};

#define STEPS(arg, number, name, kind, block, ...) \
  _Static_assert(STEP % block == 0, #name ": a block that no step ends with");
PYR_DTYPE_TABLE(STEPS, )

typedef struct product {
  const pyr_kernels *k;
  pyr_cpu *cpu;
  float *out;
  const float *x;
  const pyr_tensor *w;
  const float *bias;
  int64_t n, rows, cols;
  bool accumulate;
  pyr_runs runs;                        /* few tokens: the weight rows of tasks, */
  bool plain;                           /* … turned into f32 first */
  float *groups;                        /* many tokens: [groups][cols][FEW] of x */
  int64_t tokens, panel, panels;        /* … a task's block, and panels in all */
} product;

/* col begins a block: q8_0's column 64 lies 2 * 34 bytes into its row. */
static const uint8_t *weight_at(const pyr_tensor *w, int64_t row, int64_t col) {
  return (const uint8_t *)w->data + (size_t)row * w->stride +
         (size_t)(col / pyr_dtype_block(w->dtype)) * pyr_dtype_block_bytes(w->dtype);
}

/* ---- few tokens ------------------------------------------------------------------------------ */

/* `rows` weight rows from `row` on (at most PYR_DOT_WEIGHTS) times every token. Bound by the
 * bytes of the weights: 4 rows are read, and stay near while the tokens go by, `dot_rows` at a
 * time. Invariant: out[0 .. t) of these rows are done. */
static void few_rows(const product *p, float *plain, int64_t row, int rows) {
  const void *w = weight_at(p->w, row, 0);
  size_t stride = p->w->stride;
  pyr_dtype dtype = p->w->dtype;
  if (plain) {
    for (int i = 0; i < rows; i++)
      pyr_cpu_weights(p->k, plain + i * p->cols, p->w, row + i, 0, p->cols);
    w = plain, stride = (size_t)p->cols * sizeof(float), dtype = PYR_F32;
  }
  for (int64_t t = 0; t < p->n; t += p->k->dot_rows) {
    float sum[PYR_DOT_ROWS_MAX * PYR_DOT_WEIGHTS];
    int some = (int)pyr_min(p->k->dot_rows, p->n - t);
    p->k->dot(sum, w, stride, dtype, rows, p->x + t * p->cols, p->cols, some, p->cols);
    pyr_cpu_put_dots(p->out + t * p->rows + row, p->rows, sum, PYR_DOT_WEIGHTS, some, rows,
                     p->bias ? p->bias + row : NULL, p->accumulate);
  }
}

/* `plain` is where rows in blocks become f32 once, in the worker's scratch: 4 rows of cols
 * floats. */
static void few_task(void *ctx, int64_t task, int worker) {
  const product *p = ctx;
  pyr_span run = pyr_cpu_run(&p->runs, task);
  float *plain = p->plain ? (float *)(void *)(p->cpu->scratch
                                              + (size_t)worker * p->cpu->scratch_each) : NULL;
  for (int64_t row = run.low; row < run.high; row += PYR_DOT_WEIGHTS)
    few_rows(p, plain, row, (int)pyr_min(PYR_DOT_WEIGHTS, run.high - row));
}

/* ---- many tokens ----------------------------------------------------------------------------- */

typedef struct panel_scratch {
  float *panel;   /* [slices][STEP][nr] */
  float *rows;    /* [nr][STEP] before transposition */
  float *edge;    /* [FEW][nr] for slices and tokens that do not fill a tile */
} panel_scratch;

/* Three pieces of the worker's scratch; with a base of NULL it only counts. */
static panel_scratch scratch_of(pyr_arena *arena, int nr) {
  return (panel_scratch){
    .panel = pyr_arena_take(arena, (int64_t)PANEL * STEP, sizeof(float)),
    .rows = pyr_arena_take(arena, (int64_t)nr * STEP, sizeof(float)),
    .edge = pyr_arena_take(arena, (int64_t)FEW * nr, sizeof(float)),
  };
}

size_t pyr_cpu_linear_scratch(const pyr_kernels *k, int64_t cols) {
  pyr_arena many = { NULL, 0 }, few = { NULL, 0 };
  scratch_of(&many, k->nr);
  pyr_arena_take(&few, PYR_DOT_WEIGHTS * cols, sizeof(float));
  return many.used > few.used ? many.used : few.used;
}

/* Weight rows [first, first+count), columns [col, col+step) as a slice [step][nr]; rows beyond
 * count are zero.
 *
 *     weight rows      r0: a b c d ...        slice[step][nr]    a e i .      column `col`
 *                      r1: e f g h ...   ->                      b f j .      the next column
 *                      r2: i j k l ...                           c g k .      (count 3, nr 4) */
static void load_slice(const product *p, const panel_scratch *s, float *slice, int64_t first,
                       int count, int64_t col, int64_t step) {
  int nr = p->k->nr;
  if (count < nr) memset(slice, 0, (size_t)(step * nr) * sizeof(float));
  if (p->w->dtype == PYR_F32) {
    p->k->f32.transpose(slice, nr, (const float *)(const void *)weight_at(p->w, first, col),
                        (int64_t)(p->w->stride / sizeof(float)), count, step, 1.0f);
    return;
  }
  for (int r = 0; r < count; r++)
    pyr_cpu_weights(p->k, s->rows + r * STEP, p->w, first + r, col, step);
  p->k->f32.transpose(slice, nr, s->rows, STEP, count, step, 1.0f);
}

/* Tokens of groups [begin, end), transposed. groups[g][c][i] is value c of token 12 g + i: a
 * column's values of 12 tokens lie side by side, as gemm spreads one after the other over a
 * vector. A last group that is not full is filled with zeros, by fours. */
static void group_tokens(const void *ctx, int64_t begin, int64_t end) {
  const product *p = ctx;
  for (int64_t t = begin * FEW; t < pyr_min(end * FEW, p->n); t += FEW)
    p->k->f32.transpose(p->groups + t * p->cols, FEW, p->x + t * p->cols, p->cols,
                        (int)pyr_min(FEW, p->n - t), p->cols, 1.0f);
}

/* Whole slices and groups are multiplied into `out` itself. At the edges gemm would write beyond
 * them, as it knows only whole slices: there the product is made in `edge`, and what is real of it
 * is added. The value is the same either way, one chain of k, added once a step. */

/* out[t, r] for `m` <= FEW tokens from t, which are x, and the rows of one slice, one step of k
 * further. Of 30 rows in slices of 32, or 7 tokens: the product is made in `edge`, 12 x 32, and
 * 7 x 30 of it added. */
static void slice_product(const product *p, const panel_scratch *s, const float *slice,
                          const float *x, int64_t t, int m, int64_t row, int count, int64_t step) {
  const pyr_kernels *k = p->k;
  float *out = p->out + t * p->rows + row;
  if (count == k->nr && m % PYR_UNIT == 0) {
    k->f32.gemm(out, p->rows, x, FEW, slice, k->nr, m, step);
    return;
  }
  memset(s->edge, 0, (size_t)(FEW * k->nr) * sizeof(float));
  k->f32.gemm(s->edge, k->nr, x, FEW, slice, k->nr, pyr_round_up(m, PYR_UNIT), step);
  for (int i = 0; i < m; i++)
    for (int r = 0; r < count; r++) out[i * p->rows + r] += s->edge[i * k->nr + r];
}

/* The sum begins with what was there, or 0, and with the bias: products are added to it step by
 * step. */
static void begin_block(const product *p, int64_t t0, int64_t t1, int64_t row, int64_t count) {
  for (int64_t t = t0; t < t1; t++) {
    float *out = p->out + t * p->rows + row;
    if (!p->accumulate) memset(out, 0, (size_t)count * sizeof(float));
    if (p->bias)
      for (int64_t r = 0; r < count; r++) out[r] += p->bias[row + r];
  }
}

/* Invariant: at the head of the outer loop out[t, r] of the block holds bias and products of
 * columns [0, col). Each weight of the panel is turned into f32 once a task, and meets all
 * tokens of the block. Products: tokens * count * cols. */
static void many_task(void *ctx, int64_t task, int worker) {
  const product *p = ctx;
  pyr_arena arena = pyr_cpu_arena(p->cpu, worker);
  panel_scratch s = scratch_of(&arena, p->k->nr);
  int64_t nr = p->k->nr, row = task % p->panels * p->panel,
      count = pyr_min(p->panel, p->rows - row);
  int64_t t0 = task / p->panels * p->tokens, t1 = pyr_min(p->n, t0 + p->tokens);
  begin_block(p, t0, t1, row, count);
  for (int64_t col = 0; col < p->cols; col += STEP) {
    int64_t step = pyr_min(STEP, p->cols - col);
    for (int64_t r = 0; r < count; r += nr)
      load_slice(p, &s, s.panel + r * STEP, row + r, (int)pyr_min(nr, count - r), col, step);
    for (int64_t t = t0; t < t1; t += FEW) {
      const float *x = p->groups + t * p->cols + col * FEW;
      for (int64_t r = 0; r < count; r += nr)
        slice_product(p, &s, s.panel + r * STEP, x, t, (int)pyr_min(FEW, t1 - t), row + r,
                      (int)pyr_min(nr, count - r), step);
    }
  }
}

/* Large blocks use what they dequantise more often; small ones share the work out evenly. Blocks
 * are halved, panels first, as each block of tokens dequantises all panels anew, until there are
 * four tasks a thread or a half would cost too much. 1,000 tokens, 576 rows, slices of 32, 8
 * threads want 32 tasks:
 *
 *     panel   tokens a block      tasks
 *      256         516            2 * 3 =  6
 *      128         516            2 * 5 = 10
 *       64         516            2 * 9 = 18         half of it would be below LEAST_PANEL
 *       64         258            4 * 9 = 36         enough: blocks of ceil(1000 / 4), up to 252
 *
 * The last line makes blocks about equally long, in whole groups. */
static void cut(product *p, int threads) {
  int64_t nr = p->k->nr, panel = PANEL / nr * nr, tokens = TOKENS;
  for (;;) {
    int64_t tasks = pyr_ceil_div(p->n, tokens) * pyr_ceil_div(p->rows, panel);
    if (threads == 1 || tasks >= 4 * threads) break;
    if (panel / 2 >= LEAST_PANEL && panel / 2 >= nr && p->rows > panel / 2)
      panel = pyr_round_up(panel / 2, nr);
    else if (tokens > 10 * FEW && p->n > tokens / 2) tokens /= 2;
    else break;
  }
  p->tokens = pyr_round_up(pyr_ceil_div(p->n, pyr_ceil_div(p->n, tokens)), FEW);
  p->panel = panel;
  p->panels = pyr_ceil_div(p->rows, panel);
}

/* ---- the operation --------------------------------------------------------------------------- */

/* The ways are tried from the fastest to the exact one; who takes what is said by each way's
 * `takes`. */
pyr_status pyr_cpu_linear(pyr_backend *be, float *out, const float *x, const pyr_tensor *w,
                          const float *bias, int64_t n, int flags) {
  pyr_cpu *cpu = pyr_cpu_of(be);
  product p = { .k = cpu->kernels, .cpu = cpu, .out = out, .x = x, .w = w, .bias = bias, .n = n,
                .rows = w->shape[0], .cols = w->shape[1], .accumulate = flags & PYR_LINEAR_ADD };
  if (n <= 0 || p.rows <= 0) return PYR_OK;
  p.plain = n > p.k->dot_rows && pyr_dtype_block(w->dtype) > 1;
  if (pyr_cpu_amx_takes(cpu, w, n, flags))
    return pyr_cpu_linear_amx(be, out, x, w, bias, n, flags);
  if (pyr_cpu_int8_takes(cpu, w, n)) return pyr_cpu_linear_int8(be, out, x, w, bias, n, flags);
  if ((cpu->int8 || !(flags & PYR_LINEAR_EXACT)) && pyr_cpu_bf16_takes(cpu, w->dtype, n))
    return pyr_cpu_linear_bf16(be, out, x, w, bias, n, flags);
  pyr_status status = p.plain || n >= PYR_SMALL_N
      ? pyr_cpu_check(be, "linear", pyr_cpu_linear_scratch(p.k, p.cols)) : PYR_OK;
  if (status != PYR_OK) return status;
  if (n < PYR_SMALL_N) {
    p.runs = pyr_cpu_runs(p.rows, w->stride, PYR_DOT_WEIGHTS, pyr_runtime_threads(be->rt));
    pyr_parallel(be->rt, few_task, &p, pyr_cpu_run_count(&p.runs));
    return PYR_OK;
  }
  p.groups = pyr_cpu_grouped(be, n, p.cols);
  if (!p.groups)
    return pyr_runtime_set_error(be->rt, PYR_ARGUMENT, "linear: more tokens than are reserved");
  pyr_cpu_spans(be, group_tokens, &p, pyr_ceil_div(n, FEW), FEW * p.cols);
  cut(&p, pyr_runtime_threads(be->rt));
  pyr_parallel(be->rt, many_task, &p, pyr_ceil_div(n, p.tokens) * p.panels);
  return PYR_OK;
}

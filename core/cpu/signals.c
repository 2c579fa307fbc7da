/* signals.c — what the rows of a lane, the prompt's queries and the output projection say of each
 * row, beside attention.
 *
 * key_similarity   cos(k_i, a) with the anchor a = mean of k_j / |k_j| (KeyDiff, arXiv 2504.15364).
 *                  The anchor is summed tile after tile by one thread, so that it does not depend
 *                  on how many there are.
 * lag              spread of a row over the range of the run behind it (LagKV, arXiv 2504.04704,
 *                  eq. 2 to 6). A run is a task.
 * along            how far a key goes along a vector of its head, and how long its pairs are
 *                  (Q-Filters, arXiv 2503.02812; TriAttention, arXiv 2604.04921).
 * output_norm      |W_o v|_1 for each query head (CriticalKV, arXiv 2502.03805), as a matrix
 *                  product of a tile of values with strips of W_o whose absolute sums alone are
 *                  kept.
 * moments          mean and covariance of the queries before RoPE (Expected Attention, arXiv
 *                  2510.00636). Queries arrive turned; turning them back costs less than keeping
 *                  them. A head is a task: its queries, a block at a time, are multiplied with
 *                  themselves.
 * expected         the exponent of the attention that a Gaussian query N(m, C) gives a key in
 *                  expectation,
 *                      E exp(q.k / sqrt(d)) = exp(m.k / sqrt(d) + k^T C k / (2 d))
 *
 * Every value is a chain of additions in the order of its inputs, whatever the tile or the thread.
 */
#include "cpu/cpu.h"

#include <math.h>
#include <string.h>

/* rows, queries, rows of W_o at a time; a dtype's longest block. A tile of 128 rows of 64 values is
 * 32 KiB, a block of 64 queries 16 KiB. */
enum { TILE = 128, BLOCK = 64, STRIP = 32, Q_BLOCK = 256 };

/* What a task reads; each operation fills in what is its own. */
typedef struct signal_call {
  const pyr_kernels *k;
  pyr_cpu *cpu;
  pyr_layout layout;
  const pyr_lane_view *lane;
  int64_t begin, end, d, dims;     /* dims: d padded to PYR_PAD */
  float *out;
  const float *anchor;
  const pyr_tensor *o;
  const pyr_moments *m;
  const pyr_along *along;
  const float *q;
  const int32_t *q_pos;
  int64_t n, lag, tiles, next, future, count;
  int32_t first, heads;
  float scale;
  pyr_plane plane;
  int ranked;
  bool opening;
} signal_call;

/* Rows [begin, end) of one lane, in tiles of 128: 300 rows are 3 tiles, the last of 44 rows. */
static signal_call call_of(pyr_backend *be, float *out, const pyr_lane_view *lane,
                           pyr_layout layout, int64_t begin, int64_t end) {
  return (signal_call){ .k = pyr_cpu_of(be)->kernels, .cpu = pyr_cpu_of(be), .layout = layout,
                        .lane = lane, .begin = begin, .end = end, .d = layout.head_dim,
                            .dims = pyr_round_up(layout.head_dim, PYR_PAD), .out = out,
                                .tiles = pyr_ceil_div(end - begin, TILE) };
}

/* ---- scratch --------------------------------------------------------------------------------- */

typedef struct anchor_scratch { float *anchor, *rows, *weights; } anchor_scratch;
/* 4 is sizeof(float), here and below. */
static anchor_scratch anchor_scratch_of(pyr_arena *arena, int64_t dims) {
  return (anchor_scratch){ pyr_arena_take(arena, dims, 4), pyr_arena_take(arena, TILE * dims, 4),
                           pyr_arena_take(arena, TILE, 4) };
}

typedef struct lag_scratch {
  float *row, *low, *high;         /* [d] */
  float *keys, *values;            /* [lag] spreads of a run, then their softmax */
} lag_scratch;
static lag_scratch lag_scratch_of(pyr_arena *arena, int64_t d, int64_t lag) {
  return (lag_scratch){ pyr_arena_take(arena, d, 4), pyr_arena_take(arena, d, 4),
                        pyr_arena_take(arena, d, 4), pyr_arena_take(arena, lag, 4),
                            pyr_arena_take(arena, lag, 4) };
}

/* Products of a tile of rows, which lie transposed in `rows_t`, with a matrix: its operand, and a
 * strip of the result. */
typedef struct product_scratch {
  float *rows, *rows_t;            /* [TILE][d], [d][TILE] */
  float *wide;                     /* [STRIP][d + 2 Q_BLOCK] */
  float *a;                        /* [d][max(STRIP, d padded)] */
  float *c;                        /* [max(STRIP, d padded)][nr] */
  float *sums;                     /* [TILE] */
} product_scratch;
static product_scratch product_scratch_of(pyr_arena *arena, int nr, int64_t d) {
  int64_t m = pyr_max(STRIP, pyr_round_up(d, PYR_UNIT));
  return (product_scratch){ pyr_arena_take(arena, TILE * d, 4), pyr_arena_take(arena, TILE * d, 4),
                            pyr_arena_take(arena, STRIP * (d + 2 * Q_BLOCK), 4),
                                pyr_arena_take(arena, d * m, 4),
                            pyr_arena_take(arena, m * nr, 4), pyr_arena_take(arena, TILE, 4) };
}

typedef struct moment_scratch {
  float *tile;  /* [BLOCK][ld] queries turned back, padded with zeros to whole panels */
  float *c;                        /* [d padded][ld] */
  int64_t ld, padded;
} moment_scratch;
static moment_scratch moment_scratch_of(pyr_arena *arena, int nr, int64_t d) {
  int64_t ld = pyr_round_up(d, nr), padded = pyr_round_up(d, PYR_UNIT);
  return (moment_scratch){ pyr_arena_take(arena, BLOCK * ld, 4),
                           pyr_arena_take(arena, padded * ld, 4), ld, padded };
}

/* The largest of four layouts, as only one runs at a time. */
size_t pyr_cpu_signals_scratch(const pyr_kernels *k, int32_t head_dim, int64_t lag) {
  pyr_arena parts[4] = { { NULL, 0 } };
  size_t most = 0;
  anchor_scratch_of(&parts[0], pyr_round_up(head_dim, PYR_PAD));
  lag_scratch_of(&parts[1], head_dim, lag);
  product_scratch_of(&parts[2], k->nr, head_dim);
  moment_scratch_of(&parts[3], k->nr, head_dim);
  for (int i = 0; i < 4; i++) most = parts[i].used > most ? parts[i].used : most;
  return most;
}

/* `cost` in multiply-adds decides whether the team is woken (team.c). */
static pyr_status run_tasks(pyr_backend *be, const char *what, pyr_task_fn fn, signal_call *c,
                            int64_t tasks, int64_t cost) {
  pyr_status status = pyr_cpu_check(be, what, pyr_cpu_signals_scratch(c->k, (int32_t)c->d, c->lag));
  if (status == PYR_OK) pyr_cpu_tasks(be, fn, c, tasks, cost);
  return status;
}

/* ---- keys and values of one lane ------------------------------------------------------------- */

/* Rows as f32, for functions of the policy's. */
static void read_span(const void *ctx, int64_t begin, int64_t end) {
  const signal_call *c = ctx;
  pyr_cpu_load_rows(c->k, c->out + begin * c->d, c->d, c->lane, c->layout, c->begin + begin,
                    end - begin, c->plane);
}

static pyr_status cpu_read_rows(pyr_backend *be, float *out, const pyr_lane_view *lane,
                                pyr_layout layout, int64_t begin, int64_t end, pyr_plane plane) {
  signal_call c = call_of(be, out, lane, layout, begin, end);
  c.plane = plane;
  pyr_cpu_spans(be, read_span, &c, end - begin, layout.head_dim);
  return PYR_OK;
}

/* The tile's keys go to `rows`, one over the length of each (0 for a zero) to `weights`. Rows
 * are padded with zeros to whole vectors, which add nothing to a length or a product. */
static int64_t weigh_keys(const signal_call *c, const anchor_scratch *s, int64_t tile) {
  int64_t row = c->begin + tile * TILE, rows = pyr_min(TILE, c->end - row);
  pyr_cpu_load_rows(c->k, s->rows, c->dims, c->lane, c->layout, row, rows, PYR_PLANE_K);
  for (int64_t i = 0; i < rows; i++) {
    float length = sqrtf(c->k->square_sum(s->rows + i * c->dims, c->dims));
    s->weights[i] = length > 0 ? 1.0f / length : 0.0f;
  }
  return rows;
}

/* cos(k, a) = (k . a) / |k|, as the anchor has length 1: rows (3, 4) with the anchor (1, 0) give
 * 3 * 1/5 = 0.6. */
static void similarity_task(void *ctx, int64_t tile, int worker) {
  const signal_call *c = ctx;
  pyr_arena arena = pyr_cpu_arena(c->cpu, worker);
  anchor_scratch s = anchor_scratch_of(&arena, c->dims);
  int64_t rows = weigh_keys(c, &s, tile);
  float *out = c->out + tile * TILE;
  c->k->dots(out, c->anchor, s.rows, rows, (int)c->dims);
  for (int64_t i = 0; i < rows; i++) out[i] *= s.weights[i];
}

/* The anchor, made of length 1, lies in worker 0's scratch, before what that worker's tasks use.
 * First the anchor, by this thread alone, then the tiles by all. A row of zeros has no direction
 * and gives 0. Bytes: every key twice. */
static pyr_status cpu_key_similarity(pyr_backend *be, float *out, const pyr_lane_view *lane,
                                     pyr_layout layout, int64_t begin, int64_t end) {
  signal_call c = call_of(be, out, lane, layout, begin, end);
  pyr_status status = pyr_cpu_check(be, "key_similarity",
                                    pyr_cpu_signals_scratch(c.k, layout.head_dim, 0));
  if (status != PYR_OK) return status;
  pyr_arena arena = pyr_cpu_arena(c.cpu, 0);
  anchor_scratch s = anchor_scratch_of(&arena, c.dims);
  memset(s.anchor, 0, (size_t)c.dims * sizeof(float));
  for (int64_t tile = 0; tile < c.tiles; tile++) {
    int64_t rows = weigh_keys(&c, &s, tile);
    c.k->mix(s.anchor, s.weights, s.rows, rows, (int)c.dims);
  }
  float length = sqrtf(c.k->square_sum(s.anchor, c.dims));
  for (int64_t i = 0; i < c.dims; i++) s.anchor[i] = length > 0 ? s.anchor[i] / length : 0;
  c.anchor = s.anchor;
  return run_tasks(be, "key_similarity", similarity_task, &c, c.tiles, (end - begin) * c.dims * 3);
}

/* ---- lag ------------------------------------------------------------------------------------- */

/* spread[i] of the run's rows, of K or V, over the range of the run behind it; then its softmax.
 * Of d = 2 and runs of 2 rows: rows (1, 4), (2, 4) and behind them (0, 4), (4, 8).
 *
 *     low, high      (0, 4) .. (4, 8)                    per dimension, of the run behind
 *     scaled         (0.25, 0)   (0.5, 0)                (x - low) / (high - low)
 *     mean           0.125       0.25
 *     spread         0.177       0.354                   over d - 1 = 1
 *     softmax        0.456       0.544
 *
 * A dimension in which the run behind does not vary gives 0. */
static void lag_softmax(const signal_call *c, const lag_scratch *s, float *spread, int64_t row,
                        int what) {
  int64_t d = c->d;
  for (int64_t i = 0; i < d; i++) s->low[i] = INFINITY, s->high[i] = -INFINITY;
  for (int64_t r = 0; r < c->lag; r++) {
    pyr_cpu_load_rows(c->k, s->row, d, c->lane, c->layout, row + c->lag + r, 1, what);
    for (int64_t i = 0; i < d; i++) {
      s->low[i] = s->row[i] < s->low[i] ? s->row[i] : s->low[i];
      s->high[i] = s->row[i] > s->high[i] ? s->row[i] : s->high[i];
    }
  }
  for (int64_t i = 0; i < d; i++)
    s->high[i] = s->high[i] > s->low[i] ? 1.0f / (s->high[i] - s->low[i]) : 0.0f;
  for (int64_t r = 0; r < c->lag; r++) {
    float mean = 0, squares = 0;
    pyr_cpu_load_rows(c->k, s->row, d, c->lane, c->layout, row + r, 1, what);
    for (int64_t i = 0; i < d; i++) mean += s->row[i] = (s->row[i] - s->low[i]) * s->high[i];
    mean /= (float)d;
    for (int64_t i = 0; i < d; i++) s->row[i] -= mean;
    squares = c->k->square_sum(s->row, d);
    spread[r] = d > 1 ? sqrtf(squares / (float)(d - 1)) : 0;
  }
  float sum;
  c->k->softmax(spread, c->lag, &sum);
  for (int64_t r = 0; r < c->lag; r++) spread[r] /= sum;
}

/* A run is judged as a whole, also where only some of its rows are. Ranked, a row gets the part
 * of its run that lies below it: of 0.1, 0.4, 0.2, 0.3 the third gets 1 / 4. The last run that
 * has one behind it is the last that is judged: rows after it get 1 (cpu_lag). */
static void lag_task(void *ctx, int64_t run, int worker) {
  const signal_call *c = ctx;
  pyr_arena arena = pyr_cpu_arena(c->cpu, worker);
  lag_scratch s = lag_scratch_of(&arena, c->d, c->lag);
  int64_t at = run * c->lag, lag = c->lag, judged = pyr_min(lag, c->end - c->begin - at);
  float *out = c->out + at;
  lag_softmax(c, &s, s.keys, c->begin + at, 0);
  lag_softmax(c, &s, s.values, c->begin + at, 1);
  for (int64_t i = 0; i < lag; i++) s.keys[i] = (s.keys[i] + s.values[i]) * 0.5f;
  for (int64_t i = 0; i < judged; i++) {
    int64_t below = 0;
    for (int64_t j = 0; j < lag && c->ranked; j++)
      below += s.keys[j] < s.keys[i] || (s.keys[j] == s.keys[i] && j < i);
    out[i] = c->ranked ? (float)below / (float)lag : s.keys[i];
  }
}

/* 100 rows from begin on, in runs of 32: 3 whole runs, of which the third has no whole one
 * behind it, so 2 are judged and rows from 64 on get 1. */
static pyr_status cpu_lag(pyr_backend *be, float *out, const pyr_lane_view *lane,
                          pyr_layout layout, int64_t begin, int64_t end, int64_t lag, int ranked) {
  signal_call c = call_of(be, out, lane, layout, begin, end);
  if (lag < 1)
    return pyr_runtime_set_error(be->rt, PYR_ARGUMENT, "lag: runs of %lld rows", (long long)lag);
  int64_t whole = pyr_max((lane->rows - begin) / lag - 1, 0),
      runs = pyr_min(whole, pyr_ceil_div(end - begin, lag));
  c.lag = pyr_min(lag, lane->rows), c.ranked = ranked;
  for (int64_t i = runs * lag; i < end - begin; i++) out[i] = 1.0f;
  return run_tasks(be, "lag", lag_task, &c, runs, runs * lag * (6 * c.d + (ranked ? lag : 0)));
}

/* ---- products with a tile of rows ------------------------------------------------------------ */

/* rows_t is [d][TILE]: the tile's rows side by side, as gemm's right operand. */
static int64_t load_tile(const signal_call *c, const product_scratch *s, int64_t tile, int what,
                         const pyr_products *products) {
  int64_t row = c->begin + tile * TILE, rows = pyr_min(TILE, c->end - row);
  pyr_cpu_load_rows(c->k, s->rows, c->d, c->lane, c->layout, row, rows, what);
  if (rows < TILE) memset(s->rows_t, 0, (size_t)(TILE * c->d) * sizeof(float));
  products->transpose(s->rows_t, TILE, s->rows, c->d, (int)rows, c->d, 1.0f);
  return rows;
}

/* The tile's rows are cut into strips of nr; TILE need not be a multiple of it, so the last strip
 * may look back. Of strips of 24: 0, 24, 48, 72, 96, and then not 120 but 104 = 128 - 24:
 * columns 104 to 119 have been counted already, and `done` says that counting goes on at 120. */
static int64_t strip_at(int64_t at, int64_t nr) { return pyr_min(at, TILE - nr); }

/* Task: a tile of rows and a query head. |W_o v|_1 of a row: W_o's columns that belong to the
 * head, STRIP rows of it at a time, times the tile's values; of each product only its size is
 * added. Columns begin with a block of their dtype, so up to two blocks more are read than the
 * head has. Products: rows * d * width for each head. */
static void output_task(void *ctx, int64_t task, int worker) {
  const signal_call *c = ctx;
  int64_t tile = task % c->tiles, h = task / c->tiles, d = c->d, nr = c->k->nr;
  pyr_arena arena = pyr_cpu_arena(c->cpu, worker);
  const pyr_products *products = pyr_cpu_products(c->cpu);
  product_scratch s = product_scratch_of(&arena, (int)nr, d);
  int64_t rows = load_tile(c, &s, tile, 1, products), block = pyr_dtype_block(c->o->dtype);
  int64_t column = (c->first + h) * d, from = column / block * block,
      wide = pyr_round_up(column + d, block) - from;
  memset(s.sums, 0, TILE * sizeof(float));
  for (int64_t w = 0; w < c->o->shape[0]; w += STRIP) {
    int64_t some = pyr_min(STRIP, c->o->shape[0] - w), padded = pyr_round_up(some, PYR_UNIT);
    for (int64_t i = 0; i < some; i++)
      pyr_cpu_weights(c->k, s.wide + i * wide, c->o, w + i, from, wide);
    products->transpose(s.a, STRIP, s.wide + (column - from), wide, (int)some, d, 1.0f);
    for (int64_t at = 0, done = 0; done < rows; at += nr) {
      int64_t strip = strip_at(at, nr);
      memset(s.c, 0, (size_t)(padded * nr) * sizeof(float));
      products->gemm(s.c, nr, s.a, STRIP, s.rows_t + strip, TILE, padded,
                     pyr_ceil_div(d, products->per));
      for (int64_t i = 0; i < some; i++)
        for (int64_t j = done - strip; j < nr; j++) s.sums[strip + j] += fabsf(s.c[i * nr + j]);
      done = strip + nr;
    }
  }
  memcpy(c->out + h * (c->end - c->begin) + tile * TILE, s.sums, (size_t)rows * sizeof(float));
}

static pyr_status cpu_output_norm(pyr_backend *be, float *out, const pyr_lane_view *lane,
                                  pyr_layout layout, int64_t begin, int64_t end,
                                      const pyr_tensor *o, int32_t first, int32_t count) {
  signal_call c = call_of(be, out, lane, layout, begin, end);
  c.o = o, c.first = first;
  return run_tasks(be, "output_norm", output_task, &c, c.tiles * count,
                   (end - begin) * c.d * o->shape[0] * count);
}

/* Task: a tile of rows, for all heads that read it. sum over i of (mean_i + (C k)_i) * k_i,
 * which is m . k + k^T C k: C k by gemm, the rest value by value. m and C already hold scale and
 * the half (moments_end_task). Without a covariance only m . k is left. */
static void expected_task(void *ctx, int64_t tile, int worker) {
  const signal_call *c = ctx;
  int64_t d = c->d, nr = c->k->nr, padded = pyr_round_up(d, PYR_UNIT);
  pyr_arena arena = pyr_cpu_arena(c->cpu, worker);
  product_scratch s = product_scratch_of(&arena, (int)nr, d);
  int64_t rows = load_tile(c, &s, tile, 0, &c->k->f32);
  for (int32_t h = 0; h < c->heads; h++) {
    const float *mean = c->m->sum + (c->first + h) * d,
        *outer = c->m->outer ? c->m->outer + (c->first + h) * d * d : NULL;
    memset(s.sums, 0, TILE * sizeof(float));
    /* symmetric: only the padding is wanted */
    if (outer) c->k->f32.transpose(s.a, padded, outer, d, (int)d, d, 1.0f);
    for (int64_t at = 0, done = 0; done < rows; at += nr) {
      int64_t strip = strip_at(at, nr);
      memset(s.c, 0, (size_t)(padded * nr) * sizeof(float));
      if (outer) c->k->f32.gemm(s.c, nr, s.a, padded, s.rows_t + strip, TILE, padded, d);
      for (int64_t i = 0; i < d; i++)
        for (int64_t j = done - strip; j < nr; j++)
          s.sums[strip + j] += (mean[i] + s.c[i * nr + j]) * s.rows_t[i * TILE + strip + j];
      done = strip + nr;
    }
    memcpy(c->out + h * (c->end - c->begin) + tile * TILE, s.sums, (size_t)rows * sizeof(float));
  }
}

static pyr_status cpu_expected(pyr_backend *be, float *out, const pyr_lane_view *lane,
                               pyr_layout layout, int64_t begin, int64_t end, const pyr_moments *m,
                                   int32_t first, int32_t count) {
  signal_call c = call_of(be, out, lane, layout, begin, end);
  c.m = m, c.first = first, c.heads = count;
  return run_tasks(be, "expected", expected_task, &c, c.tiles, (end - begin) * c.d * c.d * count);
}

/* Task: a tile of rows, for all heads. Values side by side, row beside row: sum over i of
 * vector_i k_i, then over pairs of spread_p sqrt(a^2 + b^2). Lengths are taken anew for each head:
 * a group has few. */
static void along_task(void *ctx, int64_t tile, int worker) {
  const signal_call *c = ctx;
  const pyr_along *a = c->along;
  int32_t pairs = a->dims / 2, each = a->style == PYR_ROPE_HALF ? 1 : 2,
      other = a->style == PYR_ROPE_HALF ? pairs : 1;
  pyr_arena arena = pyr_cpu_arena(c->cpu, worker);
  product_scratch s = product_scratch_of(&arena, c->k->nr, c->d);
  int64_t rows = load_tile(c, &s, tile, 0, &c->k->f32);
  for (int32_t h = 0; h < c->heads; h++) {
    const float *vector = a->vectors + h * c->d;
    memset(s.sums, 0, TILE * sizeof(float));
    for (int64_t i = 0; i < c->d; i++)
      for (int64_t j = 0; j < TILE; j++) s.sums[j] += vector[i] * s.rows_t[i * TILE + j];
    for (int32_t p = 0; p < pairs && a->spreads; p++) {
      const float *x = s.rows_t + (int64_t)p * each * TILE, *y = x + (int64_t)other * TILE;
      float spread = a->spreads[h * pairs + p];
      for (int64_t j = 0; j < TILE; j++) s.sums[j] += spread * sqrtf(x[j] * x[j] + y[j] * y[j]);
    }
    memcpy(c->out + h * (c->end - c->begin) + tile * TILE, s.sums, (size_t)rows * sizeof(float));
  }
}

static pyr_status cpu_along(pyr_backend *be, float *out, const pyr_lane_view *lane,
                            pyr_layout layout, int64_t begin, int64_t end, const pyr_along *a,
                                int32_t count) {
  signal_call c = call_of(be, out, lane, layout, begin, end);
  c.along = a, c.heads = count;
  return run_tasks(be, "along", along_task, &c, c.tiles, (end - begin) * c.d * 3 * count);
}

/* ---- moments of queries ---------------------------------------------------------------------- */

/* Cosines and sines of each query's angles, over the gain: what turns it back. They serve all
 * heads. A position's angles are the same in all heads, so 512 queries of 9 heads need 512 of
 * them. */
static void turn_span(const void *ctx, int64_t begin, int64_t end) {
  const signal_call *c = ctx;
  int32_t pairs = c->m->dims / 2;
  for (int64_t i = begin; i < end; i++) {
    float *turn = c->m->turns + i * c->m->dims;
    for (int32_t p = 0; p < pairs; p++) {
      float angle = (float)c->q_pos[i] * c->m->freq[p];
      turn[p] = cosf(angle) / c->m->gain;
      turn[pairs + p] = sinf(angle) / c->m->gain;
    }
  }
}

/* Query i of a head as it was before RoPE: (a, b) becomes (a cos + b sin, b cos - a sin). Pairs
 * are those of rope_span: value p with p + pairs, or 2 p with 2 p + 1. */
static void turn_back(const signal_call *c, float *out, int64_t i, int64_t head) {
  const pyr_moments *m = c->m;
  int32_t pairs = m->dims / 2, step = m->style == PYR_ROPE_HALF ? 1 : 2,
      other = m->style == PYR_ROPE_HALF ? pairs : 1;
  const float *q = c->q + (i * m->heads + head) * c->d, *co = m->turns + i * m->dims,
      *si = co + pairs;
  for (int32_t p = 0; p < pairs; p++) {
    float a = q[p * step], b = q[p * step + other];
    out[p * step] = a * co[p] + b * si[p];
    out[p * step + other] = b * co[p] - a * si[p];
  }
  memcpy(out + m->dims, q + m->dims, (size_t)(c->d - m->dims) * sizeof(float));
}

/* Sums are taken from `shift`, the mean of the first piece: numbers near 0 lose less than the
 * squares of large ones would. Of 101, 103 and 105 with shift 103: -2, 0, 2; sum 0, sum of
 * squares 8; mean 103 + 0 / 3, variance 8 / 3 - 0.
 *
 * The block's queries are multiplied with themselves, C += Q^T Q, by whole panels: what a block
 * has in excess of `some` is not summed over, and what columns have in excess of d is 0 and left
 * out. */
static void moments_task(void *ctx, int64_t head, int worker) {
  const signal_call *c = ctx;
  const pyr_moments *m = c->m;
  int64_t d = c->d;
  float *shift = m->shift + head * d, *sum = m->sum + head * d,
      *outer = m->outer ? m->outer + head * d * d : NULL;
  pyr_arena arena = pyr_cpu_arena(c->cpu, worker);
  moment_scratch s = moment_scratch_of(&arena, c->k->nr, d);
  memset(s.tile, 0, (size_t)(BLOCK * s.ld) * sizeof(float));
  if (c->opening) {
    memset(shift, 0, (size_t)d * sizeof(float));
    for (int64_t i = 0; i < c->n; i++) {
      turn_back(c, s.tile, i, head);
      for (int64_t j = 0; j < d; j++) shift[j] += s.tile[j];
    }
    for (int64_t j = 0; j < d; j++) shift[j] /= (float)c->n, sum[j] = 0;
    if (outer) memset(outer, 0, (size_t)(d * d) * sizeof(float));
  }
  memset(s.c, 0, (size_t)(s.padded * s.ld) * sizeof(float));
  for (int64_t i = 0; i < c->n; i += BLOCK) {
    int64_t some = pyr_min(BLOCK, c->n - i);
    for (int64_t r = 0; r < some; r++) {
      float *q = s.tile + r * s.ld;
      turn_back(c, q, i + r, head);
      for (int64_t j = 0; j < d; j++) sum[j] += q[j] -= shift[j];
    }
    if (outer)
      for (int64_t j = 0; j < s.ld; j += c->k->nr)
        c->k->f32.gemm(s.c + j, s.ld, s.tile, s.ld, s.tile + j, s.ld, s.padded, some);
  }
  for (int64_t i = 0; outer && i < d; i++)
    for (int64_t j = 0; j < d; j++) outer[i * d + j] += s.c[i * s.ld + j];
}

static pyr_status cpu_moments(pyr_backend *be, const pyr_moments *m, const float *q,
                              const int32_t *q_pos, int64_t n, bool begin) {
  signal_call c = { .k = pyr_cpu_of(be)->kernels, .cpu = pyr_cpu_of(be), .d = m->head_dim, .m = m,
                    .q = q, .q_pos = q_pos, .n = n, .opening = begin };
  if (n <= 0) return PYR_OK;
  pyr_cpu_spans(be, turn_span, &c, n, 16 * (int64_t)m->dims);
  return run_tasks(be, "moments", moments_task, &c, m->heads, n * m->heads * c.d * c.d);
}

/* Turns a vector's pairs, `step` floats from value to value, by the mean rotation (co, si). Both
 * sides of the covariance are turned, R C R^T: its rows with step 1, then its columns with step
 * d. */
static void turn_mean(const pyr_moments *m, float *x, int64_t step) {
  int32_t pairs = m->dims / 2, each = m->style == PYR_ROPE_HALF ? 1 : 2,
      other = m->style == PYR_ROPE_HALF ? pairs : 1;
  for (int32_t p = 0; p < pairs; p++) {
    float *a = x + p * each * step, *b = a + other * step, was = *a;
    *a = m->turns[p] * was - m->turns[pairs + p] * *b;
    *b = m->turns[pairs + p] * was + m->turns[p] * *b;
  }
}

/* From sums to moments, in place: mean = sum / n, C = outer / n - mean mean^T, both from the
 * shift, then the mean without it; times what `expected` would multiply with: scale, and scale^2
 * / 2. Without a query nothing is expected. */
static void moments_end_task(void *ctx, int64_t head, int worker) {
  const signal_call *c = ctx;
  const pyr_moments *m = c->m;
  int64_t d = c->d;
  float *shift = m->shift + head * d, *sum = m->sum + head * d,
      *outer = m->outer ? m->outer + head * d * d : NULL;
  float count = (float)c->count;
  (void)worker;
  if (c->count == 0) {
    memset(sum, 0, (size_t)d * sizeof(float));
    if (outer) memset(outer, 0, (size_t)(d * d) * sizeof(float));
    return;
  }
  for (int64_t i = 0; i < d; i++) sum[i] /= count;
  for (int64_t i = 0; outer && i < d; i++)
    for (int64_t j = 0; j < d; j++)
      outer[i * d + j] = (outer[i * d + j] / count - sum[i] * sum[j]) * 0.5f * c->scale * c->scale;
  for (int64_t i = 0; i < d; i++) sum[i] = (sum[i] + shift[i]) * c->scale;
  turn_mean(m, sum, 1);
  for (int64_t i = 0; outer && i < d; i++) turn_mean(m, outer + i * d, 1);
  for (int64_t j = 0; outer && j < d; j++) turn_mean(m, outer + j, d);
}

/* The mean rotation of the positions to come: over many of them fast pairs cancel out (co and si
 * near 0), slow ones stay. Summed in f64, as there may be 65,536. */
static pyr_status cpu_moments_end(pyr_backend *be, const pyr_moments *m, int64_t count,
                                  int64_t next, int64_t future, float scale) {
  signal_call c = { .k = pyr_cpu_of(be)->kernels, .cpu = pyr_cpu_of(be), .d = m->head_dim, .m = m,
                    .count = count, .scale = scale };
  int32_t pairs = m->dims / 2;
  for (int32_t p = 0; p < pairs; p++) {
    double co = 0, si = 0;
    for (int64_t t = 0; t < future; t++) {
      float angle = (float)(next + t) * m->freq[p];
      co += cosf(angle), si += sinf(angle);
    }
    m->turns[p] = (float)(co / (double)future) * m->gain;
    m->turns[pairs + p] = (float)(si / (double)future) * m->gain;
  }
  pyr_cpu_tasks(be, moments_end_task, &c, m->heads, m->heads * c.d * c.d * 4);
  return PYR_OK;
}

/* ---- vectors of scores ----------------------------------------------------------------------- */

/* By one thread: a vector of candidates is short beside the rows that it ranks. An all -inf vector
 * divides by 0, and is seen as NaN. */
static pyr_status cpu_softmax(pyr_backend *be, float *x, int64_t n) {
  float sum;
  pyr_cpu_of(be)->kernels->softmax(x, n, &sum);
  for (int64_t i = 0; i < n; i++) x[i] /= sum;
  return PYR_OK;
}

/* 1 2 3 becomes -1.22 0 1.22: the mean is 2, the variance 2 / 3. Summed in f64. */
static pyr_status cpu_standardize(pyr_backend *be, float *x, int64_t n) {
  double sum = 0, squares = 0;
  (void)be;
  for (int64_t i = 0; i < n; i++) sum += x[i];
  double mean = n > 0 ? sum / (double)n : 0;
  for (int64_t i = 0; i < n; i++) squares += (x[i] - mean) * (x[i] - mean);
  double deviation = sqrt(squares / (double)(n > 0 ? n : 1));
  deviation = deviation < 1e-6 ? 1e-6 : deviation;
  for (int64_t i = 0; i < n; i++) x[i] = (float)((x[i] - mean) / deviation);
  return PYR_OK;
}

/* 1 2 3 10 20 in runs of 3 becomes 2 2 2 15 15: the last run may be shorter. Summed in f64. */
static pyr_status cpu_chunk(pyr_backend *be, float *x, int64_t n, int64_t width) {
  if (width < 1)
    return pyr_runtime_set_error(be->rt, PYR_ARGUMENT, "chunk: runs of %lld values",
                                 (long long)width);
  for (int64_t at = 0; at < n; at += width) {
    int64_t some = pyr_min(width, n - at);
    double sum = 0;
    for (int64_t i = 0; i < some; i++) sum += x[at + i];
    for (int64_t i = 0; i < some; i++) x[at + i] = (float)(sum / (double)some);
  }
  return PYR_OK;
}

/* 1 for rows of idx, 0 for all others. */
static pyr_status cpu_mark(pyr_backend *be, float *out, int64_t n, const int32_t *idx, int64_t k) {
  (void)be;
  memset(out, 0, (size_t)n * sizeof(float));
  for (int64_t i = 0; i < k; i++) out[idx[i]] = 1.0f;
  return PYR_OK;
}

void pyr_cpu_signals_fill(pyr_backend *be) {
  be->read_rows = cpu_read_rows;
  be->key_similarity = cpu_key_similarity;
  be->along = cpu_along;
  be->standardize = cpu_standardize;
  be->lag = cpu_lag;
  be->output_norm = cpu_output_norm;
  be->moments = cpu_moments;
  be->moments_end = cpu_moments_end;
  be->expected = cpu_expected;
  be->softmax = cpu_softmax;
  be->chunk = cpu_chunk;
  be->mark = cpu_mark;
}

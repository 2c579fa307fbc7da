/* redundancy.c — how like the other keys of its lane a key is (R-KV, arXiv 2505.24133): what a text
 * says again and again has keys that point the same way, and one of them may stand for all.
 *
 * Of the n rows of a lane, with u_i = k_i / |k_i| (0 of a zero):
 *
 *     mean_i     1/n * sum over j != i of u_i . u_j
 *     last(i)    the highest j != i with u_i . u_j > threshold, or none
 *     s_i        mean_i - 1/n * sum over all j with last(j) = i of u_i . u_j
 *     out        softmax of s over the n rows
 *
 * So of rows that are alike the last one is counted as less redundant, once for each row that it is
 * the last like: it is the one that stays. Three keys (1, 0), (1, 0), (0, 1) with a threshold of
 * 0.5:
 *
 *     mean       1/3    1/3    0
 *     last       1      0      none
 *     s          0      0      0                as each of the two is the last like the other
 *
 * The sum over j is a product with the sum of all u: n * d. Only last(i) needs the n * n products,
 * and no more of them than it takes: a task has a tile of rows and goes through the lane from its
 * end, a strip of rows at a time, until every row of the tile has found one. Where texts repeat
 * themselves that is soon; where nothing is alike all n * n products are made, and nothing of them
 * is kept.
 *
 *     rows of the lane      0 ………………………………………………… n
 *     a tile of 128                 [ tile ]
 *     strips of 32                       … <- [  ][  ][  ]   from the last row back
 *
 * Every value is a chain of additions in the order of its inputs, whatever the tile or thread. */
#include "cpu/cpu.h"

#include <math.h>
#include <string.h>

/* Rows of a task, and of the other operand at a time. A tile of 64 dimensions takes 32 KiB twice, a
 * strip 8 KiB twice. */
enum { TILE = 128, STRIP = 32 };

typedef struct redundancy_call {
  const pyr_kernels *k;
  pyr_cpu *cpu;
  pyr_layout layout;
  const pyr_lane_view *lane;
  int64_t n, d, dims;              /* dims: d padded to PYR_PAD */
  float threshold;
  float *anchor;                   /* [dims] the sum of all u */
  float *mean, *alike;             /* [n]; u_i . u_last(i) */
  int32_t *last;                   /* [n], -1: none */
} redundancy_call;

typedef struct redundancy_scratch {
  float *anchor, *mean, *alike;    /* shared: worker 0's */
  int32_t *last;                   /* likewise */
  float *tile, *tile_t;            /* [TILE][dims], [dims][TILE] */
  float *strip, *strip_t;          /* [STRIP][dims], [dims][STRIP] */
  float *products;                 /* [STRIP][nr] */
  float *ones;                     /* [TILE] */
} redundancy_scratch;

/* 4 is sizeof(float). */
static redundancy_scratch scratch_of(pyr_arena *arena, int nr, int64_t dims, int64_t n) {
  return (redundancy_scratch){ pyr_arena_take(arena, dims, 4), pyr_arena_take(arena, n, 4),
                               pyr_arena_take(arena, n, 4), pyr_arena_take(arena, n, 4),
                               pyr_arena_take(arena, TILE * dims, 4),
                               pyr_arena_take(arena, TILE * dims, 4),
                               pyr_arena_take(arena, STRIP * dims, 4),
                               pyr_arena_take(arena, STRIP * dims, 4),
                               pyr_arena_take(arena, STRIP * nr, 4),
                               pyr_arena_take(arena, TILE, 4) };
}

size_t pyr_cpu_redundancy_scratch(const pyr_kernels *k, int32_t head_dim, int64_t rows) {
  pyr_arena arena = { NULL, 0 };
  scratch_of(&arena, k->nr, pyr_round_up(head_dim, PYR_PAD), rows);
  return arena.used;
}

/* At most `most` keys from `row` on, each made of length 1; returns how many. Padding is 0, and
 * adds nothing to a length or a product. */
static int64_t unit_keys(const redundancy_call *c, float *out, int64_t row, int64_t most) {
  int64_t rows = pyr_min(most, c->n - row);
  pyr_cpu_load_rows(c->k, out, c->dims, c->lane, c->layout, row, rows, PYR_PLANE_K);
  for (int64_t i = 0; i < rows; i++) {
    float length = sqrtf(c->k->square_sum(out + i * c->dims, c->dims));
    float scale = length > 0 ? 1.0f / length : 0.0f;          /* NaN stays: 0 * NaN */
    for (int64_t x = 0; x < c->d; x++) out[i * c->dims + x] *= scale;
  }
  return rows;
}

/* Which rows of the tile find their last one in the strip whose first row is `at`: its rows from
 * the last back, so that the first that is found is the highest. Returns how many did. Columns of
 * a panel that hangs over the end of the tile are those of the one before, as in signals.c: who
 * has found one is not asked again. */
static int64_t find_in_strip(const redundancy_call *c, const redundancy_scratch *s, int64_t first,
                             int64_t rows, int64_t at) {
  int64_t some = unit_keys(c, s->strip, at, STRIP), padded = pyr_round_up(some, PYR_UNIT);
  int64_t nr = c->k->nr, found = 0;
  c->k->f32.transpose(s->strip_t, STRIP, s->strip, c->dims, (int)some, c->d, 1.0f);
  for (int64_t panel = 0; panel < rows; panel += nr) {
    int64_t from = pyr_min(panel, TILE - nr), to = pyr_min(from + nr, rows), open = 0;
    for (int64_t i = from; i < to; i++) open += c->last[first + i] < 0;
    if (open == 0) continue;
    memset(s->products, 0, (size_t)(STRIP * nr) * sizeof(float));
    c->k->f32.gemm(s->products, nr, s->strip_t, STRIP, s->tile_t + from, TILE, padded, c->d);
    for (int64_t j = some - 1; j >= 0 && open > 0; j--) {
      const float *row = s->products + j * nr;
      for (int64_t i = from; i < to; i++) {
        if (c->last[first + i] >= 0 || !(row[i - from] > c->threshold) || at + j == first + i)
          continue;
        c->last[first + i] = (int32_t)(at + j), c->alike[first + i] = row[i - from];
        open--, found++;
      }
    }
  }
  return found;
}

/* A tile's mean and last. What a key has with itself, |u|^2, is taken off its sum: it is 1, or 0 of
 * a zero, to some 1e-7. */
static void tile_task(void *ctx, int64_t task, int worker) {
  const redundancy_call *c = ctx;
  pyr_arena arena = pyr_cpu_arena(c->cpu, worker);
  redundancy_scratch s = scratch_of(&arena, c->k->nr, c->dims, c->n);
  int64_t first = task * TILE, rows = unit_keys(c, s.tile, first, TILE), open = rows;
  c->k->dots(c->mean + first, c->anchor, s.tile, rows, (int)c->dims);
  for (int64_t i = 0; i < rows; i++) {
    float own = c->k->square_sum(s.tile + i * c->dims, c->dims);
    c->mean[first + i] = (c->mean[first + i] - own) / (float)c->n;
    c->last[first + i] = -1;
  }
  if (rows < TILE) memset(s.tile_t, 0, (size_t)(TILE * c->d) * sizeof(float));
  c->k->f32.transpose(s.tile_t, TILE, s.tile, c->dims, (int)rows, c->d, 1.0f);
  for (int64_t strip = pyr_ceil_div(c->n, STRIP) - 1; strip >= 0 && open > 0; strip--)
    open -= find_in_strip(c, &s, first, rows, strip * STRIP);
}

/* First the sum of all u, by this thread alone; then tiles, by all; then what the last ones are
 * relieved of, and the softmax, by this thread again: n values beside n * d. What is shared lies in
 * worker 0's scratch, before what that worker's tasks use. */
static pyr_status cpu_redundancy(pyr_backend *be, float *out, const pyr_lane_view *lane,
                                 pyr_layout layout, int64_t begin, int64_t end, float threshold) {
  pyr_cpu *cpu = pyr_cpu_of(be);
  redundancy_call c = { .k = cpu->kernels, .cpu = cpu, .layout = layout, .lane = lane,
                        .n = lane->rows, .d = layout.head_dim,
                        .dims = pyr_round_up(layout.head_dim, PYR_PAD), .threshold = threshold };
  if (end <= begin) return PYR_OK;
  pyr_status status = pyr_cpu_check(be, "redundancy",
                                    pyr_cpu_redundancy_scratch(c.k, layout.head_dim, c.n));
  if (status != PYR_OK) return status;
  pyr_arena arena = pyr_cpu_arena(cpu, 0);
  redundancy_scratch s = scratch_of(&arena, c.k->nr, c.dims, c.n);
  c.anchor = s.anchor, c.mean = s.mean, c.alike = s.alike, c.last = s.last;
  memset(c.anchor, 0, (size_t)c.dims * sizeof(float));
  for (int i = 0; i < TILE; i++) s.ones[i] = 1.0f;
  for (int64_t row = 0; row < c.n; row += TILE)
    c.k->mix(c.anchor, s.ones, s.tile, unit_keys(&c, s.tile, row, TILE), (int)c.dims);
  /* Half of the worst case, which is n * n products of d: as a rule it takes far fewer. */
  pyr_cpu_tasks(be, tile_task, &c, pyr_ceil_div(c.n, TILE), c.n * c.n / 2 * c.d);
  for (int64_t j = 0; j < c.n; j++)
    if (c.last[j] >= 0) c.mean[c.last[j]] -= c.alike[j] / (float)c.n;
  /* A key with a NaN made all of them NaN, by the sum of all u; exponentials would hide it. */
  float all = c.k->sum(c.mean, c.n), sum;
  c.k->softmax(c.mean, c.n, &sum);
  for (int64_t i = begin; i < end; i++) out[i - begin] = all == all ? c.mean[i] / sum : NAN;
  return PYR_OK;
}

void pyr_cpu_redundancy_fill(pyr_backend *be) { be->redundancy = cpu_redundancy; }

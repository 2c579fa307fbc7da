/* merge.c — rows that go are merged into the most similar row that stays.
 *
 *     t(l)  = argmax over survivors s of cos(l, s), for each loser l
 *     cos(l, s) = k_l . k_s / (|k_l| |k_s|)
 *     M(s)  = { l : t(l) = s and cos(l, s) >= threshold }
 *     k_s, v_s <- (k_s + sum over M(s) of k_l) / (1 + |M(s)|), likewise v
 *
 * Two passes. First every loser's t(l): a task is SLICES slices of nr losers, whose keys, scaled to
 * length 1 and transposed, meet the survivors' keys ROWS at a time in `gemm`; each value is one
 * chain of multiply-adds in the order of dimensions, so that neither the cut into tasks nor that
 * into tiles changes it. Then, with the losers of each survivor in a linked list in ascending
 * order, every survivor's mean in f32, a row at a time.
 *
 * Both live in `links`: its first half holds t(l), then the lists (the first loser behind a
 * survivor's row, the next behind a loser's, -1 ends), its second half the losers' rows. */
#include "base/rowbits.h"
#include "cpu/cpu.h"

#include <math.h>
#include <string.h>

/* Tiles of survivors; slices of losers a task, whose best matches so far lie on its stack. */
enum { ROWS = 64, SLICES = 4, MOST_NR = 64 };

typedef struct merge_call {
  const pyr_kernels *k;
  pyr_cpu *cpu;
  const pyr_lane_view *lane;
  pyr_layout layout;
  const int32_t *idx;      /* [kept] */
  int32_t *links;          /* [rows] */
  const int32_t *losers;   /* [lost] */
  int64_t kept, lost;
  float threshold;
} merge_call;

typedef struct merge_scratch {
  float *rows;             /* [max(ROWS, nr)][head_dim] */
  float *k;                /* [head_dim][ROWS] survivors */
  float *l;                /* [SLICES][head_dim][nr] losers */
  float *scores;           /* [ROWS][nr] */
} merge_scratch;

static merge_scratch merge_scratch_of(pyr_arena *arena, int nr, int32_t head_dim) {
  return (merge_scratch){
    .rows = pyr_arena_take(arena, pyr_max(ROWS, nr) * (int64_t)head_dim, sizeof(float)),
    .k = pyr_arena_take(arena, ROWS * (int64_t)head_dim, sizeof(float)),
    .l = pyr_arena_take(arena, SLICES * nr * (int64_t)head_dim, sizeof(float)),
    .scores = pyr_arena_take(arena, ROWS * (int64_t)nr, sizeof(float)),
  };
}

size_t pyr_cpu_merge_scratch(const pyr_kernels *k, int32_t head_dim) {
  pyr_arena count = { NULL, 0 };
  merge_scratch_of(&count, k->nr, head_dim);
  return count.used;
}

/* The keys of n rows, each scaled to length 1 (rows of zeros stay so), as dst [head_dim][ld].
 * Row by row, as losers and survivors lie scattered over the lane's pages. */
static void load_directions(const merge_call *c, float *rows, float *dst, int64_t ld,
                            const int32_t *which, int64_t n) {
  int64_t d = c->layout.head_dim;
  for (int64_t i = 0; i < n; i++) {
    float *row = rows + i * d;
    pyr_cpu_load_rows(c->k, row, d, c->lane, c->layout, which[i], 1, PYR_PLANE_K);
    float size = sqrtf(c->k->square_sum(row, d)), inverse = size > 0 ? 1.0f / size : 0;
    for (int64_t j = 0; j < d; j++) row[j] *= inverse;
  }
  c->k->f32.transpose(dst, ld, rows, d, (int)n, d, 1.0f);
}

/* Invariant: best[i] and target[i] are the most similar of the survivors before `row`, the first
 * one where several are. Survivors' keys are prepared once a task, and meet SLICES * nr losers.
 * Products: losers * survivors * head_dim in all. */
static void find_task(void *ctx, int64_t task, int worker) {
  const merge_call *c = ctx;
  int64_t nr = c->k->nr, d = c->layout.head_dim, first = task * SLICES * nr,
      count = pyr_min(SLICES * nr, c->lost - first);
  pyr_arena arena = pyr_cpu_arena(c->cpu, worker);
  merge_scratch s = merge_scratch_of(&arena, (int)nr, (int32_t)d);
  float best[SLICES * MOST_NR];
  int32_t target[SLICES * MOST_NR];
  for (int64_t i = 0; i < count; i++) best[i] = -INFINITY, target[i] = -1;
  for (int64_t at = 0; at < count; at += nr) {
    int64_t n = pyr_min(nr, count - at);
    if (n < nr) memset(s.l + at * d, 0, (size_t)(nr * d) * sizeof(float));
    load_directions(c, s.rows, s.l + at * d, nr, c->losers + first + at, n);
  }
  for (int64_t row = 0; row < c->kept; row += ROWS) {
    int64_t rows = pyr_min(ROWS, c->kept - row), m = pyr_round_up(rows, PYR_UNIT);
    load_directions(c, s.rows, s.k, ROWS, c->idx + row, rows);
    for (int64_t at = 0; at < count; at += nr) {
      memset(s.scores, 0, (size_t)(m * nr) * sizeof(float));
      c->k->f32.gemm(s.scores, nr, s.k, ROWS, s.l + at * d, nr, m, d);
      for (int64_t r = 0; r < rows; r++)
        for (int64_t i = 0; i < pyr_min(nr, count - at); i++)
          if (s.scores[r * nr + i] > best[at + i])
            best[at + i] = s.scores[r * nr + i], target[at + i] = c->idx[row + r];
    }
  }
  for (int64_t i = 0; i < count; i++)
    c->links[c->losers[first + i]] = best[i] >= c->threshold ? target[i] : -1;
}

/* A survivor's list is walked for K and then for V, a row at a time. Where keys are kept as they
 * came, the merged key has come from nowhere but its own index (born = row): later turns
 * begin from the merged key. */
static void mean_span(const void *ctx, int64_t begin, int64_t end) {
  const merge_call *c = ctx;
  int64_t d = c->layout.head_dim;
  float sum[PYR_BITS_DIMS], more[PYR_BITS_DIMS];
  for (int64_t i = begin; i < end; i++) {
    int32_t row = c->idx[i], first = c->links[row];
    if (first >= 0 && c->lane->born) c->lane->born[row] = row;
    for (int what = PYR_PLANE_K; what <= PYR_PLANE_V && first >= 0; what++) {
      float count = 1;
      pyr_cpu_get_row(c->k, sum, c->lane, c->layout, row, (pyr_plane)what);
      for (int32_t loser = first; loser >= 0; loser = c->links[loser], count++) {
        pyr_cpu_get_row(c->k, more, c->lane, c->layout, loser, (pyr_plane)what);
        for (int64_t j = 0; j < d; j++) sum[j] += more[j];
      }
      for (int64_t j = 0; j < d; j++) sum[j] /= count;
      pyr_cpu_set_row(c->k, c->lane, c->layout, row, (pyr_plane)what, sum);
    }
  }
}

/* Rows 0 to 5, of which 0, 2 and 5 stay; 1 and 3 are most like 0, and 4 like 5:
 *
 *     row              0   1   2   3   4   5
 *     after the find  -1   0  -1   0   5  -1        a loser's target; survivors have none
 *     lists            1   3  -1  -1  -1   4        0: 1, 3.   2: none.   5: 4
 *
 * so row 0 becomes the mean of rows 0, 1 and 3. Linking goes over losers from the last: 4, then
 * 3, then 1, which comes before 3. */
pyr_status pyr_cpu_merge(pyr_backend *be, const pyr_lane_view *lane, pyr_layout layout,
                         const int32_t *idx, int64_t k, float threshold, int32_t *links) {
  int32_t *losers = links + lane->rows;
  merge_call c = { .k = pyr_cpu_of(be)->kernels, .cpu = pyr_cpu_of(be), .lane = lane,
                   .layout = layout, .idx = idx, .links = links, .losers = losers, .kept = k,
                       .threshold = threshold };
  pyr_status status = pyr_cpu_check(be, "merge", pyr_cpu_merge_scratch(c.k, layout.head_dim));
  if (status != PYR_OK) return status;
  for (int64_t row = 0, next = 0; row < lane->rows; row++) {
    links[row] = -1;
    if (next < k && idx[next] == row) next++;
    else losers[c.lost++] = (int32_t)row;
  }
  pyr_cpu_tasks(be, find_task, &c, pyr_ceil_div(c.lost, SLICES * c.k->nr),
                c.lost * k * layout.head_dim);
  for (int64_t i = c.lost - 1; i >= 0; i--) {              /* from the last, so that lists ascend */
    int32_t loser = losers[i], target = links[loser];
    if (target < 0) continue;
    links[loser] = links[target];
    links[target] = loser;
  }
  pyr_cpu_spans(be, mean_span, &c, k, 2 * layout.head_dim);
  return PYR_OK;
}

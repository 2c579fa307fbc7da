/* attention.c — causal attention over cache rows: out = softmax(scale * q k^T, over the visible rows) v, and its lse.
 *
 * Many queries. A task is a tile of queries of one lane: `tile` neighbouring queries times the `group` heads that read
 * the lane, COLUMNS in all at most. It walks the lane's rows TILE at a time, from the first that any of its queries sees
 * to the last; turns them into f32 once for all its columns; and for each slice of nr columns takes three steps:
 *
 *     s[j][c]   = sum over d of k[j][d] * q[c][d] * scale               gemm, on K and Q transposed
 *     online softmax down each column (softmax_tile)                    m, l, and out rescaled
 *     out[d][c] += sum over j of v[j][d] * s[j][c]                      gemm, on V as it lies
 *
 * Rows down and queries across make every step a loop over whole vectors of queries. Tiles of rows begin at multiples of
 * TILE and invisible rows weigh exactly 0, so a query's result does not depend on its neighbours in the tile. No matrix
 * larger than TILE x nr exists. The last tiles of queries see most rows and are handed out first.
 *
 * One query a sequence (decode). A task is one lane: scores of all its rows for all heads of the group, softmax, and the
 * mix of V, page by page, so that each row is read once and turned into f32 once. The probabilities stay in scratch,
 * where the lane's history is updated from them (see pyr_track).
 *
 * Either way a query that sees nothing gets 0, with lse = -inf. */
#include "cpu.h"

#include <math.h>
#include <string.h>

enum { TILE = 64, COLUMNS = 192 };

typedef struct attend {
  const pyr_kernels *k;
  pyr_cpu *cpu;
  const pyr_attention *all;
  int count;
  pyr_layout layout;
  int32_t heads, kv_heads, group, tile;
  float scale;
} attend;

/* ---- many queries -------------------------------------------------------------------------------------------------- */

typedef struct tile_scratch {
  float *q;                /* [slices][head_dim][nr] transposed and scaled */
  float *out;              /* [slices][dims][nr] */
  float *top, *sum;        /* [columns] */
  int32_t *low, *high;     /* [columns] rows each sees */
  float *rows;             /* [TILE][head_dim] K, or [nr][dims]: queries, results */
  float *k, *v;            /* [head_dim][TILE], [TILE][dims] */
  float *scores;           /* [TILE][nr] */
  int64_t columns, dims;   /* padded to whole slices; head_dim padded to whole units */
} tile_scratch;

static tile_scratch tile_scratch_of(pyr_arena *arena, int nr, int32_t group, int32_t head_dim) {
  tile_scratch s = { .columns = pyr_round_up(pyr_most(COLUMNS, group), nr), .dims = pyr_round_up(head_dim, PYR_UNIT) };
  s.q = pyr_arena_take(arena, s.columns * head_dim, sizeof(float));
  s.out = pyr_arena_take(arena, s.columns * s.dims, sizeof(float));
  s.top = pyr_arena_take(arena, s.columns, sizeof(float));
  s.sum = pyr_arena_take(arena, s.columns, sizeof(float));
  s.low = pyr_arena_take(arena, s.columns, sizeof(int32_t));
  s.high = pyr_arena_take(arena, s.columns, sizeof(int32_t));
  s.rows = pyr_arena_take(arena, TILE * s.dims, sizeof(float));
  s.k = pyr_arena_take(arena, TILE * (int64_t)head_dim, sizeof(float));
  s.v = pyr_arena_take(arena, TILE * s.dims, sizeof(float));
  s.scores = pyr_arena_take(arena, (int64_t)TILE * nr, sizeof(float));
  return s;
}

/* The columns of a tile, query-major: column qi * group + h is query q0 + qi of the group's head h. */
static void begin_tile(const attend *t, const pyr_attention *a, tile_scratch *s, int g, int64_t q0, int64_t columns) {
  int64_t nr = t->k->nr, d = t->layout.head_dim, padded = pyr_round_up(columns, nr);
  for (int64_t c = 0; c < padded; c++) {
    bool real = c < columns;
    if (!real) s->low[c] = s->high[c] = 0;
    else if (c % t->group == 0) {
      pyr_span seen = pyr_cpu_visible(&a->lanes[g], a->q_pos[q0 + c / t->group], a->window);
      s->low[c] = (int32_t)seen.low, s->high[c] = (int32_t)seen.high;
    } else s->low[c] = s->low[c - 1], s->high[c] = s->high[c - 1];
    s->top[c] = -INFINITY;
    s->sum[c] = 0;
  }
  for (int64_t c = 0; c < padded; c += nr) {
    int64_t some = pyr_least(nr, columns - c);
    if (some < nr) memset(s->q + c * d, 0, (size_t)(nr * d) * sizeof(float));
    for (int64_t i = 0; i < some; i++) {
      int64_t query = q0 + (c + i) / t->group, head = (int64_t)g * t->group + (c + i) % t->group;
      memcpy(s->rows + i * d, a->q + (query * t->heads + head) * d, (size_t)d * sizeof(float));
    }
    t->k->transpose(s->q + c * d, nr, s->rows, d, (int)some, d, t->scale);
  }
  memset(s->out, 0, (size_t)(padded * s->dims) * sizeof(float));
}

static void end_tile(const attend *t, const pyr_attention *a, tile_scratch *s, int g, int64_t q0, int64_t columns) {
  int64_t nr = t->k->nr, d = t->layout.head_dim;
  for (int64_t c = 0; c < columns; c += nr) {
    t->k->transpose(s->rows, s->dims, s->out + c * s->dims, nr, (int)d, nr, 1.0f);
    for (int64_t i = 0; i < pyr_least(nr, columns - c); i++) {
      int64_t at = (q0 + (c + i) / t->group) * t->heads + (int64_t)g * t->group + (c + i) % t->group;
      float sum = s->sum[c + i], inverse = sum > 0 || sum != sum ? 1.0f / sum : 0, *out = a->out + at * d;
      for (int64_t j = 0; j < d; j++) out[j] = s->rows[i * s->dims + j] * inverse;
      if (a->lse) a->lse[at] = sum == 0 ? -INFINITY : s->top[c + i] + logf(sum);
    }
  }
}

/* Rows [row, row+rows) against every slice of columns that sees any of them. */
static void attend_rows(const attend *t, tile_scratch *s, int64_t row, int64_t rows, int64_t columns) {
  int64_t nr = t->k->nr, d = t->layout.head_dim;
  for (int64_t c = 0; c < columns; c += nr) {
    /* spans of later queries begin and end no earlier, so the slice's first and last real column bound it */
    int64_t last = pyr_least(c + nr, columns) - 1;
    int64_t from = pyr_most(s->low[c] - row, 0) / PYR_UNIT * PYR_UNIT, to = pyr_least(s->high[last] - row, rows);
    if (from >= to) continue;
    int64_t m = pyr_round_up(to - from, PYR_UNIT);
    memset(s->scores, 0, (size_t)(m * nr) * sizeof(float));
    t->k->gemm(s->scores, nr, s->k + from, TILE, s->q + c * d, nr, m, d);
    pyr_tile tile = { .scores = s->scores, .low = s->low + c, .high = s->high + c, .top = s->top + c, .sum = s->sum + c,
                      .out = s->out + c * s->dims, .first = (int32_t)(row + from), .rows = (int32_t)(to - from),
                      .dims = (int32_t)s->dims };
    t->k->softmax_tile(&tile);
    t->k->gemm(s->out + c * s->dims, nr, s->v + from * s->dims, s->dims, s->scores, nr, s->dims, to - from);
  }
}

static void attend_tile(const attend *t, const pyr_attention *a, int g, int64_t q0, pyr_arena arena) {
  const pyr_lane_view *lane = &a->lanes[g];
  int64_t d = t->layout.head_dim, columns = pyr_least(t->tile, a->n - q0) * t->group;
  tile_scratch s = tile_scratch_of(&arena, t->k->nr, t->group, (int32_t)d);
  begin_tile(t, a, &s, g, q0, columns);
  int64_t end = s.high[columns - 1];
  for (int64_t row = s.low[0] / TILE * TILE; row < end; row += TILE) {
    int64_t rows = pyr_least(TILE, end - row);
    pyr_cpu_load_rows(t->k, s.rows, d, lane, t->layout, row, rows, 0);
    t->k->transpose(s.k, TILE, s.rows, d, (int)rows, d, 1.0f);
    pyr_cpu_load_rows(t->k, s.v, s.dims, lane, t->layout, row, rows, 1);
    attend_rows(t, &s, row, rows, columns);
  }
  end_tile(t, a, &s, g, q0, columns);
}

/* ---- one query ----------------------------------------------------------------------------------------------------- */

typedef struct step_scratch {
  float *q, *out;          /* [group][dims] */
  float *sum;              /* [group] */
  float *rows;             /* [PYR_PAGE_ROWS][dims] */
  float *p;                /* [group][ld] scores, then probabilities times sum */
  int64_t dims, ld;
} step_scratch;

static step_scratch step_scratch_of(pyr_arena *arena, int32_t group, int32_t head_dim, int64_t rows) {
  step_scratch s = { .dims = pyr_round_up(head_dim, PYR_PAD), .ld = pyr_round_up(rows, PYR_PAD) };
  s.q = pyr_arena_take(arena, group * s.dims, sizeof(float));
  s.out = pyr_arena_take(arena, group * s.dims, sizeof(float));
  s.sum = pyr_arena_take(arena, group, sizeof(float));
  s.rows = pyr_arena_take(arena, PYR_PAGE_ROWS * s.dims, sizeof(float));
  s.p = pyr_arena_take(arena, group * s.ld, sizeof(float));
  return s;
}

size_t pyr_cpu_attention_scratch(const pyr_kernels *k, int32_t group, int32_t head_dim, int64_t rows) {
  pyr_arena many = { NULL, 0 }, one = { NULL, 0 };
  tile_scratch_of(&many, k->nr, group, head_dim);
  step_scratch_of(&one, group, head_dim, rows);
  return many.used > one.used ? many.used : one.used;
}

/* history = decay * history + w * mean over the group's heads of p; rows that are not seen have p = 0. */
static void track_step(const attend *t, const pyr_attention *a, const step_scratch *s, int g, pyr_span seen) {
  const pyr_track *track = a->track;
  const pyr_weighting *w = &track->weighting;
  const pyr_lane_view *lane = &a->lanes[g];
  float *mean = s->p, slope = pyr_cpu_slope(w);
  int64_t n = seen.high - seen.low, position = a->q_pos[0];
  for (int h = 0; h < t->group; h++) {
    const float *p = s->p + h * s->ld;
    float share = s->sum[h] > 0 ? 1.0f / (s->sum[h] * (float)t->group) : 0;
    if (h == 0)
      for (int64_t j = 0; j < n; j++) mean[j] = p[j] * share;
    else
      for (int64_t j = 0; j < n; j++) mean[j] += p[j] * share;
  }
  for (int64_t j = 0; j < lane->rows; j++) lane->history[j] *= track->decay;
  for (int64_t j = 0; j < n; j++) {
    float weight = 1;
    if (w->queries > 0) {
      int64_t due = pyr_cpu_due(w, seen.low + j - lane->rows), age = position - (due - w->queries + 1);
      weight = age < 0 || position > due ? 0 : 1.0f + slope * (float)age;
    }
    lane->history[seen.low + j] += weight * mean[j];
  }
}

/* Pages lie anywhere, and the hardware looks no further ahead than 4 KiB: asks for the K (what = 0) or V rows of the page
 * two pages after the one of `row`. */
static void fetch_ahead(const pyr_lane_view *lane, pyr_layout layout, int64_t row, int what) {
  int64_t page = row / PYR_PAGE_ROWS + 2;
  if (page * PYR_PAGE_ROWS >= lane->rows) return;
  size_t plane = PYR_PAGE_ROWS * pyr_row_bytes(layout.dtype, layout.head_dim);
  const uint8_t *from = (const uint8_t *)lane->pages[page] + (size_t)what * plane;
  for (size_t at = 0; at < plane; at += 64) __builtin_prefetch(from + at, 0, 2);
}

static void attend_step(const attend *t, const pyr_attention *a, int g, pyr_arena arena) {
  const pyr_lane_view *lane = &a->lanes[g];
  const pyr_kernels *k = t->k;
  int64_t d = t->layout.head_dim;
  int group = t->group;
  pyr_span seen = pyr_cpu_visible(lane, a->q_pos[0], a->window);
  step_scratch s = step_scratch_of(&arena, group, (int32_t)d, seen.high - seen.low);
  memset(s.q, 0, (size_t)(group * s.dims) * sizeof(float));
  memset(s.out, 0, (size_t)(group * s.dims) * sizeof(float));
  for (int h = 0; h < group; h++)
    for (int64_t i = 0; i < d; i++) s.q[h * s.dims + i] = a->q[((int64_t)g * group + h) * d + i] * t->scale;
  for (int64_t row = seen.low, run; row < seen.high; row += run) {
    run = pyr_least(seen.high - row, PYR_PAGE_ROWS - row % PYR_PAGE_ROWS);
    fetch_ahead(lane, t->layout, row, 0);
    pyr_cpu_load_rows(k, s.rows, s.dims, lane, t->layout, row, run, 0);
    k->scores(s.p + (row - seen.low), s.ld, s.q, group, s.rows, run, (int)s.dims);
  }
  for (int h = 0; h < group; h++) {
    float top = k->softmax(s.p + h * s.ld, seen.high - seen.low, &s.sum[h]);
    if (a->lse) a->lse[(int64_t)g * group + h] = s.sum[h] == 0 ? -INFINITY : top + logf(s.sum[h]);
  }
  for (int64_t row = seen.low, run; row < seen.high; row += run) {
    run = pyr_least(seen.high - row, PYR_PAGE_ROWS - row % PYR_PAGE_ROWS);
    fetch_ahead(lane, t->layout, row, 1);
    pyr_cpu_load_rows(k, s.rows, s.dims, lane, t->layout, row, run, 1);
    k->mix(s.out, s.p + (row - seen.low), s.ld, group, s.rows, run, (int)s.dims);
  }
  for (int h = 0; h < group; h++) {
    float sum = s.sum[h], inverse = sum > 0 || sum != sum ? 1.0f / sum : 0;
    float *out = a->out + ((int64_t)g * group + h) * d;
    for (int64_t i = 0; i < d; i++) out[i] = s.out[h * s.dims + i] * inverse;
  }
  if (a->track && lane->history) track_step(t, a, &s, g, seen);
}

/* ---- the operation ------------------------------------------------------------------------------------------------- */

static int64_t tasks_of(const attend *t, const pyr_attention *a) {
  return a->n == 1 ? t->kv_heads : pyr_ceil_div(a->n, t->tile) * t->kv_heads;
}

static void attend_task(void *ctx, int64_t task, int worker) {
  const attend *t = ctx;
  const pyr_attention *a = t->all;
  int64_t here;
  for (; task >= (here = tasks_of(t, a)); a++) task -= here;
  pyr_arena arena = pyr_cpu_arena(t->cpu, worker);
  int g = (int)(task % t->kv_heads);
  if (a->n == 1) attend_step(t, a, g, arena);
  else attend_tile(t, a, g, (here / t->kv_heads - 1 - task / t->kv_heads) * t->tile, arena);
}

pyr_status pyr_cpu_attention(pyr_backend *be, const pyr_attention *a, int count, pyr_layout layout, int32_t heads, int32_t kv_heads, float scale) {
  attend t = { .k = pyr_cpu_of(be)->kernels, .cpu = pyr_cpu_of(be), .all = a, .count = count, .layout = layout,
               .heads = heads, .kv_heads = kv_heads, .group = heads / kv_heads, .scale = scale };
  t.tile = (int32_t)pyr_most(1, COLUMNS / t.group);
  int64_t tasks = 0, rows = 0, cost = 0;
  for (int i = 0; i < count; i++) {
    tasks += tasks_of(&t, &a[i]);
    for (int g = 0; g < kv_heads; g++) {
      if (a[i].n == 1) rows = pyr_most(rows, a[i].lanes[g].rows);
      cost += 2 * a[i].n * a[i].lanes[g].rows * t.group * layout.head_dim;
    }
  }
  pyr_status status = pyr_cpu_check(be, "attention", pyr_cpu_attention_scratch(t.k, t.group, layout.head_dim, rows));
  if (status == PYR_OK) pyr_cpu_tasks(be, attend_task, &t, tasks, cost);
  return status;
}

/* mass.c — the score pass: how much attention the last queries gave to each row, from the lse that
 * attention left.
 *
 *     out[h][j] += (or max=) over queries i of  w(q_i, j) * exp(scale * q_i . k_j - lse_i)
 *
 * which is PyramidInfer's ranking signal before heads are averaged (arXiv 2405.12532, eq. 3 and 4),
 * with its ramp as w; or the sums of p^2, or of -p ln p, of which variances and entropies are made
 * (CAKE, arXiv 2503.12491): of p = .5 and .25 in turn .3125, and .35 + .35 = .7. Scores are capped
 * and sloped as attention's were. No probability is kept; the softmax is not run again, as its
 * denominator is known.
 *
 * A task is a tile of rows of one lane. K is turned into f32 and transposed once for all heads of
 * the group and all queries; queries are taken FEW at a time, their scores by `gemm`, and their
 * strips of nr scores are turned into mass by `mass_strip`, whose sums run over queries in order,
 * whatever the tile. Queries that do not count for a tile, or do not see it, are skipped before
 * anything is computed. */
#include "cpu/cpu.h"

#include <math.h>
#include <string.h>

/* Of head_dim 64 a tile of keys takes 32 KiB, and stays in the first cache's reach while all
 * queries of all heads go by. */
enum { ROWS = 128, FEW = 12 };

typedef struct mass_call {
  const pyr_kernels *k;
  const pyr_products *products;
  pyr_cpu *cpu;
  const pyr_mass *m;
  pyr_layout layout;
  int32_t heads, kv_heads, group;
  int64_t tile, tiles;     /* rows a task: whole strips; tasks a lane: those of the longest range */
  float scale;
} mass_call;

/* Of a group of 3 heads: 32 KiB each for rows and k, 3 KiB for q, 1.5 KiB for scores and for
 * mass. */
typedef struct mass_scratch {
  float *rows;             /* [ROWS][head_dim] */
  float *k, *q;            /* [head_dim][ROWS], [head_dim][FEW] of elements (see pyr_products) */
  float *scores;           /* [FEW][nr] */
  float *mass;             /* [group][ROWS] */
  int32_t *position;       /* [ROWS] of rows, where there are slopes */
  int32_t *base, *due;  /* [ROWS] a query counts for row j iff base[j] <= its position <= due[j] */
} mass_scratch;

static mass_scratch mass_scratch_of(pyr_arena *arena, int nr, int32_t group, int32_t head_dim) {
  return (mass_scratch){
    .rows = pyr_arena_take(arena, ROWS * (int64_t)head_dim, sizeof(float)),
    .k = pyr_arena_take(arena, ROWS * (int64_t)head_dim, sizeof(float)),
    .q = pyr_arena_take(arena, FEW * (int64_t)head_dim, sizeof(float)),
    .scores = pyr_arena_take(arena, (int64_t)FEW * nr, sizeof(float)),
    .mass = pyr_arena_take(arena, ROWS * (int64_t)group, sizeof(float)),
    .position = pyr_arena_take(arena, ROWS, sizeof(int32_t)),
    .base = pyr_arena_take(arena, ROWS, sizeof(int32_t)),
    .due = pyr_arena_take(arena, ROWS, sizeof(int32_t)),
  };
}

size_t pyr_cpu_mass_scratch(const pyr_kernels *k, int32_t group, int32_t head_dim) {
  pyr_arena count = { NULL, 0 };
  mass_scratch_of(&count, k->nr, group, head_dim);
  return count.used;
}

static int32_t clamp_i32(int64_t x) {
  return (int32_t)pyr_max(INT32_MIN, pyr_min(INT32_MAX, x));
}

/* The positions of queries that count for any row of a tile, and of those that count for all. Of
 * rows that count for queries 6 to 9 and others for 10 to 13: any 6 .. 13, all 10 .. 9, which is
 * none. A query outside `any` is skipped, one inside `all` needs no comparison row by row. */
typedef struct counting { int32_t any_from, any_to, all_from, all_to; } counting;

/* Fills base and due for `rows` rows from j; rows beyond count for nobody. A row with due 9 and
 * 4 queries gets base 6: queries 6, 7, 8, 9 weigh 1, 1 + slope, 1 + 2 slope and 1 + 3 slope.
 * Where every query counts, base and due are the least and the largest numbers there are. */
static counting weigh_rows(const pyr_weighting *w, const mass_scratch *s, int64_t j, int64_t rows) {
  counting c = { INT32_MAX, INT32_MIN, INT32_MIN, INT32_MAX };
  for (int64_t i = 0; i < ROWS; i++) {
    bool real = i < rows;
    int64_t due = w->queries == 0 ? INT32_MAX : pyr_cpu_due(w, j + i);
    s->base[i] = !real ? INT32_MAX : w->queries == 0 ? INT32_MIN : clamp_i32(due - w->queries + 1);
    s->due[i] = real ? clamp_i32(due) : INT32_MIN;
    if (!real) continue;
    if (s->base[i] < c.any_from) c.any_from = s->base[i];
    if (s->base[i] > c.all_from) c.all_from = s->base[i];
    if (s->due[i] > c.any_to) c.any_to = s->due[i];
    if (s->due[i] < c.all_to) c.all_to = s->due[i];
  }
  return c;
}

/* A ramp counts by place where layers before dropped tokens: alive queries 7 and 9 of positions
 * 40 and 90 are two places apart. */
static int32_t counted_at(const pyr_mass *m, int64_t i) {
  return m->by_place ? m->place + (int32_t)i : m->q_pos[i];
}

/* A few queries of a tile: where they stand, and which of the tile's rows they see. */
typedef struct few {
  int64_t first;
  int n;
  bool all;
  int32_t position[FEW];
  pyr_span seen[FEW];
} few;

/* Their mass on one strip for one head, from their scores.
 *
 *     strip of nr rows, from `at`      |. . . . . . . . |
 *     a query sees rows [low, high)        |=====|              cut to the strip by the kernel
 *     whole                            |===============|        all queries, all rows: no masks
 *
 * Queries with lse = -inf saw nothing in attention, and give nothing here. */
static void strip_mass(const mass_call *c, const mass_scratch *s, const few *q, int64_t head,
                       int h, int64_t at, int64_t rows) {
  int32_t low[FEW], high[FEW];
  float lse[FEW];
  bool whole = q->all && at + c->k->nr <= rows, any = false;
  for (int i = 0; i < q->n; i++) {
    lse[i] = c->m->lse[(q->first + i) * c->heads + head];
    bool sees = lse[i] != -INFINITY && q->seen[i].low < at + c->k->nr && q->seen[i].high > at;
    low[i] = sees ? (int32_t)(q->seen[i].low - at) : 0,
        high[i] = sees ? (int32_t)(q->seen[i].high - at) : 0;
    any = any || sees;
    whole = whole && low[i] <= 0 && high[i] >= c->k->nr;
  }
  if (!any) return;
  pyr_strip strip = { .mass = s->mass + h * ROWS + at, .scores = s->scores, .base = s->base + at,
                      .due = s->due + at, .slope = pyr_cpu_slope(&c->m->weighting),
                          .max = c->m->reduce == PYR_MAX,
                          .squares = c->m->reduce == PYR_VARIANCE,
                          .entropy = c->m->reduce == PYR_ENTROPY,
                          .whole = whole, .n = q->n, .lse = lse,
                              .position = q->position, .low = low, .high = high };
  c->k->mass_strip(&strip);
}

/* Scores of the strip that begins at row `at` of the tile become those of attention. */
static void bend_strip(const mass_call *c, const mass_scratch *s, const few *q, int64_t head,
                       int64_t at) {
  float slopes[FEW];
  for (int i = 0; c->m->slopes && i < FEW; i++) slopes[i] = c->m->slopes[head];
  pyr_bend b = { .scores = s->scores, .ld = c->k->nr, .lines = q->n, .width = c->k->nr,
                 .cap = c->m->cap, .slopes = c->m->slopes ? slopes : NULL,
                 .line = c->m->q_pos + q->first, .column = s->position + at };
  c->k->bend(&b);
}

/* Products: queries * rows * head_dim for each head of the group. Scores are zeroed first, as
 * gemm adds. */
static void mass_queries(const mass_call *c, const mass_scratch *s, int g, const few *q,
                         int64_t rows) {
  int64_t nr = c->k->nr, d = c->layout.head_dim, padded = pyr_round_up(q->n, PYR_UNIT);
  for (int h = 0; h < c->group; h++) {
    int64_t head = (int64_t)g * c->group + h;
    c->products->transpose(s->q, FEW, c->m->q + (q->first * c->heads + head) * d, c->heads * d,
                           q->n, d, c->scale);
    for (int64_t at = 0; at < rows; at += nr) {
      memset(s->scores, 0, (size_t)(padded * nr) * sizeof(float));
      c->products->gemm(s->scores, nr, s->q, FEW, s->k + at, ROWS, padded,
                        pyr_ceil_div(d, c->products->per));
      if (c->m->cap > 0 || c->m->slopes) bend_strip(c, s, q, head, at);
      strip_mass(c, s, q, head, h, at, rows);
    }
  }
}

/* Invariant of the loop: s.mass holds, for each head and row, what queries before q0 gave, in
 * their order. `out` is touched once, at the end, by this task alone: tiles do not overlap. Keys
 * are loaded once, however many queries there are. */
static void mass_task(void *ctx, int64_t task, int worker) {
  const mass_call *c = ctx;
  const pyr_mass *m = c->m;
  int g = (int)(task / c->tiles);
  const pyr_lane_view *lane = &m->lanes[g];
  pyr_range range = m->ranges[g];
  int64_t d = c->layout.head_dim, row = range.begin + task % c->tiles * c->tile,
      rows = pyr_min(c->tile, range.end - row);
  if (rows <= 0) return;
  pyr_arena arena = pyr_cpu_arena(c->cpu, worker);
  mass_scratch s = mass_scratch_of(&arena, c->k->nr, c->group, (int32_t)d);
  bool max = m->reduce == PYR_MAX;
  counting counts = weigh_rows(&m->weighting, &s, row - range.origin, rows);
  for (int64_t i = 0; i < ROWS * c->group; i++) s.mass[i] = max ? -INFINITY : 0;
  for (int64_t i = 0; m->slopes && i < ROWS; i++)
    s.position[i] = i < rows ? lane->positions[row + i] : 0;
  pyr_cpu_load_rows(c->k, s.rows, d, lane, c->layout, row, rows, PYR_PLANE_K);
  if (rows < ROWS) memset(s.k, 0, (size_t)(ROWS * d) * sizeof(float));
  c->products->transpose(s.k, ROWS, s.rows, d, (int)rows, d, 1.0f);
  for (int64_t q0 = 0; q0 < m->n; q0 += FEW) {
    few q = { .first = q0, .n = (int)pyr_min(FEW, m->n - q0), .all = true };
    bool any = false;
    for (int i = 0; i < q.n; i++) {
      int32_t place = q.position[i] = counted_at(m, q0 + i);
      q.all = q.all && place >= counts.all_from && place <= counts.all_to;
      if (place < counts.any_from || place > counts.any_to) continue;
      pyr_span all = pyr_cpu_visible(lane, m->q_pos[q0 + i], m->window);
      q.seen[i] = (pyr_span){ pyr_max(all.low - row, 0), pyr_min(all.high - row, rows) };
      any = any || q.seen[i].low < q.seen[i].high;
    }
    if (any) mass_queries(c, &s, g, &q, rows);
  }
  for (int h = 0; h < c->group; h++) {
    float *out = m->out + ((int64_t)g * c->group + h) * m->stride + (row - range.begin);
    const float *mass = s.mass + h * ROWS;
    for (int64_t i = 0; i < rows; i++)
      out[i] = max ? (mass[i] > out[i] ? mass[i] : out[i]) : out[i] + mass[i];
  }
}

/* Whole strips a tile: of 24 rows, 120 of 128. Tasks are counted by the longest range; of
 * shorter lanes the last ones find no rows, and end. */
pyr_status pyr_cpu_mass(pyr_backend *be, const pyr_mass *m, pyr_layout layout, int32_t heads,
                        int32_t kv_heads, float scale) {
  pyr_cpu *cpu = pyr_cpu_of(be);
  mass_call c = { .k = cpu->kernels, .products = pyr_cpu_products(cpu), .cpu = cpu, .m = m,
                  .layout = layout, .heads = heads, .kv_heads = kv_heads,
                      .group = heads / kv_heads, .scale = scale };
  int64_t longest = 0;
  for (int32_t g = 0; g < kv_heads; g++)
    longest = pyr_max(longest, m->ranges[g].end - m->ranges[g].begin);
  if (longest == 0 || m->n <= 0) return PYR_OK;
  c.tile = ROWS / c.k->nr * c.k->nr;
  c.tiles = pyr_ceil_div(longest, c.tile);
  pyr_status status = pyr_cpu_check(be, "mass",
                                    pyr_cpu_mass_scratch(c.k, c.group, layout.head_dim));
  if (status == PYR_OK) pyr_parallel(be->rt, mass_task, &c, c.tiles * kv_heads);
  return status;
}

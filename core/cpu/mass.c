/* mass.c — the score pass: how much attention the last queries gave to each row, from the lse that attention left.
 *
 *     out[h][j] += (or max=) over queries i of  w(q_i, j) * exp(scale * q_i . k_j - lse_i)
 *
 * which is PyramidInfer's ranking signal before heads are averaged (arXiv 2405.12532, eq. 3 and 4), with its ramp as w.
 * No probability is kept; the softmax is not run again, as its denominator is known.
 *
 * A task is a tile of rows of one lane. K is turned into f32 and transposed once for all heads of the group and all
 * queries; queries are taken FEW at a time, their scores by `gemm`, and each query's strip of nr scores is turned into
 * mass by `mass_strip`, whose sums run over queries in order, whatever the tile. Queries that do not count for a tile, or
 * do not see it, are skipped before anything is computed. */
#include "cpu.h"

#include <math.h>
#include <string.h>

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

typedef struct mass_scratch {
  float *rows;             /* [ROWS][head_dim] */
  float *k, *q;            /* [head_dim][ROWS], [head_dim][FEW] of elements (see pyr_products) */
  float *scores;           /* [FEW][nr] */
  float *mass;             /* [group][ROWS] */
  int32_t *base, *due;     /* [ROWS] a query counts for row j iff base[j] <= its position <= due[j] */
} mass_scratch;

static mass_scratch mass_scratch_of(pyr_arena *arena, int nr, int32_t group, int32_t head_dim) {
  return (mass_scratch){
    .rows = pyr_arena_take(arena, ROWS * (int64_t)head_dim, sizeof(float)),
    .k = pyr_arena_take(arena, ROWS * (int64_t)head_dim, sizeof(float)),
    .q = pyr_arena_take(arena, FEW * (int64_t)head_dim, sizeof(float)),
    .scores = pyr_arena_take(arena, (int64_t)FEW * nr, sizeof(float)),
    .mass = pyr_arena_take(arena, ROWS * (int64_t)group, sizeof(float)),
    .base = pyr_arena_take(arena, ROWS, sizeof(int32_t)),
    .due = pyr_arena_take(arena, ROWS, sizeof(int32_t)),
  };
}

size_t pyr_cpu_mass_scratch(const pyr_kernels *k, int32_t group, int32_t head_dim) {
  pyr_arena count = { NULL, 0 };
  mass_scratch_of(&count, k->nr, group, head_dim);
  return count.used;
}

static int32_t clamp_i32(int64_t x) { return (int32_t)pyr_most(INT32_MIN, pyr_least(INT32_MAX, x)); }

/* Fills base and due for `rows` rows from j; rows beyond count for nobody. The widest of them goes to *earliest, *latest. */
static void weigh_rows(const pyr_weighting *w, const mass_scratch *s, int64_t j, int64_t rows, int32_t *earliest, int32_t *latest) {
  *earliest = INT32_MAX, *latest = INT32_MIN;
  for (int64_t i = 0; i < ROWS; i++) {
    bool real = i < rows;
    int64_t due = w->queries == 0 ? INT32_MAX : pyr_cpu_due(w, j + i);
    s->base[i] = !real ? INT32_MAX : w->queries == 0 ? INT32_MIN : clamp_i32(due - w->queries + 1);
    s->due[i] = real ? clamp_i32(due) : INT32_MIN;
    if (real && s->base[i] < *earliest) *earliest = s->base[i];
    if (real && s->due[i] > *latest) *latest = s->due[i];
  }
}

static int32_t counted_at(const pyr_mass *m, int64_t i) { return m->by_place ? m->place + (int32_t)i : m->q_pos[i]; }

/* Queries [q0, q0+n), n <= FEW, against all strips of the tile. `seen` is per query, in the tile's rows. */
static void mass_queries(const mass_call *c, const mass_scratch *s, int g, int64_t q0, int n, const pyr_span *seen, int64_t rows) {
  const pyr_mass *m = c->m;
  int64_t nr = c->k->nr, d = c->layout.head_dim, padded = pyr_round_up(n, PYR_UNIT);
  for (int h = 0; h < c->group; h++) {
    int64_t head = (int64_t)g * c->group + h;
    c->products->transpose(s->q, FEW, m->q + (q0 * c->heads + head) * d, c->heads * d, n, d, c->scale);
    for (int64_t at = 0; at < rows; at += nr) {
      memset(s->scores, 0, (size_t)(padded * nr) * sizeof(float));
      c->products->gemm(s->scores, nr, s->q, FEW, s->k + at, ROWS, padded, pyr_ceil_div(d, c->products->per));
      for (int i = 0; i < n; i++) {
        float lse = m->lse[(q0 + i) * c->heads + head];
        if (seen[i].low >= at + nr || seen[i].high <= at || lse == -INFINITY) continue;
        pyr_strip strip = { .mass = s->mass + h * ROWS + at, .scores = s->scores + i * nr, .base = s->base + at, .due = s->due + at,
                            .lse = lse, .slope = pyr_cpu_slope(&m->weighting), .position = counted_at(m, q0 + i),
                            .low = (int32_t)(seen[i].low - at), .high = (int32_t)(seen[i].high - at), .max = m->reduce == PYR_MAX };
        c->k->mass_strip(&strip);
      }
    }
  }
}

static void mass_task(void *ctx, int64_t task, int worker) {
  const mass_call *c = ctx;
  const pyr_mass *m = c->m;
  int g = (int)(task / c->tiles);
  const pyr_lane_view *lane = &m->lanes[g];
  pyr_range range = m->ranges[g];
  int64_t d = c->layout.head_dim, row = range.begin + task % c->tiles * c->tile, rows = pyr_least(c->tile, range.end - row);
  if (rows <= 0) return;
  pyr_arena arena = pyr_cpu_arena(c->cpu, worker);
  mass_scratch s = mass_scratch_of(&arena, c->k->nr, c->group, (int32_t)d);
  bool max = m->reduce == PYR_MAX;
  int32_t earliest, latest;
  weigh_rows(&m->weighting, &s, row - range.origin, rows, &earliest, &latest);
  for (int64_t i = 0; i < ROWS * c->group; i++) s.mass[i] = max ? -INFINITY : 0;
  pyr_cpu_load_rows(c->k, s.rows, d, lane, c->layout, row, rows, 0);
  if (rows < ROWS) memset(s.k, 0, (size_t)(ROWS * d) * sizeof(float));
  c->products->transpose(s.k, ROWS, s.rows, d, (int)rows, d, 1.0f);
  for (int64_t q0 = 0; q0 < m->n; q0 += FEW) {
    pyr_span seen[FEW];
    int n = (int)pyr_least(FEW, m->n - q0);
    bool any = false;
    for (int i = 0; i < n; i++) {
      int32_t place = counted_at(m, q0 + i);
      seen[i] = (pyr_span){ 0, 0 };
      if (place < earliest || place > latest) continue;
      pyr_span all = pyr_cpu_visible(lane, m->q_pos[q0 + i], m->window);
      seen[i].low = pyr_most(all.low - row, 0), seen[i].high = pyr_least(all.high - row, rows);
      any = any || seen[i].low < seen[i].high;
    }
    if (any) mass_queries(c, &s, g, q0, n, seen, rows);
  }
  for (int h = 0; h < c->group; h++) {
    float *out = m->out + ((int64_t)g * c->group + h) * m->stride + (row - range.begin);
    const float *mass = s.mass + h * ROWS;
    for (int64_t i = 0; i < rows; i++) out[i] = max ? (mass[i] > out[i] ? mass[i] : out[i]) : out[i] + mass[i];
  }
}

pyr_status pyr_cpu_mass(pyr_backend *be, const pyr_mass *m, pyr_layout layout, int32_t heads, int32_t kv_heads, float scale) {
  pyr_cpu *cpu = pyr_cpu_of(be);
  mass_call c = { .k = cpu->kernels, .products = pyr_cpu_products(cpu), .cpu = cpu, .m = m, .layout = layout,
                  .heads = heads, .kv_heads = kv_heads, .group = heads / kv_heads, .scale = scale };
  int64_t longest = 0;
  for (int32_t g = 0; g < kv_heads; g++) longest = pyr_most(longest, m->ranges[g].end - m->ranges[g].begin);
  if (longest == 0 || m->n <= 0) return PYR_OK;
  c.tile = ROWS / c.k->nr * c.k->nr;
  c.tiles = pyr_ceil_div(longest, c.tile);
  pyr_status status = pyr_cpu_check(be, "mass", pyr_cpu_mass_scratch(c.k, c.group, layout.head_dim));
  if (status == PYR_OK) pyr_parallel(be->rt, mass_task, &c, c.tiles * kv_heads);
  return status;
}

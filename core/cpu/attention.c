/* attention.c — causal attention over cache rows: out = softmax(scale * q k^T, over the visible
 * rows) v, and its lse.
 *
 * Many queries. A task is a tile of queries of one lane: `tile` neighbouring queries times the
 * `group` heads that read the lane, COLUMNS in all at most. It walks the lane's rows TILE at a
 * time, from the first that any of its queries sees to the last; turns them into f32 once for all
 * its columns; and for each slice of nr columns takes these steps:
 *
 *     s[j][c]   = sum over d of k[j][d] * q[c][d] * scale               gemm, on K and Q transposed
 *     [capped, and sloped by the distance]                              only where a call says so
 *     online softmax down each column (softmax_tile)                    m, l, and out rescaled
 *     out[d][c] += sum over j of v[j][d] * s[j][c]                      gemm, on V as it lies
 *
 * The walk of a tile, for one head a lane (192 columns are 192 queries, at positions 208 to 399 of
 * 400 rows) and slices of 32 columns. Across: slices, by their first query; down: tiles of rows.
 *
 *                  208   240   272   304   336   368
 *      0 .. 191     #     #     #     #     #     #      three tiles; # all rows are seen
 *    192 .. 255     /     /     #     #     #     #      / the diagonal goes through: what lies
 *    256 .. 319     .     /     /     /     #     #        beyond it is -inf to the softmax
 *    320 .. 383     .     .     .     /     /     /      . no query sees any: left out
 *    384 .. 399     .     .     .     .     .     /
 *
 * K and V of a tile of rows are read and widened once for the six slices beside each other; m, l
 * and out of a slice wait in scratch while the other slices have their turn.
 *
 * Where products are rounded to bf16 their operands are pairs along d, and then along j; sums and
 * the softmax stay f32.
 *
 * Rows down and queries across make every step a loop over whole vectors of queries. Tiles of rows
 * begin at multiples of TILE and invisible rows weigh exactly 0, so a query's result does not
 * depend on its neighbours in the tile. No matrix larger than TILE x nr exists. The last tiles of
 * queries see most rows and are handed out first.
 *
 * A head's sink is a row without a value that every query has seen before the others: m begins at
 * the sink and l at 1, where they begin at -inf and 0 without.
 *
 * One query a sequence (decode): attention_step.c. Either way a query that sees nothing gets 0,
 * with lse = -inf or its sink. */
#include "cpu/attention.h"

#include <math.h>
#include <string.h>

/* Of head_dim 64, K and V of a tile take 16 KiB each as f32, its scores for 32 columns 8 KiB; q
 * and out of all columns 48 KiB each. */
enum { TILE = 64, COLUMNS = 192 };

/* ---- many queries ---------------------------------------------------------------------------- */

typedef struct tile_scratch {
  float *q;                /* [slices][head_dim][nr] transposed and scaled */
  float *out;              /* [slices][dims][nr] */
  float *m, *l;            /* [columns] of the softmax so far */
  int32_t *low, *high;     /* [columns] rows each sees */
  int32_t *position;       /* [columns] and their heads' slopes, where there are any */
  float *slope;
  float *rows;             /* [TILE][head_dim] K, or [nr][dims]: queries, results */
  float *k, *v;            /* [head_dim][TILE], [TILE][dims] of elements (see pyr_products) */
  float *scores;           /* [TILE][nr] */
  float *p;                /* [TILE / per][nr] of elements, where the products want pairs of rows */
  int64_t columns, dims;   /* padded to whole slices; head_dim padded to whole units */
} tile_scratch;

static tile_scratch tile_scratch_of(pyr_arena *arena, int nr, int32_t group, int32_t head_dim) {
  tile_scratch s = { .columns = pyr_round_up(pyr_max(COLUMNS, group), nr),
                     .dims = pyr_round_up(head_dim, PYR_UNIT) };
  s.q = pyr_arena_take(arena, s.columns * head_dim, sizeof(float));
  s.out = pyr_arena_take(arena, s.columns * s.dims, sizeof(float));
  s.m = pyr_arena_take(arena, s.columns, sizeof(float));
  s.l = pyr_arena_take(arena, s.columns, sizeof(float));
  s.low = pyr_arena_take(arena, s.columns, sizeof(int32_t));
  s.high = pyr_arena_take(arena, s.columns, sizeof(int32_t));
  s.position = pyr_arena_take(arena, s.columns, sizeof(int32_t));
  s.slope = pyr_arena_take(arena, s.columns, sizeof(float));
  s.rows = pyr_arena_take(arena, TILE * s.dims, sizeof(float));
  s.k = pyr_arena_take(arena, TILE * (int64_t)head_dim, sizeof(float));
  s.v = pyr_arena_take(arena, TILE * s.dims, sizeof(float));
  s.scores = pyr_arena_take(arena, (int64_t)TILE * nr, sizeof(float));
  s.p = pyr_arena_take(arena, (int64_t)TILE / 2 * nr, sizeof(float));
  return s;
}

/* The columns of a tile, query-major: column qi * group + h is query q0 + qi of the group's head h.
 * So columns' spans of rows ascend from left to right, and the first and the last column bound what
 * a slice sees. Columns that fill the last slice up see nothing. */
static void begin_tile(const pyr_attend *t, const pyr_attention *a, tile_scratch *s, int g,
                       int64_t q0, int64_t columns) {
  int64_t nr = t->k->nr, d = t->layout.head_dim, padded = pyr_round_up(columns, nr);
  for (int64_t c = 0; c < padded; c++) {
    bool real = c < columns;
    if (!real) s->low[c] = s->high[c] = 0;
    else if (c % t->group == 0) {
      pyr_span seen = pyr_cpu_visible(&a->lanes[g], a->q_pos[q0 + c / t->group], a->window);
      s->low[c] = (int32_t)seen.low, s->high[c] = (int32_t)seen.high;
    } else s->low[c] = s->low[c - 1], s->high[c] = s->high[c - 1];
    int64_t head = (int64_t)g * t->group + c % t->group;
    float sink = real && a->sinks ? a->sinks[head] : -INFINITY;
    s->m[c] = sink;
    s->l[c] = sink == -INFINITY ? 0 : 1;
    if (!a->slopes) continue;
    s->position[c] = real ? a->q_pos[q0 + c / t->group] : 0;
    s->slope[c] = real ? a->slopes[head] : 0;
  }
  for (int64_t c = 0; c < padded; c += nr) {
    int64_t some = pyr_min(nr, columns - c);
    if (some < nr) memset(s->q + c * d, 0, (size_t)(nr * d) * sizeof(float));
    for (int64_t i = 0; i < some; i++) {
      int64_t query = q0 + (c + i) / t->group, head = (int64_t)g * t->group + (c + i) % t->group;
      memcpy(s->rows + i * d, a->q + (query * t->heads + head) * d, (size_t)d * sizeof(float));
    }
    t->products->transpose(s->q + c * d, nr, s->rows, d, (int)some, d, t->scale);
  }
  memset(s->out, 0, (size_t)(padded * s->dims) * sizeof(float));
}

/* Out was summed with dimensions down and queries across; here it is turned back, a slice at a
 * time, and divided by l. A NaN in l goes through to out; l = 0, nothing seen, gives 0. */
static void end_tile(const pyr_attend *t, const pyr_attention *a, tile_scratch *s, int g,
                     int64_t q0, int64_t columns) {
  int64_t nr = t->k->nr, d = t->layout.head_dim;
  for (int64_t c = 0; c < columns; c += nr) {
    t->k->f32.transpose(s->rows, s->dims, s->out + c * s->dims, nr, (int)d, nr, 1.0f);
    for (int64_t i = 0; i < pyr_min(nr, columns - c); i++) {
      int64_t at = (q0 + (c + i) / t->group) * t->heads + (int64_t)g * t->group
          + (c + i) % t->group;
      float l = s->l[c + i], inverse = l > 0 || l != l ? 1.0f / l : 0,
          *out = a->out + at * d;
      for (int64_t j = 0; j < d; j++) out[j] = s->rows[i * s->dims + j] * inverse;
      if (a->lse) a->lse[at] = l == 0 ? -INFINITY : s->m[c + i] + logf(l);
    }
  }
}

/* Scores of the lane's rows from `row` on, of the slice of columns that begins at c. */
static void bend_tile(const pyr_attend *t, const pyr_attention *a, const tile_scratch *s,
                      const pyr_lane_view *lane, int64_t row, int64_t rows, int64_t c) {
  pyr_bend b = { .scores = s->scores, .ld = t->k->nr, .lines = (int)rows, .width = t->k->nr,
                 .keys_down = true, .cap = a->cap, .slopes = a->slopes ? s->slope + c : NULL,
                 .line = lane->positions + row, .column = s->position + c };
  t->k->bend(&b);
}

/* Rows [row, row+rows) of the lane against every slice of columns that sees any of them.
 *
 * Only rows [from, to) of the tile are multiplied, those that some column of the slice sees. `from`
 * goes down to a multiple of PYR_UNIT, as gemm takes rows by the unit and pairs of bf16 may not be
 * torn; what that adds weighs 0 like any row that is not seen. */
static void attend_rows(const pyr_attend *t, const pyr_attention *a, tile_scratch *s,
                        const pyr_lane_view *lane, int64_t row, int64_t rows, int64_t columns) {
  int64_t nr = t->k->nr, d = t->layout.head_dim, per = t->products->per;
  for (int64_t c = 0; c < columns; c += nr) {
    /* spans of later queries begin and end no earlier, so the slice's first and last real column
     * bound it */
    int64_t last = pyr_min(c + nr, columns) - 1;
    int64_t from = pyr_max(s->low[c] - row, 0) / PYR_UNIT * PYR_UNIT,
        to = pyr_min(s->high[last] - row, rows);
    if (from >= to) continue;
    int64_t m = pyr_round_up(to - from, PYR_UNIT);
    memset(s->scores, 0, (size_t)(m * nr) * sizeof(float));
    t->products->gemm(s->scores, nr, s->k + from, TILE, s->q + c * d, nr, m, pyr_ceil_div(d, per));
    if (pyr_cpu_bends(a)) bend_tile(t, a, s, lane, row + from, to - from, c);
    pyr_tile tile = { .scores = s->scores, .low = s->low + c, .high = s->high + c,
                      .m = s->m + c, .l = s->l + c, .out = s->out + c * s->dims,
                          .first = (int32_t)(row + from), .rows = (int32_t)(to - from),
                              .dims = (int32_t)s->dims };
    t->k->softmax_tile(&tile);
    float *p = s->scores;
    if (t->products->pair) t->products->pair(p = s->p, s->scores, nr, to - from, nr);
    t->products->gemm(s->out + c * s->dims, nr, s->v + from / per * s->dims, s->dims, p, nr,
                      s->dims, pyr_ceil_div(to - from, per));
  }
}

/* Invariant: at the loop's head m, l and out of every column are those of rows before `row`.
 * Products: 2 * rows * columns * head_dim, of those tiles that are seen. */
static void attend_tile(const pyr_attend *t, const pyr_attention *a, int g, int64_t q0,
                        pyr_arena arena) {
  const pyr_lane_view *lane = &a->lanes[g];
  int64_t d = t->layout.head_dim, columns = pyr_min(t->tile, a->n - q0) * t->group;
  tile_scratch s = tile_scratch_of(&arena, t->k->nr, t->group, (int32_t)d);
  begin_tile(t, a, &s, g, q0, columns);
  int64_t end = s.high[columns - 1];
  for (int64_t row = s.low[0] / TILE * TILE; row < end; row += TILE) {
    int64_t rows = pyr_min(TILE, end - row);
    pyr_cpu_load_rows(t->k, s.rows, d, lane, t->layout, row, rows, PYR_PLANE_K);
    t->products->transpose(s.k, TILE, s.rows, d, (int)rows, d, 1.0f);
    float *v = t->products->pair ? s.rows : s.v;
    pyr_cpu_load_rows(t->k, v, s.dims, lane, t->layout, row, rows, PYR_PLANE_V);
    if (t->products->pair) t->products->pair(s.v, v, s.dims, rows, s.dims);
    attend_rows(t, a, &s, lane, row, rows, columns);
  }
  end_tile(t, a, &s, g, q0, columns);
}

/* ---- the operation --------------------------------------------------------------------------- */

size_t pyr_cpu_attention_scratch(const pyr_kernels *k, int32_t group, int32_t head_dim,
                                 int64_t rows) {
  pyr_arena many = { NULL, 0 };
  tile_scratch_of(&many, k->nr, group, head_dim);
  size_t one = pyr_cpu_step_scratch(group, head_dim, rows);
  return many.used > one ? many.used : one;
}

/* Tiles of queries are numbered from the last: of 6 tasks on 2 lanes, 0 and 1 are the third
 * tile, 2 and 3 the second, 4 and 5 the first, which sees the fewest rows. */
static void attend_task(void *ctx, int64_t task, int worker) {
  const pyr_attend *t = ctx;
  pyr_attend_unit *u = pyr_cpu_unit_of(t, task);
  pyr_arena arena = pyr_cpu_arena(t->cpu, worker);
  task -= u->first;
  if (u->a->n == 1) pyr_cpu_attend_step(t, u, task, arena);
  else attend_tile(t, u->a, (int)(task % t->kv_heads),
                   (u->tasks / t->kv_heads - 1 - task / t->kv_heads) * t->tile, arena);
}

/* Scratch is asked for by the longest lane of a single query: others walk in tiles. Units and
 * parts lie in memory that all tasks share. */
pyr_status pyr_cpu_attention(pyr_backend *be, const pyr_attention *a, int count, pyr_layout layout,
                             int32_t heads, int32_t kv_heads, float scale) {
  pyr_cpu *cpu = pyr_cpu_of(be);
  pyr_attend t = { .k = cpu->kernels, .products = pyr_cpu_products(cpu), .cpu = cpu,
                   .layout = layout, .heads = heads, .kv_heads = kv_heads,
                       .group = heads / kv_heads, .threads = pyr_runtime_threads(be->rt),
                           .scale = scale };
  t.tile = (int32_t)pyr_max(1, COLUMNS / t.group);
  int64_t rows = 0, steps = 0, cost = 0;
  for (int i = 0; i < count; i++) {
    steps += a[i].n == 1;
    for (int g = 0; g < kv_heads; g++) {
      if (a[i].n == 1) rows = pyr_max(rows, a[i].lanes[g].rows);
      cost += 2 * a[i].n * a[i].lanes[g].rows * t.group * layout.head_dim;
    }
  }
  pyr_status status = pyr_cpu_check(be, "attention",
                                    pyr_cpu_attention_scratch(t.k, t.group, layout.head_dim, rows));
  if (status != PYR_OK) return status;
  pyr_arena shared = { cpu->shared, 0 };
  pyr_cpu_attend_shared(&t, &shared, count, steps, rows);
  if (shared.used > cpu->shared_bytes)
    return pyr_runtime_set_error(be->rt, PYR_ARGUMENT,
                                 "attention: more sequences or rows than are reserved");
  pyr_cpu_attend_cut(&t, a, count);
  pyr_cpu_tasks(be, attend_task, &t, t.tasks, cost);
  return PYR_OK;
}

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
 * Rows down and queries across make every step a loop over whole vectors of queries. Tiles of rows
 * begin at multiples of TILE and invisible rows weigh exactly 0, so a query's result does not
 * depend on its neighbours in the tile. No matrix larger than TILE x nr exists. The last tiles of
 * queries see most rows and are handed out first.
 *
 * A head's sink is a row without a value that every query has seen before the others: m begins at
 * the sink and l at 1, where they begin at -inf and 0 without.
 *
 * Where products are rounded to bf16: attention_bf16.c. One query a sequence (decode):
 * attention_step.c. Either way a query that sees nothing gets 0, with lse = -inf or its sink. */
#include "cpu/attention.h"

#include <string.h>

/* Of head_dim 64, K and V of a tile take 16 KiB each, its scores for 32 columns 8 KiB. */
enum { TILE = 64 };

typedef struct tile_scratch {
  pyr_columns c;
  float *rows;             /* [TILE][head_dim] K */
  float *k, *v;            /* [head_dim][TILE], [TILE][dims] */
  float *scores;           /* [TILE][nr] */
} tile_scratch;

static tile_scratch tile_scratch_of(pyr_arena *arena, int nr, int32_t group, int32_t head_dim) {
  tile_scratch s = { .c = { .width = nr, .depth = head_dim,
                            .dims = pyr_round_up(head_dim, PYR_UNIT) } };
  pyr_cpu_columns_take(&s.c, arena, group);
  s.rows = pyr_arena_take(arena, TILE * (int64_t)head_dim, sizeof(float));
  s.k = pyr_arena_take(arena, TILE * (int64_t)head_dim, sizeof(float));
  s.v = pyr_arena_take(arena, TILE * s.c.dims, sizeof(float));
  s.scores = pyr_arena_take(arena, (int64_t)TILE * nr, sizeof(float));
  return s;
}

/* Rows [row, row+rows) of the lane against every slice of columns that sees any of them.
 *
 * Only rows [from, to) of the tile are multiplied, those that some column of the slice sees. `from`
 * goes down to a multiple of PYR_UNIT, as gemm takes rows by the unit; what that adds weighs 0 like
 * any row that is not seen. */
static void attend_rows(const pyr_attend *t, const pyr_attention *a, const tile_scratch *scratch,
                        const pyr_lane_view *lane, int64_t row, int64_t rows, int64_t columns) {
  const pyr_columns *s = &scratch->c;
  int64_t nr = t->k->nr, d = t->layout.head_dim;
  float *scores = scratch->scores;
  for (int64_t c = 0; c < columns; c += nr) {
    /* spans of later queries begin and end no earlier, so the slice's first and last real column
     * bound it */
    int64_t last = pyr_min(c + nr, columns) - 1;
    int64_t from = pyr_max(s->low[c] - row, 0) / PYR_UNIT * PYR_UNIT,
        to = pyr_min(s->high[last] - row, rows);
    if (from >= to) continue;
    int64_t m = pyr_round_up(to - from, PYR_UNIT);
    memset(scores, 0, (size_t)(m * nr) * sizeof(float));
    t->k->f32.gemm(scores, nr, scratch->k + from, TILE, s->q + c * d, nr, m, d);
    if (pyr_cpu_bends(a))
      pyr_cpu_columns_bend(t, a, s, scores, lane, row + from, to - from, c);
    pyr_tile tile = { .scores = scores, .low = s->low + c, .high = s->high + c,
                      .m = s->m + c, .l = s->l + c, .out = s->out + c * s->dims,
                          .first = (int32_t)(row + from), .rows = (int32_t)(to - from),
                              .dims = (int32_t)s->dims };
    t->k->softmax_tile(&tile);
    t->k->f32.gemm(s->out + c * s->dims, nr, scratch->v + from * s->dims, s->dims, scores, nr,
                   s->dims, to - from);
  }
}

/* Invariant: at the loop's head m, l and out of every column are those of rows before `row`.
 * Products: 2 * rows * columns * head_dim, of those tiles that are seen. */
static void attend_tile(const pyr_attend *t, const pyr_attention *a, int g, int64_t q0,
                        pyr_arena arena) {
  const pyr_lane_view *lane = &a->lanes[g];
  int64_t d = t->layout.head_dim, columns = pyr_min(t->tile, a->n - q0) * t->group;
  tile_scratch s = tile_scratch_of(&arena, t->k->nr, t->group, (int32_t)d);
  pyr_cpu_columns_begin(t, a, &s.c, g, q0, columns, &t->k->f32);
  int64_t end = s.c.high[columns - 1];
  for (int64_t row = s.c.low[0] / TILE * TILE; row < end; row += TILE) {
    int64_t rows = pyr_min(TILE, end - row);
    pyr_cpu_load_rows(t->k, s.rows, d, lane, t->layout, row, rows, PYR_PLANE_K);
    t->k->f32.transpose(s.k, TILE, s.rows, d, (int)rows, d, 1.0f);
    pyr_cpu_load_rows(t->k, s.v, s.c.dims, lane, t->layout, row, rows, PYR_PLANE_V);
    attend_rows(t, a, &s, lane, row, rows, columns);
  }
  pyr_cpu_columns_end(t, a, &s.c, g, q0, columns);
}

enum { FRAMING = 16 };   /* what a value of a query costs that is taken into a frame, as products */

/* ---- the operation --------------------------------------------------------------------------- */

size_t pyr_cpu_attention_scratch(const pyr_cpu *cpu, int32_t group, int32_t head_dim,
                                 int64_t rows) {
  const pyr_flash *flash = pyr_cpu_flash(cpu);
  pyr_arena arena = { NULL, 0 };
  if (!flash) tile_scratch_of(&arena, cpu->kernels->nr, group, head_dim);
  size_t many = flash ? pyr_cpu_rounded_scratch(flash, group, head_dim) : arena.used,
      one = pyr_cpu_step_scratch(group, head_dim, rows);
  return many > one ? many : one;
}

/* Tiles of queries are numbered from the last: of 6 tasks on 2 lanes, 0 and 1 are the third
 * tile, 2 and 3 the second, 4 and 5 the first, which sees the fewest rows. */
static void attend_task(void *ctx, int64_t task, int worker) {
  const pyr_attend *t = ctx;
  pyr_attend_unit *u = pyr_cpu_unit_of(t, task);
  pyr_arena arena = pyr_cpu_arena(t->cpu, worker);
  task -= u->first;
  int g = (int)(task % t->kv_heads);
  int64_t q0 = (u->tasks / t->kv_heads - 1 - task / t->kv_heads) * t->tile;
  if (u->a->n == 1) pyr_cpu_attend_step(t, u, task, arena);
  else if (t->flash) pyr_cpu_attend_rounded(t, u->a, g, q0, arena);
  else attend_tile(t, u->a, g, q0, arena);
}

/* Of a lane with one query whose rows are packed; of other units there is nothing to do. */
static void framed_task(void *ctx, int64_t task, int worker) {
  const pyr_attend *t = ctx;
  (void)worker;
  pyr_cpu_attend_framed(t, &t->units[task]);
}

/* Scratch is asked for by the longest lane of a single query: others walk in tiles. Units and
 * parts lie in memory that all tasks share. */
pyr_status pyr_cpu_attention(pyr_backend *be, const pyr_attention *a, int count, pyr_layout layout,
                             int32_t heads, int32_t kv_heads, float scale) {
  pyr_cpu *cpu = pyr_cpu_of(be);
  pyr_attend t = { .k = cpu->kernels, .flash = pyr_cpu_flash(cpu), .cpu = cpu,
                   .layout = layout, .heads = heads, .kv_heads = kv_heads,
                       .group = heads / kv_heads, .threads = pyr_runtime_threads(be->rt),
                           .scale = scale };
  t.tile = (int32_t)pyr_max(1, PYR_COLUMNS / t.group);
  for (int plane = PYR_PLANE_K; plane <= PYR_PLANE_V && pyr_layout_packs(layout); plane++) {
    t.packed[plane].at = pyr_plane_at(layout, true, (pyr_plane)plane);
    t.packed[plane].bytes = pyr_plane_row_bytes(layout, true, (pyr_plane)plane);
  }
  int64_t rows = 0, steps = 0, cost = 0;
  for (int i = 0; i < count; i++) {
    steps += a[i].n == 1;
    for (int g = 0; g < kv_heads; g++) {
      if (a[i].n == 1) rows = pyr_max(rows, a[i].lanes[g].rows);
      cost += 2 * a[i].n * a[i].lanes[g].rows * t.group * layout.head_dim;
    }
  }
  pyr_status status = pyr_cpu_check(be, "attention",
                                    pyr_cpu_attention_scratch(cpu, t.group, layout.head_dim, rows));
  if (status != PYR_OK) return status;
  if (t.flash && count == 1 && a->n > 1) {
    pyr_cpu_attend_alone(&t, a, be);
    return PYR_OK;
  }
  pyr_arena shared = { cpu->shared, 0 };
  pyr_cpu_attend_shared(&t, &shared, count, steps, rows);
  if (shared.used > cpu->shared_bytes)
    return pyr_runtime_set_error(be->rt, PYR_ARGUMENT,
                                 "attention: more sequences or rows than are reserved");
  pyr_cpu_attend_cut(&t, a, count);
  if (layout.k != PYR_BITS_PLAIN)
    pyr_cpu_tasks(be, framed_task, &t, t.count, steps * heads * layout.head_dim * FRAMING);
  pyr_cpu_tasks(be, attend_task, &t, t.tasks, cost);
  return PYR_OK;
}

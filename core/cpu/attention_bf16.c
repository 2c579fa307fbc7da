/* attention_bf16.c — attention of many queries whose products are rounded to bf16, which processors
 * that multiply pairs of bf16 do at several times the rate of f32. What attention is, and what its
 * walk looks like, tells attention.c; the arithmetic of a block is the kernels' (pyr_flash).
 *
 * Only where the runtime was asked for it (precision = "bf16" or "int8" in Lua). Queries, keys,
 * values and weights are rounded; sums and the softmax are f32.
 *
 * A call goes in two rounds, so that a lane's rows are turned into bf16 and packed once for all
 * queries, and not once for each tile of them:
 *
 *     pack      tasks: blocks of 64 rows of each lane      K and V -> `packed`
 *     attend    tasks: tiles of queries of each lane       the last tiles first, which see most
 *
 *     packed    lane 0: [K block 0][V block 0][K block 1][V block 1] …      lane 1: …
 *
 * Of head_dim 64 a row takes 256 bytes there, so 8,192 rows of three lanes 6 MiB. PACKED bounds
 * them: of longer lanes as many are packed at once as fit, one lane after the other at worst; of a
 * lane that alone is too long, and in calls of several sequences, each tile packs blocks for
 * itself, in its scratch. The blocks are the same, and so are the results.
 *
 * Blocks begin at multiples of their length, and rows that a query does not see weigh exactly 0:
 * its result does not depend on its neighbours. */
#include "cpu/attention.h"

#include <string.h>

enum { ROWS = PYR_FLASH_ROWS, PACKED = 64 << 20 };

/* Floats, each an element, of a block's keys and values: of head_dim 80, 64 * 48 and 80 * 32. */
typedef struct block_shape { int64_t depth, dims, keys, floats; } block_shape;

static block_shape shape_of(int32_t head_dim) {
  block_shape s = { .depth = pyr_round_up(head_dim, PYR_FLASH_STEP) / 2,
                    .dims = pyr_round_up(head_dim, PYR_PAD) };
  s.keys = ROWS * s.depth;
  s.floats = s.keys + ROWS / 2 * s.dims;
  return s;
}

/* Rows [first, end) of each lane, in whole blocks, are packed: those that any query sees. */
typedef struct packing {
  const pyr_attend *t;
  const pyr_attention *a;
  block_shape shape;
  float *packed;           /* [lanes][blocks] from lane g0 on, or NULL: nothing is */
  int64_t blocks, first;   /* of each lane; first: a row */
  int g0, lanes;
} packing;

typedef struct tile_scratch {
  pyr_columns c;
  float *rows;             /* [ROWS][PYR_FLASH_STEP's multiple] */
  float *block;            /* keys and values that are not packed */
  float *scores, *p;       /* [ROWS][width], [ROWS / 2][width] */
  float *alpha;            /* [width] */
} tile_scratch;

static tile_scratch tile_scratch_of(pyr_arena *arena, const pyr_flash *flash, int32_t group,
                                    int32_t head_dim) {
  block_shape shape = shape_of(head_dim);
  tile_scratch s = { .c = { .width = flash->width, .depth = shape.depth, .dims = shape.dims } };
  pyr_cpu_columns_take(&s.c, arena, group);
  s.rows = pyr_arena_take(arena, ROWS * 2 * shape.depth, sizeof(float));
  s.block = pyr_arena_take(arena, shape.floats, sizeof(float));
  s.scores = pyr_arena_take(arena, (int64_t)ROWS * flash->width, sizeof(float));
  s.p = pyr_arena_take(arena, (int64_t)ROWS / 2 * flash->width, sizeof(float));
  s.alpha = pyr_arena_take(arena, flash->width, sizeof(float));
  return s;
}

size_t pyr_cpu_rounded_scratch(const pyr_flash *flash, int32_t group, int32_t head_dim) {
  pyr_arena arena = { NULL, 0 };
  tile_scratch_of(&arena, flash, group, head_dim);
  return arena.used;
}

/* ---- packing --------------------------------------------------------------------------------- */

/* Rows of the lane from `row` on, a block of them, as far as there are any below `end`. */
static void pack_block(const pyr_attend *t, const pyr_lane_view *lane, float *to, float *rows,
                       int64_t row, int64_t end) {
  block_shape shape = shape_of(t->layout.head_dim);
  int64_t ld = 2 * shape.depth, count = pyr_min(ROWS, end - row);
  for (int plane = PYR_PLANE_K; plane <= PYR_PLANE_V; plane++) {
    pyr_cpu_load_rows(t->k, rows, ld, lane, t->layout, row, count, plane);
    memset(rows + count * ld, 0, (size_t)((ROWS - count) * ld) * sizeof(float));
    if (plane == PYR_PLANE_K) t->flash->pack_keys(to, rows, ld);
    else t->flash->pack_values(to + shape.keys, rows, ld, shape.dims);
  }
}

static void pack_task(void *ctx, int64_t task, int worker) {
  const packing *p = ctx;
  const pyr_lane_view *lane = &p->a->lanes[p->g0 + task / p->blocks];
  pyr_arena arena = pyr_cpu_arena(p->t->cpu, worker);
  tile_scratch s = tile_scratch_of(&arena, p->t->flash, p->t->group, p->t->layout.head_dim);
  int64_t row = p->first + task % p->blocks * ROWS;
  if (row < lane->rows)
    pack_block(p->t, lane, p->packed + task * p->shape.floats, s.rows, row, lane->rows);
}

/* Where the block that begins at `row` lies; packed here, if it is not yet. */
static const float *block_at(const packing *p, const tile_scratch *s, int g, int64_t row) {
  if (p->packed)
    return p->packed + ((g - p->g0) * p->blocks + (row - p->first) / ROWS) * p->shape.floats;
  const pyr_lane_view *lane = &p->a->lanes[g];
  pack_block(p->t, lane, s->block, s->rows, row, lane->rows);
  return s->block;
}

/* ---- tiles of queries ------------------------------------------------------------------------ */

/* The block that begins at `row` against every slice of columns that sees any of it: as in
 * attention.c, but that `from` goes down to a multiple of what the products take at once. */
static void attend_block(const packing *p, const tile_scratch *s, int g, const float *block,
                         int64_t row, int64_t columns) {
  const pyr_attend *t = p->t;
  const pyr_flash *flash = t->flash;
  const pyr_columns *c = &s->c;
  for (int64_t at = 0; at < columns; at += c->width) {
    int64_t some = pyr_min(c->width, columns - at), unit = flash->unit;
    int64_t from = pyr_max(c->low[at] - row, 0) / unit * unit,
        to = pyr_min(c->high[at + some - 1] - row, ROWS);
    if (from >= to) continue;
    pyr_flash_step step = {
      .keys = block, .values = block + p->shape.keys, .q = c->q + at * c->depth,
      .out = c->out + at * c->dims, .scores = s->scores, .p = s->p, .m = c->m + at,
      .l = c->l + at, .alpha = s->alpha, .low = c->low + at, .high = c->high + at,
      .first = (int32_t)(row + from), .from = (int)from, .rows = (int)(to - from),
      .columns = (int)some, .depth = (int)c->depth, .dims = (int)c->dims,
      .width = (int)c->width, .unit = (int)unit,
    };
    flash->scores(&step);
    if (pyr_cpu_bends(p->a))
      pyr_cpu_columns_bend(t, p->a, c, s->scores, &p->a->lanes[g], row + from, to - from, at);
    flash->softmax(&step);
    flash->values(&step);
  }
}

/* Invariant: at the loop's head m, l and out of every column are those of rows before `row`. */
static void attend_tile(const packing *p, int g, int64_t q0, pyr_arena arena) {
  const pyr_attend *t = p->t;
  int64_t columns = pyr_min(t->tile, p->a->n - q0) * t->group;
  tile_scratch s = tile_scratch_of(&arena, t->flash, t->group, t->layout.head_dim);
  pyr_cpu_columns_begin(t, p->a, &s.c, g, q0, columns, &t->k->bf16);
  int64_t end = s.c.high[columns - 1];
  for (int64_t row = s.c.low[0] / ROWS * ROWS; row < end; row += ROWS)
    attend_block(p, &s, g, block_at(p, &s, g, row), row, columns);
  pyr_cpu_columns_end(t, p->a, &s.c, g, q0, columns);
}

void pyr_cpu_attend_rounded(const pyr_attend *t, const pyr_attention *a, int g, int64_t q0,
                            pyr_arena arena) {
  packing p = { .t = t, .a = a, .shape = shape_of(t->layout.head_dim) };
  attend_tile(&p, g, q0, arena);
}

/* ---- a call that is the only one ------------------------------------------------------------- */

/* One tile a lane packs for itself. */
size_t pyr_cpu_packed_bytes(const pyr_work *work) {
  int32_t group = work->kv_heads > 0 ? work->heads / work->kv_heads : 1;
  size_t lane, all;
  if (work->sequences != 1 || work->tokens * group <= PYR_COLUMNS) return 0;
  if (!pyr_mul_size((size_t)pyr_ceil_div(work->rows, ROWS) + 1,
                    (size_t)shape_of(work->head_dim).floats * sizeof(float), &lane)
      || lane > PACKED)
    return 0;
  return pyr_mul_size(lane, (size_t)work->kv_heads, &all) && all < PACKED ? all : PACKED;
}

static void alone_task(void *ctx, int64_t task, int worker) {
  const packing *p = ctx;
  int64_t tiles = pyr_ceil_div(p->a->n, p->t->tile);
  attend_tile(p, p->g0 + (int)(task % p->lanes), (tiles - 1 - task / p->lanes) * p->t->tile,
              pyr_cpu_arena(p->t->cpu, worker));
}

/* Positions ascend, so the first query's first row and the last one's last bound all. Lanes differ
 * in length: blocks are those of the longest. */
void pyr_cpu_attend_alone(pyr_attend *t, const pyr_attention *a, pyr_backend *be) {
  packing p = { .t = t, .a = a, .shape = shape_of(t->layout.head_dim), .first = INT64_MAX };
  int64_t end = 0, tiles = pyr_ceil_div(a->n, t->tile);
  for (int g = 0; g < t->kv_heads; g++) {
    p.first = pyr_min(p.first, pyr_cpu_visible(&a->lanes[g], a->q_pos[0], a->window).low);
    end = pyr_max(end, pyr_cpu_visible(&a->lanes[g], a->q_pos[a->n - 1], a->window).high);
  }
  p.first = p.first / ROWS * ROWS;
  p.blocks = pyr_max(0, pyr_ceil_div(end - p.first, ROWS));
  int64_t room = (int64_t)(t->cpu->packed_bytes / sizeof(float)) / p.shape.floats,
      fit = p.blocks > 0 ? room / p.blocks : 0;
  bool packs = tiles > 1 && fit > 0;
  int64_t products = a->n * p.blocks * ROWS * t->group * t->layout.head_dim;
  for (int lanes; p.g0 < t->kv_heads; p.g0 += lanes) {
    lanes = p.lanes = (int)(packs ? pyr_min(fit, t->kv_heads - p.g0) : t->kv_heads);
    p.packed = packs ? (float *)(void *)t->cpu->packed : NULL;
    if (packs)
      pyr_cpu_tasks(be, pack_task, &p, lanes * p.blocks, lanes * p.blocks * ROWS * p.shape.dims);
    pyr_cpu_tasks(be, alone_task, &p, lanes * tiles, 2 * lanes * products);
  }
}

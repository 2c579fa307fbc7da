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
 * its result does not depend on its neighbours.
 *
 * Where the last queries' weights are to be summed (pyr_masses), a tile keeps p of the rows asked
 * for, and m as it was when they were made, to its end, when lse is known; then
 *
 *     mass[h][j] = sum over its columns c of head h of  w(c, j) * exp(m_then[c] - lse[c]) * p[j][c]
 *
 * which takes no product and an exp for each column and block. Tiles leave their sums apart, and a
 * third round adds them up in the order of queries, so that threads do not matter. Of 2,048 rows a
 * tile keeps 0.75 MiB. */
#include "cpu/attention.h"

#include <math.h>
#include <stdatomic.h>
#include <string.h>
#include <time.h>

enum {
  ROWS = PYR_FLASH_ROWS,
  PACKED = 64 << 20,       /* bytes of packed lanes, of what a tile keeps, and of the sums that */
  KEPT = 8 << 20,          /* tiles leave: longer rows leave their sums to `mass` */
  SUMS = 64 << 20,
};

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
  pyr_masses *masses;      /* that are summed, or NULL */
  float *sums;             /* [masses][tiles][heads][longest] what tiles leave */
  int64_t tiles, longest;  /* of a lane; rows of the longest range */
  _Atomic int64_t nanoseconds;
} packing;

/* What a tile keeps for its sums, of rows [begin, end) of its lane, whole blocks; none: no rows. */
typedef struct keeping {
  int64_t begin, end;
  float *p;                /* [blocks][slices][ROWS / 2][width] */
  float *m;                /* [blocks][columns] */
  float *lse, *weight, *factor;        /* [columns] */
  int32_t *position;       /* [columns] */
  int32_t *base, *due;     /* [ROWS] */
  float *parts, *mass;     /* [PYR_FLASH_PARTS][vectors of the group], [group][ROWS] */
} keeping;

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

/* Blocks that hold rows of a run of n, at most, wherever it begins. */
static int64_t blocks_of(int64_t n) { return n > 0 ? pyr_ceil_div(n, ROWS) + 1 : 0; }

/* Of 2,048 rows and 192 columns p takes 0.75 MiB, m 24 KiB. */
static keeping keeping_of(pyr_arena *arena, const pyr_flash *flash, int32_t group,
                          int64_t blocks) {
  int64_t columns = pyr_round_up(pyr_max(PYR_COLUMNS, group), flash->width);
  keeping k = { 0 };
  k.p = pyr_arena_take(arena, blocks * ROWS / 2 * columns, sizeof(float));
  k.m = pyr_arena_take(arena, blocks * columns, sizeof(float));
  k.lse = pyr_arena_take(arena, columns, sizeof(float));
  k.weight = pyr_arena_take(arena, columns, sizeof(float));
  k.factor = pyr_arena_take(arena, columns, sizeof(float));
  k.position = pyr_arena_take(arena, columns, sizeof(int32_t));
  k.base = pyr_arena_take(arena, ROWS, sizeof(int32_t));
  k.due = pyr_arena_take(arena, ROWS, sizeof(int32_t));
  k.parts = pyr_arena_take(arena, PYR_FLASH_PARTS * pyr_min(group, columns / PYR_PAD) * PYR_PAD,
                           sizeof(float));
  k.mass = pyr_arena_take(arena, (int64_t)group * ROWS, sizeof(float));
  return k;
}

static size_t kept_bytes(const pyr_flash *flash, int32_t group, int64_t rows) {
  pyr_arena arena = { NULL, 0 };
  keeping_of(&arena, flash, group, blocks_of(rows));
  return arena.used;
}

/* What is reserved for masses is for all of them, or for none. */
size_t pyr_cpu_kept_scratch(const pyr_flash *flash, const pyr_work *work) {
  if (work->masses == 0 || work->rows > KEPT / 64) return 0;
  size_t bytes = kept_bytes(flash, work->heads / work->kv_heads, work->rows);
  return bytes <= KEPT ? bytes : 0;
}

/* Of 9 heads, tiles of 64 queries and 2,048 rows, 8 tiles of a chunk leave 0.6 MiB a mass. */
size_t pyr_cpu_sums_bytes(const pyr_work *work) {
  int32_t group = work->kv_heads > 0 ? work->heads / work->kv_heads : 1;
  size_t rows, bytes;
  int64_t tiles = pyr_ceil_div(work->tokens, pyr_max(1, PYR_COLUMNS / group)) * work->masses;
  bool fits = pyr_mul_size((size_t)work->rows, (size_t)work->heads * sizeof(float), &rows)
      && pyr_mul_size(rows, (size_t)tiles, &bytes) && bytes <= SUMS;
  return fits ? bytes : 0;
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

/* Blocks are numbered lane by lane; a lane that is shorter than the longest has fewer. */
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

/* Weights of a block that are kept: rows that the slice was not multiplied with weigh 0. */
static void clear_kept(float *p, int64_t width, int64_t from, int64_t to) {
  memset(p, 0, (size_t)(from / 2 * width) * sizeof(float));
  memset(p + to / 2 * width, 0, (size_t)((ROWS - to) / 2 * width) * sizeof(float));
}

/* The block that begins at `row` against every slice of columns that sees any of it: as in
 * attention.c, but that `from` goes down to a multiple of what the products take at once. `kept`:
 * where weights are to lie, [slices][ROWS / 2][width], or NULL. */
static void attend_block(const packing *p, const tile_scratch *s, int g, const float *block,
                         int64_t row, int64_t columns, float *kept) {
  const pyr_attend *t = p->t;
  const pyr_flash *flash = t->flash;
  const pyr_columns *c = &s->c;
  for (int64_t at = 0; at < columns; at += c->width) {
    int64_t some = pyr_min(c->width, columns - at), unit = flash->unit;
    int64_t from = pyr_max(c->low[at] - row, 0) / unit * unit,
        to = pyr_min(c->high[at + some - 1] - row, ROWS);
    float *weights = kept ? kept + at * (ROWS / 2) : NULL;
    if (from >= to && kept) clear_kept(weights, c->width, 0, 0);
    if (from >= to) continue;
    if (kept) clear_kept(weights, c->width, from, from + pyr_round_up(to - from, unit));
    pyr_flash_step step = {
      .keys = block, .values = block + p->shape.keys, .q = c->q + at * c->depth,
      .out = c->out + at * c->dims, .scores = s->scores,
      .p = kept ? weights + from / 2 * c->width : s->p, .m = c->m + at,
      .l = c->l + at, .alpha = s->alpha, .low = c->low + at, .high = c->high + at,
      .first = (int32_t)(row + from), .from = (int)from, .rows = (int)(to - from),
      .columns = (int)some, .depth = (int)c->depth, .dims = (int)c->dims,
      .width = (int)c->width, .unit = (int)unit,
    };
    flash->scores(&step);
    if (pyr_cpu_bends(p->a))
      pyr_cpu_columns_bend(t, p->a, c, s->scores, &p->a->lanes[g], row + from, to - from, at);
    t->k->flash_softmax(&step);
    flash->values(&step);
  }
}

/* ---- sums of weights ------------------------------------------------------------------------- */

/* Queries of the attention before the first that the mass looks at. */
static int64_t skipped(const packing *p, const pyr_mass *m) { return p->a->n - m->n; }

/* Which rows of its lane the tile of queries [q0, q0 + n) keeps: those of the masses that look at
 * any of these queries. */
static void keep_begin(const packing *p, keeping *k, int g, int64_t q0, int64_t n) {
  k->begin = INT64_MAX, k->end = 0;
  for (int i = 0; i < p->masses->count; i++) {
    const pyr_mass *m = &p->masses->list[i];
    if (q0 + n <= skipped(p, m) || m->ranges[g].end <= m->ranges[g].begin) continue;
    k->begin = pyr_min(k->begin, m->ranges[g].begin / ROWS * ROWS);
    k->end = pyr_max(k->end, pyr_round_up(m->ranges[g].end, ROWS));
  }
}

/* Whether a weighting's due dates depend on rows; of others each query has one weight. */
static bool by_row(const pyr_weighting *w) { return w->queries > 0 && w->every > 0; }

/* Where the columns of a tile stand, and what they weigh to the mass; lse +inf leaves a column
 * out: those that fill the tile up, queries before the last n of the mass, others that do not
 * count, and those that saw nothing. Of 4 queries due at position 9 with a ramp to 1.3, the query
 * at 8 weighs 1.2, and one at 10 is left out. */
static void weigh_columns(const packing *p, const keeping *k, const pyr_mass *m, int g, int64_t q0,
                          int64_t columns, int64_t width) {
  int64_t group = p->t->group, skip = skipped(p, m);
  const pyr_weighting *w = &m->weighting;
  for (int64_t c = 0; c < pyr_round_up(columns, width); c++) {
    int64_t i = q0 + c / group;
    bool counts = c < columns && i >= skip;
    k->lse[c] = INFINITY, k->weight[c] = 1, k->position[c] = 0;
    if (!counts) continue;
    int32_t place = m->by_place ? m->place + (int32_t)(i - skip) : p->a->q_pos[i];
    float lse = p->a->lse[i * p->t->heads + g * group + c % group];
    k->position[c] = place;
    if (lse != -INFINITY) k->lse[c] = lse;
    if (w->queries == 0 || by_row(w)) continue;
    int64_t age = place - (w->due - w->queries + 1);
    k->weight[c] = 1.0f + pyr_cpu_slope(w) * (float)age;
    if (age < 0 || place > w->due) k->lse[c] = INFINITY;
  }
}

/* Due dates of a block's rows, the first of which is j rows behind the range's origin, where they
 * depend on rows. */
static void date_rows(const keeping *k, const pyr_weighting *w, int64_t j) {
  for (int64_t i = 0; i < ROWS; i++) {
    int64_t due = pyr_max(INT32_MIN, pyr_min(INT32_MAX, pyr_cpu_due(w, j + i)));
    k->due[i] = (int32_t)due;
    k->base[i] = (int32_t)pyr_max(INT32_MIN, due - w->queries + 1);
  }
}

/* A mass's sums of one tile, of rows [begin, end) of its lane; the tile has walked blocks from
 * `first` on and before `last`, and rows of others get nothing. Of rows 100 to 299, blocks at 64,
 * 128, 192 and 256 are summed whole, and copied from the rows on that are asked for:
 *
 *     block 64     rows 64 .. 99 left out, 100 .. 127 to out[0 .. 27]
 *     block 128    all to out[28 .. 91]
 *     …
 *     block 256    rows 256 .. 299 to out[156 .. 199], 300 .. 319 left out */
static void sum_mass(const packing *p, const keeping *k, const pyr_columns *c, const pyr_mass *m,
                     float *to, int g, int64_t columns, int64_t first, int64_t last) {
  int64_t begin = m->ranges[g].begin, end = m->ranges[g].end, group = p->t->group,
      all = pyr_round_up(columns, c->width);
  pyr_flash_sums sums = { .lse = k->lse, .weight = k->weight, .factor = k->factor,
                          .parts = k->parts, .mass = k->mass, .position = k->position,
                          .slope = pyr_cpu_slope(&m->weighting), .columns = (int)columns,
                          .width = (int)c->width, .group = (int)group,
                          .max = m->reduce == PYR_MAX };
  for (int64_t row = begin / ROWS * ROWS; row < end; row += ROWS) {
    int64_t from = pyr_max(begin, row), some = pyr_min(end, row + ROWS) - from,
        at = (row - k->begin) / ROWS;
    bool walked = row >= first && row < last;
    sums.p = k->p + at * (ROWS / 2) * all;
    sums.m = k->m + at * all;
    if (by_row(&m->weighting)) {
      date_rows(k, &m->weighting, row - m->ranges[g].origin);
      sums.base = k->base, sums.due = k->due;
    }
    if (walked) p->t->k->flash_sums(&sums);
    for (int64_t h = 0; h < group; h++) {
      float *out = to + h * p->longest + (from - begin);
      if (walked) memcpy(out, k->mass + h * ROWS + (from - row), (size_t)some * sizeof(float));
      else memset(out, 0, (size_t)some * sizeof(float));
    }
  }
}

/* What sums take is told apart from attention, for the profile. */
static int64_t nanoseconds(void) {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return (int64_t)t.tv_sec * 1000000000 + t.tv_nsec;
}

/* Where the i-th mass's sums of a tile and a head lie. */
static float *sums_at(const packing *p, int i, int64_t tile, int64_t head) {
  return p->sums + ((i * p->tiles + tile) * p->t->heads + head) * p->longest;
}

/* Masses that look at none of the tile's queries have no place for it: add_task begins with the
 * tile of the first that counts. */
static void sum_tile(packing *p, const keeping *k, const pyr_columns *c, int g, int64_t q0,
                     int64_t columns, int64_t first, int64_t last) {
  int64_t began = nanoseconds();
  for (int i = 0; i < p->masses->count; i++) {
    const pyr_mass *m = &p->masses->list[i];
    if (q0 + columns / p->t->group <= skipped(p, m)) continue;
    weigh_columns(p, k, m, g, q0, columns, c->width);
    sum_mass(p, k, c, m, sums_at(p, i, q0 / p->t->tile, (int64_t)g * p->t->group), g, columns,
             first, last);
  }
  atomic_fetch_add(&p->nanoseconds, nanoseconds() - began);
}

/* A head of a mass: what its tiles left, in their order. */
static void add_task(void *ctx, int64_t task, int worker) {
  const packing *p = ctx;
  int i = (int)(task / p->t->heads);
  int64_t head = task % p->t->heads;
  const pyr_mass *m = &p->masses->list[i];
  const pyr_range *range = &m->ranges[head / p->t->group];
  float *out = m->out + head * m->stride;
  (void)worker;
  for (int64_t tile = skipped(p, m) / p->t->tile; tile < p->tiles; tile++) {
    const float *from = sums_at(p, i, tile, head);
    for (int64_t j = 0; j < range->end - range->begin; j++)
      out[j] = m->reduce == PYR_MAX ? (from[j] > out[j] ? from[j] : out[j]) : out[j] + from[j];
  }
}

/* Whether what masses need is reserved; `longest` is set. Lanes keep rows from the first of any
 * mass to the last of any: two masses of rows 0 to 99 and 900 to 999 keep 1,000. */
static bool sums_fit(packing *p) {
  const pyr_masses *masses = p->a->masses;
  size_t used = pyr_cpu_rounded_scratch(p->t->flash, p->t->group, p->t->layout.head_dim);
  int64_t kept = 0;
  if (p->t->group > PYR_FLASH_VECTORS * PYR_PAD) return false;
  for (int g = 0; g < p->t->kv_heads; g++) {
    int64_t begin = INT64_MAX, end = 0;
    for (int i = 0; i < masses->count; i++) {
      const pyr_range *range = &masses->list[i].ranges[g];
      if (range->end <= range->begin) continue;
      p->longest = pyr_max(p->longest, range->end - range->begin);
      begin = pyr_min(begin, range->begin), end = pyr_max(end, range->end);
    }
    kept = pyr_max(kept, end - pyr_min(begin, end));
  }
  return used + kept_bytes(p->t->flash, p->t->group, kept) <= p->t->cpu->scratch_each
      && (size_t)(masses->count * p->tiles * p->t->heads * p->longest) * sizeof(float)
          <= p->t->cpu->sums_bytes;
}

/* ---- tiles ----------------------------------------------------------------------------------- */

/* Invariant: at the loop's head m, l and out of every column are those of rows before `row`. */
static void attend_tile(packing *p, int g, int64_t q0, pyr_arena arena) {
  const pyr_attend *t = p->t;
  int64_t columns = pyr_min(t->tile, p->a->n - q0) * t->group;
  tile_scratch s = tile_scratch_of(&arena, t->flash, t->group, t->layout.head_dim);
  keeping k = { 0 };
  if (p->masses) keep_begin(p, &k, g, q0, columns / t->group);
  if (k.end > k.begin) {
    keeping taken = keeping_of(&arena, t->flash, t->group, (k.end - k.begin) / ROWS);
    taken.begin = k.begin, taken.end = k.end;
    k = taken;
  }
  pyr_cpu_columns_begin(t, p->a, &s.c, g, q0, columns, &t->k->bf16);
  int64_t first = s.c.low[0] / ROWS * ROWS, end = s.c.high[columns - 1],
      all = pyr_round_up(columns, s.c.width);
  if (t->flash->begin) t->flash->begin();
  for (int64_t row = first; row < end; row += ROWS) {
    int64_t at = (row - k.begin) / ROWS;
    bool keeps = row >= k.begin && row < k.end;
    attend_block(p, &s, g, block_at(p, &s, g, row), row, columns,
                 keeps ? k.p + at * (ROWS / 2) * all : NULL);
    if (keeps) memcpy(k.m + at * all, s.c.m, (size_t)all * sizeof(float));
  }
  if (t->flash->end) t->flash->end();
  pyr_cpu_columns_end(t, p->a, &s.c, g, q0, columns);
  if (k.end > k.begin) sum_tile(p, &k, &s.c, g, q0, columns, first, end);
}

/* In company nothing is shared, and masses are left to their own pass. */
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

/* Tiles are numbered from the last, as in attention.c. */
static void alone_task(void *ctx, int64_t task, int worker) {
  packing *p = ctx;
  attend_tile(p, p->g0 + (int)(task % p->lanes), (p->tiles - 1 - task / p->lanes) * p->t->tile,
              pyr_cpu_arena(p->t->cpu, worker));
}

/* Positions ascend, so the first query's first row and the last one's last bound all. Lanes differ
 * in length: blocks are those of the longest. */
void pyr_cpu_attend_alone(pyr_attend *t, const pyr_attention *a, pyr_backend *be) {
  packing p = { .t = t, .a = a, .shape = shape_of(t->layout.head_dim), .first = INT64_MAX,
                .sums = (float *)(void *)t->cpu->sums, .tiles = pyr_ceil_div(a->n, t->tile) };
  int64_t end = 0;
  if (a->masses && sums_fit(&p)) p.masses = a->masses;
  for (int g = 0; g < t->kv_heads; g++) {
    p.first = pyr_min(p.first, pyr_cpu_visible(&a->lanes[g], a->q_pos[0], a->window).low);
    end = pyr_max(end, pyr_cpu_visible(&a->lanes[g], a->q_pos[a->n - 1], a->window).high);
  }
  p.first = p.first / ROWS * ROWS;
  p.blocks = pyr_max(0, pyr_ceil_div(end - p.first, ROWS));
  int64_t room = (int64_t)(t->cpu->packed_bytes / sizeof(float)) / p.shape.floats,
      fit = p.blocks > 0 ? room / p.blocks : 0;
  bool packs = p.tiles > 1 && fit > 0;
  int64_t products = a->n * p.blocks * ROWS * t->group * t->layout.head_dim;
  for (int lanes; p.g0 < t->kv_heads; p.g0 += lanes) {
    lanes = p.lanes = (int)(packs ? pyr_min(fit, t->kv_heads - p.g0) : t->kv_heads);
    p.packed = packs ? (float *)(void *)t->cpu->packed : NULL;
    if (packs)
      pyr_cpu_tasks(be, pack_task, &p, lanes * p.blocks, lanes * p.blocks * ROWS * p.shape.dims);
    pyr_cpu_tasks(be, alone_task, &p, lanes * p.tiles, 2 * lanes * products);
  }
  if (!p.masses) return;
  int64_t began = nanoseconds(), tasks = (int64_t)p.masses->count * t->heads;
  pyr_cpu_tasks(be, add_task, &p, tasks, tasks * p.tiles * p.longest);
  p.masses->summed = true;
  p.masses->seconds = (double)(nanoseconds() - began) * 1e-9
      + (double)atomic_load(&p.nanoseconds) * 1e-9 / t->threads;
}

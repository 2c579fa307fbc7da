/* digests.c — reading less than is held: what a page of keys is known by, and which pages a query
 * reads.
 *
 * A page of 32 keys is known by a digest: the least and the highest of each channel (Quest, arXiv
 * 2406.10774), or the mean of the keys and how far the farthest of them lies from it (ArkVale), or
 * the mean alone (InfLLM), or the mean and the signs of what each key has beside it (RaBitQ). With
 * the first three, the most that a query can have with a key of the page, or about what it has, is
 * one product of two vectors (drawn in digest_args.h):
 *
 *     keys  (1, -2)  (3, 0)          highest (3, 0)   least (1, -2)    digest  3 0 1 -2
 *     query (2, -1)                  above 0: (2, 0)  below: (0, -1)   query   2 0 0 -1
 *     bound max(2, 6) + max(2, 0) = 8                                  product 6 + 0 + 0 + 2 = 8
 *
 * and the keys themselves give 4 and 6 (bounds are of channels, and err the more the more there
 * are; signs are of keys, and err the less). So ranking 240 pages of 64 channels is a product of a
 * matrix of 240 x 128 with a vector, for each query head. A lane's pages rank by the highest of its
 * heads, and a view of the best of them, of the first and of the newest goes to attention, which
 * does not know that there are others.
 *
 * A lane is a task. Every product is one chain of its own, whatever the thread; the choice is by
 * scores alone and then by place. */
#include "cpu/cpu.h"

#include <math.h>
#include <string.h>

/* ---- digests --------------------------------------------------------------------------------- */

typedef struct digest_call {
  const pyr_kernels *k;
  pyr_cpu *cpu;
  const pyr_digests_of *lanes;
  int count;
  pyr_layout layout;
  pyr_digest by;
  int64_t width;
} digest_call;

/* One page's keys; a row of them for the mean. */
static float *digest_scratch_of(pyr_arena *arena, int32_t head_dim) {
  return pyr_arena_take(arena, (int64_t)PYR_PAGE_ROWS * head_dim, sizeof(float));
}

/* A NaN stays: no number is above it, and `x != x` takes it in. */
static void bound_page(float *out, const float *keys, int64_t d) {
  float *high = out, *low = out + d;
  memcpy(high, keys, (size_t)d * sizeof *out);
  memcpy(low, keys, (size_t)d * sizeof *out);
  for (int row = 1; row < PYR_PAGE_ROWS; row++)
    for (int64_t i = 0; i < d; i++) {
      float x = keys[row * d + i];
      high[i] = x > high[i] || x != x ? x : high[i];
      low[i] = x < low[i] || x != x ? x : low[i];
    }
}

/* The mean of the keys, and behind it, for a ball, the distance of the farthest. */
static void mean_page(float *out, const float *keys, int64_t d, bool ball) {
  memset(out, 0, (size_t)d * sizeof *out);
  for (int row = 0; row < PYR_PAGE_ROWS; row++)
    for (int64_t i = 0; i < d; i++) out[i] += keys[row * d + i];
  for (int64_t i = 0; i < d; i++) out[i] *= 1.0f / PYR_PAGE_ROWS;
  if (!ball) return;
  float most = 0;
  for (int row = 0; row < PYR_PAGE_ROWS; row++) {
    float sum = 0;
    for (int64_t i = 0; i < d; i++) {
      float apart = keys[row * d + i] - out[i];
      sum += apart * apart;
    }
    most = sum > most || sum != sum ? sum : most;
  }
  out[d] = sqrtf(most);
}

/* Tasks are counted over all lanes: of lanes with 2 and 3 pages, task 3 is the second's page
 * begin + 1. Padding is written, too, so that products may run over it. */
static void digest_task(void *ctx, int64_t task, int worker) {
  const digest_call *c = ctx;
  const pyr_digests_of *of = c->lanes;
  while (task >= of->end - of->begin) task -= pyr_max(of->end - of->begin, 0), of++;
  int64_t d = c->layout.head_dim, page = of->begin + task;
  pyr_arena arena = pyr_cpu_arena(c->cpu, worker);
  float *keys = digest_scratch_of(&arena, c->layout.head_dim), *out = of->out + page * c->width;
  pyr_cpu_load_rows(c->k, keys, d, of->lane, c->layout, page * PYR_PAGE_ROWS, PYR_PAGE_ROWS,
                    PYR_PLANE_K);
  memset(out, 0, (size_t)c->width * sizeof *out);
  if (c->by == PYR_DIGEST_BOUND) bound_page(out, keys, d);
  else mean_page(out, keys, d, c->by == PYR_DIGEST_BALL);
  if (c->by == PYR_DIGEST_SIGNS) pyr_signs_of(out, keys, c->layout.head_dim);
}

/* Bytes: each key once. Pages are tasks, so that the first digests of a long lane, when a prompt
 * has just been read, are made by all threads. */
static pyr_status cpu_digest(pyr_backend *be, const pyr_digests_of *lanes, int count,
                             pyr_layout layout, pyr_digest by) {
  digest_call c = { .k = pyr_cpu_of(be)->kernels, .cpu = pyr_cpu_of(be), .lanes = lanes,
                    .count = count, .layout = layout, .by = by,
                    .width = pyr_digest_width(by, layout.head_dim) };
  int64_t pages = 0;
  for (int i = 0; i < count; i++) pages += pyr_max(lanes[i].end - lanes[i].begin, 0);
  if (pages == 0) return PYR_OK;
  pyr_status status = pyr_cpu_check(be, "digest", pyr_cpu_digests_scratch(layout.head_dim, 0));
  if (status != PYR_OK) return status;
  pyr_cpu_tasks(be, digest_task, &c, pages, pages * PYR_PAGE_ROWS * layout.head_dim);
  return PYR_OK;
}

/* ---- which pages ----------------------------------------------------------------------------- */

typedef struct pick_call {
  const pyr_kernels *k;
  pyr_cpu *cpu;
  const pyr_reading *readings;
  pyr_layout layout;
  int32_t kv_heads, group;
  float scale;
} pick_call;

typedef struct pick_scratch {
  float *query;            /* [width] what the digests are multiplied with */
  float *products;         /* [pages] one head's */
  float *scores;           /* [pages] the highest of the group's heads */
  float *heap;             /* [pages] */
  float *turned;           /* [head_dim] */
  uint8_t *table;          /* [pyr_signs_groups][16] */
} pick_scratch;

/* rows: of all tiers of a lane, each counted in whole pages. */
static pick_scratch pick_scratch_of(pyr_arena *arena, int32_t head_dim, int64_t rows) {
  int64_t pages = pyr_ceil_div(rows, PYR_PAGE_ROWS);
  return (pick_scratch){
    pyr_arena_take(arena, pyr_digest_width(PYR_DIGEST_BOUND, head_dim), sizeof(float)),
    pyr_arena_take(arena, pages, sizeof(float)), pyr_arena_take(arena, pages, sizeof(float)),
    pyr_arena_take(arena, pages, sizeof(float)), pyr_arena_take(arena, head_dim, sizeof(float)),
    pyr_arena_take(arena, pyr_signs_groups(head_dim) * 16, 1) };
}

/* The larger of both operations', as they take turns. A bound is the widest digest from
 * head_dim 1 on. */
size_t pyr_cpu_digests_scratch(int32_t head_dim, int64_t rows) {
  pyr_arena pick = { NULL, 0 }, digest = { NULL, 0 };
  pick_scratch_of(&pick, head_dim, rows);
  digest_scratch_of(&digest, head_dim);
  return pick.used > digest.used ? pick.used : digest.used;
}

/* What a query of d channels is multiplied with, by the kind of digest; see digest_args.h. */
static void query_of(const pick_call *c, float *to, const float *q, pyr_digest by) {
  int64_t d = c->layout.head_dim, width = by == PYR_DIGEST_SIGNS ? pyr_signs_mean((int32_t)d)
      : pyr_digest_width(by, c->layout.head_dim);
  memset(to, 0, (size_t)width * sizeof *to);
  if (by != PYR_DIGEST_BOUND) {
    memcpy(to, q, (size_t)d * sizeof *to);
    if (by == PYR_DIGEST_BALL) to[d] = sqrtf(c->k->square_sum(q, d));
    return;
  }
  for (int64_t i = 0; i < d; i++) to[q[i] > 0 ? i : d + i] = q[i];
}

/* products[0, n) of pages [first, first + n), all full, with a head's query q. Under SIGNS one of a
 * page's rows speaks for it, the highest; a page with a key that is no number has a mean that is
 * none. Of 64 channels a page takes one product of 64 and 16 look-ups of 32 bytes, where its keys
 * would take 32 products. */
static void multiply_pages(const pick_call *c, pyr_digest by, const float *digests, const float *q,
                           int64_t first, int64_t n, const pick_scratch *s) {
  int32_t d = c->layout.head_dim;
  int64_t width = pyr_digest_width(by, d), mean = pyr_signs_mean(d);
  const float *digest = digests + first * width;
  query_of(c, s->query, q, by);
  if (by != PYR_DIGEST_SIGNS) {
    c->k->dots(s->products, s->query, digest, n, (int)width);
    return;
  }
  memcpy(s->turned, q, (size_t)d * sizeof *q);
  float step = pyr_signs_table(s->table, s->turned, d);
  for (int64_t i = 0; i < n; i++, digest += width) {
    const float *scales = digest + mean;
    c->k->dots(&s->products[i], s->query, digest, 1, (int)mean);
    s->products[i] += c->k->signs_most(scales, (const uint8_t *)(scales + PYR_SIGNS_ROWS), s->table,
                                       step, pyr_signs_groups(d));
  }
}

/* scores[0, n) of pages [first, first + n) of a tier, all full. A soft cap bends what it would of a
 * key's score, so that slopes, which come behind it, are to scale; without slopes it changes no
 * rank, but costs little. NaN becomes the highest. */
static void rank_pages(const pick_call *c, const pyr_reading *r, const pyr_reading *tier, int g,
                       int64_t first, int64_t n, float *scores, const pick_scratch *s) {
  const pyr_lane_view *lane = &tier->lanes[g];
  int64_t d = c->layout.head_dim;
  for (int h = 0; h < c->group; h++) {
    int64_t head = (int64_t)g * c->group + h;
    multiply_pages(c, r->read.by, tier->digests[g], r->q + head * d, first, n, s);
    for (int64_t i = 0; i < n; i++) {
      float x = s->products[i] * c->scale;
      if (r->cap > 0) x = r->cap * tanhf(x / r->cap);
      if (r->slopes)
        x -= (float)(r->q_pos[0] - lane->positions[(first + i + 1) * PYR_PAGE_ROWS - 1])
            * r->slopes[head];
      if (x != x) x = INFINITY;
      scores[i] = h == 0 || x > scores[i] ? x : scores[i];
    }
  }
}

/* The k-th highest of n scores, 1 <= k <= n, by a heap of the k highest so far, the least of them
 * at its root: of 3 1 4 1 5 with k = 2 the heap holds 3 1, then 3 4, and then 4 5. n log k looks
 * where scores ascend, hardly more than n where they come in no order. */
static float kth_of(const float *scores, int64_t n, int64_t k, float *heap) {
  for (int64_t i = 0; i < n; i++) {
    if (i < k) {                             /* it rises from the end to its place */
      int64_t at = i;
      for (; at > 0 && heap[(at - 1) / 2] > scores[i]; at = (at - 1) / 2)
        heap[at] = heap[(at - 1) / 2];
      heap[at] = scores[i];
    } else if (scores[i] > heap[0]) {        /* it takes the root's place, and sinks */
      int64_t at = 0;
      for (int64_t child; (child = 2 * at + 1) < k; at = child) {
        if (child + 1 < k && heap[child + 1] < heap[child]) child++;
        if (heap[child] >= scores[i]) break;
        heap[at] = heap[child];
      }
      heap[at] = scores[i];
    }
  }
  return heap[0];
}

/* Puts pages [from, to) of the lane behind those of the view: of pages 3, 7 and 8, rows 0 to 31 of
 * the view are the lane's rows 96 to 127, and so on, at the positions that they have there. Only
 * the lane's last can be partly filled, and it comes last. */
static void take_pages(pyr_lane_view *out, const pyr_lane_view *lane, int64_t from, int64_t to) {
  if (from >= to) return;
  int64_t row = from * PYR_PAGE_ROWS, rows = pyr_min(to * PYR_PAGE_ROWS, lane->rows) - row;
  memcpy(out->pages + out->rows / PYR_PAGE_ROWS, lane->pages + from,
         (size_t)(to - from) * sizeof *out->pages);
  if (out->packed)
    memcpy(out->packed + out->rows / PYR_PAGE_ROWS, lane->packed + from, (size_t)(to - from));
  memcpy(out->positions + out->rows, lane->positions + row, (size_t)rows * sizeof *out->positions);
  out->rows += rows;
}

/* A lane of 10 pages, of which 5 are to be read; the first one and the last two are settled:
 *
 *     page      0   1  2  3  4  5  6  7   8  9
 *               *   .  +  .  .  .  +  .   *  *       two of the seven others: the highest scores
 *             low  from                   to  all
 *
 * Under a window `low` is the first page that shows a row. With a tier below of 4 pages and a half,
 * the half is settled, too, and one of eleven others is read. */
typedef struct part { const pyr_reading *tier; int64_t low, from, to, all; } part;

enum { PARTS = 3 };        /* tiers, at most */

/* What of a tier's lane is settled and what is ranked. Guards are of the hot tier's rows, which are
 * the first and the newest of a policy that demotes; below it only the last page is settled, where
 * it is not full and so has no digest. 0 <= low <= from <= to <= all. */
static part part_of(const pyr_reading *r, const pyr_reading *tier, int g) {
  const pyr_lane_view *lane = &tier->lanes[g];
  int64_t first = tier == r ? r->read.first : 0, last = tier == r ? pyr_max(r->read.last, 1) : 0;
  part p = { .tier = tier, .all = pyr_ceil_div(lane->rows, PYR_PAGE_ROWS),
             .low = pyr_cpu_visible(lane, r->q_pos[0], r->window).low / PYR_PAGE_ROWS };
  p.to = pyr_max(p.low, pyr_max(lane->rows - last, 0) / PYR_PAGE_ROWS);
  p.from = pyr_min(pyr_max(p.low, pyr_ceil_div(first, PYR_PAGE_ROWS)), p.to);
  return p;
}

/* A view with nothing in it yet. Pages are read as they are, packed or not: their kinds go along,
 * and the lane's frame. */
static void begin_view(pyr_lane_view *out, const pyr_lane_view *lane) {
  out->history = NULL, out->table = NULL, out->born = NULL, out->rows = 0;
  out->frame = lane->frame;
  if (!lane->packed) out->packed = NULL;
}

/* Scores of all parts lie one after the other, so that those that equal the bar are taken in that
 * order, the first so many. */
static void pick_task(void *ctx, int64_t task, int worker) {
  const pick_call *c = ctx;
  const pyr_reading *r = &c->readings[task / c->kv_heads];
  int g = (int)(task % c->kv_heads), count = 0;
  part parts[PARTS];
  int64_t n = 0, k = pyr_ceil_div(r->read.rows, PYR_PAGE_ROWS);
  for (const pyr_reading *tier = r; tier && count < PARTS; tier = tier->below) {
    part p = parts[count++] = part_of(r, tier, g);
    n += p.to - p.from;
    k -= (p.from - p.low) + (p.all - p.to);
  }
  if (k >= n) {
    for (int i = 0; i < count; i++) parts[i].tier->out[g] = parts[i].tier->lanes[g];
    return;
  }
  pyr_arena arena = pyr_cpu_arena(c->cpu, worker);
  pick_scratch s = pick_scratch_of(&arena, c->layout.head_dim, n * PYR_PAGE_ROWS);
  float bar = INFINITY, *scores = s.scores;
  for (int i = 0; i < count && k > 0; scores += parts[i].to - parts[i].from, i++)
    rank_pages(c, r, parts[i].tier, g, parts[i].from, parts[i].to - parts[i].from, scores, &s);
  if (k > 0) bar = kth_of(s.scores, n, k, s.heap);
  int64_t equal = k;
  for (int64_t i = 0; i < n && k > 0; i++) equal -= s.scores[i] > bar;
  scores = s.scores;
  for (int i = 0; i < count; scores += parts[i].to - parts[i].from, i++) {
    part p = parts[i];
    pyr_lane_view *out = &p.tier->out[g];
    const pyr_lane_view *lane = &p.tier->lanes[g];
    begin_view(out, lane);
    take_pages(out, lane, p.low, p.from);
    for (int64_t at = 0; at < p.to - p.from && k > 0; at++)
      if (scores[at] > bar || (scores[at] == bar && equal-- > 0))
        take_pages(out, lane, p.from + at, p.from + at + 1);
    take_pages(out, lane, p.to, p.all);
  }
}

/* Bytes: the digests of all pages, once for all heads of a group, as they stay in a cache; and
 * positions of what is read. Of 7,680 rows of 64 channels under bounds, 240 pages of 512 bytes, 120
 * KiB a lane, where the rows themselves are 1.9 MiB in f16 and 1,024 of them 256 KiB. */
static pyr_status cpu_pick_pages(pyr_backend *be, const pyr_reading *readings, int count,
                                 pyr_layout layout, int32_t heads, int32_t kv_heads, float scale) {
  pick_call c = { .k = pyr_cpu_of(be)->kernels, .cpu = pyr_cpu_of(be), .readings = readings,
                  .layout = layout, .kv_heads = kv_heads, .group = heads / kv_heads,
                  .scale = scale };
  int64_t most = 0, cost = 0;
  for (int i = 0; i < count; i++)
    for (int g = 0; g < kv_heads; g++) {
      int64_t pages = 0;
      for (const pyr_reading *tier = &readings[i]; tier; tier = tier->below)
        pages += pyr_ceil_div(tier->lanes[g].rows, PYR_PAGE_ROWS);
      most = pyr_max(most, pages * PYR_PAGE_ROWS);
      cost += pages * layout.head_dim * c.group * 2;
    }
  pyr_status status = pyr_cpu_check(be, "pick_pages",
                                    pyr_cpu_digests_scratch(layout.head_dim, most));
  if (status == PYR_OK)
    pyr_cpu_tasks(be, pick_task, &c, (int64_t)count * kv_heads, cost);
  return status;
}

void pyr_cpu_digests_fill(pyr_backend *be) {
  be->digest = cpu_digest;
  be->pick_pages = cpu_pick_pages;
}

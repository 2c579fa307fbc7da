/* tiers.c — see tiers.h. Everything is made of one step: a lane becomes those of its rows that stay
 * and those of another lane that come, in the order of their positions.
 *
 *     lane     4 7 9 31        stay 0 1 2 3 (all)        made   4 5 7 9 30 31
 *     other    5 6 30          come 0 2                  to     0 . 2 3 .  5   of those that stay
 *                                                               . 1 . . 4  .   of those that come
 *
 * Costs. Rows that come behind all others, as those of a text that is read on do, move the lane's
 * last page alone. A row that was kept for long and goes down late comes in between, and all pages
 * behind it are written anew: of 1,000 rows of 256 bytes below, 256 KB at most, at a cut, in a
 * lane. So policies that generate cut some rows at a time (`slack`).
 *
 * Packed rows. A row of few bits moves as bytes within its lane, and is unpacked and packed again
 * where it goes to another tier, whose lane has a frame of its own. A lane below packs from the
 * call on by which it has rows enough to learn its frame from: it is composed once as it is, plain,
 * and once more from that, packed. In the hot tier a row that comes to the first page or to the
 * newest is unpacked, as those are plain.
 *
 * Lists of rows are the host's: the operation that moves rows is the processor's. */
#include "cache/tiers.h"
#include "model/model.h"
#include "base/arena.h"
#include "base/rowbits.h"
#include "ranks/ranks.h"

#include <string.h>

/* What relief leaves in a hot lane: where attention sinks, and what the next tokens look at most.
 * */
enum { FIRST = 4, LAST = 64 };

/* ---- one lane -------------------------------------------------------------------------------- */

typedef struct composition {       /* all host memory, in one block */
  int32_t *was, *others;           /* positions of the lane's rows, and of the other's */
  int32_t *stay, *stay_to;         /* rows of the lane, and what they become */
  int32_t *come, *come_to;         /* of the other */
  int64_t stays, comes;
  int64_t same;                    /* so many of the lane's first rows stay where they are */
} composition;

/* One block for all six lists: of a lane of 300 rows that takes some of 2,000, 27 KB, for a moment.
 * */
static void layout(composition *c, int64_t rows, int64_t others, pyr_arena *arena) {
  PYR_PART(arena, c->was, rows);
  PYR_PART(arena, c->others, others);
  PYR_PART(arena, c->stay, rows + others);        /* where rows have come, all of them (pack) */
  PYR_PART(arena, c->stay_to, rows + others);
  PYR_PART(arena, c->come, others);
  PYR_PART(arena, c->come_to, others);
}

/* Merges the two lists by position. No position is in both. `same` ends where the first row comes
 * in or one is left out: pages before that are the lane's as they are, whoever else has them. */
static void merge_lists(composition *c) {
  int64_t i = 0, j = 0;
  c->same = 0;
  while (i < c->stays || j < c->comes) {
    int64_t to = i + j;
    bool other = i == c->stays || (j < c->comes && c->others[c->come[j]] < c->was[c->stay[i]]);
    if (other) {
      c->come_to[j++] = (int32_t)to;
      continue;
    }
    if (c->stay[i] == to && c->same == to) c->same++;
    c->stay_to[i++] = (int32_t)to;
  }
}

/* To the host, where lists are merged: 4 bytes a row, against some hundred of its key and value. */
static pyr_status positions_of(pyr_cache *cache, const pyr_lane *lane, int32_t *out) {
  pyr_backend *be = cache->pool->be;
  if (lane->rows == 0) return PYR_OK;
  return be->download(be, out, lane->positions, (size_t)lane->rows * sizeof *out);
}

/* The lane of `cache` takes rows of `src`, a lane of the same sequence in another tier, as c lists
 * them. Rows that stay are copied from the first page on that changes, `same` of them at most; both
 * lie in the lane's frame, whichever pages are packed. */
static pyr_status compose(pyr_cache *cache, pyr_lane *lane, const pyr_cache *other,
                          const pyr_lane *src, composition *c) {
  pyr_backend *be = cache->pool->be;
  pyr_lane made;
  PYR_TRY(pyr_lane_frame(cache, lane));
  int64_t skip = c->same / PYR_PAGE_ROWS, at = skip * PYR_PAGE_ROWS;
  PYR_TRY(pyr_lane_remake(cache, lane, skip, c->stays + c->comes, &made));
  pyr_lane_view to = pyr_lane_get_view(&made), from = pyr_lane_get_view(lane);
  to.frame = lane->frame;
  pyr_status status = be->move_rows(be, &to, cache->pool->layout, c->stay_to + at, &from,
                                    cache->pool->layout, c->stay + at, c->stays - at);
  if (status == PYR_OK && c->comes > 0) {
    pyr_lane_view source = pyr_lane_get_view(src);
    status = be->move_rows(be, &to, cache->pool->layout, c->come_to, &source,
                           other->pool->layout, c->come, c->comes);
  }
  if (status == PYR_OK) pyr_lane_replace(cache, lane, &made, at);
  else pyr_lane_free(cache, &made);
  return status;
}

/* A lane below that has rows enough by now learns its frame, and is composed of itself: its lists
 * are all of its rows, and none stays where it is. */
static pyr_status pack(pyr_cache *cache, pyr_lane *lane, composition *c) {
  if (!cache->pool->top || !lane->frame || lane->frame->learned
      || !pyr_lane_learn(cache, lane, 0, lane->rows)) return PYR_OK;
  c->stays = lane->rows, c->comes = 0, c->same = 0;
  for (int64_t i = 0; i < lane->rows; i++) c->stay[i] = c->stay_to[i] = (int32_t)i;
  return compose(cache, lane, cache, lane, c);
}

typedef struct lane_place { pyr_cache *cache; int layer, head; } lane_place;

static pyr_lane *lane_at(const lane_place *p) {
  return pyr_cache_lane(p->cache, p->layer, p->head);
}

/* Rows of `from` that `chosen` lists, ascending, are copied to `to`. Until they are dropped they
 * lie in both; a call that fails in between leaves that to its undo. */
static pyr_status copy_rows(const lane_place *to, const lane_place *from, const int32_t *chosen,
                            int64_t n) {
  pyr_runtime *rt = to->cache->pool->rt;
  pyr_lane *lane = lane_at(to);
  const pyr_lane *src = lane_at(from);
  composition c = { .stays = lane->rows, .comes = n };
  pyr_arena count = { 0 }, host = { 0 };
  if (n == 0) return PYR_OK;
  layout(&c, lane->rows, src->rows, &count);
  host.block = pyr_alloc(rt, count.used);
  if (!host.block) return pyr_nomem(rt, count.used, "rows between tiers");
  layout(&c, lane->rows, src->rows, &host);
  for (int64_t i = 0; i < lane->rows; i++) c.stay[i] = (int32_t)i;
  memcpy(c.come, chosen, (size_t)n * sizeof *chosen);
  pyr_status status = positions_of(to->cache, lane, c.was);
  if (status == PYR_OK) status = positions_of(from->cache, src, c.others);
  if (status == PYR_OK) {
    merge_lists(&c);
    status = compose(to->cache, lane, from->cache, src, &c);
  }
  if (status == PYR_OK) status = pack(to->cache, lane, &c);
  pyr_release(rt, host.block, count.used);
  return status;
}

/* … and then leave it. Forks keep theirs, as theirs are other pages by then. */
static pyr_status drop_rows(const lane_place *from, const int32_t *chosen, int64_t n) {
  pyr_runtime *rt = from->cache->pool->rt;
  pyr_lane *lane = lane_at(from);
  composition c = { .stays = 0 };
  pyr_arena count = { 0 }, host = { 0 };
  if (n == 0) return PYR_OK;
  layout(&c, lane->rows, 0, &count);
  host.block = pyr_alloc(rt, count.used);
  if (!host.block) return pyr_nomem(rt, count.used, "rows between tiers");
  layout(&c, lane->rows, 0, &host);
  for (int64_t i = 0, j = 0; i < lane->rows; i++)
    if (j < n && chosen[j] == i) j++;
    else c.stay[c.stays++] = (int32_t)i;
  pyr_status status = positions_of(from->cache, lane, c.was);
  if (status == PYR_OK) {
    merge_lists(&c);
    status = compose(from->cache, lane, from->cache, lane, &c);
  }
  pyr_release(rt, host.block, count.used);
  return status;
}

/* Rows [begin, begin + n) of a lane go down to the next tier, or to one further down. */
static pyr_status sink_rows(pyr_cache *from, pyr_cache *to, int layer, int head, int64_t begin,
                            int64_t n) {
  pyr_runtime *rt = from->pool->rt;
  lane_place a = { from, layer, head }, b = { to, layer, head };
  size_t bytes = (size_t)n * sizeof(int32_t);
  if (n <= 0) return PYR_OK;
  int32_t *rows = pyr_alloc(rt, bytes);
  if (!rows) return pyr_nomem(rt, bytes, "rows between tiers");
  for (int64_t i = 0; i < n; i++) rows[i] = (int32_t)(begin + i);
  pyr_status status = copy_rows(&b, &a, rows, n);
  if (status == PYR_OK) status = drop_rows(&a, rows, n);
  pyr_release(rt, rows, bytes);
  return status;
}

/* ---- limits ---------------------------------------------------------------------------------- */

/* Nested lifts count, so that a cascade's cuts within a prefill do not end another's. */
pyr_measure pyr_tiers_lift(pyr_cache *cache) {
  pyr_pool_top(cache->pool)->lifted++;
  return cache->began ? *cache->began : pyr_cache_measure(cache);
}

static size_t all_bytes(const pyr_measure *m) { return m->bytes[0] + m->bytes[1] + m->bytes[2]; }

/* What the pool of a tier will hold. Of 60,000 bytes held, of which this cache's rows took 40,000
 * and take 45,000 now: 65,000, though it holds 90,000 at the moment, with the pages that a snapshot
 * has. */
static size_t will_hold(const pyr_cache *tier, const pyr_measure *before) {
  pyr_measure now = pyr_cache_measure(tier);
  int t = tier->pool->tier;
  return before->held[t] + now.bytes[t] - before->bytes[t];
}

/* Of a budget of 100,000 with 99,000 held: rows that take 500 more than before are let through, and
 * those that take 1,100 more are not. */
pyr_status pyr_tiers_lower(pyr_cache *cache, const pyr_measure *before, pyr_status status) {
  pyr_pool *top = pyr_pool_top(cache->pool);
  pyr_measure now = pyr_cache_measure(cache);
  size_t held = before->held[0] + all_bytes(&now) - all_bytes(before);
  top->lifted--;
  if (status != PYR_OK || !top->budget || all_bytes(&now) <= all_bytes(before)
      || held <= top->budget) return status;
  return pyr_runtime_set_error(top->rt, PYR_BUDGET,
                               "the cache's budget of %zu bytes is full: with the rows that "
                               "went to another tier %zu would be held", top->budget, held);
}

/* The oldest rows of every lane beyond the tier's `rows`: what came last is what plans have looked
 * at last, and reading is nearest to it. */
static pyr_status settle_rows(pyr_cache *cache) {
  int64_t most = cache->pool->rows_most;
  for (int layer = 0; layer < cache->layers && most > 0; layer++)
    for (int head = 0; head < cache->heads; head++) {
      int64_t more = pyr_cache_lane(cache, layer, head)->rows - most;
      if (more > 0 && !cache->below)
        return pyr_runtime_set_error(cache->pool->rt, PYR_BUDGET,
                                     "tier \"%s\" is full: it holds %lld rows of a lane, and "
                                     "there is no tier below", pyr_tier_text(cache->pool->tier),
                                     (long long)most);
      if (more > 0) PYR_TRY(sink_rows(cache, cache->below, layer, head, 0, more));
    }
  return PYR_OK;
}

/* An eighth of each lane at a time, whole pages, so that a tier that is full does not hand on a
 * page at every call; what other caches of the pool hold there is not this one's to move. */
static pyr_status settle_bytes(pyr_cache *cache, const pyr_measure *before) {
  while (cache->pool->budget && will_hold(cache, before) > cache->pool->budget) {
    int64_t moved = 0;
    for (int layer = 0; layer < cache->layers && cache->below; layer++)
      for (int head = 0; head < cache->heads; head++) {
        int64_t rows = pyr_cache_lane(cache, layer, head)->rows;
        int64_t some = pyr_min(rows, (rows / 8 / PYR_PAGE_ROWS + 1) * PYR_PAGE_ROWS);
        PYR_TRY(sink_rows(cache, cache->below, layer, head, 0, some));
        moved += some;
      }
    if (moved == 0)
      return pyr_runtime_set_error(cache->pool->rt, PYR_BUDGET,
                                   "tier \"%s\" is full: %zu of its %zu bytes are wanted, and "
                                   "there is no tier below", pyr_tier_text(cache->pool->tier),
                                   will_hold(cache, before), cache->pool->budget);
  }
  return PYR_OK;
}

/* From the warm tier down, as what it hands on may be too much for the next. */
pyr_status pyr_tiers_settle(pyr_cache *cache, const pyr_measure *before) {
  for (pyr_cache *at = cache->below; at; at = at->below) {
    PYR_TRY(settle_rows(at));
    PYR_TRY(settle_bytes(at, before));
  }
  return PYR_OK;
}

/* ---- down and up ----------------------------------------------------------------------------- */

/* Rows of the lane that idx does not list, ascending: of 6 rows with idx 0 2 5, rows 1 3 4. The two
 * lists share one block. */
static pyr_status demote_lane(const lane_place *to, const lane_place *from, const int32_t *idx,
                              int64_t kept) {
  pyr_runtime *rt = from->cache->pool->rt;
  pyr_backend *be = from->cache->pool->be;
  int64_t rows = lane_at(from)->rows, n = 0;
  size_t bytes = (size_t)rows * sizeof(int32_t);
  int32_t *lists = pyr_alloc(rt, bytes), *losers = lists + kept;
  if (!lists) return pyr_nomem(rt, bytes, "rows between tiers");
  pyr_status status = kept ? be->download(be, lists, idx, (size_t)kept * sizeof *idx) : PYR_OK;
  for (int64_t i = 0, j = 0; i < rows && status == PYR_OK; i++)
    if (j < kept && lists[j] == i) j++;
    else losers[n++] = (int32_t)i;
  if (status == PYR_OK) status = copy_rows(to, from, losers, n);
  pyr_release(rt, lists, bytes);
  return status;
}

/* That the tier is there was checked when the plan was. Lanes of a set have one list of survivors,
 * and so one of losers, but tiers below may hold different rows of each. */
pyr_status pyr_tier_demote(pyr_cache *cache, int layer, int head, int count, const int32_t *idx,
                           int64_t kept, pyr_tier to) {
  pyr_cache *below = cache->below;
  while (below && below->pool->tier != to) below = below->below;
  for (int i = 0; i < count; i++) {
    lane_place from = { cache, layer, head + i }, down = { below, layer, head + i };
    PYR_TRY(demote_lane(&down, &from, idx, kept));
  }
  return PYR_OK;
}

/* A row that comes up has no history: what it was given while it lay below nobody has added up.
 * Where the hot lane tracks, it begins with 0, as a new row does. */
pyr_status pyr_tier_promote(pyr_cache *cache, pyr_cache *from, int layer, int head,
                            const int32_t *come, int64_t n) {
  lane_place up = { cache, layer, head }, low = { from, layer, head };
  PYR_TRY(copy_rows(&up, &low, come, n));
  return drop_rows(&low, come, n);
}

/* ---- relief ---------------------------------------------------------------------------------- */

/* What a row of a tier takes of the budget: K and V, where they are in memory, and its position. Of
 * a tier that packs, as most of its rows lie. */
static size_t row_bytes(const pyr_cache *cache) {
  pyr_layout layout = cache->pool->layout;
  bool packed = pyr_layout_packs(layout);
  size_t bytes = pyr_plane_row_bytes(layout, packed, PYR_PLANE_K)
      + pyr_plane_row_bytes(layout, packed, PYR_PLANE_V);
  return (cache->pool->place ? 0 : bytes) + sizeof(int32_t);
}

/* From f16 to q8_0 of 64 values: 256 + 4 and 136 + 4 bytes, 120 less; to a file 256. From q8_0 to
 * f16 nothing would be gained, and such a tier is passed by. The next tier down in which a row
 * takes less of the budget; NULL: none. */
static pyr_cache *cheaper(const pyr_cache *cache) {
  pyr_cache *to = cache->below;
  while (to && row_bytes(to) >= row_bytes(cache)) to = to->below;
  return to;
}

/* What stays in a hot lane, its first 4 and its last 64 rows, is what a lane of 68 has: such a lane
 * gives none, and a cache of such lanes frees nothing. So many rows of every lane of `from` go
 * down, as far as it has them; rows of layers whose keys were turned stay, as they lie where no
 * query of another tier would look for them. */
static pyr_status sink_lanes(pyr_cache *cache, pyr_cache *from, pyr_cache *to, int64_t each) {
  int64_t first = from == cache ? FIRST : 0, last = from == cache ? LAST : 0;
  for (int layer = 0; layer < cache->layers; layer++)
    for (int head = 0; head < cache->heads && !cache->states[layer].compact; head++) {
      int64_t most = pyr_cache_lane(from, layer, head)->rows - first - last;
      PYR_TRY(sink_rows(from, to, layer, head, first, pyr_min(each, most)));
    }
  return PYR_OK;
}

/* Those that have rows: of a stage those of its layers. */
static int64_t own_lanes(const pyr_cache *cache) {
  return (int64_t)cache->pool->model->own.count * cache->heads;
}

/* Tier by tier. Of 90 lanes, 1 MB wanted and rows that take 260 bytes here and 140 below: 120 a
 * row, 1,000,000 / 120 / 90 = 92 rows of each lane and some, in whole pages 96. What the lanes of a
 * layer give is equal, so that those that were equally long stay so. */
static pyr_status sink_tiers(pyr_cache *cache, size_t wanted, const pyr_measure *before) {
  int64_t lanes = own_lanes(cache);
  size_t freed = 0;
  for (pyr_cache *from = cache; from && freed < wanted; from = from->below) {
    pyr_cache *to = cheaper(from);
    if (!to) continue;
    size_t gain = (row_bytes(from) - row_bytes(to)) * (size_t)lanes;
    int64_t each = (int64_t)((wanted - freed) / gain);
    PYR_TRY(sink_lanes(cache, from, to, (each / PYR_PAGE_ROWS + 1) * PYR_PAGE_ROWS));
    PYR_TRY(pyr_tiers_settle(cache, before));
    pyr_measure now = pyr_cache_measure(cache);
    freed = all_bytes(&now) < all_bytes(before) ? all_bytes(before) - all_bytes(&now) : 0;
  }
  return PYR_OK;
}

/* In whole pages and one more, as rows that are there may end in the middle of one, with what lies
 * beside them. Of 90 lanes of 64 values in f16 and 500 tokens: 90 * 16 * (8,192 + 304), 12 MB. A
 * plan may want less, and then more goes down than had to. */
static size_t bytes_of_rows(const pyr_cache *cache, int64_t rows) {
  size_t page = cache->pool->page_bytes[PYR_PAGE_PLAIN] + PYR_PAGE_BESIDE
      + PYR_PAGE_ROWS * 2 * sizeof(int32_t);
  return (size_t)own_lanes(cache) * (size_t)(rows / PYR_PAGE_ROWS + 1) * page;
}

/* A snapshot shares all pages, so that whatever fails here leaves the rows as they were. Of several
 * ranks all give rows, as many of a lane each, where one is short of room: *freed is what that
 * frees where it frees most. */
pyr_status pyr_tiers_relieve(pyr_cache *cache, int64_t rows, size_t *freed) {
  pyr_cache *snapshot = NULL;
  pyr_runtime *rt = cache->pool->rt;
  int64_t most = 0;
  *freed = 0;
  if (!cache->below || !cache->pool->pressed) return PYR_OK;
  pyr_ranks_begin(rt);
  pyr_measure before = pyr_tiers_lift(cache);
  pyr_status status = pyr_cache_snapshot(cache, &snapshot);
  if (status == PYR_OK) status = sink_tiers(cache, bytes_of_rows(cache, rows), &before);
  status = pyr_ranks_agree(rt, pyr_tiers_lower(cache, &before, status));
  if (status != PYR_OK && snapshot) pyr_cache_restore(cache, snapshot);
  else pyr_cache_free(snapshot);
  if (status == PYR_OK && cache->pool->held < before.held[0])
    most = (int64_t)(before.held[0] - cache->pool->held);
  if (status == PYR_OK) status = pyr_ranks_most(pyr_runtime_ranks(rt), &most);
  if (status == PYR_OK) status = pyr_cache_level(cache);   /* short lanes give fewer rows */
  pyr_ranks_leave(rt);
  if (status == PYR_OK && most > 0) pyr_cache_rows_changed(cache);
  if (status == PYR_OK) pyr_cache_tidy(cache);
  if (status == PYR_OK) *freed = (size_t)most;
  return status;
}

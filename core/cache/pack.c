/* pack.c — pages of rows of few bits: when a lane's rows are packed, what its frame learns from.
 *
 * A lane is one list of rows, whatever its pages hold. Which of them are packed follows from their
 * places alone:
 *
 *     page      0          1 .. n-2             n-1 (newest)
 *     rows      0 .. 31    32 ..                the last 1 to 32
 *               plain      packed once full     plain
 *
 * The first page holds the sinks, which every query looks at, and the newest what was just said:
 * both are few, and an error there costs most. A lane that lost its front to a sliding window has a
 * packed page first; one that an eviction shortened may end in one, and takes new rows packed until
 * that is full.
 *
 * In tiers below the hot one nothing is said any more, and no query sinks: of a lane that has
 * learned its frame every page is packed. Its rows are packed as they come down (tiers.c), so that
 * none lies there plain and is rounded again later.
 *
 * The frame (base/rowbits.h) is learned when LEAST rows are to be packed, from at most MOST of them
 * and from all queries that prefills have shown until then; then it stays, as rows that are packed
 * cannot be taken into another. Until then all rows stay plain.
 *
 * All this happens where nothing can go wrong any more (see slide.c). Where there is no memory for
 * a packed page the plain one stays, and its turn comes again: every later call finds it, as it
 * begins behind the last page that is packed. */
#include "cache/cache.h"
#include "base/rowbits.h"

#include <string.h>

enum { LEAST = 64, MOST = 512 };   /* rows */

/* Of a lane of 200 rows, 7 pages: [1, 6), or [4, 6) if 1 to 3 are packed. */
typedef struct run { int64_t begin, end; } run;

static run to_pack(const pyr_lane *lane) {
  run r = { 1, lane->rows > 0 ? (lane->rows - 1) / PYR_PAGE_ROWS : 0 };
  for (int64_t p = r.end; p-- > r.begin;)
    if (lane->packed[p]) r.begin = p + 1;
  if (r.begin > r.end) r.begin = r.end;
  return r;
}

/* ---- what a frame learns --------------------------------------------------------------------- */

/* A lower tier's lane learns what its own rows look like, as those are losers, and what queries
 * need, as they are the same queries. */
bool pyr_cache_wants_needs(const pyr_cache *cache, int layer) {
  for (const pyr_cache *at = cache; at; at = at->below)
    for (int head = 0; head < at->heads; head++) {
      const pyr_frame *frame = pyr_cache_lane(at, layer, head)->frame;
      if (frame && !frame->learned) return true;
    }
  return false;
}

/* How many queries there were does not matter, as needs are compared with each other. */
void pyr_cache_add_needs(pyr_cache *cache, int layer, const float *sums) {
  int32_t d = cache->pool->layout.head_dim;
  for (pyr_cache *at = cache; at; at = at->below)
    for (int head = 0; head < at->heads; head++) {
      pyr_frame *frame = pyr_cache_lane(at, layer, head)->frame;
      for (int32_t c = 0; frame && !frame->learned && c < d; c++)
        frame->channels[c].need += sums[head * d + c];
    }
}

bool pyr_lane_learn(pyr_cache *cache, pyr_lane *lane, int64_t begin, int64_t end) {
  pyr_pool *pool = cache->pool;
  pyr_backend *be = pool->be;
  int64_t rows = end - begin;
  if (lane->frame->learned) return true;
  if (rows < LEAST) return false;
  if (rows > MOST) rows = MOST;
  int64_t values = rows * pool->layout.head_dim;
  size_t bytes = (size_t)(2 * values) * sizeof(float);
  float *work = be->alloc(be, bytes);
  if (!work) return false;
  pyr_lane_view view = pyr_lane_get_view(lane);
  pyr_status status = be->read_rows(be, work, &view, pool->layout, begin, begin + rows,
                                    PYR_PLANE_K);
  if (status == PYR_OK)
    status = be->read_rows(be, work + values, &view, pool->layout, begin, begin + rows,
                           PYR_PLANE_V);
  if (status == PYR_OK) pyr_frame_learn(lane->frame, work, work + values, rows);
  be->release(be, work, bytes);
  return lane->frame->learned;
}

/* ---- packing --------------------------------------------------------------------------------- */

/* A page and what takes its place, as lanes of one page each, which `gather` packs side by side. */
typedef struct pair { pyr_lane *lane; int64_t page; pyr_page *fresh; void *from, *to; } pair;

/* A page that others hold, too, stays theirs, and its packed copy is counted against the budget; a
 * page of the lane alone goes, so that for a moment only both are held. */
static pyr_status take_page(pyr_cache *cache, pair *p) {
  const pyr_page *old = p->lane->pages[p->page];
  int kind = old->kind | PYR_PAGE_PACKED;
  p->from = old->data;
  pyr_status status = old->refs > 1 ? pyr_page_new(cache->pool, kind, &p->fresh)
      : pyr_page_replacement(cache->pool, kind, &p->fresh);
  if (status == PYR_OK) p->to = p->fresh->data;
  return status;
}

/* Rows 0 to 31 of each pair, by one call for all. */
static pyr_status pack_pairs(pyr_cache *cache, const pair *pairs, int64_t count,
                             pyr_lane_view *views, int32_t *idx) {
  pyr_pool *pool = cache->pool;
  pyr_backend *be = pool->be;
  uint8_t is_packed = 1;
  for (int64_t i = 0; i < count; i++) {
    const pyr_lane *lane = pairs[i].lane;
    int32_t *born = lane->born ? lane->born + pairs[i].page * PYR_PAGE_ROWS : NULL;
    int32_t *positions = lane->positions + pairs[i].page * PYR_PAGE_ROWS;
    views[i] = (pyr_lane_view){ .pages = (void **)&pairs[i].to, .positions = positions,
                                .rows = PYR_PAGE_ROWS, .born = born, .packed = &is_packed,
                                .frame = lane->frame };
    views[count + i] = (pyr_lane_view){ .pages = (void **)&pairs[i].from, .positions = positions,
                                        .rows = PYR_PAGE_ROWS, .born = born };
  }
  PYR_TRY(be->iota(be, idx, 0, PYR_PAGE_ROWS));
  return be->gather(be, views, views + count, (int)count, pool->layout, idx, PYR_PAGE_ROWS);
}

/* Pages that are packed take the places of the plain ones; where one could not be had, none of the
 * layer is, and nothing has changed. */
static void pack_all(pyr_cache *cache, pair *pairs, int64_t count, pyr_lane_view *views,
                     int32_t *idx) {
  pyr_status status = PYR_OK;
  int64_t coming = cache->pool->coming;
  cache->pool->coming = pyr_max(coming, count);
  for (int64_t i = 0; i < count && status == PYR_OK; i++) status = take_page(cache, &pairs[i]);
  cache->pool->coming = coming;
  if (status == PYR_OK) status = pack_pairs(cache, pairs, count, views, idx);
  for (int64_t i = 0; i < count; i++) {
    pyr_lane *lane = pairs[i].lane;
    int64_t at = pairs[i].page;
    if (status != PYR_OK) {
      pyr_page_free(cache->pool, pairs[i].fresh);
      continue;
    }
    pyr_page_free(cache->pool, lane->pages[at]);
    pyr_lane_set_page(lane, at, pairs[i].fresh);
    pyr_digests_stale(&lane->digests, at * PYR_PAGE_ROWS);   /* they are to be of what is read */
  }
}

/* Counts the layer's pages, then lists and packs them: all heads in one call, as the pages of all
 * are shared out among threads. */
void pyr_cache_pack_layer(pyr_cache *cache, int layer) {
  pyr_pool *pool = cache->pool;
  pyr_runtime *rt = pool->rt;
  int64_t count = 0, listed = 0;
  if (!pyr_layout_packs(pool->layout)) return;
  for (int head = 0; head < cache->heads; head++) {
    pyr_lane *lane = pyr_cache_lane(cache, layer, head);
    run r = lane->frame ? to_pack(lane) : (run){ 0, 0 };
    if (r.end > r.begin
        && pyr_lane_learn(cache, lane, r.begin * PYR_PAGE_ROWS, r.end * PYR_PAGE_ROWS))
      count += r.end - r.begin;
  }
  if (count == 0) return;
  size_t pair_bytes = (size_t)count * sizeof(pair),
      view_bytes = (size_t)(2 * count) * sizeof(pyr_lane_view),
      idx_bytes = PYR_PAGE_ROWS * sizeof(int32_t);
  pair *pairs = pyr_alloc_zero(rt, pair_bytes);
  pyr_lane_view *views = pairs ? pyr_alloc(rt, view_bytes) : NULL;
  int32_t *idx = views ? pool->be->alloc(pool->be, idx_bytes) : NULL;
  for (int head = 0; head < cache->heads && idx; head++) {
    pyr_lane *lane = pyr_cache_lane(cache, layer, head);
    run r = to_pack(lane);
    for (int64_t p = r.begin; p < r.end && lane->frame->learned; p++)
      pairs[listed++] = (pair){ .lane = lane, .page = p };
  }
  if (listed) pack_all(cache, pairs, listed, views, idx);
  pool->be->release(pool->be, idx, idx ? idx_bytes : 0);
  pyr_release(rt, views, views ? view_bytes : 0);
  pyr_release(rt, pairs, pairs ? pair_bytes : 0);
}

void pyr_cache_pack(pyr_cache *cache) {
  for (int layer = 0; layer < cache->layers; layer++) pyr_cache_pack_layer(cache, layer);
}

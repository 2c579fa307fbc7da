/* tidy.c — a cache that has lost rows gives their memory back.
 *
 * Pages are cut from slabs, and a slab is given back with its last page (pages.c). A prompt of
 * 1,000 tokens fills slabs lane by lane; of an eviction to a fifth each lane's first pages are
 * left, and so some in every slab:
 *
 *     slabs     [a a a a a a a a][b b b b b b b b][c c c c c c c c]      of lanes a, b, c
 *     evicted   [a a . . . . . .][b b . . . . . .][c c . . . . . .]      none is given back
 *     tidied    [a a b b c c . .]                                        two are
 *
 * Pages of the slabs that are emptiest are copied to others, and take the old ones' places in their
 * lanes: contents, order and what is counted stay. A page that a fork holds, too, stays where it
 * is. It happens at the end of calls by which rows left, where free pages are more than a hundredth
 * of what is held; nothing can go wrong: where there is no memory for a copy, the rest stays. On
 * devices, whose memory is their own, pages are not moved. */
#include "cache/cache.h"

static pyr_status move_page(pyr_cache *cache, pyr_lane *lane, int64_t at) {
  pyr_pool *pool = cache->pool;
  pyr_page *old = lane->pages[at], *fresh = NULL;
  PYR_TRY(pyr_page_replacement(pool, old->kind, &fresh));
  pyr_status status = pool->be->copy(pool->be, fresh->data, old->data,
                                     pool->page_bytes[old->kind]);
  pyr_page_free(pool, status == PYR_OK ? old : fresh);
  if (status == PYR_OK) pyr_lane_set_page(lane, at, fresh);
  return status;
}

static void move_pages(pyr_cache *cache) {
  pyr_status status = PYR_OK;
  for (int64_t i = 0; i < pyr_cache_lane_count(cache); i++) {
    pyr_lane *lane = &pyr_cache_lanes(cache)[i];
    for (int64_t p = 0; p < lane->page_count && status == PYR_OK; p++)
      if (lane->pages[p]->refs == 1 && pyr_page_leaves(lane->pages[p]))
        status = move_page(cache, lane, p);
  }
}

/* The tier of each of the caches that has this pool, or NULL. */
static pyr_cache *tier_in(pyr_cache *cache, const pyr_pool *pool) {
  while (cache && cache->pool != pool) cache = cache->below;
  return cache;
}

void pyr_caches_tidy(pyr_cache *const *caches, int count) {
  pyr_pool *pool = count > 0 ? caches[0]->pool : NULL;
  for (; pool; pool = pool->below) {
    if (!pyr_pool_gaping(pool)) continue;
    for (int kind = 0; kind < PYR_PAGE_KINDS; kind++) {
      if (!pyr_pool_thin(pool, kind)) continue;
      for (int i = 0; i < count; i++) {
        pyr_cache *tier = tier_in(caches[i], pool);
        if (tier) move_pages(tier);
      }
    }
    pyr_pool_thinned(pool);
  }
}

void pyr_cache_tidy(pyr_cache *cache) { pyr_caches_tidy(&cache, 1); }

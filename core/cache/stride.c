/* stride.c — decode steps that do not look at lanes.
 *
 * A step of 88 sequences of 40 layers of 40 lanes adds a row to 140,800 lanes, and 31 of 32 such
 * steps change nothing of a lane but how many rows it has: page, table and arrays stay where they
 * are. On a backend that keeps the lanes' views in its own memory (`list_lanes`), where `store`
 * counts the rows that it writes, such a step need not touch lanes at all: their layer is in a
 * stride, which says for all of them how many rows they hold more than they count.
 *
 *     step              1      2 .. 20        21         22 .. 52       53
 *     lanes of 600      look   -              look       -              evict
 *     stride left       23     22 .. 4 .. 0   begins     31 .. 1        (ended by whoever looks)
 *     ahead              1      2 ..   24     1           2 .. 32
 *
 * Whoever takes a lane by pyr_cache_lane or pyr_cache_lanes, whatever for, ends the stride of its
 * layer: rows are counted into the lanes first. So nothing but a step, and questions for numbers of
 * rows, knows of strides. A step begins those that are over (resident.c), when its rows are
 * reserved and all pages are known.
 *
 * `shown` is the host's copy of what the backend has. Views are compared with it when a stride
 * begins, so that one that begins at the edge of a page sends nothing but the page's address.
 * Where the two may differ, as a step failed half way, it is forgotten, and all is sent. */
#include "cache/cache.h"

#include <string.h>

static size_t views_bytes(const pyr_cache *cache) {
  return (size_t)pyr_cache_lane_count(cache) * sizeof(pyr_lane_view);
}

/* A failed step's lanes go back to their marks: of 600 rows and 5 ahead, of which the last is the
 * step's (mark 4), 605 rows, and the mark is 604. */
void pyr_stride_end(const pyr_cache *cache, int layer) {
  pyr_stride *stride = &cache->strides[layer];
  int64_t first = (int64_t)layer * cache->heads;
  for (int64_t i = first; i < first + cache->heads; i++) {
    pyr_lane *lane = &cache->lane_list[i];
    lane->mark = lane->rows + stride->mark;
    lane->rows += stride->ahead;
    cache->shown[i].rows += stride->ahead;
  }
  *stride = (pyr_stride){ 0 };
}

/* Lanes count what is theirs first. No view of a lane that has rows has no pages. */
void pyr_strides_forget(pyr_cache *cache) {
  (void)pyr_cache_lanes(cache);
  if (cache->shown) memset(cache->shown, 0, views_bytes(cache));
}

void pyr_strides_free(pyr_cache *cache) {
  pyr_backend *be = cache->pool->be;
  be->release(be, cache->resident, cache->resident ? views_bytes(cache) : 0);
  pyr_release(cache->pool->rt, cache->shown, cache->shown ? views_bytes(cache) : 0);
  cache->resident = cache->shown = NULL;
}

/* undo.h — how a prefill that fails gets the rows back that were there before it.
 *
 * New rows are dropped again. Older rows change only in a layer whose plan evicts: their places,
 * and what is tracked of them. So a layer's positions and history are copied before its tokens are
 * read; and before a lane evicts,
 *   - the losers among its older rows are put aside, where rows only move: the lane's own pages
 *     then serve on, and what a prefill takes beyond the rows that it leaves are those it evicts,
 *     not all that there were;
 *   - or its pages are kept, where keys or values change (merged, turned), where the lane may be
 *     cut again before the prefill ends, or where a fork holds the pages anyway: survivors then go
 *     to fresh pages.
 *
 *     before     0 1 2 3 | 4 5            an older lane of 4 rows gets two more; its plan evicts 1
 *     after      0 2 3 4 5                and would leave this;
 *     aside      1                        row 1 is copied here first, and the positions 0..3
 *     restored   0 1 2 3                  by position: 0, 2, 3 from the lane, 1 from aside
 *
 * What is put aside is working memory of the call, as activations are; kept pages count as the
 * pool's. While an undo lives, a lane keeps the pages that its older rows took (pyr_lane.floor), so
 * that going back needs no memory, and cannot fail for want of it. */
#ifndef PYR_UNDO_H
#define PYR_UNDO_H

#include "cache/cache.h"

typedef struct pyr_undo pyr_undo;

/* Fails by lack of memory alone; then there is no undo, and lanes are as before. */
pyr_status pyr_undo_new(pyr_cache *cache, pyr_undo **out);  /* cache->undo; lanes are marked */
pyr_status pyr_undo_layer(pyr_undo *undo, int layer);  /* before the layer's tokens are stored */
/* Before `count` equally long lanes from `head` on evict all but rows idx[0..kept). `moves`: rows
 * keep their K and V. */
pyr_status pyr_undo_lanes(pyr_undo *undo, int layer, int head, int count, const int32_t *idx,
                          int64_t kept, bool moves);
void pyr_undo_keep(pyr_undo *undo);  /* the prefill is done; frees it. NULL is legal */
void pyr_undo_restore(pyr_undo *undo);  /* rows are as they were at pyr_undo_new; frees it */

#endif

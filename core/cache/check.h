/* check.h — what must be true of a layer's lanes whenever a plan has been carried out. Debug builds
 * look (make DEBUG=1, which sets PYR_DEBUG); elsewhere it is nothing.
 *
 * A lane of 70 rows, with pages of 32:
 *
 *     pages      [ 0..31 ][ 32..63 ][ 64..95 ]   three, as many as its rows need; each is held
 *     positions   0 1 4 … ascending …    | unused   70 of them, in room for 96 or more
 *     history     0.3 0.1 …              | 0 0 0    zeros behind the last row: a row that comes
 *                                                   begins with none */
#ifndef PYR_CHECK_H
#define PYR_CHECK_H

#include "cache/cache.h"

#ifdef PYR_DEBUG
/* PYR_ARGUMENT, the library's own fault: the message names the lane and what is not true of it. */
pyr_status pyr_cache_check_layer(const pyr_cache *cache, int layer);
#else
static inline pyr_status pyr_cache_check_layer(const pyr_cache *cache, int layer) {
  (void)cache, (void)layer;
  return PYR_OK;
}
#endif

#endif

/* learned.h — a learned map on the backend: what steps multiply hidden states with, where a
 * policy's trigger tracks a learned score (PYR_S_LEARNED; KVzap, arXiv 2601.07891).
 *
 * Of each layer and K/V head it holds w [width] and b: a token's row in that lane is given w . x +
 * b of the normed hidden state x that its key and value are made of, once, when it is made. The
 * numbers are copied out of the policy's table when a cache first tracks it, and shared with the
 * forks of that cache.
 *
 *     weights   [layer 0: heads x width, padded][layer 1: ...] ...
 *     biases    [layer 0: heads][layer 1: heads] ...
 *
 * Of 30 layers of 3 heads and width 576, 208 KiB. */
#ifndef PYR_LEARNED_H
#define PYR_LEARNED_H

#include "cache/pages.h"

typedef struct pyr_learned {
  pyr_pool *pool;          /* of the first cache that held it; retained */
  int refs;
  int32_t number;          /* of the policy's table */
  int32_t heads;           /* K/V heads a layer */
  int64_t width, step;     /* step: floats from one layer's weights to the next's */
  float *weights, *biases; /* backend memory */
  size_t bytes;            /* of the block that both lie in */
} pyr_learned;

/* values: host [layers][heads, width + 1], b last, layers `apart` heads from each other.
 * PYR_MEMORY.
 */
pyr_status pyr_learned_new(pyr_pool *pool, int32_t number, const float *values, int32_t layers,
                           int32_t heads, int64_t apart, int64_t width, pyr_learned **out);
pyr_learned *pyr_learned_retain(pyr_learned *map);   /* NULL is legal */
void pyr_learned_free(pyr_learned *map);             /* NULL is legal */
/* The scores of n tokens: out [n, heads] of in [n, width], by the map of one layer. */
pyr_status pyr_learned_apply(const pyr_learned *map, int layer, float *out, const float *in,
                             int64_t n);

#endif

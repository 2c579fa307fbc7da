/* probe.h — passes that read tokens over a cache to see what they attend to, and leave no rows.
 *
 * One pass is a prefill's walk, layer by layer and chunk by chunk, without logits and without a
 * plan: its rows join the lanes of a layer, its queries attend, what they give to the rows that are
 * judged is tracked, and the rows leave again before the next layer begins. So a pass of n tokens
 * takes room for n rows of one layer, and what it finds out is one number a row (cache/probed.h).
 * */
#ifndef PYR_PROBE_H
#define PYR_PROBE_H

#include "cache/cache.h"

/* Reads the prompt of a prefill once more, in blocks, as its preparation says. Its n tokens (ids,
 * or embeddings in their place) are the last rows of each lane, and the cache does not count them
 * yet. Numbers come to cache->probed, which is anew. Progress goes on from `done` token-layers, of
 * `total`. On failure lanes hold what they held. */
typedef struct pyr_prompt_source {
  const int32_t *ids;              /* host [n], or … */
  const float *embeddings;         /* … host [n, width]; one is NULL */
  int64_t n;
} pyr_prompt_source;

pyr_status pyr_probe_prompt(pyr_cache *cache, const pyr_preparation *how,
                            const pyr_prompt_source *prompt, int64_t done, int64_t total);
/* Tokens that those passes will read; PYR_CONTEXT: there is no room for any. */
pyr_status pyr_probe_tokens(const pyr_cache *cache, const pyr_preparation *how, int64_t n,
                            int64_t *tokens);

#endif

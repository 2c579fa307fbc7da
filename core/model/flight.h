/* flight.h — stages of a pipeline, as hosts see them: which layers each should have, and prompts of
 * several sequences, which stages read at the same time (docs/ranks.md). */
#ifndef PYR_FLIGHT_H
#define PYR_FLIGHT_H

#include "pyramid.h"

/* ids[i] [n[i]] -> caches[i], as pyr_cache_prefill reads them without flags, and the last logits to
 * logits[i] [vocab]. *done: the first so many are read, the others as before; fewer than `count`
 * where one fails, whose status this is, and 0 with PYR_OK where they are to be read one by one: a
 * process that is no stage, a policy that prepares its plans, a sequence twice. */
pyr_status pyr_prefill_flight(pyr_cache *const *caches, const int32_t *const *ids,
                              const int64_t *n, int count, float *const *logits, int *done);

/* layers [stages]: how many each should have, so that the one that has most to do has as little as
 * can be; cost [count] of each layer, above 0, and tail, of what follows the last one. 0, or -1
 * where layers are fewer than stages, or these more than there may be. */
int pyr_stages_deal(const double *cost, int count, double tail, int stages, int32_t *layers);

#endif

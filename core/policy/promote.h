/* promote.h — rows of lower tiers come up where a trigger says so (pyr_trigger.recall): before the
 * step at whose end its plan ranks them with the others. */
#ifndef PYR_PROMOTE_H
#define PYR_PROMOTE_H

#include "cache/cache.h"

/* Rows of the layer's lower lanes carry a history, if its trigger recalls. */
pyr_status pyr_recall_reserve(pyr_cache *cache, int layer);
/* In each layer whose trigger fires at the end of the next step: those rows of each lane come up
 * that were given most, as many as it says, or fewer where there are fewer. All or nothing; nothing
 * where the budget has no room for them. */
pyr_status pyr_cache_recall(pyr_cache *cache);

#endif

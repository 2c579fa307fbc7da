/* tiers.h — rows between the tiers of a cache: down, where a plan demotes its losers, where a tier
 * is full or where memory is short; and up again.
 *
 *     hot     f16     0 1 2 3 . . . . . . 40 41 … 99     rows are appended here, plans judge these
 *     warm    q8_0    . . . . 4 7 9 . . 31               in the order of positions, as everywhere
 *     cold    file    . . . . . . . 5 6 8                a position is in one tier only
 *
 * Rows of one lane of a tier go to the lane of the same layer and head of another. A lane that
 * gives or takes rows is composed anew behind its first pages, which it keeps (pyr_lane_remake), so
 * that a failure leaves it as it was, and so do forks and snapshots that share its pages. Who calls
 * with several lanes has an undo or a snapshot behind it. */
#ifndef PYR_TIERS_H
#define PYR_TIERS_H

#include "cache/cache.h"

/* While rows go from tier to tier they lie in both for a moment, and in a snapshot: in between
 * budgets are not asked. */
pyr_measure pyr_tiers_lift(pyr_cache *cache);
/* … and then, unless `status` says that something else has failed, PYR_BUDGET if the cache's rows
 * take more than they did, and more than the budget allows. */
pyr_status pyr_tiers_lower(pyr_cache *cache, const pyr_measure *before, pyr_status status);

/* Copies rows of `count` hot lanes of a layer, from `head` on, that are not among idx [kept],
 * ascending backend memory, down to a tier. The caller's gather then takes them out of the hot
 * lanes. Budgets are lifted. */
pyr_status pyr_tier_demote(pyr_cache *cache, int layer, int head, int count, const int32_t *idx,
                           int64_t kept, pyr_tier to);
/* Lower tiers that hold more than they may hand their oldest rows on. Budgets are lifted.
 * PYR_BUDGET: there is no tier below that could take them. */
pyr_status pyr_tiers_settle(pyr_cache *cache, const pyr_measure *before);
/* Rows come[0..n) of a lane of the tier `from`, ascending host memory, come up to the hot lane.
 * Budgets are lifted. */
pyr_status pyr_tier_promote(pyr_cache *cache, pyr_cache *from, int layer, int head,
                            const int32_t *come, int64_t n);
/* Makes room for `rows` more rows of every lane by moving the oldest down, if the pool is pressed:
 * all of it or nothing. *freed: bytes, 0 where nothing can go. */
pyr_status pyr_tiers_relieve(pyr_cache *cache, int64_t rows, size_t *freed);

#endif

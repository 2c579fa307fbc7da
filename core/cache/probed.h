/* probed.h — what a probe found out of the rows that a cache holds: one number a row, beside the
 * lanes and not in them.
 *
 * A probe reads tokens over a cache, tracks what their queries give to its rows, and leaves no rows
 * (model/probe.h). Its numbers are of the rows as they lie at that moment: the first call that
 * adds, moves or drops rows ends them. So they need not follow rows through gathers, forks and
 * files, as a history does:
 *
 *     cache:probe(...)     numbers are there: cache:scores and plans may read them
 *     cache:evict(...)     ranks by them; rows move: they are gone
 *
 * Of 30 layers of 3 lanes of 1,024 rows, 360 KiB: what two rows in each lane take. */
#ifndef PYR_PROBED_H
#define PYR_PROBED_H

#include "cache/pages.h"

typedef struct pyr_probed {
  pyr_pool *pool;          /* that of the cache whose rows they are, which outlives them */
  int64_t lanes;           /* layers * heads, in the cache's order */
  int64_t *at;             /* host [lanes + 1]: lane i has numbers [at[i], at[i + 1]) … */
  float *values;           /* … of these, one a row; backend memory */
} pyr_probed;

/* Zeros, for lanes that hold rows[i] rows each. */
pyr_status pyr_probed_new(pyr_pool *pool, const int64_t *rows, int64_t lanes, pyr_probed **out);
void pyr_probed_free(pyr_probed *probed);            /* NULL is legal */

#endif

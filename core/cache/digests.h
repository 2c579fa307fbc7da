/* digests.h — what a lane's full pages are known by, where steps read less than is held.
 *
 * Owns the memory of digests, beside a lane, and which of them are up to date. What a digest is,
 * and which pages a query picks by it, is the backend's (digest_args.h, core/cpu/digests.c). They
 * belong to the lane, not to its pages: forks have their own.
 *
 * Only full pages have one: the newest page of a lane is read whatever it holds, so that a step
 * which stores a row has nothing to do until the page is full. Digests are made when a step wants
 * to rank by them: of all pages at the first step behind a prompt, and of one page every 32 steps
 * from then on. So nobody who writes rows must make any; who changes keys says from which row on:
 *
 *     pages     0   1   2   3   4         4 is partly filled
 *     ready     *   *   *   *             4 pages: rows 0 to 127
 *     rows 70 and later move              pages 0 and 1 stay ready, 2 is made anew once it is full
 *
 * The bytes of the pages held count in the cache's, and against its budget: in f32, bounds of
 * 64 channels are 512 bytes a page, where a page of f16 rows is 8,192. */
#ifndef PYR_DIGESTS_H
#define PYR_DIGESTS_H

#include "cache/pages.h"

typedef struct pyr_digests {
  float *values;           /* [room][pyr_digest_width] backend memory; NULL: none */
  pyr_digest by;
  int64_t room;            /* pages that there is memory for, … */
  int64_t held;            /* … and those that count as held */
  int64_t ready;           /* the first so many are of the keys that lie there */
} pyr_digests;

/* Room for those of all full pages of a lane of `rows` rows; by PYR_DIGEST_NONE what there was
 * goes. All or nothing. */
pyr_status pyr_digests_reserve(pyr_pool *pool, pyr_digests *d, pyr_digest by, int64_t rows);
/* A lane that has none gets copies. */
pyr_status pyr_digests_share(pyr_pool *pool, pyr_digests *d, const pyr_digests *from);
/* Whether full pages of a lane wait for theirs, and the call that makes them; and that it has. */
bool pyr_digests_wait(const pyr_digests *d, const pyr_lane_view *lane, pyr_digests_of *call);
void pyr_digests_made(pyr_digests *d, const pyr_lane_view *lane);

/* These cannot fail. Keys of rows from `row` on have changed, or will; the first pages left; all
 * rows but the first `rows` did. */
void pyr_digests_stale(pyr_digests *d, int64_t row);
void pyr_digests_slide(pyr_pool *pool, pyr_digests *d, int64_t pages);
void pyr_digests_trim(pyr_pool *pool, pyr_digests *d, int64_t rows);
void pyr_digests_free(pyr_pool *pool, pyr_digests *d);
size_t pyr_digests_bytes(const pyr_pool *pool, const pyr_digests *d);

#endif

/* reading.h — a step's tokens that read less than is held: what of which tier each attends to.
 *
 * Owns the views of picked pages and where they lie during a step. Which pages a query picks is the
 * backend's (backend/digest_args.h), what a page is known by is the lane's (cache/digests.h); how
 * much is read is the plan's, kept with the layer (pyr_read).
 *
 *     sequences    a  b  c        b reads all rows
 *     readings     [a][c]         of their own lanes, tier below tier
 *     attention    a' b  c'       a', c': what was picked, or the lane itself where it is short
 *
 * The pages of all tiers of a lane compete: of 1,024 rows that are read 300 may be hot and 724 lie
 * in a file, which is read where it is mapped and as far as it is picked. */
#ifndef PYR_READING_H
#define PYR_READING_H

#include "model/forward.h"

typedef struct pyr_readings {
  int64_t tokens, pages;           /* of sequences of which some layer reads less than it holds, and
                                      the most pages that it reads of a lane in a tier */
  int64_t longest;                 /* rows of all tiers of a lane, with room for pages that are not
                                      full */
  int depth;                       /* tiers */
  pyr_reading *each;               /* host [tokens] of hot lanes, … */
  pyr_reading *lower;              /* … host [tokens * (depth - 1)] and of those below */
  const pyr_reading **of;          /* host [the step's tokens] each one's in this layer, or NULL */
  pyr_lane_view *views;            /* host [tokens * (depth - 1) * kv_heads] lanes below */
  pyr_lane_view *picked;           /* host [tokens * depth * kv_heads] what is read; of each */
  void **picked_pages;             /* … host [pages], */
  uint8_t *picked_packed;          /* … host [pages] and … */
  int32_t *picked_positions;       /* … backend memory [pages * PYR_PAGE_ROWS] */
  const float **digests;           /* host [tokens * depth * kv_heads] */
  pyr_digests_of *digesting;       /* host [kv_heads] */
} pyr_readings;

/* Counts what `each` tokens of every sequence need, all of one depth; then the parts of the host's
 * memory and of the backend's (arena.h), for a step of `step` tokens. */
void pyr_readings_count(pyr_readings *r, pyr_cache *const *caches, int count, int each);
void pyr_readings_layout_host(pyr_readings *r, int64_t step, int32_t kv_heads, pyr_arena *arena);
void pyr_readings_layout(pyr_readings *r, int32_t kv_heads, pyr_arena *arena);
/* Room for the digests of a layer's lanes, in all tiers, with `more` rows in the hot ones. */
pyr_status pyr_readings_reserve(pyr_cache *cache, int layer, int64_t more);
/* Tokens of sequences whose layer reads less than it holds get other lanes to attend to: calls
 * [count * each] are of one query each, and know their hot lanes. r->of says what of lower ones.
 */
pyr_status pyr_readings_pick(pyr_readings *r, const pyr_forward *f, int layer,
                             pyr_cache *const *caches, int count, int each, pyr_attention *calls);

#endif

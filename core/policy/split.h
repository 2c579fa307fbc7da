/* split.h — how a plan falls on the lanes of one layer: which rows are guarded, which are
 * candidates, and how many of the candidates survive.
 *
 * A row is one token's K and V. A lane is the rows of one (sequence, layer, K/V head), in the order
 * of their positions. A plan cuts each lane into three:
 *
 *     row     0  1  2  3    4  5  6  7  8  9 10 11    12 13 14 15
 *             [  first  ]   [     candidates     ]    [   last  ]
 *               guarded        ranked by score          guarded
 *
 * Guarded rows survive whatever their scores. `keep` counts them in. In the lane above, of 16 rows:
 *
 *     keep 10, guards 4 and 4             8 candidates, of which 10 - 8 = 2 survive: min = max = 2
 *     keep 6,  guards 4 and 4             guards win: none of the candidates survives, 8 rows stay
 *     keep 20, guards 4 and 4             all 8 candidates survive: the lane is left whole
 *     keep 10, least 9, mass 0.9          1 to 2 survive: as few as hold 0.9 of their scores' sum
 *     keep 16, above 0.5                  0 to 8 survive: all whose score is 0.5 or more
 *
 * Lanes of one layer may differ in length. Each is cut by its own rows; guards and windows count
 * from its own ends.
 *
 * A split is worked out once, when the plan has been asked for, and holds until the plan has been
 * carried out: it counts the rows that the layer is about to get, so that it does not change while
 * they come. */
#ifndef PYR_SPLIT_H
#define PYR_SPLIT_H

#include "cache/cache.h"

typedef struct pyr_split {   /* of one lane: rows = first + candidates + last */
  int64_t rows, first, candidates, last;
  int64_t min, max;          /* so many candidates survive (share = "pool": max is all of them, as
                                only their number in all lanes is bounded, and likewise "model") */
} pyr_split;

typedef struct pyr_splits {  /* of one plan, on all lanes of one layer */
  pyr_cache *cache;
  int32_t layer;
  const pyr_plan *plan;
  pyr_when when;
  int64_t coming;            /* rows that each lane gets before the plan runs */
  int64_t past;              /* rows of the longest lane from before the prompt, where only the
                                prompt's own are judged, else 0 */
  pyr_split *lanes;          /* host [heads] */

  /* what follows from them */
  bool needed;               /* whether any row may go */
  bool turns;                /* running the plan turns keys: lanes need wide pages */
  int32_t groups, members;   /* lanes are ranked in `groups` sets of `members` lanes each, which lie
                                one after the other: 1 and heads, or heads and 1 */
  int64_t longest, total;    /* candidates of the lane that has most, and of all lanes */
  int64_t budget, promised;  /* rows that all lanes may keep beside their guards, which may be below
                                0; candidates that survive whatever the others' scores */
  int64_t own_total;         /* candidates of this rank's lanes: of several ranks `total`, `budget`
                                and `promised` are of all lanes that compete */
  int64_t pooled;            /* share = "pool": at most so many of all candidates survive */
  int64_t rows;              /* of the longest lane */
  int64_t rows_after;        /* at most so many are left in the longest lane */
} pyr_splits;

/* Whether the operation reads what the layer read, which only the prompt's own rows have. */
static inline bool pyr_signal_reads_inputs(const pyr_score_op *op) {
  return op->code == PYR_S_LEARNED || (op->code == PYR_S_CUSTOM && op->b);
}
/* Whether it is a learned score that rows carry, as `track` is what their layer tracks. */
static inline bool pyr_signal_is_carried(const pyr_score_op *op, const pyr_score_op *track) {
  return op->code == PYR_S_LEARNED && track->code == PYR_S_LEARNED && op->n == track->n;
}

/* Whether scores decide how many rows of a lane survive, and `keep` only how many at most. Of such
 * a plan only the most is known before it runs: memory is reserved for that, and a number a lane is
 * read back. */
static inline bool pyr_plan_is_open(const pyr_plan *plan) {
  return plan->mass > 0 || plan->bounded;
}

/* Whether lanes of one length are of one length after it, whatever the scores: what compacted
 * layers need, as the next key goes to the index that is next in all of them. */
static inline bool pyr_plan_keeps_equal(const pyr_plan *plan) {
  return plan->share == PYR_SHARE_LAYER
      || (plan->share == PYR_SHARE_HEAD && plan->keep_count == 0 && plan->weight.length == 0
          && !pyr_plan_is_open(plan));
}

/* lanes: room for [heads]. The plan must outlive the splits. */
void pyr_splits_make(pyr_splits *out, pyr_cache *cache, int layer, const pyr_plan *plan,
                     pyr_when when, int64_t coming, pyr_split *lanes);
/* What follows from total, budget and promised: pooled, and whether any row may go. */
void pyr_splits_settle(pyr_splits *s);
/* Whether a plan shares its budget with other layers' plans: rows compete, or weights divide it. */
static inline bool pyr_plan_unites(const pyr_plan *plan) {
  return plan->share == PYR_SHARE_MODEL || plan->weight.length > 0;
}
/* Whether what a lane keeps is settled by scores: of its layer, or of several. */
static inline bool pyr_splits_compete(const pyr_splits *s) {
  return s->plan->share == PYR_SHARE_POOL || pyr_plan_unites(s->plan);
}
/* Whether any candidate of this lane may go. */
bool pyr_split_loses(const pyr_splits *s, int head);
/* The first row of a lane that running the plan writes; pages before it may stay shared. */
int64_t pyr_split_first_written(const pyr_splits *s, int head);
/* Why the plan cannot run on these lanes: NULL, or what is wrong with *field. */
const char *pyr_splits_fault(const pyr_splits *s, const char **field);

#endif

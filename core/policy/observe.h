/* observe.h — what a plan's score and the layer's tracking take of a prompt's queries, gathered
 * while the layer reads the prompt.
 *
 * The attention of n tokens to n rows is n * n numbers, which nobody stores. But a score asks for
 * sums over queries (or the highest): one number a row and query head. So right after a chunk's
 * attention, while the denominators of its softmax are at hand (`lse`), its queries are looked at
 * once more, and what they gave to each candidate is added:
 *
 *     sum[h][j] += w(q, j) * exp(scale * q_h . k_j - lse_h(q))      (the backend's `mass`)
 *
 *                    candidates of a lane
 *     queries   ..................................
 *     of the    ..................................    most scores ask for the last few queries
 *     prompt    ##################################    (a recent window): only chunks that hold some
 *               ##################################    of those are looked at (pyr_observe_wants)
 *                sum over these rows, per query head
 *
 * A variance over queries takes the sum of their squares beside it, [heads, rows] once more; an
 * entropy sums -p ln p in its place.
 *
 * A backend that has these probabilities at hand in attention may sum them there: it is told before
 * (pyr_observe_ask), and what it leaves is asked of `mass` afterwards.
 *
 * Tracking (track.h) asks the same for all rows that a decode plan may rank, and its sums go to the
 * lanes' history. Expected attention asks for the queries' mean and covariance (query_stats.h).
 *
 * A learned score asks for no query, but for what the layer read at each token: its normed hidden
 * state. That is gone when the layer ends, so the map is applied chunk by chunk: to three numbers a
 * token, where the layer has three K/V heads. Only a custom score that says so has the inputs
 * themselves kept, [alive, width], until it has run. */
#ifndef PYR_OBSERVE_H
#define PYR_OBSERVE_H

#include "base/arena.h"
#include "policy/track.h"

/* Sums of a chunk's queries: two of a variance, and one more that is tracked. */
enum { PYR_OBSERVED_MAX = 2 * PYR_SCORE_MAX + 1 };

typedef struct pyr_observation {
  const pyr_splits *splits;        /* of the plan that is about to run */
  pyr_score program;               /* its score's operations and, behind them, its weight's */
  const pyr_trigger *trigger;      /* that the layer has, or gets */
  int64_t last_position;           /* of the prompt's last token */
  pyr_signals signals;             /* what the score reads */
  bool expects;                    /* the score expects attention: every query is looked at */
  bool learns;                     /* the score reads what the layer read: every input is */
  float *maps[PYR_SCORE_MAX];      /* by op: PYR_S_LEARNED's, of this layer [K/V heads, width] */
  pyr_prompt_track track;          /* what is tracked, into … */
  float *tracked;                  /* … [query heads, tracked_stride], or NULL: nothing */
  int64_t tracked_stride;
  float *mean;                     /* [tracked_stride] over the heads of a lane */
  pyr_range *ranges[2];            /* host [K/V heads] each: candidates, and what is tracked */
  pyr_mass *list;                  /* host [PYR_OBSERVED_MAX] */
  pyr_masses masses;               /* of the chunk that is being read: those of the list */
  float *zeros;                    /* sums begin at zero: these, … */
  int64_t zero_count;
} pyr_observation;

/* `restarts`: the layer gets its trigger now. `fault` is backend memory, as in pyr_signals. */
void pyr_observe_begin(pyr_observation *o, const pyr_splits *splits, const pyr_trigger *trigger,
                       bool restarts, int64_t last_position, int32_t *fault);
void pyr_observe_layout_host(pyr_observation *o, int32_t heads, pyr_arena *host);
void pyr_observe_layout(pyr_observation *o, pyr_arena *arena);
/* Before the first chunk: sums are zero, and maps are where they are needed. */
pyr_status pyr_observe_start(pyr_observation *o);
/* Whether alive queries [at, at + n) are to be looked at. */
bool pyr_observe_wants(const pyr_observation *o, int64_t at, int64_t n);
/* Looks at the inputs of alive tokens [at, at + n): in [n, width], what q, k and v were made of. */
pyr_status pyr_observe_inputs(pyr_observation *o, const float *in, int64_t at, int64_t n);
/* Before the attention of alive queries [at, at + a->n), whose lse is set: lets it sum up what it
 * can (pyr_masses). */
void pyr_observe_ask(pyr_observation *o, pyr_attention *a, int64_t at);
/* Looks at them after it. turned_to [a->n]: the positions that rope turned them to, which in a
 * compacted layer are not theirs. */
pyr_status pyr_observe_queries(pyr_observation *o, const pyr_attention *a,
                               const int32_t *turned_to, int64_t at);
/* All queries have been seen: signals are complete, and history holds what was tracked. */
pyr_status pyr_observe_end(pyr_observation *o);

#endif

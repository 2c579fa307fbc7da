/* trace.h — what a plan was and what it came to, for whoever asked to be told (pyr_tracer).
 *
 * Lives beside the plan that it is about. Where nobody is told, each of these is one comparison.
 * The order in a plan's life:
 *
 *     start … stop                 looking at queries, once a chunk (prefill)
 *     rows                         before the first row moves: what there is, which are candidates
 *     start … stop                 ranking, evicting; in decode all plans rank before the first
 *                                  one evicts, so each has two such spans
 *     tell                         the record, to the callback */
#ifndef PYR_TRACE_H
#define PYR_TRACE_H

#include "policy/score.h"
#include "policy/split.h"

typedef struct pyr_trace_run {
  pyr_policy policy;  /* whose plan it is: an eviction may be by another's than the cache's */
  pyr_spread rows, candidates;
  double began, seconds;
} pyr_trace_run;

static inline bool pyr_trace_wanted(const pyr_cache *cache) { return cache->tracer.trace != NULL; }

void pyr_trace_start(pyr_trace_run *t, const pyr_splits *s);
void pyr_trace_stop(pyr_trace_run *t, const pyr_splits *s);
void pyr_trace_rows(pyr_trace_run *t, const pyr_splits *s);
/* tokens: that the cache has seen, with those of the call that runs. hidden_kept: of the tokens
 * that reached the layer in a prefill, those that go on. What the callback returns. */
pyr_status pyr_trace_tell(const pyr_trace_run *t, const pyr_splits *s, int64_t tokens,
                          int64_t hidden_kept);

#endif

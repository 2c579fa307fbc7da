/* query_stats.h — what a prompt's queries were on the whole: their moments before RoPE, from which
 * attention is expected.
 *
 * Expected Attention (arXiv 2510.00636) takes the queries yet to come for Gaussian, with the mean
 * and covariance of the prompt's, turned to where they will stand. Moments are gathered chunk by
 * chunk from the queries that a plan is shown, in memory that does not depend on how many there
 * are; `skip` leaves out the first ones, which are unlike the rest.
 *
 *     q(t) = R(t) u,  u ~ N(mean, covariance)       R(t): rope's rotation to position t
 *     expected weight of row k  =  exp(scale * m . k + scale^2 / 2 * k^T C k)
 *         m, C: mean and covariance turned by the mean rotation of the positions to come
 *
 * Soft caps and slopes of scores (pyr_attention) are left out: a capped Gaussian has no such form,
 * and a slope says only that rows fade with their distance. Sinks divide all rows of a head alike.
 *
 * A head of 64 dimensions takes 64 floats for the mean and 64 * 64 for the covariance: 16 KiB,
 * whether the prompt has 100 tokens or 100,000. */
#ifndef PYR_QUERY_STATS_H
#define PYR_QUERY_STATS_H

#include "base/arena.h"
#include "cache/cache.h"

typedef struct pyr_query_stats {
  pyr_moments moments;     /* over parts of the caller's arena */
  int64_t skip, count;     /* first queries left out; queries added */
} pyr_query_stats;

/* For a prompt of which `alive` tokens reach the layer, whose rotation it is; `covariance`: or
 * only means. */
void pyr_query_stats_layout(pyr_query_stats *q, const pyr_model *model, int layer,
                            bool covariance, int64_t alive, int64_t skip, pyr_arena *arena);
/* Adds alive queries [at, at + a->n) but for the first `skip`; rope turned them to turned_to
 * [a->n]. */
pyr_status pyr_query_stats_add(pyr_query_stats *q, pyr_backend *be, const pyr_attention *a,
                               const int32_t *turned_to, int64_t at);
/* Makes of the sums what the backend's `expected` reads, for queries at positions [next, next +
 * future). */
pyr_status pyr_query_stats_end(pyr_query_stats *q, pyr_backend *be, const pyr_model *model,
                               int64_t next, int64_t future);

#endif

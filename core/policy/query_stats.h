/* query_stats.h — what a prompt's queries were on the whole: their moments before RoPE, from which
 * attention is expected.
 *
 * Expected Attention (arXiv 2510.00636) takes the queries yet to come for Gaussian, with the mean
 * and covariance of the prompt's, turned to where they will stand. Moments are gathered chunk by
 * chunk from the queries that a plan is shown, in memory that does not depend on how many there
 * are; `skip` leaves out the first ones, which are unlike the rest. */
#ifndef PYR_QUERIES_H
#define PYR_QUERIES_H

#include "cache/cache.h"

typedef struct pyr_queries {
  pyr_moments moments;     /* over the caller's block */
  int64_t skip, count;     /* first queries left out; queries added */
} pyr_queries;

int64_t pyr_queries_floats(const pyr_model *model, bool covariance, int64_t alive);
void pyr_queries_begin(pyr_queries *q, const pyr_model *model, bool covariance, int64_t alive,
                       int64_t skip, float *block);
/* Adds alive queries [at, at + a->n) but for the first `skip`; rope turned them to turned_to
 * [a->n]. */
pyr_status pyr_queries_add(pyr_queries *q, pyr_backend *be, const pyr_attention *a,
                           const int32_t *turned_to, int64_t at);
/* Makes of the sums what the backend's `expected` reads, for queries at positions [next, next +
 * future). */
pyr_status pyr_queries_end(pyr_queries *q, pyr_backend *be, const pyr_model *model, int64_t next,
                           int64_t future);

#endif

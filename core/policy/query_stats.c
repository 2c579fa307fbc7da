/* query_stats.c — the moments of a prompt's queries, laid out in a plan's block: shift, sum, outer
 * products, scratch. */
#include "policy/query_stats.h"
#include "model/model.h"

enum { PIECE = 256 };      /* queries whose angles are held at a time */

int64_t pyr_queries_floats(const pyr_model *model, bool covariance, int64_t alive) {
  const pyr_model_config *c = &model->config;
  int64_t each = (int64_t)c->heads * c->head_dim;
  return 2 * each + (covariance ? each * c->head_dim : 0)
      + pyr_min(PIECE, pyr_max(alive, 1)) * c->rope_dims;
}

void pyr_queries_begin(pyr_queries *q, const pyr_model *model, bool covariance, int64_t alive,
                       int64_t skip, float *block) {
  const pyr_model_config *c = &model->config;
  int64_t each = (int64_t)c->heads * c->head_dim;
  *q = (pyr_queries){ .skip = skip, .moments = {
    .shift = block, .sum = block + each, .outer = covariance ? block + 2 * each : NULL,
    .turns = block + pyr_queries_floats(model, covariance, alive) - pyr_min(PIECE,
        pyr_max(alive, 1)) * c->rope_dims,
    .freq = model->rope_freq, .heads = c->heads, .head_dim = c->head_dim, .dims = c->rope_dims,
        .style = c->rope_style,
    .gain = c->rope_gain } };
}

pyr_status pyr_queries_add(pyr_queries *q, pyr_backend *be, const pyr_attention *a,
                           const int32_t *turned_to, int64_t at) {
  const pyr_moments *m = &q->moments;
  pyr_status status = PYR_OK;
  for (int64_t i = pyr_max(0, q->skip - at); i < a->n && status == PYR_OK; i += PIECE) {
    int64_t some = pyr_min(PIECE, a->n - i);
    status = be->moments(be, m, a->q + i * m->heads * m->head_dim, turned_to + i, some,
                         q->count == 0);
    q->count += some;
  }
  return status;
}

pyr_status pyr_queries_end(pyr_queries *q, pyr_backend *be, const pyr_model *model, int64_t next,
                           int64_t future) {
  return be->moments_end(be, &q->moments, q->count, next, future, model->scale);
}

/* query_stats.c — see query_stats.h. */
#include "policy/query_stats.h"
#include "model/model.h"

/* A piece's angles take 256 * rope_dims floats, 64 KiB for 64 of them, whatever a chunk's
 * length. */
enum { PIECE = 256 };      /* queries whose angles are held at a time */

void pyr_query_stats_layout(pyr_query_stats *q, const pyr_model *model, int layer,
                            bool covariance, int64_t alive, int64_t skip, pyr_arena *arena) {
  const pyr_model_config *c = &model->config;
  int64_t each = (int64_t)c->heads * c->head_dim, piece = pyr_min(PIECE, pyr_max(alive, 1));
  pyr_turn turn = pyr_model_turn(model, layer);
  *q = (pyr_query_stats){ .skip = skip, .moments = {
    .freq = turn.freq, .heads = c->heads, .head_dim = c->head_dim, .dims = turn.dims,
    .style = turn.style, .gain = turn.gain } };
  PYR_PART(arena, q->moments.shift, each);
  PYR_PART(arena, q->moments.sum, each);
  if (covariance) PYR_PART(arena, q->moments.outer, each * c->head_dim);
  PYR_PART(arena, q->moments.turns, piece * turn.dims);
}

/* The first `skip` alive queries are left out: of chunks at 0 and 512 with skip 600, the first
 * gives none, the second begins at its query 88. The first piece that counts also sets the shift
 * that sums are taken from (`count` is 0 then). */
pyr_status pyr_query_stats_add(pyr_query_stats *q, pyr_backend *be, const pyr_attention *a,
                               const int32_t *turned_to, int64_t at) {
  const pyr_moments *m = &q->moments;
  for (int64_t i = pyr_max(0, q->skip - at); i < a->n; i += PIECE) {
    int64_t some = pyr_min(PIECE, a->n - i);
    PYR_TRY(be->moments(be, m, a->q + i * m->heads * m->head_dim, turned_to + i, some,
                        q->count == 0));
    q->count += some;
  }
  return PYR_OK;
}

pyr_status pyr_query_stats_end(pyr_query_stats *q, pyr_backend *be, const pyr_model *model,
                               int64_t next, int64_t future) {
  return be->moments_end(be, &q->moments, q->count, next, future, model->scale);
}

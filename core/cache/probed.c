/* probed.c — see probed.h. */
#include "cache/probed.h"

/* The struct and its host array are one block: [struct][at: lanes + 1 numbers]. */
static size_t host_bytes(int64_t lanes) {
  return sizeof(pyr_probed) + (size_t)(lanes + 1) * sizeof(int64_t);
}

static size_t value_bytes(const pyr_probed *probed) {
  return (size_t)probed->at[probed->lanes] * sizeof *probed->values;
}

/* Lanes of 70, 70 and 40 rows: at = 0, 70, 140, 180. A cache that holds nothing has no values. */
pyr_status pyr_probed_new(pyr_pool *pool, const int64_t *rows, int64_t lanes, pyr_probed **out) {
  pyr_backend *be = pool->be;
  pyr_probed *probed = pyr_alloc_zero(pool->rt, host_bytes(lanes));
  if (!probed) return pyr_nomem(pool->rt, host_bytes(lanes), "a probe");
  probed->pool = pool;
  probed->lanes = lanes;
  probed->at = (int64_t *)(probed + 1);
  for (int64_t i = 0; i < lanes; i++) probed->at[i + 1] = probed->at[i] + rows[i];
  size_t bytes = value_bytes(probed);
  pyr_status status = PYR_OK;
  if (bytes) probed->values = be->alloc(be, bytes);
  if (bytes && !probed->values) status = pyr_nomem(pool->rt, bytes, "a probe");
  else if (bytes) status = pyr_fill_zeros(be, probed->values, probed->at[lanes]);
  if (status == PYR_OK) *out = probed;
  else pyr_probed_free(probed);
  return status;
}

/* Sizes follow from `at`, as they did when it was made: the cache's rows may be others by now. */
void pyr_probed_free(pyr_probed *probed) {
  if (probed == NULL) return;
  pyr_pool *pool = probed->pool;
  if (probed->values) pool->be->release(pool->be, probed->values, value_bytes(probed));
  pyr_release(pool->rt, probed, host_bytes(probed->lanes));
}

/* learned.c — see learned.h. */
#include "cache/learned.h"
#include "backend/backend.h"

/* Weights of a layer begin where 16 numbers begin, as products read them that many at a time: of
 * 2 heads and width 65, 130 numbers take 144. */
enum { ALIGNED = 16 };

pyr_status pyr_learned_new(pyr_pool *pool, int32_t number, const float *values, int32_t layers,
                           int32_t heads, int64_t apart, int64_t width, pyr_learned **out) {
  pyr_runtime *rt = pool->rt;
  pyr_backend *be = pool->be;
  pyr_status status = PYR_OK;
  pyr_learned *map = pyr_alloc_zero(rt, sizeof *map);
  if (!map) return pyr_nomem(rt, sizeof *map, "a learned map");
  map->step = (heads * width + ALIGNED - 1) / ALIGNED * ALIGNED;
  map->bytes = (size_t)layers * (size_t)(map->step + heads) * sizeof *map->weights;
  map->weights = be->alloc(be, map->bytes);
  if (!map->weights) {
    pyr_release(rt, map, sizeof *map);
    return pyr_nomem(rt, map->bytes, "a learned map");
  }
  map->pool = pyr_pool_retain(pool);
  map->refs = 1, map->number = number, map->heads = heads, map->width = width;
  map->biases = map->weights + layers * map->step;
  for (int64_t lane = 0; lane < (int64_t)layers * heads && status == PYR_OK; lane++) {
    const float *from = values + (lane / heads * apart + lane % heads) * (width + 1);
    float *to = map->weights + lane / heads * map->step + lane % heads * width;
    status = be->upload(be, to, from, (size_t)width * sizeof *from);
    if (status == PYR_OK)
      status = be->upload(be, map->biases + lane, from + width, sizeof *from);
  }
  if (status != PYR_OK) pyr_learned_free(map);
  else *out = map;
  return status;
}

pyr_learned *pyr_learned_retain(pyr_learned *map) {
  if (map) map->refs++;
  return map;
}

/* The pool goes last: it may be what keeps the runtime. */
void pyr_learned_free(pyr_learned *map) {
  if (map == NULL || --map->refs > 0) return;
  pyr_pool *pool = map->pool;
  pool->be->release(pool->be, map->weights, map->bytes);
  pyr_release(pool->rt, map, sizeof *map);
  pyr_pool_free(pool);
}

pyr_status pyr_learned_apply(const pyr_learned *map, int layer, float *out, const float *in,
                             int64_t n) {
  pyr_backend *be = map->pool->be;
  pyr_tensor w = { .data = map->weights + layer * map->step, .dtype = PYR_F32, .rank = 2,
                   .shape = { map->heads, map->width },
                   .stride = (size_t)map->width * sizeof *map->weights };
  return be->linear(be, out, in, &w, map->biases + (int64_t)layer * map->heads, n,
                    PYR_LINEAR_EXACT);
}

/* pages.c — see pages.h. */
#include "pages.h"

pyr_status pyr_pool_new(pyr_model *model, pyr_dtype dtype, size_t budget, pyr_pool **out) {
  pyr_runtime *rt = pyr_model_runtime(model);
  const pyr_model_config *config = pyr_model_get_config(model);
  if (dtype != PYR_F32 && dtype != PYR_F16 && dtype != PYR_BF16 && dtype != PYR_Q8_0)
    return pyr_runtime_set_error(rt, PYR_UNSUPPORTED, "cache dtype %s: use f32, f16, bf16 or q8_0",
                                 pyr_dtype_name(dtype) ? pyr_dtype_name(dtype) : "?");
  if (dtype == PYR_Q8_0 && config->head_dim % 32 != 0)
    return pyr_runtime_set_error(rt, PYR_UNSUPPORTED, "cache dtype q8_0 needs head_dim %% 32 == 0, and it is %d",
                                 (int)config->head_dim);
  pyr_pool *pool = pyr_alloc_zero(rt, sizeof *pool);
  if (!pool) return pyr_nomem(rt, sizeof *pool, "the page pool");
  pool->refs = 1;
  pool->model = pyr_model_retain(model);
  pool->rt = rt;
  pool->be = pyr_runtime_backend(rt);
  pool->layout = (pyr_layout){ dtype, config->head_dim };
  pool->page_bytes = pyr_page_bytes(dtype, config->head_dim);
  pool->budget = budget;
  *out = pool;
  return PYR_OK;
}

pyr_pool *pyr_pool_retain(pyr_pool *pool) {
  pool->refs++;
  return pool;
}

void pyr_pool_free(pyr_pool *pool) {
  if (pool == NULL || --pool->refs > 0) return;
  pool->be->release(pool->be, pool->work, pool->work_bytes);
  pyr_model *model = pool->model;
  pyr_release(pool->rt, pool, sizeof *pool);
  pyr_model_free(model);
}

size_t pyr_pool_bytes(const pyr_pool *pool) { return pool->held; }

pyr_status pyr_pool_alloc(pyr_pool *pool, size_t bytes, void **out) {
  if (pool->budget && (pool->held > pool->budget || bytes > pool->budget - pool->held))
    return pyr_runtime_set_error(pool->rt, PYR_BUDGET, "the cache's budget of %zu bytes is full: %zu held, %zu more wanted",
                                 pool->budget, pool->held, bytes);
  void *ptr = pool->be->alloc(pool->be, bytes);
  if (!ptr) return pyr_nomem(pool->rt, bytes, "the cache");
  pool->held += bytes;
  *out = ptr;
  return PYR_OK;
}

void pyr_pool_release(pyr_pool *pool, void *ptr, size_t bytes) {
  if (ptr == NULL) return;
  pool->be->release(pool->be, ptr, bytes);
  pool->held -= bytes;
}

pyr_status pyr_page_new(pyr_pool *pool, pyr_page **out) {
  void *data = NULL;
  pyr_page *page = pyr_alloc(pool->rt, sizeof *page);
  if (!page) return pyr_nomem(pool->rt, sizeof *page, "a page");
  pyr_status status = pyr_pool_alloc(pool, pool->page_bytes, &data);
  if (status != PYR_OK) {
    pyr_release(pool->rt, page, sizeof *page);
    return status;
  }
  *page = (pyr_page){ 1, data };
  *out = page;
  return PYR_OK;
}

void pyr_page_retain(pyr_page *page) { page->refs++; }

void pyr_page_free(pyr_pool *pool, pyr_page *page) {
  if (page == NULL || --page->refs > 0) return;
  pyr_pool_release(pool, page->data, pool->page_bytes);
  pyr_release(pool->rt, page, sizeof *page);
}

pyr_status pyr_pool_work(pyr_pool *pool, size_t bytes, void **out) {
  if (bytes > pool->work_bytes) {
    void *fresh = pool->be->alloc(pool->be, bytes);
    if (!fresh) return pyr_nomem(pool->rt, bytes, "the decode workspace");
    pool->be->release(pool->be, pool->work, pool->work_bytes);
    pool->work = fresh;
    pool->work_bytes = bytes;
  }
  *out = pool->work;
  return PYR_OK;
}

/* evict_now.c — a cache evicts by a policy's prefill plans, all layers at once: at rest, or at the
 * end of a prefill that was prepared, whose undo then stands behind it.
 *
 * Plans are asked for as if the rows held were a prompt just read. All layers are ranked before the
 * first row moves, so that a plan that is refused, a score that is no number or memory that is
 * short leave the cache as it was. Where rows only move within pages of their own, moving cannot
 * fail. Where pages are shared with forks, survivors are copied; and where keys are turned for the
 * first time, survivors move to wide pages. Both take memory, so a snapshot is taken first, which
 * shares all pages, and to which a failure returns. */
#include "policy/evict.h"
#include "policy/policy.h"
#include "cache/undo.h"
#include "model/model.h"

/* Asks for all layers' plans, and says who survives. *block: backend memory, the caller's to
 * release, whatever is returned. */
static pyr_status rank(pyr_cache *cache, pyr_evictions *es, pyr_when when, pyr_arena *block) {
  pyr_backend *be = cache->pool->be;
  const pyr_model_config *c = &cache->pool->model->config;
  int64_t rows = 1;
  for (int layer = 0; layer < cache->layers; layer++) {
    if (!pyr_model_has(cache->pool->model, layer)) continue;
    PYR_TRY(pyr_evictions_ask(es, cache, layer, when));
    rows = pyr_max(rows, pyr_cache_layer_rows(cache, layer));
  }
  PYR_TRY(pyr_evictions_unite(es));
  for (int64_t i = 0; i < es->count && when == PYR_WHEN_PREPARED && !cache->probed; i++)
    if (es->each[i].splits.needed) return pyr_policy_not_pure(&es->each[i].splits);
  pyr_work work = { .tokens = 1, .rows = rows, .sequences = 1, .heads = c->heads,
                    .kv_heads = c->kv_heads, .head_dim = c->head_dim, .cols = c->width };
  PYR_TRY(be->reserve(be, &work));
  pyr_arena count = { 0 };
  pyr_evictions_layout(es, &count);
  block->block = be->alloc(be, count.used);
  if (!block->block) return pyr_nomem(cache->pool->rt, count.used, "the scores of a cache");
  pyr_evictions_layout(es, block);
  PYR_TRY(pyr_evictions_rank(es));
  return pyr_evictions_check(es);
}

/* Whether moving rows takes memory, as going down a tier does. Looks at every page's references:
 * some thousands of numbers, where a snapshot would retain each page and copy positions. */
static bool may_fail(const pyr_cache *cache, const pyr_evictions *es) {
  for (int64_t i = 0; i < pyr_cache_lane_count(cache); i++)
    for (int64_t p = 0; p < pyr_cache_lanes(cache)[i].page_count; p++)
      if (pyr_cache_lanes(cache)[i].pages[p]->refs > 1) return true;
  for (int64_t i = 0; i < es->count; i++)
    if ((es->each[i].splits.turns && !cache->states[es->each[i].splits.layer].compact)
        || es->each[i].plan.losers) return true;
  return false;
}

/* Whoever is told of a plan may say no when the rows of earlier layers are gone already. */
static pyr_status keep_losers(pyr_cache *cache, pyr_undo **undo) {
  PYR_TRY(pyr_undo_new(cache, undo));
  for (int layer = 0; layer < cache->layers; layer++) PYR_TRY(pyr_undo_layer(*undo, layer));
  return PYR_OK;
}

/* What is held now counts for tiers: a snapshot is about to hold pages that nobody asked for. One
 * way back at most: a snapshot where memory may be short, an undo where only a listener may
 * say no, none where nothing can fail. */
static pyr_status gather(pyr_cache *cache, pyr_evictions *es) {
  pyr_cache *snapshot = NULL;
  pyr_undo *undo = NULL;
  pyr_status status = PYR_OK;
  const pyr_measure began = pyr_cache_measure(cache);
  cache->began = &began;
  int64_t may = may_fail(cache, es);
  if (cache->pool->model->line) status = pyr_ranks_most(pyr_runtime_ranks(cache->pool->rt), &may);
  if (status == PYR_OK && may) status = pyr_cache_snapshot(cache, &snapshot);
  else if (pyr_trace_wanted(cache)) status = keep_losers(cache, &undo);
  status = pyr_ranks_agree(cache->pool->rt, status);
  if (status == PYR_OK) status = pyr_evictions_gather(es);
  if (snapshot || undo) status = pyr_ranks_agree(cache->pool->rt, status);
  cache->began = NULL;
  if (status != PYR_OK && snapshot) pyr_cache_restore(cache, snapshot);
  else pyr_cache_free(snapshot);
  if (status != PYR_OK && undo) pyr_undo_restore(undo);
  else pyr_undo_keep(undo);
  return status;
}

/* Takes the memory of all layers' plans, ranks, and lets `move` the rows. */
static pyr_status evict(pyr_cache *cache, pyr_evictions *es, pyr_when when,
                        const pyr_policy *policy,
                        pyr_status (*move)(pyr_cache *, pyr_evictions *)) {
  pyr_runtime *rt = cache->pool->rt;
  pyr_backend *be = cache->pool->be;
  const pyr_policy own = cache->policy;
  pyr_arena count = { 0 }, host = { 0 }, block = { 0 };
  pyr_evictions_layout_host(es, cache->layers, cache->heads, &count);
  host.block = pyr_alloc_zero(rt, count.used);
  if (!host.block) return pyr_nomem(rt, count.used, "an eviction");
  pyr_evictions_layout_host(es, cache->layers, cache->heads, &host);
  cache->policy = *policy;               /* what is asked, and what errors name */
  pyr_status status = rank(cache, es, when, &block);
  cache->policy = own;
  status = pyr_ranks_agree(rt, status);
  if (status == PYR_OK) status = move(cache, es);
  be->release(be, block.block, block.used);
  pyr_release(rt, host.block, host.used);
  return status;
}

/* A policy lent for the call stands in for the cache's own while plans are asked for, and is
 * taken out before rows move, whatever came of it. Its tables have numbers of their own: what was
 * sent by the cache's is not looked at, and what is sent by these goes again. */
pyr_status pyr_cache_evict(pyr_cache *cache, const pyr_policy *policy) {
  pyr_evictions es = { 0 };
  bool borrowed = policy != NULL;
  if (!borrowed) policy = &cache->policy;
  if (!policy->prefill)
    return pyr_runtime_set_error(cache->pool->rt, PYR_ARGUMENT,
                                 policy->name ? "policy %s has no prefill plan to evict by"
                                 : "the cache has no policy of its own: say by which to evict",
                                 policy->name);
  if (cache->tokens == 0) return PYR_OK;
  const pyr_policy lent = *policy;
  pyr_ranks_begin(cache->pool->rt);
  if (borrowed) pyr_ids_forget_worth(cache->pool, cache->ids);
  pyr_status status = evict(cache, &es, PYR_WHEN_EVICT, &lent, gather);
  if (borrowed) pyr_ids_forget_worth(cache->pool, cache->ids);
  status = pyr_ranks_end(cache->pool->rt, status);
  if (status == PYR_OK) pyr_cache_rows_changed(cache);
  if (status == PYR_OK) pyr_cache_tidy(cache);
  if (status == PYR_OK) cache->uneven = true, status = pyr_cache_level(cache);
  return status;
}

static pyr_status gather_prepared(pyr_cache *cache, pyr_evictions *es) {
  (void)cache;
  return pyr_evictions_gather(es);
}

pyr_status pyr_evict_prepared(pyr_cache *cache, int64_t prompt) {
  pyr_evictions es = { .prompt = prompt };
  const pyr_policy own = cache->policy;
  return evict(cache, &es, PYR_WHEN_PREPARED, &own, gather_prepared);
}

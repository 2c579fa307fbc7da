/* evict.c — a cache at rest is cut: by a policy's plans, all layers at once, or at a token, as if
 * what follows had never been read.
 *
 * Eviction. A policy's prefill plans are asked as if the rows held were a prompt just read. All
 * layers are ranked before the first row moves, so that a plan that is refused, a score that is no
 * number or memory that is short leave the cache as it was. Where pages are shared with forks,
 * survivors are copied, and a snapshot is what a failure returns to: it shares what the forks hold
 * anyway, and so it is where keys are turned for the first time, as survivors move to wide pages.
 * Elsewhere rows move within their pages, which cannot fail.
 *
 * Truncation. A row's place in a lane follows its position, so each lane loses its end. What a
 * later token has changed in rows before it stays: evicted rows do not come back, nor does a key
 * that was turned or merged. What later queries gave to tracked rows cannot be taken out of a sum
 * again, so a cache that tracks is refused. */
#include "cache/undo.h"
#include "model/model.h"
#include "policy/plan.h"

#include <string.h>

/* ---- eviction -------------------------------------------------------------------------------- */

typedef struct pyr_eviction {             /* of all layers */
  pyr_cache *cache;
  pyr_plan *plans;                 /* host [layers] */
  pyr_plan_turn *turns;            /* host [layers] */
  int32_t *faults;                 /* host [layers] */
  char *host, *verdicts_host;      /* what the layers share, and what each has */
  size_t host_bytes;
  char *block;  /* backend memory: faults [layers], what ranking takes, verdicts */
  size_t block_bytes;
} pyr_eviction;

static pyr_status cut_ask(pyr_eviction *c) {
  pyr_cache *cache = c->cache;
  const pyr_model_config *config = &cache->pool->model->config;
  for (int layer = 0; layer < cache->layers; layer++) {
    int64_t rows = pyr_cache_layer_rows(cache, layer);
    pyr_shape shape = { .layer = layer, .layers = cache->layers, .prompt = rows, .rows = rows,
                        .tokens = cache->tokens, .heads = config->heads,
                            .kv_heads = config->kv_heads, .head_dim = config->head_dim };
    pyr_status status = pyr_plan_ask_evict(cache, &shape, &c->plans[layer]);
    if (status != PYR_OK) return status;
    pyr_plan_turn_begin(&c->turns[layer], cache, layer, &c->plans[layer], false, 0);
  }
  return PYR_OK;
}

static pyr_status cut_rank(pyr_eviction *c) {
  pyr_cache *cache = c->cache;
  pyr_backend *be = cache->pool->be;
  const pyr_model_config *config = &cache->pool->model->config;
  size_t faults = ((size_t)cache->layers * sizeof(int32_t) + 63) / 64 * 64, most = 0, verdicts = 0;
  int64_t rows = 1;
  for (int layer = 0; layer < cache->layers; layer++) {
    size_t own, bytes = pyr_plan_turn_bytes(&c->turns[layer], &own);
    if (bytes > most) most = bytes;
    verdicts += own;
    rows = pyr_max(rows, pyr_cache_layer_rows(cache, layer));
  }
  pyr_work work = { .tokens = 1, .rows = rows, .sequences = 1, .heads = config->heads,
                    .kv_heads = config->kv_heads, .head_dim = config->head_dim,
                        .cols = config->width };
  pyr_status status = be->reserve(be, &work);
  if (status != PYR_OK) return status;
  c->block_bytes = faults + most + verdicts;
  c->block = be->alloc(be, c->block_bytes);
  if (!c->block) return pyr_nomem(cache->pool->rt, c->block_bytes, "the scores of a cache");
  status = be->fill(be, (float *)c->block, NULL, cache->layers, 2, 0, 0.0f);
  for (int layer = 0; layer < cache->layers && status == PYR_OK; layer++) {
    size_t own, at = (size_t)layer * pyr_judge_verdict_bytes(cache);
    pyr_plan_turn *turn = &c->turns[layer];
    pyr_plan_turn_bytes(turn, &own);
    verdicts -= own;
    pyr_plan_turn_carve(turn, c->block + faults, c->block + faults + most + verdicts, c->host,
                        c->verdicts_host + at);
    status = pyr_plan_turn_rank(turn, (int32_t *)c->block + layer);
  }
  if (status == PYR_OK)
    status = be->download(be, c->faults, c->block, (size_t)cache->layers * sizeof(int32_t));
  for (int layer = 0; layer < cache->layers && status == PYR_OK; layer++)
    if (c->faults[layer])
      status = pyr_plan_not_finite(cache, layer, "evict", &c->plans[layer].score);
  return status;
}

static bool shares_pages(const pyr_cache *cache) {
  for (int64_t i = 0; i < (int64_t)cache->layers * cache->heads; i++)
    for (int64_t p = 0; p < cache->lanes[i].page_count; p++)
      if (cache->lanes[i].pages[p]->refs > 1) return true;
  return false;
}

/* Whoever is told of a plan may say no when the rows of earlier layers are gone already. */
static pyr_status cut_keep_losers(pyr_cache *cache, pyr_undo **undo) {
  pyr_status status = pyr_undo_new(cache, undo);
  for (int layer = 0; layer < cache->layers && status == PYR_OK; layer++)
    status = pyr_undo_layer(*undo, layer);
  return status;
}

static pyr_status cut_evict(pyr_eviction *c) {
  pyr_cache *cache = c->cache, *snapshot = NULL;
  pyr_undo *undo = NULL;
  pyr_status status = PYR_OK;
  bool copies = shares_pages(cache);
  for (int layer = 0; layer < cache->layers; layer++)
    copies = copies || (pyr_judge_turns(&c->turns[layer].judge) && !cache->states[layer].compact);
  if (copies) status = pyr_cache_snapshot(cache, &snapshot);
  else if (pyr_trace_wanted(cache)) status = cut_keep_losers(cache, &undo);
  for (int layer = 0; layer < cache->layers && status == PYR_OK; layer++)
    status = pyr_plan_turn_evict(&c->turns[layer]);
  if (status != PYR_OK && snapshot) pyr_cache_restore(cache, snapshot);
  else pyr_cache_free(snapshot);
  if (status != PYR_OK && undo) pyr_undo_restore(undo);
  else pyr_undo_keep(undo);
  return status;
}

pyr_status pyr_cache_evict(pyr_cache *cache, const pyr_policy *policy) {
  pyr_pool *pool = cache->pool;
  pyr_runtime *rt = pool->rt;
  size_t layers = (size_t)cache->layers;
  pyr_eviction c = { .cache = cache };
  pyr_policy own = cache->policy;
  if (!policy) policy = &own;
  if (!policy->prefill)
    return pyr_runtime_set_error(rt, PYR_ARGUMENT,
                                 policy->name ? "policy %s has no prefill plan to evict by"
                                 : "the cache has no policy of its own: say by which to evict",
                                     policy->name);
  if (cache->tokens == 0) return PYR_OK;
  size_t shared = pyr_judge_host_bytes(cache), verdicts = layers * pyr_judge_verdict_bytes(cache);
  c.host_bytes = shared + verdicts + layers * (sizeof *c.turns + sizeof *c.plans
                                               + sizeof *c.faults);
  c.host = pyr_alloc_zero(rt, c.host_bytes);
  if (!c.host) return pyr_nomem(rt, c.host_bytes, "an eviction");
  c.verdicts_host = c.host + shared;
  c.turns = (pyr_plan_turn *)(c.verdicts_host + verdicts);
  c.plans = (pyr_plan *)(c.turns + layers);
  c.faults = (int32_t *)(c.plans + layers);
  cache->policy = *policy;               /* what is asked, and what errors name */
  pyr_status status = cut_ask(&c);
  if (status == PYR_OK) status = cut_rank(&c);
  cache->policy = own;
  if (status == PYR_OK) status = cut_evict(&c);
  pool->be->release(pool->be, c.block, c.block ? c.block_bytes : 0);
  pyr_release(rt, c.host, c.host_bytes);
  return status;
}

/* ---- truncation ------------------------------------------------------------------------------ */

/* How many rows of a lane are of the first n tokens; positions ascend. */
static int64_t rows_before(const int32_t *positions, int64_t rows, int64_t n) {
  int64_t low = 0, high = rows;
  while (low < high) {
    int64_t middle = low + (high - low) / 2;
    if (positions[middle] < n) low = middle + 1; else high = middle;
  }
  return low;
}

static void truncate_state(pyr_layer_state *state, int64_t dropped, int64_t rows) {
  state->unjudged = pyr_max(state->unjudged - dropped, 0);
  state->since = pyr_max(state->since - dropped, 0);
  state->past = pyr_min(state->past, rows);
  state->turned = pyr_min(state->turned, rows);
}

pyr_status pyr_cache_truncate(pyr_cache *cache, int64_t n) {
  pyr_runtime *rt = cache->pool->rt;
  int64_t lanes = (int64_t)cache->layers * cache->heads, longest = 1, held = 0;
  if (n < 0 || n > cache->tokens)
    return pyr_runtime_set_error(rt, PYR_ARGUMENT,
                                 "truncate: the cache has read %lld tokens, and cannot go on "
                                 "from token %lld", (long long)cache->tokens, (long long)n);
  if (n == cache->tokens) return PYR_OK;
  if (n == 0) return pyr_cache_clear(cache);
  for (int layer = 0; layer < cache->layers; layer++) {
    if (pyr_trigger_tracks(&cache->states[layer].trigger))
      return pyr_runtime_set_error(rt, PYR_POLICY,
                                   "truncate: policy %s tracks attention, and what tokens from "
                                   "%lld on gave to earlier "
                                   "rows cannot be taken back (fork the cache before it reads "
                                   "them)",
                                   cache->policy.name ? cache->policy.name : "?", (long long)n);
    longest = pyr_max(longest, pyr_cache_layer_rows(cache, layer));
  }
  size_t bytes = (size_t)longest * sizeof(int32_t), keep_bytes = (size_t)lanes * sizeof(int64_t);
  int32_t *positions = pyr_alloc(rt, bytes);
  int64_t *keep = pyr_alloc(rt, keep_bytes);
  pyr_status status = positions && keep ? PYR_OK
      : pyr_nomem(rt, bytes + keep_bytes, "truncating a cache");
  for (int64_t i = 0; i < lanes && status == PYR_OK; i++) {
    const pyr_lane *lane = &cache->lanes[i];
    keep[i] = 0;
    status = pyr_cache_positions(cache, (int)(i / cache->heads), (int)(i % cache->heads),
                                 positions);
    if (status == PYR_OK) keep[i] = rows_before(positions, lane->rows, n);
    if (status == PYR_OK && keep[i] == 0)
      status = pyr_runtime_set_error(rt, PYR_POLICY,
                                     "truncate: layer %lld holds no row of the first %lld tokens "
                                     "any more", (long long)(i / cache->heads) + 1, (long long)n);
  }
  for (int64_t i = 0; i < lanes && status == PYR_OK; i++) {
    pyr_lane_truncate(cache, &cache->lanes[i], keep[i]);
    held += keep[i];
  }
  for (int layer = 0; layer < cache->layers && status == PYR_OK; layer++)
    truncate_state(&cache->states[layer], cache->tokens - n, pyr_cache_layer_rows(cache, layer));
  if (status == PYR_OK) {
    cache->tokens = n;
    cache->prompt = pyr_min(cache->prompt, n);
    cache->evicted = lanes * n - held;
  }
  pyr_release(rt, positions, bytes);
  pyr_release(rt, keep, keep_bytes);
  return status;
}

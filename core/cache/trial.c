/* trial.c — what tracked attention was before each token of a trial: tokens that were read together
 * before their reader knows which of them stay.
 *
 * Rows of tokens that go are dropped from the end of each lane. What their queries gave to earlier
 * rows is in sums with the rest, and cannot be taken out again; so a trial keeps a copy of each
 * tracked lane's history from before each of its tokens, and truncating to one of them puts that
 * copy back:
 *
 *     tokens seen   40 | 41    42    43    44          a trial of 4 tokens
 *     copies        h40  h41   h42   h43               truncate(42): rows of tokens 42 and 43 go,
 *                                                      histories are h42
 *
 * The first call that adds, moves or drops rows ends the trial. Its memory stays with the cache for
 * the next one: of 4 tokens over 30 layers of 3 lanes of 1,024 rows, 1.4 MiB; where nothing is
 * tracked, none.
 *
 * Copies lie token by token, lane by lane, each as long as the lane will be at the trial's end,
 * so that a copy's place is a product and a sum:
 *
 *     values   [ token 0: lane 0 | lane 1 | … ][ token 1: lane 0 | lane 1 | … ] …
 *     at         0          at[1]    at[2]       `each` further on
 */
#include "cache/cache.h"

struct pyr_trial {
  int64_t begin, tokens;   /* tokens seen before it, and of it; none: it has ended */
  int64_t each;            /* numbers of one token's copies */
  float *values;           /* [tokens, each] backend memory; … */
  size_t bytes;            /* … so much of it */
  int64_t at[];            /* [lanes] where a lane's copy begins */
};

static size_t trial_bytes(const pyr_cache *cache) {
  return sizeof(struct pyr_trial) + (size_t)pyr_cache_lane_count(cache) * sizeof(int64_t);
}

/* What was there goes first: it is a copy of nothing that anybody can go back to. */
static pyr_status take_values(pyr_cache *cache, pyr_trial *trial, size_t bytes) {
  pyr_backend *be = cache->pool->be;
  if (bytes <= trial->bytes) return PYR_OK;
  be->release(be, trial->values, trial->bytes);
  trial->bytes = 0;
  trial->values = be->alloc(be, bytes);
  if (!trial->values) return pyr_nomem(cache->pool->rt, bytes, "a trial");
  trial->bytes = bytes;
  return PYR_OK;
}

/* Two lanes of 40 rows that are tracked, 3 tokens: at = 0, 43; each = 86; 3 * 86 numbers. */
pyr_status pyr_trial_begin(pyr_cache *cache, int64_t n) {
  if (!cache->trial) {
    cache->trial = pyr_alloc_zero(cache->pool->rt, trial_bytes(cache));
    if (!cache->trial) return pyr_nomem(cache->pool->rt, trial_bytes(cache), "a trial");
  }
  pyr_trial *trial = cache->trial;
  trial->tokens = trial->each = 0;
  for (int64_t i = 0; i < pyr_cache_lane_count(cache); i++) {
    trial->at[i] = trial->each;
    if (pyr_trigger_sums(&cache->states[i / cache->heads].trigger))
      trial->each += pyr_cache_lanes(cache)[i].rows + n;
  }
  PYR_TRY(take_values(cache, trial, (size_t)(n * trial->each) * sizeof *trial->values));
  trial->begin = cache->tokens;
  trial->tokens = n;
  return PYR_OK;
}

static float *copy_of(const pyr_cache *cache, int64_t lane, int64_t t) {
  return cache->trial->values + t * cache->trial->each + cache->trial->at[lane];
}

/* A lane's rows without those of token t and of what follows it: all tokens' rows are there, or
 * those up to token t's. */
pyr_status pyr_trial_remember(pyr_cache *cache, int layer, int64_t t) {
  pyr_backend *be = cache->pool->be;
  for (int head = 0; head < cache->heads; head++) {
    int64_t i = (int64_t)layer * cache->heads + head,
        rows = pyr_cache_lanes(cache)[i].rows - cache->trial->tokens + t;
    if (rows > 0)
      PYR_TRY(be->copy(be, copy_of(cache, i, t), pyr_cache_lanes(cache)[i].history,
                       (size_t)rows * sizeof(float)));
  }
  return PYR_OK;
}

bool pyr_trial_covers(const pyr_cache *cache, int64_t n) {
  const pyr_trial *trial = cache->trial;
  return trial && n >= trial->begin && n < trial->begin + trial->tokens;
}

pyr_status pyr_trial_put_back(pyr_cache *cache, int64_t n) {
  pyr_backend *be = cache->pool->be;
  for (int64_t i = 0; i < pyr_cache_lane_count(cache); i++) {
    const pyr_lane *lane = &pyr_cache_lanes(cache)[i];
    if (!pyr_trigger_sums(&cache->states[i / cache->heads].trigger) || !lane->rows) continue;
    PYR_TRY(be->copy(be, lane->history, copy_of(cache, i, n - cache->trial->begin),
                     (size_t)lane->rows * sizeof(float)));
  }
  return PYR_OK;
}

void pyr_trial_end(pyr_cache *cache) {
  if (cache->trial) cache->trial->tokens = 0;
}

void pyr_trial_free(pyr_cache *cache) {
  pyr_backend *be = cache->pool->be;
  if (!cache->trial) return;
  be->release(be, cache->trial->values, cache->trial->bytes);
  pyr_release(cache->pool->rt, cache->trial, trial_bytes(cache));
  cache->trial = NULL;
}

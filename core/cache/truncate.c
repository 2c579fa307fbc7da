/* truncate.c — a cache goes back to a token, as if what follows had never been read.
 *
 * A row's place in a lane follows its position, so each lane loses its end. What a later token has
 * changed in rows before it stays: evicted rows do not come back, nor does a key that was turned or
 * merged. What later queries gave to tracked rows cannot be taken out of a sum again, so a cache
 * that tracks is refused, but for the tokens that were last read as a trial (trial.c). In a layer
 * with a sliding window the next token's query must find the rows that its window shows; where the
 * lane begins behind the window's first row, they are gone.
 */
#include "cache/cache.h"
#include "model/model.h"

/* How many rows of a lane are of the first n tokens. Positions ascend, so bisection finds it: rows
 * before `low` are of those tokens, rows from `high` on are not. Positions 0 2 5 7 9 and n = 6:
 * 3 rows. Found in log2(rows) looks. */
static int64_t rows_before(const int32_t *positions, int64_t rows, int64_t n) {
  int64_t low = 0, high = rows;
  while (low < high) {
    int64_t middle = low + (high - low) / 2;
    if (positions[middle] < n) low = middle + 1; else high = middle;
  }
  return low;
}

/* A lane loses its end, where its unranked rows are; 100 steps since the trigger
 * fired are 90 if ten tokens go. Where more go than came since, the count begins anew. */
static void truncate_state(pyr_layer_state *state, int64_t dropped, int64_t rows) {
  state->unranked = pyr_max(state->unranked - dropped, 0);
  state->since = pyr_max(state->since - dropped, 0);
  state->past = pyr_min(state->past, rows);
  state->turned = pyr_min(state->turned, rows);
}

/* PYR_ARGUMENT if a query at position n of a lane that begins at `first` would miss rows that the
 * layer's window (0: none) shows. Window 100, rows from 512 on: n = 600 would see 501 to 599; the
 * first n that may be is 611. */
static pyr_status check_window(const pyr_cache *cache, int64_t lane, int64_t first, int64_t n) {
  const int32_t *windows = cache->pool->model->config.window;
  int64_t layer = lane / cache->heads, window = windows ? windows[layer] : 0;
  if (window <= 0 || first == 0 || n - window + 1 >= first) return PYR_OK;
  return pyr_runtime_set_error(cache->pool->rt, PYR_ARGUMENT,
                               "truncate: layer %lld has given back rows that its sliding window "
                               "of %lld shows from token %lld; it can go back to token %lld or "
                               "later (fork the cache before it reads on)",
                               (long long)layer + 1, (long long)window, (long long)n,
                               (long long)(first + window - 1));
}

/* What the lane of one tier keeps, and the position of its first row, if that is lower than *first.
 * Where a window looks, rows of all tiers count. */
static pyr_status lane_keeps(const pyr_cache *cache, int64_t i, int64_t n, int32_t *positions,
                             int64_t *keep, int64_t *first) {
  int64_t rows = pyr_cache_lanes(cache)[i].rows;
  *keep = 0;
  if (rows == 0) return PYR_OK;
  PYR_TRY(pyr_lane_positions(cache, (int)(i / cache->heads), (int)(i % cache->heads), positions));
  *keep = rows_before(positions, rows, n);
  *first = pyr_min(*first, positions[0]);
  return PYR_OK;
}

/* The i-th lane of all tiers: keep[tier * lanes + i]. */
static pyr_status lanes_keep(const pyr_cache *cache, int64_t i, int64_t n, int32_t *positions,
                             int64_t *keep) {
  int64_t lanes = pyr_cache_lane_count(cache), first = INT64_MAX, sum = 0;
  for (const pyr_cache *at = cache; at; at = at->below, keep += lanes) {
    PYR_TRY(lane_keeps(at, i, n, positions, &keep[i], &first));
    sum += keep[i];
  }
  if (first < INT64_MAX) PYR_TRY(check_window(cache, i, first, n));
  if (sum > 0) return PYR_OK;
  return pyr_runtime_set_error(cache->pool->rt, PYR_POLICY,
                               "truncate: layer %lld holds no row of the first %lld tokens any "
                               "more", (long long)(i / cache->heads) + 1, (long long)n);
}

/* Two passes: the first finds out what each lane keeps, and may refuse; the second drops the
 * rest, and cannot fail. Of 4 lanes cut to 6 tokens that hold 3 rows each, 4 * 6 - 12 = 12 rows
 * count as evicted: what was dropped of tokens that are gone counts no more. */
pyr_status pyr_cache_truncate(pyr_cache *cache, int64_t n) {
  pyr_runtime *rt = cache->pool->rt;
  int64_t lanes = pyr_cache_lane_count(cache), tiers = 0, held = 0;
  bool tried = pyr_trial_covers(cache, n);
  if (n < 0 || n > cache->tokens)
    return pyr_runtime_set_error(rt, PYR_ARGUMENT,
                                 "truncate: the cache has read %lld tokens, and cannot go on "
                                 "from token %lld", (long long)cache->tokens, (long long)n);
  if (n == cache->tokens) return PYR_OK;
  if (n == 0) return pyr_cache_clear(cache);
  for (int layer = 0; layer < cache->layers; layer++) {
    if (pyr_trigger_sums(&cache->states[layer].trigger) && !tried)
      return pyr_runtime_set_error(rt, PYR_POLICY,
                                   "truncate: policy %s tracks attention, and what tokens from "
                                   "%lld on gave to earlier "
                                   "rows cannot be taken back (fork the cache before it reads "
                                   "them)",
                                   cache->policy.name ? cache->policy.name : "?", (long long)n);
  }
  /* Two host arrays: positions of one lane at a time, and what each lane of each tier keeps. */
  for (const pyr_cache *at = cache; at; at = at->below) tiers++;
  size_t bytes = (size_t)pyr_max(pyr_cache_longest(cache), 1) * sizeof(int32_t),
      keep_bytes = (size_t)(tiers * lanes) * sizeof(int64_t);
  int32_t *positions = pyr_alloc(rt, bytes);
  int64_t *keep = pyr_alloc_zero(rt, keep_bytes);
  pyr_status status = positions && keep ? PYR_OK
      : pyr_nomem(rt, bytes + keep_bytes, "truncating a cache");
  const pyr_slice own = cache->pool->model->own;   /* of other stages' layers no row is here */
  for (int64_t i = 0; i < lanes && status == PYR_OK; i++)
    if (pyr_model_has(cache->pool->model, (int)(i / cache->heads)))
      status = lanes_keep(cache, i, n, positions, keep);
  /* a lane of one rank may hold no row that is old enough, where another's do: then none is cut;
   * what was cut may have left the longest lane on another rank */
  pyr_ranks_begin(rt);
  status = pyr_ranks_agree(rt, status);
  int64_t *kept = keep;
  for (pyr_cache *at = cache; at && status == PYR_OK; at = at->below, kept += lanes)
    for (int64_t i = 0; i < lanes; i++) {
      pyr_lane_truncate(at, &pyr_cache_lanes(at)[i], kept[i]);
      held += kept[i];
    }
  if (status == PYR_OK) status = pyr_cache_level(cache);
  for (int layer = 0; layer < cache->layers && status == PYR_OK; layer++)
    truncate_state(&cache->states[layer], cache->tokens - n, pyr_cache_layer_rows(cache, layer));
  if (status == PYR_OK && tried) status = pyr_trial_put_back(cache, n);
  if (status == PYR_OK) {
    pyr_cache_rows_changed(cache);
    pyr_cache_tidy(cache);
    cache->tokens = n;
    cache->prompt = pyr_min(cache->prompt, n);
    for (pyr_cache *at = cache->below; at; at = at->below) at->evicted = 0;
    cache->evicted = (int64_t)own.count * cache->heads * n - held;
  }
  pyr_ranks_leave(rt);
  pyr_release(rt, positions, bytes);
  pyr_release(rt, keep, keep_bytes);
  return status;
}

/* promote.c — rows of lower tiers come back to the hot one, the best of them by a score.
 *
 * Of each lane the rows of all lower tiers compete: scores of tier behind tier lie in one vector,
 * of which the highest are selected, as in any plan.
 *
 *     warm     4 7 9       scores  .2 .7 .1
 *     cold     5 6 8       scores  .3 .1 .9      two come up: 7 (warm) and 8 (cold)
 *
 * A row that comes up keeps its position and takes its place among the others; the next plan judges
 * it like any. It lay in fewer bits for a while, and is what they say: nothing is gained but that a
 * policy sees it, and that it is read where reading is fastest.
 *
 * What a probe gives is not known of lower rows, nor what attention does: where a trigger does not
 * say so, histories are of the hot tier's alone, so scores of those are refused. A trigger that
 * recalls has lower rows tracked as well (forward.c), and when it is about to fire those with the
 * most come up, with their histories, and are ranked with the others: as many rows go down again,
 * and which these are is the plan's choice. ArkVale (NeurIPS 2024) recalls page by page, by what a
 * query looks at; a plan's `read` does so (model/reading.h), and moves nothing.
 *
 * What a score makes of all candidates together (a sum, a softmax) it makes tier by tier. Where all
 * lanes of a layer were equally long, each gets as many, so that they stay so: the fewest that one
 * of them has below, on whatever rank. */
#include "policy/promote.h"
#include "policy/score.h"
#include "policy/track.h"
#include "cache/tiers.h"
#include "model/model.h"

typedef struct promotion {
  pyr_cache *cache;
  const pyr_score *score;  /* NULL: of each layer whose trigger is about to fire, what it tracks */
  int64_t rows;            /* of a lane, at most; without a score, what the trigger recalls */
  float *work, *scores;    /* backend memory: of an evaluation; [longest] of all lower tiers of a
                              lane */
  int32_t *idx, *fault;    /* backend memory */
  int32_t *chosen;         /* host [longest] */
} promotion;

/* Of all lower tiers of a lane: who competes, and the most that can come up. */
static int64_t rows_below(const pyr_cache *cache, int layer, int head) {
  int64_t rows = 0;
  for (const pyr_cache *at = cache->below; at; at = at->below)
    rows += pyr_cache_lane(at, layer, head)->rows;
  return rows;
}

/* All that is refused is the caller's mistake: nothing has been looked at by then. */
static pyr_status refuse(const pyr_cache *cache, const char *what) {
  return pyr_runtime_set_error(cache->pool->rt, PYR_ARGUMENT, "promote: %s", what);
}

/* A lower tier has neither histories nor a policy: its tables are the cache's. What a function of
 * the policy's own would say is refused with all else that only a running prefill can be asked;
 * what a learned map says was said when rows were made, and no row carries it down. */
static pyr_status check(const pyr_cache *cache, const pyr_score *score, int64_t rows, int *depth) {
  const pyr_score_op none = { .code = PYR_SCORE_CODES };
  if (!cache->below) return refuse(cache, "the cache has one tier, from which nothing comes up");
  if (rows < 0) return refuse(cache, "the number of rows is negative");
  for (int layer = 0; layer < cache->layers; layer++)
    if (cache->states[layer].compact)
      return refuse(cache, "keys are turned (rotate = \"compact\")");
  const char *fault = pyr_score_check(score, depth);
  if (!fault && score->length == 0) fault = "is left out";
  if (!fault) fault = pyr_score_refused(score, cache, false, cache->below->probed != NULL, &none);
  for (int i = 0; i < score->length && !fault; i++)
    if (pyr_signal_is_attention(&score->ops[i]) || pyr_signal_is_history(&score->ops[i]))
      fault = "asks for attention, which is not tracked of rows of lower tiers";
  if (!fault) return PYR_OK;
  return pyr_runtime_set_error(cache->pool->rt, PYR_ARGUMENT, "promote: the score %s", fault);
}

/* p->scores [rows_below] of one lane. A score program runs over one cache's lane, and each tier is
 * one: [warm: 3 numbers][cold: 3 numbers]. The tier is lent the cache's policy and tokens while it
 * is asked. */
static pyr_status score_lane(const promotion *p, int layer, int head) {
  pyr_backend *be = p->cache->pool->be;
  const pyr_score_op none = { .code = PYR_SCORE_CODES },
      *tracked = p->score ? &none : &p->cache->states[layer].trigger.track;
  const pyr_score alone = { 1, { *tracked } };
  float *to = p->scores, *values;
  for (pyr_cache *at = p->cache->below; at; at = at->below) {
    int64_t rows = pyr_cache_lane(at, layer, head)->rows;
    pyr_signals signals = { .cache = at, .layer = layer, .end = rows, .tracked = tracked,
                            .tracked_queries = p->score ? 0 : tracked->n,
                            .next = p->cache->tokens, .fault = p->fault };
    if (rows == 0) continue;
    at->policy = p->cache->policy, at->ids = p->cache->ids;
    pyr_status status = pyr_score_eval(p->score ? p->score : &alone, &signals, head, 1, p->work,
                                       &values);
    at->policy = (pyr_policy){ 0 }, at->ids = NULL;
    PYR_TRY(status);
    PYR_TRY(be->copy(be, to, values, (size_t)rows * sizeof *to));
    to += rows;
  }
  return PYR_OK;
}

/* The best of one lane. Those that were chosen ascend, so each tier's lie together: of 3 warm rows
 * and 3 cold ones, chosen 1 5 are row 1 of the warm tier and row 2 of the cold one. The choice
 * waits for nothing on a processor; ties go to the lower index, and so to the warmer tier. */
static pyr_status promote_lane(const promotion *p, int layer, int head, int64_t rows) {
  pyr_backend *be = p->cache->pool->be;
  int64_t below = rows_below(p->cache, layer, head), begin = 0, i = 0;
  if (rows == 0) return PYR_OK;
  PYR_TRY(score_lane(p, layer, head));
  PYR_TRY(be->select(be, p->idx, p->scores, below, rows, 0));
  PYR_TRY(be->download(be, p->chosen, p->idx, (size_t)rows * sizeof *p->chosen));
  for (pyr_cache *at = p->cache->below; at; at = at->below) {
    int64_t held = pyr_cache_lane(at, layer, head)->rows, n = 0;
    while (i + n < rows && p->chosen[i + n] < begin + held) p->chosen[i + n++] -= (int32_t)begin;
    PYR_TRY(pyr_tier_promote(p->cache, at, layer, head, p->chosen + i, n));
    i += n, begin += held;
  }
  return PYR_OK;
}

/* Of a layer that recalls and whose trigger fires at the end of the next step; else 0. */
static int64_t recalled(const pyr_cache *cache, int layer) {
  const pyr_trigger *trigger = &cache->states[layer].trigger;
  bool due = pyr_trigger_recalls(trigger) && pyr_track_steps_left(cache, layer) == 1;
  return due ? trigger->recall : 0;
}

/* Plans with share = "layer" need lanes of one length; others leave ragged ones, and may. */
static pyr_status promote_layer(const promotion *p, int layer) {
  bool equal = pyr_cache_lanes_equal(p->cache, layer);
  int64_t most = p->score ? p->rows : recalled(p->cache, layer), fewest = most;
  for (int head = 0; head < p->cache->heads; head++)
    fewest = pyr_min(fewest, rows_below(p->cache, layer, head));
  if (equal && most > 0) {
    int64_t lacking = -fewest;
    PYR_TRY(pyr_ranks_most(p->cache->pool->model->ranks, &lacking));
    fewest = -lacking;
  }
  for (int head = 0; head < p->cache->heads; head++)
    PYR_TRY(promote_lane(p, layer, head, equal ? fewest
                         : pyr_min(most, rows_below(p->cache, layer, head))));
  return PYR_OK;
}

/* Scores that are no numbers are found at the end, as the snapshot brings everything back. */
static pyr_status promote_all(const promotion *p) {
  pyr_backend *be = p->cache->pool->be;
  int32_t fault = 0;
  PYR_TRY(pyr_fill_zeros(be, p->fault, 1));
  for (int layer = 0; layer < p->cache->layers; layer++)
    if (pyr_model_has(p->cache->pool->model, layer)) PYR_TRY(promote_layer(p, layer));
  PYR_TRY(be->download(be, &fault, p->fault, sizeof fault));
  return fault ? refuse(p->cache, "a score is NaN or infinite") : PYR_OK;
}

/* Scores of all tiers of a lane beside the scratch of one evaluation. */
static void layout(promotion *p, int64_t work, int64_t longest, pyr_arena *arena) {
  PYR_PART(arena, p->work, work);
  PYR_PART(arena, p->scores, longest);
  PYR_PART(arena, p->idx, longest);
  PYR_PART(arena, p->fault, 1);
}

/* Three kinds of memory: the backend's, for scores; the host's, for who was chosen; and what rows
 * take in the hot tier, of which budgets hear at the end, when it is known what all lanes have got.
 * Takes the memory, and a snapshot that shares all pages: whatever fails, the cache is as it was.
 * */
static pyr_status promote(promotion *p, int depth, int64_t longest) {
  pyr_cache *cache = p->cache, *snapshot = NULL;
  pyr_backend *be = cache->pool->be;
  const pyr_model_config *c = &cache->pool->model->config;
  int64_t work = pyr_score_scratch(cache, depth, longest);
  size_t host = (size_t)longest * sizeof *p->chosen;
  pyr_arena count = { 0 }, block = { 0 };
  pyr_work reserve = { .tokens = 1, .rows = longest, .sequences = 1, .heads = c->heads,
                       .kv_heads = c->kv_heads, .head_dim = c->head_dim, .cols = c->width };
  PYR_TRY(be->reserve(be, &reserve));
  layout(p, work, longest, &count);
  block.block = be->alloc(be, count.used);
  p->chosen = pyr_alloc(cache->pool->rt, host);
  pyr_status status = block.block && p->chosen ? PYR_OK
      : pyr_nomem(cache->pool->rt, count.used + host, "promoting rows");
  pyr_measure before = pyr_tiers_lift(cache);
  if (status == PYR_OK) status = pyr_cache_snapshot(cache, &snapshot);
  if (status == PYR_OK) {
    layout(p, work, longest, &block);
    status = promote_all(p);
  }
  status = pyr_ranks_agree(cache->pool->rt, pyr_tiers_lower(cache, &before, status));
  if (status != PYR_OK && snapshot) pyr_cache_restore(cache, snapshot);
  else pyr_cache_free(snapshot);
  be->release(be, block.block, count.used);
  pyr_release(cache->pool->rt, p->chosen, p->chosen ? host : 0);
  return status;
}

/* Where nothing lies below, on any rank, there is nothing to do, and no reason to refuse. *longest:
 * of all lanes of the ranks. A probe's numbers are of rows where they lay, and end. */
static pyr_status promote_some(promotion *p, int depth, int64_t longest) {
  pyr_cache *cache = p->cache;
  PYR_TRY(pyr_ranks_most(pyr_runtime_ranks(cache->pool->rt), &longest));
  if (longest == 0) return PYR_OK;
  PYR_TRY(promote(p, depth, longest));
  pyr_cache_rows_changed(cache);
  pyr_cache_tidy(cache);
  return pyr_cache_level(cache);           /* unequal lanes get unequal numbers of rows */
}

/* Of the lanes of this rank. Of two ranks with 12 and 9 rows below, of which 20 are asked for:
 *
 *     lanes equally long     9 come up in every lane, the fewest that one has (promote_layer)
 *     else                   12 on the one, 9 on the other
 *
 * What a rank has below beyond that stays there. */
static int64_t longest_below(const pyr_cache *cache, int layer) {
  int64_t longest = 0;
  for (int head = 0; head < cache->heads; head++)
    longest = pyr_max(longest, rows_below(cache, layer, head));
  return longest;
}

pyr_status pyr_cache_promote(pyr_cache *cache, const pyr_score *score, int64_t rows) {
  pyr_runtime *rt = cache->pool->rt;
  int depth;
  int64_t longest = 0;
  PYR_TRY(pyr_runtime_here(rt));
  PYR_TRY(check(cache, score, rows, &depth));
  for (int layer = 0; layer < cache->layers; layer++)
    longest = pyr_max(longest, longest_below(cache, layer));
  promotion p = { .cache = cache, .score = score, .rows = rows };
  if (rows == 0) return PYR_OK;
  pyr_ranks_begin(rt);
  return pyr_ranks_end(rt, promote_some(&p, depth, longest));
}

/* ---- recall ---------------------------------------------------------------------------------- */

/* A history that begins now is zeros; it goes where its rows go from then on. */
pyr_status pyr_recall_reserve(pyr_cache *cache, int layer) {
  if (!pyr_trigger_recalls(&cache->states[layer].trigger)) return PYR_OK;
  for (pyr_cache *at = cache->below; at; at = at->below)
    for (int head = 0; head < at->heads; head++)
      PYR_TRY(pyr_lane_reserve(at, pyr_cache_lane(at, layer, head), 0, true));
  return PYR_OK;
}

/* In most steps nothing is looked at but counts. For a moment a lane holds `recall` rows more than
 * its plan keeps: where the budget has no room for them none comes up, and the step goes on. */
pyr_status pyr_cache_recall(pyr_cache *cache) {
  pyr_runtime *rt = cache->pool->rt;
  int64_t longest = 0;
  bool due = false;
  pyr_status status = PYR_OK;
  for (int layer = 0; layer < cache->layers && cache->below && status == PYR_OK; layer++) {
    if (recalled(cache, layer) == 0) continue;
    due = true;
    if (!pyr_model_has(cache->pool->model, layer)) continue;
    status = pyr_recall_reserve(cache, layer);
    longest = pyr_max(longest, longest_below(cache, layer));
  }
  if (!due) return PYR_OK;
  promotion p = { .cache = cache };
  pyr_ranks_begin(rt);
  /* of stages who fails here is heard of in its team, before all are asked how much there is */
  if (cache->pool->model->line) status = pyr_ranks_agree(rt, status);
  if (status == PYR_OK) status = promote_some(&p, 1, longest);
  status = pyr_ranks_end(rt, status);
  return status == PYR_BUDGET ? PYR_OK : status;
}

/* look.c — cache:scores: what a score says of the rows that a cache holds, at rest.
 *
 * Lanes are evaluated one by one, whatever a policy's `share`, from what the rows hold and have
 * been given so far; of several ranks each has its own lanes', and gets the others'. What a running
 * prefill alone knows is refused by name. */
#include "policy/ranked.h"
#include "policy/score.h"
#include "model/stages.h"

#include <string.h>

static pyr_status check_scores(const pyr_cache *cache, int layer, int head, const pyr_score *score,
                               int *depth) {
  pyr_runtime *rt = cache->pool->rt;
  if (layer < -1 || layer >= cache->layers || head < -1
      || head >= cache->pool->model->whole.kv_heads)
    return pyr_runtime_set_error(rt, PYR_ARGUMENT, "no lane at layer %d, head %d", layer + 1,
                                 head + 1);
  const char *fault = pyr_score_check(score, depth);
  for (int l = layer < 0 ? 0 : layer; l <= (layer < 0 ? cache->layers - 1 : layer) && !fault; l++) {
    const pyr_score_op *track = &cache->states[l].trigger.track;
    bool tracks = pyr_trigger_tracks(&cache->states[l].trigger);
    fault = pyr_score_refused(score, cache, false, cache->probed != NULL, track);
    if (score->length == 0 && !tracks) fault = "is left out, and the cache's policy tracks none";
    for (int i = 0; i < score->length; i++) {
      if (pyr_score_untracked(&score->ops[i], track))
        fault = "asks for attention that the cache's policy does not track";
    }
  }
  return fault ? pyr_runtime_set_error(rt, PYR_ARGUMENT, "score: %s", fault) : PYR_OK;
}

/* A lane's scores, and its positions, both host [rows]. work: the scratch of an evaluation. */
static pyr_status lane_scores(const pyr_cache *cache, int layer, int head, const pyr_score *score,
                              float *work, float *out, int32_t *positions) {
  pyr_backend *be = cache->pool->be;
  const pyr_lane *lane = pyr_cache_lane(cache, layer, head);
  pyr_signals signals = { .cache = (pyr_cache *)cache, .layer = layer, .begin = 0,
                          .end = lane->rows, .tracked = &cache->states[layer].trigger.track,
                              .tracked_queries = cache->states[layer].trigger.track.n,
                          .next = cache->tokens };
  const pyr_score tracked = { 1, { *signals.tracked } };
  float *values;
  if (lane->rows == 0) return PYR_OK;
  pyr_status status = pyr_score_eval(score->length ? score : &tracked, &signals, head, 1, work,
                                     &values);
  if (status == PYR_OK) status = be->download(be, out, values, (size_t)lane->rows * sizeof *out);
  if (status == PYR_OK)
    status = be->download(be, positions, lane->positions, (size_t)lane->rows * sizeof *positions);
  return status;
}

/* What is looked at: K/V heads [low, high] of the whole model, in so many lanes of all layers. */
typedef struct pyr_look { const pyr_score *score; int low, high; float lanes; } pyr_look;

/* One layer's lanes, on whatever rank: rows [K/V heads] of each, 0 of those not looked at; their
 * scores and positions one lane after the other, of this rank's lanes, and of all. Where there is
 * one process these are the same. */
typedef struct pyr_looked {
  int64_t *rows, *own_rows;
  float *own, *all;
  int32_t *own_at, *all_at;
} pyr_looked;

static void layout_looked(pyr_looked *l, int64_t heads, int64_t own, int64_t all,
                          pyr_arena *arena) {
  PYR_PART(arena, l->rows, heads);
  PYR_PART(arena, l->own_rows, heads);
  PYR_PART(arena, l->own, own);
  PYR_PART(arena, l->own_at, own);
  PYR_PART(arena, l->all, all);
  PYR_PART(arena, l->all_at, all);
}

/* Adds the scores of a layer's lanes, over all that are looked at, to out[position]. A position
 * that a lane does not hold gets nothing from it: over 4 lanes of which 3 hold position 9, out[9]
 * is the sum of 3 scores over 4. Sums are made in the order of heads, whoever has them. */
static pyr_status add_layer(const pyr_cache *cache, int layer, const pyr_look *look,
                            const pyr_looked *l, float *work, float *out) {
  const pyr_model *model = cache->pool->model;
  const float *values = l->all;
  const int32_t *positions = l->all_at;
  int first = model->ranks ? pyr_model_part(model)->lanes.first : 0;
  int64_t before = 0;
  for (int own = 0; own < cache->heads; own++) {
    if (first + own < look->low || first + own > look->high) continue;
    PYR_TRY(lane_scores(cache, layer, own, look->score, work, l->own + before,
                        l->own_at + before));
    before += pyr_cache_lane(cache, layer, own)->rows;
  }
  if (model->ranks) {
    PYR_TRY(pyr_heads_gather(model, l->rows, sizeof *l->own, l->own, l->all));
    PYR_TRY(pyr_heads_gather(model, l->rows, sizeof *l->own_at, l->own_at, l->all_at));
  } else {
    values = l->own, positions = l->own_at;
  }
  for (int head = look->low; head <= look->high; head++)
    for (int64_t i = 0; i < l->rows[head]; i++) out[*positions++] += *values++ / look->lanes;
  return PYR_OK;
}

/* Two ranks with the lanes 0, and 1 and 2, of a model of which head 2 is looked at:
 *
 *     rank 0    tells 0      gets 0 0 31     adds 31 scores that rank 1 worked out
 *     rank 1    tells 0 31   gets 0 0 31     adds the same
 *
 * Memory twice: who must be told how many rows the others' lanes have needs some for that. */
static pyr_status look_at_layer(const pyr_cache *cache, int layer, const pyr_look *look,
                                float *work, float *out) {
  const pyr_model *model = cache->pool->model;
  pyr_runtime *rt = cache->pool->rt;
  int64_t heads = model->whole.kv_heads, own = 0, all = 0;
  int first = model->ranks ? pyr_model_part(model)->lanes.first : 0;
  pyr_looked told, l;
  pyr_arena count = { 0 }, small = { 0 }, arena = { 0 };
  layout_looked(&told, heads, 0, 0, &count);
  small.block = pyr_alloc_zero(rt, count.used);
  if (!small.block) return pyr_nomem(rt, count.used, "the scores of a cache");
  layout_looked(&told, heads, 0, 0, &small);
  for (int head = 0; head < cache->heads; head++) {
    if (first + head < look->low || first + head > look->high) continue;
    own += told.own_rows[head] = pyr_cache_lane(cache, layer, head)->rows;
    told.rows[first + head] = told.own_rows[head];
  }
  pyr_status status = model->ranks ? pyr_heads_gather(model, NULL, sizeof *told.rows,
                                                      told.own_rows, told.rows) : PYR_OK;
  for (int head = 0; head < heads && model->ranks && status == PYR_OK; head++)
    all += told.rows[head];
  count = (pyr_arena){ 0 };
  layout_looked(&l, heads, own, all, &count);
  if (status == PYR_OK && !(arena.block = pyr_alloc(rt, count.used)))
    status = pyr_nomem(rt, count.used, "the scores of a cache");
  if (status == PYR_OK) {
    layout_looked(&l, heads, own, all, &arena);
    memcpy(l.rows, told.rows, (size_t)heads * sizeof *l.rows);
    status = add_layer(cache, layer, look, &l, work, out);
  }
  pyr_release(rt, arena.block, arena.block ? arena.used : 0);
  pyr_release(rt, small.block, small.used);
  return status;
}

/* Of several stages each adds its layers' to what those before it have made, so that sums are made
 * in the order of layers, and the last one tells all. A stage that fails passes on what there is:
 * all hear of it when they agree. */
static pyr_status look_at_layers(const pyr_cache *cache, int first, int last, const pyr_look *look,
                                 float *work, float *out) {
  const pyr_model *model = cache->pool->model;
  pyr_ranks *line = model->line;
  int stage = pyr_ranks_rank(line), end = pyr_ranks_size(line) - 1;
  size_t bytes = (size_t)cache->tokens * sizeof *out, all[PYR_RANKS_MAX] = { 0 };
  pyr_status status = PYR_OK;
  if (stage > 0) status = pyr_ranks_pass(line, stage - 1, stage, NULL, bytes, out);
  for (int l = first; l <= last && status == PYR_OK; l++)
    if (pyr_model_has(model, l)) status = look_at_layer(cache, l, look, work, out);
  if (!line) return status;
  status = pyr_stage_settle(model, status);
  pyr_status passed = PYR_OK;
  if (stage < end) passed = pyr_ranks_pass(line, stage, stage + 1, out, bytes, NULL);
  all[end] = bytes;
  if (passed == PYR_OK) passed = pyr_ranks_gather_known(line, out, all, out);
  return status == PYR_OK ? passed : status;
}

/* Scratch is laid out for the longest lane and serves all in turn. Lanes are evaluated one by
 * one, whatever the policy's `share`, from what the rows hold and have been given so far. */
pyr_status pyr_cache_scores(const pyr_cache *cache, int layer, int head, const pyr_score *score,
                            float *out) {
  pyr_runtime *rt = cache->pool->rt;
  pyr_backend *be = cache->pool->be;
  const pyr_model_config *c = &cache->pool->model->config;
  int depth, first = layer < 0 ? 0 : layer, last = layer < 0 ? cache->layers - 1 : layer;
  pyr_look look = { score, head < 0 ? 0 : head,
                    head < 0 ? cache->pool->model->whole.kv_heads - 1 : head, 0 };
  int64_t rows = 1;
  look.lanes = (float)((last - first + 1) * (look.high - look.low + 1));
  PYR_TRY(check_scores(cache, layer, head, score, &depth));
  for (int l = first; l <= last; l++)
    rows = pyr_cache_layer_rows(cache, l) > rows ? pyr_cache_layer_rows(cache, l) : rows;
  pyr_work reserve = { .tokens = 1, .rows = rows, .sequences = 1, .heads = c->heads,
                       .kv_heads = c->kv_heads, .head_dim = c->head_dim, .cols = c->width };
  size_t work_bytes = (size_t)pyr_score_scratch(cache, depth, rows) * sizeof(float);
  float *work = NULL;
  pyr_ranks_begin(rt);
  pyr_status status = be->reserve(be, &reserve);
  if (status == PYR_OK && !(work = be->alloc(be, work_bytes)))
    status = pyr_nomem(rt, work_bytes, "the scores of a cache");
  memset(out, 0, (size_t)cache->tokens * sizeof *out);
  status = pyr_ranks_agree(rt, status);
  if (status == PYR_OK) status = look_at_layers(cache, first, last, &look, work, out);
  status = pyr_ranks_end(rt, status);
  be->release(be, work, work_bytes);
  return status;
}

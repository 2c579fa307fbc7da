/* plan.c — asking policies, checking what they answer, and showing plans what they rank by.
 *
 * Tracking. A decode plan may rank rows by the attention that recent queries gave them. Storing
 * those queries' attention rows would cost more than the rows themselves; but rows are judged in
 * the order in which they leave the window, so the position of the last query before a row's
 * judgement (its due date) is known when the row is born, and with it the weight of every query for
 * that row (pyr_weighting). One accumulator a row suffices, exactly, at O(rows) a step. Prefill
 * starts it with the prompt's own queries. Where rows are judged at every firing (`once` is off),
 * the accumulators start anew after each. Lanes of unequal length are judged from their ends, so
 * due dates count rows from there and are the same for all. A trigger by length (`over`) fires by
 * the longest lane; where a prefill plan does not fix how long that will be (pool, mass), due dates
 * are first reckoned from the most that it can be. */
#include "policy/plan.h"
#include "cache/check.h"
#include "model/model.h"

#include <limits.h>
#include <string.h>

/* ---- asking ---------------------------------------------------------------------------------- */

static pyr_status refuse(pyr_cache *cache, const pyr_shape *shape, const char *when,
                         const char *field, const char *what) {
  return pyr_runtime_set_error(cache->pool->rt, PYR_POLICY, "policy %s, layer %d, %s: %s %s",
                               cache->policy.name ? cache->policy.name : "?",
                                   (int)shape->layer + 1, when, field, what);
}

static pyr_status check_list(pyr_cache *cache, const pyr_shape *shape, pyr_plan *plan,
                             const char *when) {
  if (plan->share != PYR_SHARE_HEAD)
    return refuse(cache, shape, when, "keep", "is a list, which needs share = \"head\"");
  if (plan->keep_count != shape->kv_heads || plan->keep_count > PYR_KEEP_HEADS)
    return refuse(cache, shape, when, "keep",
                  "must list one number for each K/V head, of which there may be 128");
  plan->keep = plan->keep_of[0];
  for (int32_t head = 0; head < plan->keep_count; head++) {
    if (plan->keep_of[head] < 1) return refuse(cache, shape, when, "keep", "is less than 1");
    if (plan->keep_of[head] < plan->least)
      return refuse(cache, shape, when, "least", "is more than keep");
    plan->keep = pyr_max(plan->keep, plan->keep_of[head]);
  }
  return PYR_OK;
}

static pyr_status check_plan(pyr_cache *cache, const pyr_shape *shape, pyr_plan *plan,
                             const char *when) {
  int depth;
  const char *fault;
  bool hidden = plan->prune & PYR_PRUNE_HIDDEN;
  pyr_status status = plan->keep_count ? check_list(cache, shape, plan, when) : PYR_OK;
  if (status != PYR_OK) return status;
  if (plan->keep < 1) return refuse(cache, shape, when, "keep", "is less than 1");
  if (plan->keep > shape->rows)
    return refuse(cache, shape, when, "keep", "asks for more rows than there are");
  if (plan->first < 0) return refuse(cache, shape, when, "guard.first", "is negative");
  if (plan->last < 0) return refuse(cache, shape, when, "guard.last", "is negative");
  if (plan->share < PYR_SHARE_LAYER || plan->share > PYR_SHARE_POOL)
    return refuse(cache, shape, when, "share", "is unknown");
  if (plan->prune < PYR_PRUNE_CACHE || plan->prune > PYR_PRUNE_BOTH)
    return refuse(cache, shape, when, "prune", "is unknown");
  if (hidden && plan->share != PYR_SHARE_LAYER)
    return refuse(cache, shape, when, "share", "must be \"layer\" where hidden states are pruned");
  if (!(plan->mass >= 0 && plan->mass <= 1))
    return refuse(cache, shape, when, "mass", "lies outside (0, 1]");
  if (plan->least < 0) return refuse(cache, shape, when, "least", "is negative");
  if (plan->least > plan->keep) return refuse(cache, shape, when, "least", "is more than keep");
  if (plan->least > 0 && plan->mass == 0 && plan->share != PYR_SHARE_POOL)
    return refuse(cache, shape, when, "least", "needs mass or share = \"pool\"");
  if (plan->merge && !(plan->threshold >= -1 && plan->threshold <= 1))
    return refuse(cache, shape, when, "merge.threshold", "lies outside [-1, 1]");
  if (plan->merge && !(plan->prune & PYR_PRUNE_CACHE))
    return refuse(cache, shape, when, "merge",
                  "needs losers: prune = \"hidden\" leaves the layer's own rows whole");
  if (plan->rotate != PYR_ROTATE_KEEP && plan->rotate != PYR_ROTATE_COMPACT)
    return refuse(cache, shape, when, "rotate", "is unknown");
  if (plan->rotate == PYR_ROTATE_COMPACT && (plan->share != PYR_SHARE_LAYER || hidden))
    return refuse(cache, shape, when, "rotate",
                  "\"compact\" needs share = \"layer\" and prune = \"cache\"");
  if ((fault = pyr_score_check(&plan->score, &depth)) != NULL)
    return refuse(cache, shape, when, "score", fault);
  bool prefill = strcmp(when, "decode") != 0;
  if ((fault = pyr_score_refused(&plan->score, cache, prefill)) != NULL)
    return refuse(cache, shape, when, "score", fault);
  return PYR_OK;
}

/* What depends on the rows that the lanes hold. */
static pyr_status check_lanes(pyr_cache *cache, const pyr_shape *shape, const pyr_judge *j,
                              const char *when) {
  const char *field, *fault = pyr_judge_fault(j, &field);
  return fault ? refuse(cache, shape, when, field, fault) : PYR_OK;
}

/* Before the layer's tokens are stored. */
static pyr_judge prefill_judge(pyr_cache *cache, const pyr_shape *shape, const pyr_plan *plan) {
  int64_t fresh = shape->rows - shape->past;
  return (pyr_judge){ .cache = cache, .layer = shape->layer, .plan = plan, .fresh = fresh,
                      .more = fresh };
}

int64_t pyr_plan_rows_after(pyr_cache *cache, const pyr_shape *shape, const pyr_plan *plan) {
  pyr_judge j = prefill_judge(cache, shape, plan);
  return pyr_judge_rows_after(&j);
}

pyr_status pyr_plan_ask_prefill(pyr_cache *cache, const pyr_shape *shape, pyr_plan *plan) {
  memset(plan, 0, sizeof *plan);
  plan->keep = shape->rows;
  plan->prune = PYR_PRUNE_CACHE;
  if (!cache->policy.prefill) return PYR_OK;
  pyr_status status = cache->policy.prefill(cache->policy.ud, shape, plan);
  if (status == PYR_OK) status = check_plan(cache, shape, plan, "prefill");
  if (status != PYR_OK) return status;
  /* there is no next layer to hand survivors to */
  if (shape->layer == shape->layers - 1 && (plan->prune & PYR_PRUNE_HIDDEN)) {
    if (plan->prune == PYR_PRUNE_HIDDEN) plan->keep = shape->rows, plan->mass = 0, plan->least = 0;
    plan->prune = PYR_PRUNE_CACHE;
    plan->last = pyr_max(plan->last, 1);
    plan->first = pyr_max(plan->first, shape->past);
  }
  pyr_judge j = prefill_judge(cache, shape, plan);
  return check_lanes(cache, shape, &j, "prefill");
}

bool pyr_trigger_tracks(const pyr_trigger *trigger) {
  return pyr_signal_is_attention(&trigger->track) || pyr_signal_is_history(&trigger->track);
}

pyr_status pyr_plan_ask_trigger(pyr_cache *cache, const pyr_shape *shape, pyr_trigger *trigger) {
  memset(trigger, 0, sizeof *trigger);
  trigger->track.code = PYR_SCORE_CODES;
  if (!cache->policy.trigger || !cache->policy.decode) return PYR_OK;
  pyr_status status = cache->policy.trigger(cache->policy.ud, shape, trigger);
  if (status != PYR_OK) return status;
  if (trigger->every < 0) return refuse(cache, shape, "trigger", "every", "is negative");
  if (trigger->over < 0) return refuse(cache, shape, "trigger", "over", "is negative");
  if (trigger->window < 0) return refuse(cache, shape, "trigger", "window", "is negative");
  if (trigger->once && (trigger->every == 0 || trigger->over > 0))
    return refuse(cache, shape, "trigger", "once", "needs `every`, and not `over`");
  if (!pyr_trigger_tracks(trigger)) return PYR_OK;
  int depth;
  pyr_score alone = { 1, { trigger->track } };
  const char *fault = pyr_score_check(&alone, &depth);
  if (fault) return refuse(cache, shape, "trigger", "track", fault);
  if (trigger->track.a == PYR_MAX)
    return refuse(cache, shape, "trigger", "track", "cannot keep a maximum over queries");
  if (trigger->track.b == PYR_MAX && shape->heads != shape->kv_heads)
    return refuse(cache, shape, "trigger", "track",
                  "cannot keep a maximum over the query heads of a K/V head; track their mean");
  return PYR_OK;
}

pyr_status pyr_plan_check_history(pyr_cache *cache, const pyr_shape *shape, const pyr_plan *plan,
                                  const pyr_trigger *trigger) {
  if (!pyr_signal_is_history(&trigger->track) || shape->past == 0) return PYR_OK;
  for (int i = 0; i < plan->score.length; i++) {
    const pyr_score_op *op = &plan->score.ops[i];
    if (!pyr_signal_is_history(op)) continue;
    if (op->b == PYR_MAX && shape->heads != shape->kv_heads)
      return refuse(cache, shape, "prefill", "score",
                    "wants history{heads=max}, of which earlier prompts left the mean over a K/V "
                    "head");
    const char *fault = pyr_score_untracked(op, &trigger->track);
    if (fault) return refuse(cache, shape, "prefill", "score", fault);
  }
  return PYR_OK;
}

pyr_status pyr_plan_ask_decode(pyr_cache *cache, const pyr_shape *shape, pyr_plan *plan) {
  const pyr_trigger *trigger = &cache->states[shape->layer].trigger;
  memset(plan, 0, sizeof *plan);
  plan->keep = shape->rows;
  plan->prune = PYR_PRUNE_CACHE;
  pyr_status status = cache->policy.decode(cache->policy.ud, shape, plan);
  plan->prune = PYR_PRUNE_CACHE;
  if (status == PYR_OK) status = check_plan(cache, shape, plan, "decode");
  if (status != PYR_OK) return status;
  if (trigger->once && plan->last > trigger->window)
    return refuse(cache, shape, "decode", "guard.last",
                  "exceeds the trigger's window, by which rows judged once are counted");
  if (plan->score.length == 0 && pyr_trigger_tracks(trigger))
    plan->score = (pyr_score){ 1, { trigger->track } };
  for (int i = 0; i < plan->score.length; i++) {
    const char *fault = pyr_score_untracked(&plan->score.ops[i], &trigger->track);
    if (fault) return refuse(cache, shape, "decode", "score", fault);
  }
  pyr_judge j = { .cache = cache, .layer = shape->layer, .plan = plan, .decode = true, .more = 1 };
  return check_lanes(cache, shape, &j, "decode");
}

pyr_status pyr_plan_ask_evict(pyr_cache *cache, const pyr_shape *shape, pyr_plan *plan) {
  const pyr_score_op *track = &cache->states[shape->layer].trigger.track;
  memset(plan, 0, sizeof *plan);
  plan->keep = shape->rows;
  plan->prune = PYR_PRUNE_CACHE;
  pyr_status status = cache->policy.prefill(cache->policy.ud, shape, plan);
  if (status == PYR_OK) status = check_plan(cache, shape, plan, "evict");
  if (status != PYR_OK) return status;
  if (plan->prune & PYR_PRUNE_HIDDEN)
    return refuse(cache, shape, "evict", "prune",
                  "drops hidden states, which are there while a prefill runs only (\"cache\" "
                  "drops rows)");
  for (int i = 0; i < plan->score.length; i++) {
    const pyr_score_op *op = &plan->score.ops[i];
    if (pyr_signal_is_expected(op))
      return refuse(cache, shape, "evict", "score",
                    "expects attention from the queries of a prompt, which only a running "
                    "prefill knows");
    if (!pyr_signal_is_attention(op) && !pyr_signal_is_history(op)) continue;
    if (pyr_score_untracked(op, track))
      return refuse(cache, shape, "evict", "score",
                    "ranks by attention that the cache does not track, and only a running "
                    "prefill knows");
    if (op->b == PYR_MAX && shape->heads != shape->kv_heads)
      return refuse(cache, shape, "evict", "score",
                    "takes a maximum over the query heads of a K/V head, of which only the mean "
                    "is tracked");
  }
  pyr_judge j = { .cache = cache, .layer = shape->layer, .plan = plan };
  return check_lanes(cache, shape, &j, "evict");
}

/* Tracked attention starts anew: queries before now no longer count. */
static pyr_status forget_tracked(pyr_cache *cache, int layer) {
  pyr_backend *be = cache->pool->be;
  pyr_status status = PYR_OK;
  for (int head = 0; head < cache->heads && status == PYR_OK; head++) {
    pyr_lane *lane = pyr_cache_lane(cache, layer, head);
    if (lane->history && lane->rows)
      status = be->fill(be, lane->history, NULL, lane->rows, 2, 0, 0.0f);
  }
  return status;
}

/* ---- prefill --------------------------------------------------------------------------------- */

static int64_t steps_until(const pyr_trigger *trigger, int64_t since, int64_t rows) {
  int64_t steps = INT64_MAX;
  if (trigger->every > 0) steps = pyr_max(trigger->every - since, 1);
  if (trigger->over > 0) steps = pyr_min(steps, pyr_max(trigger->over + 1 - rows, 1));
  return steps;
}

/* The weighting of tracked attention, seen from a cache whose next query has position `next`,
 * `steps` before the trigger fires; rows count from `end` rows behind those that each lane holds
 * now. */
static pyr_weighting track_weighting(const pyr_trigger *trigger, int64_t next, int64_t steps,
                                     int64_t end) {
  pyr_weighting w = { 0, 1.0f, 0, 0, 0 };
  if (!pyr_signal_is_attention(&trigger->track) || steps == INT64_MAX) return w;
  w.queries = trigger->track.n;
  w.ramp = trigger->track.x;
  w.due = next + steps - 1;
  if (trigger->once) {
    w.threshold = steps - trigger->window - end;
    w.every = trigger->every;
  }
  return w;
}

/* Which queries count for what is tracked, and from which row of each lane on: with `once` only its
 * last rows are yet to be judged. */
static void plan_track_setup(pyr_plan_run *run, int64_t rows_after) {
  const pyr_trigger *trigger = &run->trigger;
  if (!pyr_trigger_tracks(trigger)) return;
  run->track_queries = run->judge.fresh;
  run->track_last = INT64_MAX;
  if (pyr_signal_is_attention(&trigger->track)) {
    int64_t steps = steps_until(trigger, run->fresh ? 0
                                : run->judge.cache->states[run->judge.layer].since, rows_after);
    if (steps == INT64_MAX) {
      run->track_queries = 0;
      return;
    }
    run->track_weighting = track_weighting(trigger, run->last_position + 1, steps, 0);
    if (trigger->track.n > 0)
      run->track_queries = pyr_min(run->judge.fresh, trigger->track.n - steps);
    if (trigger->once) run->track_last = trigger->window;
  } else {
    run->track_weighting = (pyr_weighting){ 0, 1.0f, 0, 0, 0 };
  }
  if (run->track_queries < 0 || run->track_last == 0) run->track_queries = 0;
}

/* The tracked rows of a lane that holds `rows` once all tokens are stored. */
static int64_t track_begin(const pyr_plan_run *run, int64_t rows) {
  return pyr_max(0, rows - pyr_min(rows, run->track_last));
}

pyr_status pyr_plan_begin(pyr_plan_run *run, pyr_cache *cache, int layer, const pyr_plan *plan,
                          const pyr_trigger *trigger, int64_t alive, int64_t last_position,
                              int32_t *fault) {
  pyr_backend *be = cache->pool->be;
  int32_t heads = cache->pool->model->config.heads;
  memset(run, 0, sizeof *run);
  run->plan = *plan;
  run->judge = (pyr_judge){ .cache = cache, .layer = layer, .plan = &run->plan, .fresh = alive,
                            .more = alive };
  run->fresh = trigger != NULL;
  run->trigger = trigger ? *trigger : cache->states[layer].trigger;
  trigger = &run->trigger;
  run->last_position = last_position;
  run->before = pyr_cache_layer_rows(cache, layer);
  run->needed = pyr_judge_needed(&run->judge);
  plan_track_setup(run, pyr_judge_rows_after(&run->judge));

  size_t ranges = (size_t)cache->heads * sizeof *run->ranges;
  ranges = (ranges + 7) / 8 * 8;
  run->host_bytes = ranges + pyr_judge_host_bytes(cache) + pyr_judge_verdict_bytes(cache);
  run->host = pyr_alloc(cache->pool->rt, run->host_bytes);
  if (!run->host) return pyr_nomem(cache->pool->rt, run->host_bytes, "the lanes of a layer");
  run->ranges = (pyr_range *)run->host;
  pyr_judge_carve_host(cache, run->host + ranges, &run->work);
  pyr_judge_carve_verdict_host(cache, run->host + ranges + pyr_judge_host_bytes(cache),
                               &run->verdict);

  /* One block: accumulators, tracking, then what judging takes. */
  pyr_signals *s = &run->signals;
  *s = (pyr_signals){ .cache = cache, .layer = layer, .stride = pyr_judge_longest(&run->judge),
                      .fault = fault };
  s->tracked = pyr_trigger_tracks(trigger) ? &run->trigger.track : NULL;
  int64_t floats = 0, sums[PYR_SCORE_MAX], scratch = 0, work = 0, verdict = 0, moments = 0;
  int depth;
  for (int i = 0; i < PYR_SCORE_MAX; i++) sums[i] = -1;
  pyr_score_check(&plan->score, &depth);
  for (int i = 0; i < plan->score.length && run->needed && s->stride > 0; i++) {
    const pyr_score_op *op = &plan->score.ops[i];
    if (pyr_signal_is_expected(op)) moments += pyr_queries_floats(cache->pool->model, op->a, alive);
    if (!pyr_signal_is_attention(op) && !pyr_signal_is_history(op)) continue;
    /* a lane holds the mean over its query heads */
    bool means = op->b == PYR_MAX && heads != cache->heads;
    /* by the lanes' history */
    if (pyr_signal_is_history(op) && pyr_signal_is_history(&trigger->track) && !means) continue;
    sums[i] = floats;
    floats += heads * s->stride;
  }
  int64_t track = floats;
  if (run->track_queries > 0) {
    run->track_stride = run->before + alive - track_begin(run, run->before + alive);
    floats += heads * run->track_stride;
    scratch = run->track_stride;
  }
  int64_t zeroed = floats;
  if (run->needed) {
    work = pyr_judge_carve(&run->judge, depth, NULL, &run->work);
    verdict = pyr_judge_carve_verdict(&run->judge, NULL, &run->verdict);
  }
  floats += moments + pyr_max(work, scratch) + verdict;
  if (floats == 0) return PYR_OK;
  run->block_bytes = (size_t)floats * sizeof(float);
  run->block = be->alloc(be, run->block_bytes);
  if (!run->block) return pyr_nomem(cache->pool->rt, run->block_bytes, "the scores of a layer");
  for (int i = 0; i < PYR_SCORE_MAX; i++)
    if (sums[i] >= 0) s->mass[i] = run->block + sums[i];
  if (run->track_queries > 0) run->track = run->block + track;
  run->scratch = run->block + zeroed;
  float *next = run->scratch + pyr_max(work, scratch);
  for (int i = 0; i < plan->score.length && moments > 0; i++) {
    const pyr_score_op *op = &plan->score.ops[i];
    if (!pyr_signal_is_expected(op)) continue;
    pyr_queries_begin(&s->queries_of[i], cache->pool->model, op->a, alive, (int64_t)op->x, next);
    next += pyr_queries_floats(cache->pool->model, op->a, alive);
  }
  run->expects = moments > 0;
  if (run->needed) {
    pyr_judge_carve(&run->judge, depth, run->scratch, &run->work);
    pyr_judge_carve_verdict(&run->judge, (int32_t *)next, &run->verdict);
  }
  return zeroed ? be->fill(be, run->block, NULL, zeroed, 2, 0, 0.0f) : PYR_OK;
}

void pyr_plan_free(pyr_plan_run *run) {
  pyr_pool *pool = run->judge.cache ? run->judge.cache->pool : NULL;
  if (!pool) return;
  pool->be->release(pool->be, run->block, run->block_bytes);
  pyr_release(pool->rt, run->host, run->host ? run->host_bytes : 0);
  run->block = NULL;
  run->host = NULL;
}

/* How many of the last alive queries the i-th signal looks at; 0: all. */
static int64_t signal_queries(const pyr_plan_run *run, int i) {
  const pyr_score_op *op = &run->plan.score.ops[i];
  return pyr_signal_is_attention(op) && op->n > 0 ? pyr_min(op->n, run->judge.fresh)
      : run->judge.fresh;
}

bool pyr_plan_wants(const pyr_plan_run *run, int64_t at, int64_t n) {
  int64_t back = run->judge.fresh - (at + n);       /* alive queries after these */
  if (run->expects || (run->track && back < run->track_queries)) return true;
  for (int i = 0; i < run->plan.score.length; i++)
    if (run->signals.mass[i] && back < signal_queries(run, i)) return true;
  return false;
}

/* Adds to `out` ([heads, stride]) the mass of those of a's queries that are among the last
 * `queries` alive: on the judged rows of each lane, or on those that are tracked. */
static pyr_status observe(pyr_plan_run *run, const pyr_attention *a, int64_t at, int64_t queries,
                          bool tracked, pyr_reduce reduce, pyr_weighting weighting, float *out) {
  pyr_cache *cache = run->judge.cache;
  const pyr_model *model = cache->pool->model;
  int32_t heads = model->config.heads;
  int64_t alive = run->judge.fresh, skip = pyr_max(0, alive - queries - at);
  if (skip >= a->n) return PYR_OK;
  for (int head = 0; head < cache->heads; head++) {      /* rows that are not stored yet are seen by
                                                            no query so far */
    int64_t stored = pyr_cache_lane(cache, run->judge.layer, head)->rows;
    pyr_judge when = run->judge;
    when.more = alive - (at + a->n);
    pyr_split s = pyr_judge_split(&when, head);
    run->ranges[head] = tracked ? (pyr_range){ track_begin(run, s.rows), stored, s.rows }
                                : (pyr_range){ s.first, pyr_min(s.first + s.judged, stored),
                                               s.rows };
  }
  pyr_mass m = {
    .out = out, .stride = tracked ? run->track_stride : run->signals.stride,
        .q = a->q + skip * heads * model->config.head_dim,
    .lse = a->lse + skip * heads, .q_pos = a->q_pos + skip, .lanes = a->lanes,
        .ranges = run->ranges, .n = a->n - skip,
    .window = a->window, .reduce = reduce, .weighting = weighting, .by_place = !tracked,
        .place = (int32_t)(at + skip),
  };
  return cache->pool->be->mass(cache->pool->be, &m, cache->pool->layout, heads, cache->heads,
                               model->scale);
}

pyr_status pyr_plan_observe(pyr_plan_run *run, const pyr_attention *a, const int32_t *turned_to,
                            int64_t at) {
  pyr_status status = PYR_OK;
  pyr_trace_start(&run->trace, &run->judge);
  for (int i = 0; i < run->plan.score.length && status == PYR_OK; i++) {
    const pyr_score_op *op = &run->plan.score.ops[i];
    if (run->expects && pyr_signal_is_expected(op))
      status = pyr_queries_add(&run->signals.queries_of[i], run->judge.cache->pool->be, a,
                               turned_to, at);
    if (!run->signals.mass[i]) continue;
    int64_t queries = signal_queries(run, i);
    run->signals.queries[i] = queries;
    pyr_weighting w = { 0, 1.0f, 0, 0, 0 };
    if (pyr_signal_is_attention(op) && op->n > 0)
      w = (pyr_weighting){ (int32_t)queries, op->x, run->judge.fresh - 1, 0, 0 };
    status = observe(run, a, at, queries, false, op->a == PYR_MAX ? PYR_MAX : PYR_SUM, w,
                     run->signals.mass[i]);
  }
  if (status == PYR_OK && run->track)
    status = observe(run, a, at, run->track_queries, true, PYR_SUM, run->track_weighting,
                     run->track);
  pyr_trace_stop(&run->trace, &run->judge);
  return status;
}

/* history[track_begin..rows) of each lane += the mean over its query heads. */
static pyr_status flush_track(pyr_plan_run *run) {
  pyr_cache *cache = run->judge.cache;
  pyr_backend *be = cache->pool->be;
  int32_t group = cache->pool->model->config.heads / cache->heads;
  for (int head = 0; head < cache->heads; head++) {
    pyr_lane *lane = pyr_cache_lane(cache, run->judge.layer, head);
    int64_t begin = track_begin(run, lane->rows), n = lane->rows - begin;
    const float *from = run->track + (int64_t)head * group * run->track_stride;
    pyr_status status = be->reduce_rows(be, run->scratch, from, group, run->track_stride, n,
                                        PYR_MEAN, 1.0f);
    if (status == PYR_OK) status = be->arith(be, lane->history + begin, run->scratch, n, PYR_S_ADD);
    if (status != PYR_OK) return status;
  }
  return PYR_OK;
}

/* Expected attention is that of queries behind the rows as they are rotated. */
static pyr_status end_queries(pyr_plan_run *run) {
  pyr_cache *cache = run->judge.cache;
  int32_t layer = run->judge.layer;
  int64_t next = cache->states[layer].compact ? pyr_cache_layer_rows(cache, layer)
      : run->last_position + 1;
  pyr_status status = PYR_OK;
  for (int i = 0; i < run->plan.score.length && status == PYR_OK; i++) {
    const pyr_score_op *op = &run->plan.score.ops[i];
    if (!pyr_signal_is_expected(op)) continue;
    status = pyr_queries_end(&run->signals.queries_of[i], cache->pool->be, cache->pool->model,
                             next, op->n);
  }
  return status;
}

pyr_status pyr_plan_end(pyr_plan_run *run, const int32_t **survivors, int64_t *kept) {
  pyr_cache *cache = run->judge.cache;
  int32_t layer = run->judge.layer;
  pyr_layer_state *state = &cache->states[layer];
  bool hidden = run->needed && (run->plan.prune & PYR_PRUNE_HIDDEN);
  pyr_status status = PYR_OK;
  *survivors = NULL;
  run->judge.more = 0;
  pyr_trace_start(&run->trace, &run->judge);
  pyr_trace_rows(&run->trace, &run->judge);
  if (pyr_signal_is_attention(&run->trigger.track) && run->fresh)
    status = forget_tracked(cache, layer);
  if (status == PYR_OK && run->track) status = flush_track(run);
  if (status == PYR_OK && run->expects) status = end_queries(run);
  if (status == PYR_OK && run->needed)
    status = pyr_judge_rank(&run->judge, &run->signals, &run->work, &run->verdict,
                            hidden ? kept : NULL);
  if (status == PYR_OK && run->needed)
    status = pyr_judge_evict(&run->judge, &run->work, &run->verdict);
  if (status == PYR_OK && hidden) *survivors = run->verdict.hidden;
  if (status == PYR_OK) status = pyr_cache_check_layer(cache, layer);
  if (status != PYR_OK || !run->fresh) return status;
  state->trigger = run->trigger;
  state->since = 0;
  state->past = run->before;
  state->unjudged = run->trigger.window;
  pyr_trace_stop(&run->trace, &run->judge);
  return pyr_trace_tell(&run->trace, &run->judge, (int64_t)run->last_position + 1, *kept);
}

/* ---- decode ---------------------------------------------------------------------------------- */

int64_t pyr_plan_steps_left(const pyr_cache *cache, int layer) {
  const pyr_layer_state *state = &cache->states[layer];
  return steps_until(&state->trigger, state->since, pyr_cache_layer_rows(cache, layer));
}

bool pyr_plan_track(const pyr_cache *cache, int layer, pyr_track *out) {
  const pyr_layer_state *state = &cache->states[layer];
  int64_t steps = pyr_plan_steps_left(cache, layer);
  if (!pyr_trigger_tracks(&state->trigger) || steps == INT64_MAX) return false;
  /* the step's own row comes first */
  out->weighting = track_weighting(&state->trigger, cache->tokens, steps, 1);
  out->decay = pyr_signal_is_history(&state->trigger.track) ? state->trigger.track.x : 1.0f;
  return true;
}

int64_t pyr_plan_waiting(const pyr_cache *cache, int layer, int64_t rows) {
  const pyr_layer_state *state = &cache->states[layer];
  int64_t judged = state->trigger.once ? pyr_max(0,
                                                  pyr_cache_layer_rows(cache,
                                                      layer) - state->unjudged) : 0;
  return pyr_max(0, rows - state->trigger.window - judged);
}

static pyr_judge decode_judge(pyr_cache *cache, int layer, const pyr_plan *plan, int64_t more) {
  return (pyr_judge){ .cache = cache, .layer = layer, .plan = plan, .decode = true, .more = more };
}

pyr_status pyr_plan_decode_prepare(pyr_cache *cache, int layer, const pyr_plan *plan) {
  pyr_judge j = decode_judge(cache, layer, plan, 1);
  pyr_status status = PYR_OK;
  for (int head = 0; head < cache->heads && status == PYR_OK; head++) {
    pyr_lane *lane = pyr_cache_lane(cache, layer, head);
    if (pyr_judge_turns(&j)) status = pyr_lane_widen(cache, lane);
    if (status == PYR_OK) status = pyr_lane_unshare(cache, lane, pyr_judge_first_written(&j, head));
  }
  return status;
}

/* ---- a plan on rows as they are -------------------------------------------------------------- */

void pyr_plan_turn_begin(pyr_plan_turn *turn, pyr_cache *cache, int layer, const pyr_plan *plan,
                         bool decode, int64_t more) {
  memset(turn, 0, sizeof *turn);
  turn->judge = (pyr_judge){ .cache = cache, .layer = layer, .plan = plan, .decode = decode,
                             .more = more };
  pyr_score_check(&plan->score, &turn->depth);
}

size_t pyr_plan_turn_bytes(pyr_plan_turn *turn, size_t *verdict) {
  *verdict = (size_t)pyr_judge_carve_verdict(&turn->judge, NULL, &turn->verdict) * sizeof(int32_t);
  return (size_t)pyr_judge_carve(&turn->judge, turn->depth, NULL, &turn->work) * sizeof(float);
}

void pyr_plan_turn_carve(pyr_plan_turn *turn, void *work, void *verdict, void *host,
                         void *verdict_host) {
  pyr_judge_carve(&turn->judge, turn->depth, work, &turn->work);
  pyr_judge_carve_verdict(&turn->judge, verdict, &turn->verdict);
  pyr_judge_carve_host(turn->judge.cache, host, &turn->work);
  pyr_judge_carve_verdict_host(turn->judge.cache, verdict_host, &turn->verdict);
}

pyr_status pyr_plan_turn_rank(pyr_plan_turn *turn, int32_t *fault) {
  const pyr_layer_state *state = &turn->judge.cache->states[turn->judge.layer];
  pyr_signals signals = { .cache = turn->judge.cache, .layer = turn->judge.layer,
                          .tracked = &state->trigger.track,
                              .tracked_queries = state->trigger.track.n, .fault = fault };
  turn->judge.more = 0;
  pyr_trace_start(&turn->trace, &turn->judge);
  pyr_trace_rows(&turn->trace, &turn->judge);
  pyr_status status = pyr_judge_rank(&turn->judge, &signals, &turn->work, &turn->verdict, NULL);
  pyr_trace_stop(&turn->trace, &turn->judge);
  return status;
}

/* A decode plan has run: its layer waits for the next. */
static pyr_status turn_begins_anew(pyr_plan_turn *turn) {
  pyr_layer_state *state = &turn->judge.cache->states[turn->judge.layer];
  state->since = 0;
  state->unjudged = state->trigger.window;
  if (state->trigger.once || !pyr_signal_is_attention(&state->trigger.track)) return PYR_OK;
  return forget_tracked(turn->judge.cache, turn->judge.layer);
}

pyr_status pyr_plan_turn_evict(pyr_plan_turn *turn) {
  pyr_cache *cache = turn->judge.cache;
  pyr_trace_start(&turn->trace, &turn->judge);
  pyr_status status = pyr_judge_evict(&turn->judge, &turn->work, &turn->verdict);
  if (status == PYR_OK && turn->judge.decode) status = turn_begins_anew(turn);
  pyr_trace_stop(&turn->trace, &turn->judge);
  if (status == PYR_OK) status = pyr_cache_check_layer(cache, turn->judge.layer);
  return status == PYR_OK ? pyr_trace_tell(&turn->trace, &turn->judge, cache->tokens, 0) : status;
}

pyr_status pyr_plan_not_finite(const pyr_cache *cache, int layer, const char *when,
                               const pyr_score *score) {
  char text[PYR_SCORE_TEXT];
  pyr_score_text(score, text);
  return pyr_runtime_set_error(cache->pool->rt, PYR_POLICY,
                               "policy %s, layer %d, %s: score %s is NaN or infinite at some row: "
                               "only numbers rank (bound what it divides by, and use large "
                               "numbers for never and always)",
                               cache->policy.name ? cache->policy.name : "?", layer + 1, when,
                                   text);
}

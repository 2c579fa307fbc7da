/* plan.c — asking policies, checking what they answer, and carrying plans out.
 *
 * Selection. A lane's rows are [guard first][judged][guard last]; of the judged, the `want` with the highest score
 * survive, ties to the lower row. Survivors' indices are written as three ascending runs into one array, so that guards
 * are structure and never compete with scores.
 *
 * Tracking. A decode plan may rank rows by the attention that recent queries gave them. Storing those queries'
 * attention rows would cost more than the rows themselves; but rows are judged in the order in which they leave the
 * window, so the position of the last query before a row's judgement (its due date) is known when the row is born,
 * and with it the weight of every query for that row (pyr_weighting). One accumulator a row suffices, exactly, at
 * O(rows) a step. Prefill starts it with the prompt's own queries. Where rows are judged at every firing (`once` is
 * off), the accumulators start anew after each. */
#include "plan.h"
#include "model.h"

#include <limits.h>
#include <string.h>

static int64_t min64(int64_t a, int64_t b) { return a < b ? a : b; }
static int64_t max64(int64_t a, int64_t b) { return a > b ? a : b; }

/* Splits `rows` into guards and judged rows. */
static void split(int64_t rows, int64_t keep, int64_t guard_first, int64_t guard_last, int64_t *first, int64_t *want,
                  int64_t *last) {
  *first = min64(guard_first, rows);
  *last = min64(guard_last, rows - *first);
  *want = min64(max64(keep - *first - *last, 0), rows - *first - *last);
}

/* Hidden pruning cannot drop rows stored before, nor the last token, whose logits are what a prefill is for. */
static void prefill_split(const pyr_plan *plan, int64_t before, int64_t rows, int64_t *first, int64_t *want, int64_t *last) {
  bool hidden = plan->prune & PYR_PRUNE_HIDDEN;
  split(rows, plan->keep, hidden ? max64(plan->first, before) : plan->first, hidden ? max64(plan->last, 1) : plan->last,
        first, want, last);
}

int64_t pyr_plan_rows_after(const pyr_shape *shape, const pyr_plan *plan) {
  int64_t first, want, last;
  if (!(plan->prune & PYR_PRUNE_CACHE)) return shape->rows;
  prefill_split(plan, shape->past, shape->rows, &first, &want, &last);
  return first + want + last;
}

/* ---- asking ------------------------------------------------------------------------------------------------------ */

static pyr_status refuse(pyr_cache *cache, const pyr_shape *shape, const char *when, const char *field, const char *what) {
  return pyr_runtime_set_error(cache->pool->rt, PYR_POLICY, "policy %s, layer %d, %s: %s %s",
                               cache->policy.name ? cache->policy.name : "?", (int)shape->layer + 1, when, field, what);
}

static pyr_status check_plan(pyr_cache *cache, const pyr_shape *shape, const pyr_plan *plan, const char *when) {
  int depth;
  const char *fault;
  if (plan->keep < 1) return refuse(cache, shape, when, "keep", "is less than 1");
  if (plan->keep > shape->rows) return refuse(cache, shape, when, "keep", "asks for more rows than there are");
  if (plan->first < 0) return refuse(cache, shape, when, "guard.first", "is negative");
  if (plan->last < 0) return refuse(cache, shape, when, "guard.last", "is negative");
  if (plan->share != PYR_SHARE_LAYER && plan->share != PYR_SHARE_HEAD)
    return refuse(cache, shape, when, "share", "is unknown");
  if (plan->prune < PYR_PRUNE_CACHE || plan->prune > PYR_PRUNE_BOTH)
    return refuse(cache, shape, when, "prune", "is unknown");
  if ((plan->prune & PYR_PRUNE_HIDDEN) && plan->share != PYR_SHARE_LAYER)
    return refuse(cache, shape, when, "share", "must be \"layer\" where hidden states are pruned");
  if ((fault = pyr_score_check(&plan->score, &depth)) != NULL) return refuse(cache, shape, when, "score", fault);
  bool prefill = strcmp(when, "prefill") == 0;
  if ((fault = pyr_score_refused(&plan->score, cache, prefill)) != NULL) return refuse(cache, shape, when, "score", fault);
  return PYR_OK;
}

pyr_status pyr_plan_ask_prefill(pyr_cache *cache, const pyr_shape *shape, pyr_plan *plan) {
  memset(plan, 0, sizeof *plan);
  plan->keep = shape->rows;
  plan->prune = PYR_PRUNE_CACHE;
  if (!cache->policy.prefill) return PYR_OK;
  pyr_status status = cache->policy.prefill(cache->policy.ud, shape, plan);
  return status != PYR_OK ? status : check_plan(cache, shape, plan, "prefill");
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
  if (trigger->track.a == PYR_MAX) return refuse(cache, shape, "trigger", "track", "cannot keep a maximum over queries");
  if (trigger->track.b == PYR_MAX && shape->heads != shape->kv_heads)
    return refuse(cache, shape, "trigger", "track", "cannot keep a maximum over the query heads of a K/V head; track their mean");
  return PYR_OK;
}

pyr_status pyr_plan_ask_decode(pyr_cache *cache, const pyr_shape *shape, pyr_plan *plan) {
  const pyr_trigger *trigger = &cache->states[shape->layer].trigger;
  memset(plan, 0, sizeof *plan);
  plan->keep = shape->rows;
  plan->prune = PYR_PRUNE_CACHE;
  pyr_status status = cache->policy.decode(cache->policy.ud, shape, plan);
  if (status == PYR_OK) status = check_plan(cache, shape, plan, "decode");
  if (status != PYR_OK) return status;
  plan->prune = PYR_PRUNE_CACHE;
  if (trigger->once && plan->last > trigger->window)
    return refuse(cache, shape, "decode", "guard.last", "exceeds the trigger's window, by which rows judged once are counted");
  if (plan->score.length == 0 && pyr_trigger_tracks(trigger)) plan->score = (pyr_score){ 1, { trigger->track } };
  for (int i = 0; i < plan->score.length; i++) {
    const pyr_score_op *op = &plan->score.ops[i];
    if (!pyr_signal_is_attention(op) && !pyr_signal_is_history(op)) continue;
    if (op->code != trigger->track.code || (pyr_signal_is_attention(op) && op->n != trigger->track.n))
      return refuse(cache, shape, "decode", "score", "ranks by attention that the trigger does not track");
  }
  return PYR_OK;
}

/* ---- selection and gather ------------------------------------------------------------------------------------------ */

/* Writes the survivors' indices, each less `shift` (rows before it are not listed), and their count. */
static pyr_status list_survivors(pyr_backend *be, int32_t *idx, const float *score, int64_t rows, int64_t first, int64_t want,
                                 int64_t last, int64_t shift, int64_t *count) {
  int64_t head = first - shift, judged = rows - first - last;
  pyr_status status = head > 0 ? be->iota(be, idx, 0, head) : PYR_OK;
  if (status == PYR_OK && want > 0) status = be->select(be, idx + head, score, judged, want, (int32_t)(first - shift));
  if (status == PYR_OK && last > 0) status = be->iota(be, idx + head + want, (int32_t)(rows - last - shift), last);
  *count = head + want + last;
  return status;
}

/* Judges every group of the layer and gathers its lanes (or only ranks, for the hidden states: *hidden). */
static pyr_status judge(pyr_cache *cache, int layer, const pyr_plan *plan, const pyr_signals *signals, int64_t rows,
                        int64_t first, int64_t want, int64_t last, float *scratch, int32_t *idx, int64_t hidden_shift,
                        bool gather, int64_t *hidden_count) {
  pyr_backend *be = cache->pool->be;
  int groups = plan->share == PYR_SHARE_HEAD ? cache->heads : 1, count = cache->heads / groups;
  for (int g = 0; g < groups; g++) {
    float *score = NULL;
    int64_t kept;
    pyr_status status = PYR_OK;
    if (want > 0) status = pyr_score_eval(&plan->score, signals, g * count, count, scratch, &score);
    if (status == PYR_OK && gather) {
      status = list_survivors(be, idx, score, rows, first, want, last, 0, &kept);
      for (int i = 0; i < count && status == PYR_OK; i++)
        status = pyr_lane_gather(cache, pyr_cache_lane(cache, layer, g * count + i), idx, kept, first);
    }
    if (status == PYR_OK && hidden_count)
      status = list_survivors(be, idx, score, rows, first, want, last, hidden_shift, hidden_count);
    if (status != PYR_OK) return status;
  }
  return PYR_OK;
}

static bool lanes_equal(const pyr_cache *cache, int layer) {
  for (int head = 1; head < cache->heads; head++)
    if (pyr_cache_lane(cache, layer, head)->rows != pyr_cache_lane(cache, layer, 0)->rows) return false;
  return true;
}

static pyr_status unequal_lanes(pyr_cache *cache, int layer) {
  return pyr_runtime_set_error(cache->pool->rt, PYR_UNSUPPORTED, "layer %d has lanes of unequal length; this plan needs equal ones",
                               layer + 1);
}

/* Tracked attention starts anew: queries before now no longer count. */
static pyr_status forget_tracked(pyr_cache *cache, int layer) {
  pyr_backend *be = cache->pool->be;
  pyr_status status = PYR_OK;
  for (int head = 0; head < cache->heads && status == PYR_OK; head++) {
    pyr_lane *lane = pyr_cache_lane(cache, layer, head);
    if (lane->history && lane->rows) status = be->fill(be, lane->history, NULL, lane->rows, 2, 0, 0.0f);
  }
  return status;
}

/* ---- prefill --------------------------------------------------------------------------------------------------------- */

static int64_t steps_until(const pyr_trigger *trigger, int64_t since, int64_t rows) {
  int64_t steps = INT64_MAX;
  if (trigger->every > 0) steps = max64(trigger->every - since, 1);
  if (trigger->over > 0) steps = min64(steps, max64(trigger->over + 1 - rows, 1));
  return steps;
}

/* The weighting of tracked attention, seen from a cache whose next query has position `next`, `steps` before the
 * trigger fires, with `rows` rows now. */
static pyr_weighting track_weighting(const pyr_trigger *trigger, int64_t next, int64_t steps, int64_t rows) {
  pyr_weighting w = { 0, 1.0f, 0, 0, 0 };
  if (!pyr_signal_is_attention(&trigger->track) || steps == INT64_MAX) return w;
  w.queries = trigger->track.n;
  w.ramp = trigger->track.x;
  w.due = next + steps - 1;
  if (trigger->once) {
    w.threshold = rows + steps - trigger->window;
    w.every = trigger->every;
  }
  return w;
}

static void plan_track_setup(pyr_plan_run *run, int64_t rows_after) {
  const pyr_trigger *trigger = &run->trigger;
  if (!pyr_trigger_tracks(trigger)) return;
  run->track_queries = run->alive;
  run->track_begin = 0;
  if (pyr_signal_is_attention(&trigger->track)) {
    int64_t steps = steps_until(trigger, run->fresh ? 0 : run->cache->states[run->layer].since, rows_after);
    if (steps == INT64_MAX) {
      run->track_queries = 0;
      return;
    }
    run->track_weighting = track_weighting(trigger, run->last_position + 1, steps, run->rows);
    if (trigger->track.n > 0) run->track_queries = min64(run->alive, trigger->track.n - steps);
    if (trigger->once) run->track_begin = max64(0, run->rows - trigger->window);
  } else {
    run->track_weighting = (pyr_weighting){ 0, 1.0f, 0, 0, 0 };
  }
  if (run->track_queries < 0 || run->track_begin >= run->rows) run->track_queries = 0;
}

pyr_status pyr_plan_begin(pyr_plan_run *run, pyr_cache *cache, int layer, const pyr_plan *plan, const pyr_trigger *trigger,
                          int64_t before, int64_t alive, int64_t last_position) {
  pyr_backend *be = cache->pool->be;
  int32_t heads = cache->pool->model->config.heads;
  memset(run, 0, sizeof *run);
  run->cache = cache;
  run->layer = layer;
  run->plan = *plan;
  run->fresh = trigger != NULL;
  run->trigger = trigger ? *trigger : cache->states[layer].trigger;
  trigger = &run->trigger;
  run->rows = before + alive;
  run->before = before;
  run->alive = alive;
  run->last_position = last_position;
  prefill_split(plan, before, run->rows, &run->first, &run->want, &run->last);
  int64_t judged = run->rows - run->first - run->last;
  run->judge = run->want < judged;
  if ((run->judge || pyr_trigger_tracks(trigger)) && !lanes_equal(cache, layer)) return unequal_lanes(cache, layer);
  plan_track_setup(run, plan->prune & PYR_PRUNE_CACHE ? run->first + run->want + run->last : run->rows);

  /* One block: accumulators, tracking, scratch, indices. */
  pyr_signals *s = &run->signals;
  *s = (pyr_signals){ .cache = cache, .layer = layer, .begin = run->first, .end = run->rows - run->last };
  s->tracked = pyr_trigger_tracks(trigger) ? &run->trigger.track : NULL;
  int64_t floats = 0, sums[PYR_SCORE_MAX], track = -1, scratch = 0, moments = 0;
  for (int i = 0; i < PYR_SCORE_MAX; i++) sums[i] = -1;
  pyr_score_check(&plan->score, &run->depth);
  if (run->judge && run->want > 0) {
    for (int i = 0; i < plan->score.length; i++) {
      const pyr_score_op *op = &plan->score.ops[i];
      if (pyr_signal_is_expected(op)) moments += pyr_queries_floats(cache->pool->model, op->a, alive);
      if (!pyr_signal_is_attention(op) && !pyr_signal_is_history(op)) continue;
      if (pyr_signal_is_history(op) && pyr_signal_is_history(&trigger->track) && op->b != PYR_MAX) continue;   /* the lanes' history holds it */
      sums[i] = floats;
      floats += heads * judged;
    }
    scratch = pyr_score_scratch(cache, run->depth, judged);
  }
  if (run->track_queries > 0) {
    track = floats;
    floats += heads * (run->rows - run->track_begin);
    scratch = max64(scratch, run->rows - run->track_begin);
  }
  int64_t zeroed = floats;
  floats += scratch + moments + (run->judge ? run->rows : 0);
  if (floats == 0) return PYR_OK;
  run->block_bytes = (size_t)floats * sizeof(float);
  run->block = be->alloc(be, run->block_bytes);
  if (!run->block) return pyr_nomem(cache->pool->rt, run->block_bytes, "the scores of a layer");
  for (int i = 0; i < PYR_SCORE_MAX; i++)
    if (sums[i] >= 0) s->mass[i] = run->block + sums[i];
  if (track >= 0) run->track = run->block + track;
  run->scratch = run->block + zeroed;
  float *next = run->scratch + scratch;
  for (int i = 0; i < plan->score.length && moments > 0; i++) {
    const pyr_score_op *op = &plan->score.ops[i];
    if (!pyr_signal_is_expected(op)) continue;
    pyr_queries_begin(&s->queries_of[i], cache->pool->model, op->a, alive, (int64_t)op->x, next);
    next += pyr_queries_floats(cache->pool->model, op->a, alive);
  }
  run->expects = moments > 0;
  run->idx = (int32_t *)next;
  return zeroed ? be->fill(be, run->block, NULL, zeroed, 2, 0, 0.0f) : PYR_OK;
}

void pyr_plan_free(pyr_plan_run *run) {
  pyr_backend *be = run->cache ? run->cache->pool->be : NULL;
  if (be) be->release(be, run->block, run->block_bytes);
  run->block = NULL;
}

/* How many of the last alive queries the i-th signal looks at; 0: all. */
static int64_t signal_queries(const pyr_plan_run *run, int i) {
  const pyr_score_op *op = &run->plan.score.ops[i];
  return pyr_signal_is_attention(op) && op->n > 0 ? min64(op->n, run->alive) : run->alive;
}

bool pyr_plan_wants(const pyr_plan_run *run, int64_t at, int64_t n) {
  int64_t back = run->alive - (at + n);       /* alive queries after these */
  if (run->expects || (run->track && back < run->track_queries)) return true;
  for (int i = 0; i < run->plan.score.length; i++)
    if (run->signals.mass[i] && back < signal_queries(run, i)) return true;
  return false;
}

/* Adds to `out` ([heads, end - begin]) the mass of those of a's queries that are among the last `queries` alive. */
static pyr_status observe(pyr_plan_run *run, const pyr_attention *a, int64_t at, int64_t queries, int64_t begin, int64_t end,
                          pyr_reduce reduce, pyr_weighting weighting, float *out) {
  pyr_cache *cache = run->cache;
  const pyr_model *model = cache->pool->model;
  int32_t heads = model->config.heads;
  int64_t skip = max64(0, run->alive - queries - at), stride = end - begin, stored = pyr_cache_lane(cache, run->layer, 0)->rows;
  if (skip >= a->n || min64(end, stored) <= begin) return PYR_OK;
  pyr_mass m = {
    .out = out, .stride = stride, .q = a->q + skip * heads * model->config.head_dim, .lse = a->lse + skip * heads,
    .q_pos = a->q_pos + skip, .lanes = a->lanes, .n = a->n - skip, .begin = begin, .end = min64(end, stored),
    .window = a->window, .reduce = reduce, .weighting = weighting,
  };
  return cache->pool->be->mass(cache->pool->be, &m, cache->pool->layout, heads, cache->heads, model->scale);
}

pyr_status pyr_plan_observe(pyr_plan_run *run, const pyr_attention *a, int64_t at) {
  pyr_status status = PYR_OK;
  for (int i = 0; i < run->plan.score.length && status == PYR_OK; i++) {
    const pyr_score_op *op = &run->plan.score.ops[i];
    if (run->expects && pyr_signal_is_expected(op))
      status = pyr_queries_add(&run->signals.queries_of[i], run->cache->pool->be, a, at);
    if (!run->signals.mass[i]) continue;
    int64_t queries = signal_queries(run, i);
    run->signals.queries[i] = queries;
    pyr_weighting w = { 0, 1.0f, 0, 0, 0 };
    if (pyr_signal_is_attention(op) && op->n > 0) w = (pyr_weighting){ (int32_t)queries, op->x, run->last_position, 0, 0 };
    status = observe(run, a, at, queries, run->signals.begin, run->signals.end, op->a == PYR_MAX ? PYR_MAX : PYR_SUM, w,
                     run->signals.mass[i]);
  }
  if (status == PYR_OK && run->track)
    status = observe(run, a, at, run->track_queries, run->track_begin, run->rows, PYR_SUM, run->track_weighting, run->track);
  return status;
}

/* history[track_begin..rows) of each lane += the mean over its query heads. */
static pyr_status flush_track(pyr_plan_run *run) {
  pyr_cache *cache = run->cache;
  pyr_backend *be = cache->pool->be;
  int64_t n = run->rows - run->track_begin;
  int32_t group = cache->pool->model->config.heads / cache->heads;
  for (int head = 0; head < cache->heads; head++) {
    pyr_lane *lane = pyr_cache_lane(cache, run->layer, head);
    pyr_status status = be->reduce_rows(be, run->scratch, run->track + (int64_t)head * group * n, group, n, n, PYR_MEAN, 1.0f);
    if (status == PYR_OK) status = be->arith(be, lane->history + run->track_begin, run->scratch, n, PYR_S_ADD);
    if (status != PYR_OK) return status;
  }
  return PYR_OK;
}

pyr_status pyr_plan_end(pyr_plan_run *run, const int32_t **survivors, int64_t *kept) {
  pyr_cache *cache = run->cache;
  pyr_layer_state *state = &cache->states[run->layer];
  pyr_status status = PYR_OK;
  *survivors = NULL;
  if (pyr_signal_is_attention(&run->trigger.track) && run->fresh) status = forget_tracked(cache, run->layer);
  if (status == PYR_OK && run->track) status = flush_track(run);
  for (int i = 0; i < run->plan.score.length && run->expects && status == PYR_OK; i++)
    if (pyr_signal_is_expected(&run->plan.score.ops[i]))
      status = pyr_queries_end(&run->signals.queries_of[i], cache->pool->be, cache->pool->model, run->last_position + 1,
                               run->plan.score.ops[i].n);
  if (status == PYR_OK && run->judge) {
    bool hidden = run->plan.prune & PYR_PRUNE_HIDDEN, gather = run->plan.prune & PYR_PRUNE_CACHE;
    status = judge(cache, run->layer, &run->plan, &run->signals, run->rows, run->first, run->want, run->last, run->scratch,
                   run->idx, run->before, gather, hidden ? kept : NULL);
    if (status == PYR_OK && hidden) *survivors = run->idx;
  }
  if (status != PYR_OK || !run->fresh) return status;
  state->trigger = run->trigger;
  state->since = 0;
  state->past = run->before;
  state->judged = run->trigger.once ? max64(0, pyr_cache_layer_rows(cache, run->layer) - run->trigger.window) : 0;
  return PYR_OK;
}

/* ---- decode ------------------------------------------------------------------------------------------------------------ */

int64_t pyr_plan_steps_left(const pyr_cache *cache, int layer) {
  const pyr_layer_state *state = &cache->states[layer];
  return steps_until(&state->trigger, state->since, pyr_cache_layer_rows(cache, layer));
}

bool pyr_plan_track(const pyr_cache *cache, int layer, pyr_track *out) {
  const pyr_layer_state *state = &cache->states[layer];
  int64_t steps = pyr_plan_steps_left(cache, layer);
  if (!pyr_trigger_tracks(&state->trigger) || steps == INT64_MAX) return false;
  out->weighting = track_weighting(&state->trigger, cache->tokens, steps, pyr_cache_layer_rows(cache, layer));
  out->decay = pyr_signal_is_history(&state->trigger.track) ? state->trigger.track.x : 1.0f;
  return true;
}

int64_t pyr_plan_decode_first(const pyr_cache *cache, int layer, const pyr_plan *plan) {
  return max64(plan->first, cache->states[layer].judged);
}

size_t pyr_plan_decode_bytes(const pyr_cache *cache, int64_t rows) {
  return (size_t)(pyr_score_scratch(cache, PYR_SCORE_MAX, rows) + rows) * sizeof(float);
}

pyr_status pyr_plan_decode(pyr_cache *cache, int layer, const pyr_plan *plan, void *work) {
  pyr_layer_state *state = &cache->states[layer];
  int64_t rows = pyr_cache_layer_rows(cache, layer), first, want, last;
  pyr_status status = PYR_OK;
  split(rows, plan->keep, pyr_plan_decode_first(cache, layer, plan), max64(plan->last, state->trigger.window), &first, &want, &last);
  if (first + want + last < rows) {
    if (!lanes_equal(cache, layer)) return unequal_lanes(cache, layer);
    pyr_signals signals = { .cache = cache, .layer = layer, .begin = first, .end = rows - last };
    signals.tracked = &state->trigger.track;
    signals.tracked_queries = state->trigger.track.n;
    float *scratch = work;
    int32_t *idx = (int32_t *)(scratch + pyr_score_scratch(cache, PYR_SCORE_MAX, rows));
    status = judge(cache, layer, plan, &signals, rows, first, want, last, scratch, idx, 0, true, NULL);
  }
  if (status != PYR_OK) return status;
  state->since = 0;
  if (state->trigger.once) {
    state->judged = first + want;
  } else if (pyr_signal_is_attention(&state->trigger.track)) {
    status = forget_tracked(cache, layer);
  }
  return status;
}

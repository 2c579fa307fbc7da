/* track.c — see track.h. */
#include "policy/track.h"

static const pyr_weighting each_query_counts = { .queries = 0, .ramp = 1.0f };

/* Counted from the last firing, at least one: a trigger that is overdue fires at the end of the
 * next step. every 4, one step since: 3. over 100, 98 rows held: the third step makes it 101. */
static int64_t steps_until(const pyr_trigger *trigger, int64_t since, int64_t rows) {
  int64_t steps = INT64_MAX;
  if (trigger->every > 0) steps = pyr_max(trigger->every - since, 1);
  if (trigger->over > 0) steps = pyr_min(steps, pyr_max(trigger->over + 1 - rows, 1));
  return steps;
}

/* Seen from a cache whose next query has position `next`, `steps` steps before the trigger fires;
 * rows count from `end` rows behind those that each lane holds now. */
static pyr_weighting weighting_of(const pyr_trigger *trigger, int64_t next, int64_t steps,
                                  int64_t end) {
  pyr_weighting w = each_query_counts;
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

/* ---- decode ---------------------------------------------------------------------------------- */

int64_t pyr_track_steps_left(const pyr_cache *cache, int layer) {
  const pyr_layer_state *state = &cache->states[layer];
  return steps_until(&state->trigger, state->since, pyr_cache_layer_rows(cache, layer));
}

/* Of 14 rows, with the last 3 in the window and 4 ranked before: 14 - 3 - 4 = 7 wait. */
int64_t pyr_track_waiting(const pyr_cache *cache, int layer, int64_t rows) {
  const pyr_layer_state *state = &cache->states[layer];
  int64_t ranked = 0;
  if (state->trigger.once)
    ranked = pyr_max(0, pyr_cache_layer_rows(cache, layer) - state->unranked);
  return pyr_max(0, rows - state->trigger.window - ranked);
}

int64_t pyr_track_unranked(const pyr_splits *splits, const pyr_trigger *trigger) {
  const pyr_plan *plan = splits->plan;
  bool ranks = (plan->prune & PYR_PRUNE_CACHE) && (splits->needed || pyr_plan_unites(plan));
  int64_t last = plan->prune & PYR_PRUNE_HIDDEN ? pyr_max(plan->last, 1) : plan->last;
  return ranks ? pyr_min(trigger->window, last) : trigger->window;
}

bool pyr_track_step(const pyr_cache *cache, int layer, int64_t ahead, pyr_track *out) {
  const pyr_layer_state *state = &cache->states[layer];
  const pyr_trigger *trigger = &state->trigger;
  int64_t steps = steps_until(trigger, state->since + ahead,
                              pyr_cache_layer_rows(cache, layer) + ahead);
  out->more = out->all = NULL;
  if (!pyr_trigger_sums(trigger) || steps == INT64_MAX) return false;
  /* the step's own row is stored before its attention: it is the lane's last, j = -1 */
  out->weighting = weighting_of(trigger, cache->tokens + ahead, steps, 1);
  out->decay = pyr_signal_is_history(&trigger->track) ? trigger->track.x : 1.0f;
  out->max = pyr_trigger_tracks_max(trigger);
  return true;
}

pyr_status pyr_track_forget(pyr_cache *cache, int layer) {
  pyr_backend *be = cache->pool->be;
  for (pyr_cache *at = cache; at; at = at->below)
    for (int head = 0; head < at->heads; head++) {
      pyr_lane *lane = pyr_cache_lane(at, layer, head);
      if (lane->history && lane->rows) PYR_TRY(pyr_fill_zeros(be, lane->history, lane->rows));
    }
  return PYR_OK;
}

/* ---- prefill --------------------------------------------------------------------------------- */

pyr_prompt_track pyr_track_prompt(const pyr_splits *splits, const pyr_trigger *trigger,
                                  bool restarts, int64_t last_position) {
  pyr_prompt_track t = { .last = INT64_MAX, .weighting = each_query_counts };
  if (!pyr_trigger_sums(trigger)) return t;
  t.queries = splits->coming;
  if (!pyr_signal_is_attention(&trigger->track)) return t;
  int64_t since = restarts ? 0 : splits->cache->states[splits->layer].since;
  int64_t steps = steps_until(trigger, since, splits->rows_after);
  if (steps == INT64_MAX) {
    t.queries = 0;
    return t;
  }
  t.weighting = weighting_of(trigger, last_position + 1, steps, 0);
  /* Of the last n queries before the first firing, `steps` are yet to come: with n = 10 and the 4
   * steps above, the prompt's last 6 count. */
  if (trigger->track.n > 0)
    t.queries = pyr_max(0, pyr_min(t.queries, trigger->track.n - steps));
  /* Rows before these are never candidates. */
  if (trigger->once) t.last = pyr_track_unranked(splits, trigger);
  if (t.last == 0) t.queries = 0;
  return t;
}

/* Rows before it get nothing: of 70 rows with a window of 32, sums are kept from row 38 on. */
int64_t pyr_track_begin(const pyr_prompt_track *track, int64_t rows) {
  return pyr_max(0, rows - pyr_min(rows, track->last));
}

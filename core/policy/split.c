/* split.c — see split.h. */
#include "policy/split.h"
#include "model/model.h"

#include <string.h>

/* Whether only the prompt's own rows are judged: only they were repeated by a preparing pass, and
 * of no other is there what the layer read, unless all carry what was learned of it. */
static bool own_rows_only(const pyr_splits *s) {
  const pyr_score_op *track = &s->cache->states[s->layer].trigger.track;
  if (s->when != PYR_WHEN_PREFILL) return s->when == PYR_WHEN_PREPARED;
  for (int i = 0; i < s->plan->score.length; i++) {
    const pyr_score_op *op = &s->plan->score.ops[i];
    if (pyr_signal_reads_inputs(op) && !pyr_signal_is_carried(op, track)) return true;
  }
  return false;
}

/* Rows of a lane from before the prompt, where only the prompt's own are judged, else 0. */
static int64_t before_of(const pyr_splits *s, int head) {
  const pyr_lane *lane = pyr_cache_lane(s->cache, s->layer, head);
  if (!own_rows_only(s)) return 0;
  return s->when == PYR_WHEN_PREPARED ? lane->mark : lane->rows;
}

/* The guards of a lane that will hold `rows` rows, and holds `held` now. */
static void guard(pyr_split *lane, const pyr_splits *s, int64_t held, int64_t before) {
  const pyr_layer_state *state = &s->cache->states[s->layer];
  int64_t first = s->plan->first, last = s->plan->last;
  if (s->when == PYR_WHEN_DECODE) {
    /* The window is guarded. Where rows are ranked once, those that were are guarded, too:
     *
     *     positions   0  1  2  5    7  8  9 10    11 12 13       window 3, every 4 steps
     *                 ranked        unranked                      held 11, unranked 7:
     *                 [  first ]    candidates    [ last ]        first = 11 - 7 = 4
     *
     * A step adds a row to `held` and one to `unranked`, so that their difference is the same
     * before it as after it. */
    if (state->trigger.once) first = pyr_max(first, held - state->unranked);
    last = pyr_max(last, state->trigger.window);
  } else if (own_rows_only(s)) {
    first = pyr_max(first, before);
  }
  if ((s->plan->prune & PYR_PRUNE_HIDDEN) && s->when != PYR_WHEN_PREPARED
      && s->when != PYR_WHEN_DECODE) {
    /* Hidden states are there for the prompt's own tokens only: no row stored before can go. The
     * last token cannot go either: its logits are what a prefill is for. */
    first = pyr_max(first, lane->rows - s->coming);
    last = pyr_max(last, 1);
  }
  lane->first = pyr_min(first, lane->rows);
  lane->last = pyr_min(last, lane->rows - lane->first);
}

/* Heads in a plan are those of the whole model: of lanes 1 and 2 of three, the second rank's, the
 * first's number is keep_of[1].
 *
 * What the plan lets a lane keep. Where only the prompt's own rows are judged, old ones all stay,
 * and the plan has counted those of the longest lane: of lanes that held 40 and 10 rows, keep 50
 * means 50 and 20. */
static int64_t keep_of(const pyr_splits *s, int head) {
  const pyr_model *model = s->cache->pool->model;
  int32_t first = model->ranks ? pyr_model_part(model)->lanes.first : 0;
  int64_t keep = s->plan->keep_count ? s->plan->keep_of[first + head] : s->plan->keep;
  return keep - s->past + before_of(s, head);
}

/* Guards win over `keep`: of 16 rows with guards 4 and 4, keep 6 selects max(6 - 8, 0) = 0, and
 * 8 rows stay. Under `mass` or a bound, `max` is what keep allows and `min` what `least` promises;
 * under pool a lane may keep all its candidates, as only the sum over lanes is bounded. */
static pyr_split split_lane(const pyr_splits *s, int head) {
  const pyr_plan *plan = s->plan;
  int64_t held = pyr_cache_lane(s->cache, s->layer, head)->rows, before = before_of(s, head);
  pyr_split lane = { .rows = held + s->coming };
  guard(&lane, s, held, before);
  lane.candidates = lane.rows - lane.first - lane.last;
  int64_t guards = lane.first + lane.last;
  int64_t keep = keep_of(s, head);
  bool pooled = pyr_splits_compete(s);
  lane.max = pooled ? lane.candidates : pyr_min(pyr_max(keep - guards, 0), lane.candidates);
  lane.min = pooled || pyr_plan_is_open(plan)
      ? pyr_min(pyr_max(pyr_max(plan->least, 1) - guards, 0), lane.candidates) : lane.max;
  lane.max = pyr_max(lane.max, lane.min);
  return lane;
}

bool pyr_split_loses(const pyr_splits *s, int head) {
  const pyr_split *lane = &s->lanes[head];
  return lane->max < lane->candidates
      || (pyr_plan_is_open(s->plan) && lane->min < lane->candidates);
}

/* A layer's sliding window; 0: none. Its keys are never turned: rows of one window are near each
 * other at any position, so that nothing needs to be placed anew for a text without end. */
static int32_t window_of(const pyr_cache *cache, int layer) {
  const int32_t *windows = cache->pool->model->config.window;
  return windows ? windows[layer] : 0;
}

/* A budget shared by all lanes: `keep` rows a lane on average less all guards, but never less than
 * the lanes are promised. Of lanes of 16 and 10 rows with guards 4 and 4 and keep 10: 2 * 10 - 16 =
 * 4 of the 8 + 2 candidates. */
void pyr_splits_settle(pyr_splits *s) {
  s->pooled = pyr_min(pyr_max(s->budget, s->promised), s->total);
  if (!pyr_splits_compete(s)) return;
  s->needed = s->pooled < s->total || (pyr_plan_is_open(s->plan) && s->promised < s->total);
}

void pyr_splits_make(pyr_splits *out, pyr_cache *cache, int layer, const pyr_plan *plan,
                     pyr_when when, int64_t coming, pyr_split *lanes) {
  pyr_splits s = { .cache = cache, .layer = layer, .plan = plan, .when = when,
                   .coming = coming, .lanes = lanes };
  bool loses = false;
  for (int head = 0; head < cache->heads; head++) s.past = pyr_max(s.past, before_of(&s, head));
  if (s.past > 0) s.past += cache->states[layer].more;
  for (int head = 0; head < cache->heads; head++) {
    const pyr_split *lane = &lanes[head];
    lanes[head] = split_lane(&s, head);
    s.rows = pyr_max(s.rows, lane->rows);
    s.longest = pyr_max(s.longest, lane->candidates);
    s.total += lane->candidates;
    s.budget += keep_of(&s, head) - lane->first - lane->last;
    s.promised += lane->min;
    loses = loses || pyr_split_loses(&s, head);
  }
  s.needed = loses;
  pyr_splits_settle(&s);
  for (int head = 0; head < cache->heads; head++) {
    const pyr_split *lane = &lanes[head];
    /* where layers share, how many a layer keeps of all its candidates is settled later */
    bool alone = plan->share == PYR_SHARE_POOL && !pyr_plan_unites(plan);
    int64_t survive = alone ? pyr_min(lane->max, s.pooled) : lane->max;
    s.rows_after = pyr_max(s.rows_after, plan->prune & PYR_PRUNE_CACHE
                           ? lane->first + survive + lane->last : lane->rows);
  }
  bool together = plan->share == PYR_SHARE_LAYER && pyr_cache_lanes_equal(cache, layer);
  s.groups = together ? 1 : cache->heads;
  s.members = cache->heads / s.groups;
  s.turns = s.needed && !window_of(cache, layer)
      && (plan->rotate == PYR_ROTATE_COMPACT || cache->states[layer].compact);
  *out = s;
}

/* Pages before that row stay shared with forks, and need not be copied. */
int64_t pyr_split_first_written(const pyr_splits *s, int head) {
  /* merging changes survivors anywhere; where keys are turned for the first time, all are */
  bool anywhere = s->plan->merge || (s->turns && !s->cache->states[s->layer].compact);
  return anywhere ? 0 : s->lanes[head].first;
}

/* Then no layer would be compact, and the text would end with the model's context all the same. */
static bool all_slide(const pyr_cache *cache) {
  for (int layer = 0; layer < cache->layers; layer++)
    if (!window_of(cache, layer)) return false;
  return true;
}

const char *pyr_splits_fault(const pyr_splits *s, const char **field) {
  const pyr_plan *plan = s->plan;
  bool equal = pyr_cache_lanes_equal(s->cache, s->layer), ranks = plan->prune & PYR_PRUNE_HIDDEN;
  if (!s->needed) return NULL;
  for (int head = 0; head < s->cache->heads; head++)
    ranks = ranks || (pyr_split_loses(s, head) && s->lanes[head].max > 0);
  *field = "share";
  if (plan->share == PYR_SHARE_LAYER && !equal && ranks)
    return "is \"layer\", but the heads hold unequal numbers of rows (\"head\" and \"pool\" "
           "judge each by its own)";
  *field = "rotate";
  if (plan->rotate == PYR_ROTATE_COMPACT && all_slide(s->cache))
    return "cannot be \"compact\" in a model whose layers all have a sliding window";
  if (!s->turns || !(plan->prune & PYR_PRUNE_CACHE)) return NULL;
  if (!equal) return "cannot be \"compact\" where the heads hold unequal numbers of rows";
  if (!pyr_plan_keeps_equal(plan))
    return "was \"compact\": the layer's heads must go on keeping as many rows as each other "
           "(share = \"layer\", or \"head\" with one number to keep)";
  return NULL;
}

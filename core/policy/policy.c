/* policy.c — see policy.h. */
#include "policy/policy.h"
#include "model/model.h"

#include <math.h>
#include <string.h>

static const char *const when_names[] = {
  [PYR_WHEN_PREFILL] = "prefill", [PYR_WHEN_DECODE] = "decode", [PYR_WHEN_EVICT] = "evict",
  [PYR_WHEN_PREPARED] = "prefill",
};

static const char *policy_name(const pyr_cache *cache) {
  return cache->policy.name ? cache->policy.name : "?";
}

/* Whose answer is checked, for messages. `when`: of when_names, or "trigger". */
typedef struct pyr_answer { pyr_cache *cache; int32_t layer; const char *when; } pyr_answer;

static pyr_status refuse(const pyr_answer *a, const char *field, const char *what) {
  return pyr_runtime_set_error(a->cache->pool->rt, PYR_POLICY, "policy %s, layer %d, %s: %s %s",
                               policy_name(a->cache), (int)a->layer + 1, a->when, field, what);
}

/* ---- plans ----------------------------------------------------------------------------------- */

/* `keep` for each K/V head; plan->keep becomes the highest of them. A list of 6, 10, 8 and 8
 * makes keep 10: what asks for one number, as the shape does, gets the most that any lane holds. */
static pyr_status check_list(const pyr_answer *a, const pyr_shape *shape, pyr_plan *plan) {
  if (plan->share != PYR_SHARE_HEAD)
    return refuse(a, "keep", "is a list, which needs share = \"head\"");
  if (plan->keep_count != shape->kv_heads || plan->keep_count > PYR_KEEP_HEADS)
    return refuse(a, "keep", "must list one number for each K/V head, of which there may be 128");
  plan->keep = plan->keep_of[0];
  for (int32_t head = 0; head < plan->keep_count; head++) {
    if (plan->keep_of[head] < 1) return refuse(a, "keep", "is less than 1");
    if (plan->keep_of[head] < plan->least) return refuse(a, "least", "is more than keep");
    plan->keep = pyr_max(plan->keep, plan->keep_of[head]);
  }
  return PYR_OK;
}

/* Why keys cannot be placed anew: a compacted layer's later tokens would still be told apart by the
 * positions at which they were read. Layers that turn by no table place nothing, and may be compact
 * beside others that do. NULL: they can. */
static const char *fixed_positions(const pyr_cache *cache) {
  const pyr_model_config *c = &cache->pool->model->config;
  if (c->positions) return "cannot be \"compact\" in a model that learned its positions";
  if (c->slopes)
    return "cannot be \"compact\" in a model that slopes scores by distance (ALiBi)";
  return NULL;
}

/* While layers read, those that share a budget are cut again and again: what a share of the sum of
 * all scores is nobody knows before the last one, and a row would be averaged into others of whom
 * it is not known whether they stay. */
static pyr_status check_shared(const pyr_answer *a, const pyr_plan *plan, pyr_when when) {
  if (!pyr_plan_unites(plan) || when != PYR_WHEN_PREFILL) return PYR_OK;
  if (plan->mass > 0)
    return refuse(a, "mass", "cannot be said where layers share a budget while they read, as it is "
                  "of the sum of all of them (share = \"model\" with `prepare`, or in "
                  "cache:evict)");
  if (plan->bounded)
    return refuse(a, "above", "cannot be said where layers share a budget while they read, as that "
                  "is a count (share = \"model\" with `prepare`, or in cache:evict)");
  if (plan->merge)
    return refuse(a, "merge", "cannot be said where layers share a budget while they read, as "
                  "survivors may still leave (share = \"model\" with `prepare`, or in "
                  "cache:evict)");
  return PYR_OK;
}

/* A weight reads what a score reads, but that a function of the policy's own would have to see all
 * lanes at once, and that a layer's old rows have no part in what it has just read. */
static pyr_status check_weight(const pyr_answer *a, const pyr_plan *plan, pyr_when when) {
  const pyr_score *weight = &plan->weight;
  const char *fault;
  int depth;
  /* The order is that of the plan's own check: what cannot be said at all, before what is wrong in
   * what was said. */
  if (weight->length == 0) return PYR_OK;
  if (when != PYR_WHEN_PREFILL)
    return refuse(a, "weight", "divides a budget over layers while a prompt is read only");
  if (plan->share != PYR_SHARE_HEAD && plan->share != PYR_SHARE_POOL)
    return refuse(a, "weight", "needs share = \"head\" or share = \"pool\"");
  if (plan->keep_count)
    return refuse(a, "weight", "divides one number of rows, and keep is a list");
  if ((fault = pyr_score_check(weight, &depth)) != NULL) return refuse(a, "weight", fault);
  if (weight->length + plan->score.length > PYR_SCORE_MAX)
    return refuse(a, "weight", "has, with the score, too many operations");
  for (int i = 0; i < weight->length; i++)
    if (weight->ops[i].code == PYR_S_CUSTOM || pyr_signal_reads_inputs(&weight->ops[i]))
      return refuse(a, "weight", "has a function of its own, or reads what the layer read");
  fault = pyr_score_refused(weight, a->cache, true, false, NULL);
  return fault ? refuse(a, "weight", fault) : PYR_OK;
}

/* Digests and the choice among them are the backend's; without them all rows are read. */
static pyr_status check_read(const pyr_answer *a, const pyr_read *read) {
  const pyr_backend *be = a->cache->pool->be;
  if (read->rows < 0) return refuse(a, "read.rows", "is less than 1");
  if (read->rows == 0) return PYR_OK;
  if (read->by <= PYR_DIGEST_NONE || read->by >= PYR_DIGESTS)
    return refuse(a, "read.by", "is unknown");
  if (read->first < 0) return refuse(a, "read.guard.first", "is negative");
  if (read->last < 0) return refuse(a, "read.guard.last", "is negative");
  if (!be->pick_pages)
    return pyr_runtime_set_error(be->rt, PYR_UNSUPPORTED,
                                 "policy %s, layer %d, %s: read: the device \"%s\" reads all rows "
                                 "that are held", policy_name(a->cache), (int)a->layer + 1,
                                 a->when, be->name);
  return PYR_OK;
}

/* A step gives attention to the rows that it reads, so that what is tracked of the others would
 * only decay. Learned scores are given once, and go with it. */
static pyr_status check_read_tracked(const pyr_answer *a, const pyr_read *read,
                                     const pyr_trigger *trigger) {
  if (read->rows == 0 || !pyr_trigger_sums(trigger)) return PYR_OK;
  return refuse(a, "read", "cannot be said where the trigger tracks attention, which steps then "
                "give to the rows that they read alone");
}

/* A policy does not know what tiers the cache has that it is used with, so it may leave that open.
 * Which tier is meant by less than 0: that of the number, else one below that the cache has, else
 * none. With cold alone, -PYR_TIER_WARM is cold. */
static int32_t tier_there(const pyr_cache *cache, int32_t losers) {
  if (losers < -PYR_TIER_COLD) return losers;             /* unknown, as will be said */
  for (int32_t tier = -losers; tier <= PYR_TIER_COLD; tier++)
    if (pyr_cache_has_tier(cache, (pyr_tier)tier)) return tier;
  return 0;
}

/* Keys that were turned lie as at their index, which a tier below knows nothing of. A plan that may
 * do without the tier (losers below 0) has been settled before. */
static pyr_status check_losers(const pyr_answer *a, const pyr_plan *plan) {
  if (plan->losers < PYR_TIER_WARM || plan->losers > PYR_TIER_COLD)
    return refuse(a, "losers", "is unknown");
  if (!pyr_cache_has_tier(a->cache, (pyr_tier)plan->losers))
    return refuse(a, "losers", plan->losers == PYR_TIER_WARM
                  ? "go to tier \"warm\", which the cache has not (declare it: tiers = { warm = "
                  "\"q8_0\" })"
                  : "go to tier \"cold\", which the cache has not (declare it: tiers = { cold = "
                  "\"q8_0\" })");
  if (plan->merge) return refuse(a, "losers", "are merged, and cannot go to a tier, too");
  if (plan->rotate == PYR_ROTATE_COMPACT || a->cache->states[a->layer].compact)
    return refuse(a, "losers", "cannot go to a tier where keys are turned (rotate = \"compact\")");
  return PYR_OK;
}

/* Every number is checked here, so that what follows (split.c, evict.c) may take a plan at its
 * word. The order is that in which a message helps most: a wrong `keep` before what follows from
 * it. */
static pyr_status check_plan(const pyr_answer *a, const pyr_shape *shape, pyr_plan *plan,
                             pyr_when when) {
  int depth;
  const char *fault;
  bool hidden = plan->prune & PYR_PRUNE_HIDDEN;
  if (plan->keep_count) PYR_TRY(check_list(a, shape, plan));
  if (plan->keep < 1) return refuse(a, "keep", "is less than 1");
  if (plan->keep > shape->rows) return refuse(a, "keep", "asks for more rows than there are");
  if (plan->first < 0) return refuse(a, "guard.first", "is negative");
  if (plan->last < 0) return refuse(a, "guard.last", "is negative");
  if (plan->share < PYR_SHARE_LAYER || plan->share > PYR_SHARE_MODEL)
    return refuse(a, "share", "is unknown");
  if (plan->share == PYR_SHARE_MODEL && when == PYR_WHEN_DECODE)
    return refuse(a, "share", "cannot be \"model\" in decode, where layers fire one by one");
  if (plan->prune < PYR_PRUNE_CACHE || plan->prune > PYR_PRUNE_BOTH)
    return refuse(a, "prune", "is unknown");
  if (hidden && plan->share != PYR_SHARE_LAYER)
    return refuse(a, "share", "must be \"layer\" where hidden states are pruned");
  if (!(plan->mass >= 0 && plan->mass <= 1)) return refuse(a, "mass", "lies outside (0, 1]");
  if (plan->bounded && !isfinite(plan->above)) return refuse(a, "above", "is not finite");
  PYR_TRY(check_shared(a, plan, when));
  if (plan->least < 0) return refuse(a, "least", "is negative");
  if (plan->least > plan->keep) return refuse(a, "least", "is more than keep");
  if (plan->least > 0 && !pyr_plan_is_open(plan) && plan->share < PYR_SHARE_POOL
      && !pyr_plan_unites(plan))
    return refuse(a, "least", "needs mass, above, share = \"pool\" or share = \"model\"");
  if (plan->merge && !(plan->threshold >= -1 && plan->threshold <= 1))
    return refuse(a, "merge.threshold", "lies outside [-1, 1]");
  if (plan->merge && !(plan->prune & PYR_PRUNE_CACHE))
    return refuse(a, "merge",
                  "needs losers: prune = \"hidden\" leaves the layer's own rows whole");
  /* from here on it is what will be done, and what whoever is told of the plan reads */
  if (plan->losers < 0) plan->losers = tier_there(a->cache, plan->losers);
  if (plan->losers) PYR_TRY(check_losers(a, plan));
  if (plan->rotate != PYR_ROTATE_KEEP && plan->rotate != PYR_ROTATE_COMPACT)
    return refuse(a, "rotate", "is unknown");
  if (plan->rotate == PYR_ROTATE_COMPACT && (!pyr_plan_keeps_equal(plan) || hidden))
    return refuse(a, "rotate",
                  "\"compact\" needs prune = \"cache\" and heads that keep as many rows as each "
                  "other: share = \"layer\", or \"head\" with one number to keep");
  if (plan->rotate == PYR_ROTATE_COMPACT && (fault = fixed_positions(a->cache)) != NULL)
    return refuse(a, "rotate", fault);
  if ((fault = pyr_score_check(&plan->score, &depth)) != NULL) return refuse(a, "score", fault);
  PYR_TRY(check_weight(a, plan, when));
  PYR_TRY(check_read(a, &plan->read));
  bool probed = when == PYR_WHEN_PREPARED || (when == PYR_WHEN_EVICT && a->cache->probed);
  fault = pyr_score_refused(&plan->score, a->cache, when != PYR_WHEN_DECODE, probed,
                            &a->cache->states[a->layer].trigger.track);
  return fault ? refuse(a, "score", fault) : PYR_OK;
}

/* After the last layer there is none to hand survivors to: a plan that would drop hidden states
 * drops the prompt's rows only, or nothing where it leaves rows alone. A cache of 100 rows reads
 * a prompt of 20: at the last layer, keep 60 with prune = "both" guards the first 100, as only
 * alive tokens were ranked in the layers before. */
static void adjust_last_layer(const pyr_shape *shape, pyr_plan *plan) {
  if (shape->layer != shape->layers - 1 || !(plan->prune & PYR_PRUNE_HIDDEN)) return;
  if (plan->prune == PYR_PRUNE_HIDDEN)
    plan->keep = shape->rows, plan->mass = 0, plan->bounded = 0, plan->least = 0;
  plan->prune = PYR_PRUNE_CACHE;
  plan->last = pyr_max(plan->last, 1);
  plan->first = pyr_max(plan->first, shape->past);
}

/* A decode plan ranks by what the trigger tracks, or by rows alone. Of maxima over a K/V head's
 * query heads no mean over these can be made, so the plan has to ask for the maximum, too. A score
 * left out is what the trigger tracks: the one thing that is known of every row without more work.
 * All its other signals of attention must be the tracked one, as no other was summed up. */
static pyr_status check_decode(const pyr_answer *a, const pyr_shape *shape,
                               const pyr_trigger *trigger, pyr_plan *plan) {
  if (trigger->once && plan->last > trigger->window)
    return refuse(a, "guard.last",
                  "exceeds the trigger's window, by which rows judged once are counted");
  if (plan->score.length == 0 && pyr_trigger_tracks(trigger))
    plan->score = (pyr_score){ 1, { trigger->track } };
  for (int i = 0; i < plan->score.length; i++) {
    const pyr_score_op *op = &plan->score.ops[i];
    const char *fault = pyr_score_untracked(op, &trigger->track);
    if (!fault && pyr_signal_is_attention(op) && op->a == PYR_MAX && op->b != PYR_MAX
        && shape->heads != shape->kv_heads)
      fault = "adds up query heads, of which the trigger tracks the maximum";
    if (fault) return refuse(a, "score", fault);
  }
  return check_read_tracked(a, &plan->read, trigger);
}

/* At rest, and after a preparing pass, there are rows and what they were given, but no queries and
 * no hidden states. */
static pyr_status check_at_rest(const pyr_answer *a, const pyr_shape *shape,
                                const pyr_trigger *trigger, const pyr_plan *plan) {
  if (plan->prune & PYR_PRUNE_HIDDEN)
    return refuse(a, "prune", "drops hidden states, which are there while a prefill runs only "
                  "(\"cache\" drops rows)");
  for (int i = 0; i < plan->score.length; i++) {
    const pyr_score_op *op = &plan->score.ops[i];
    if (pyr_signal_is_expected(op))
      return refuse(a, "score", "expects attention from the queries of a prompt, which only a "
                    "running prefill knows");
    if (pyr_signal_reads_inputs(op) && !pyr_signal_is_carried(op, &trigger->track))
      return refuse(a, "score", op->code == PYR_S_LEARNED
                    ? "reads what the layer read, which is known in prefill only, or where the "
                    "trigger tracks that learned score"
                    : "reads what the layer read, which is known in prefill only");
    if (!pyr_signal_is_attention(op) && !pyr_signal_is_history(op)) continue;
    if (pyr_score_untracked(op, &trigger->track))
      return refuse(a, "score", "ranks by attention that the cache does not track, and only a "
                    "running prefill knows");
    if ((op->b == PYR_MAX) != pyr_trigger_tracks_max(trigger) && shape->heads != shape->kv_heads)
      return refuse(a, "score", op->b == PYR_MAX
                    ? "takes a maximum over the query heads of a K/V head, of which only the mean "
                    "is tracked"
                    : "adds up query heads, of which the trigger tracks the maximum");
  }
  return PYR_OK;
}

/* The plan begins as "all rows stay": a policy that leaves it alone has none. In decode hidden
 * states are gone after each step, so `prune` is not asked for. */
pyr_status pyr_policy_ask(pyr_cache *cache, pyr_when when, const pyr_shape *shape,
                          pyr_plan *plan) {
  const pyr_policy *policy = &cache->policy;
  const pyr_trigger *trigger = &cache->states[shape->layer].trigger;
  const pyr_answer a = { cache, shape->layer, when_names[when] };
  memset(plan, 0, sizeof *plan);
  plan->keep = shape->rows;
  plan->prune = PYR_PRUNE_CACHE;
  if (when == PYR_WHEN_DECODE) {
    PYR_TRY(policy->decode(policy->ud, shape, plan));
    plan->prune = PYR_PRUNE_CACHE;
  } else if (policy->prefill) {
    PYR_TRY(policy->prefill(policy->ud, shape, plan));
  } else {
    return PYR_OK;
  }
  PYR_TRY(check_plan(&a, shape, plan, when));
  if (cache->pool->model->line && pyr_plan_unites(plan))
    return pyr_runtime_set_error(cache->pool->rt, PYR_UNSUPPORTED,
                                 "policy %s, layer %d, %s: shares a budget among layers that lie on "
                                 "several stages (ranks = \"pipeline\"; \"tensor\" does it)",
                                 policy_name(cache), (int)shape->layer + 1, when_names[when]);
  switch (when) {
  case PYR_WHEN_PREFILL: adjust_last_layer(shape, plan); return PYR_OK;
  case PYR_WHEN_DECODE:  return check_decode(&a, shape, trigger, plan);
  case PYR_WHEN_EVICT:    return check_at_rest(&a, shape, trigger, plan);
  case PYR_WHEN_PREPARED: return PYR_OK;   /* its trigger is asked for next */
  }
  return PYR_OK;
}

pyr_status pyr_policy_check_prepared(pyr_cache *cache, const pyr_shape *shape,
                                     const pyr_trigger *trigger, const pyr_plan *plan) {
  const pyr_answer a = { cache, shape->layer, when_names[PYR_WHEN_PREPARED] };
  return check_at_rest(&a, shape, trigger, plan);
}

pyr_status pyr_policy_check_lanes(const pyr_splits *splits) {
  const pyr_answer a = { splits->cache, splits->layer, when_names[splits->when] };
  const char *field, *fault = pyr_splits_fault(splits, &field);
  return fault ? refuse(&a, field, fault) : PYR_OK;
}

pyr_status pyr_policy_unequal(const pyr_splits *splits, const char *field, int other_layer) {
  return pyr_runtime_set_error(splits->cache->pool->rt, PYR_POLICY,
                               "policy %s, layer %d, %s: %s is another than layer %d has, with "
                               "which the layer shares a budget (share = \"model\")",
                               policy_name(splits->cache), (int)splits->layer + 1,
                               when_names[splits->when], field, other_layer + 1);
}

pyr_status pyr_policy_weighs_alone(const pyr_splits *splits) {
  /* a weight divides rows, a score ranks them: one budget cannot be shared out by both */
  const pyr_answer a = { splits->cache, splits->layer, when_names[splits->when] };
  return refuse(&a, "weight", "must be said by all layers that share a budget, or by none");
}

pyr_status pyr_policy_hides(const pyr_splits *splits) {
  const pyr_answer a = { splits->cache, splits->layer, when_names[splits->when] };
  return refuse(&a, "prune", "drops hidden states, but a layer above shares a budget, for which all "
                "layers from there on must be reached by all tokens");
}

pyr_status pyr_policy_reached_by_few(const pyr_splits *splits) {
  const pyr_answer a = { splits->cache, splits->layer, when_names[splits->when] };
  return refuse(&a, "share", "is of a budget that layers share, but layers above have dropped hidden "
                "states: all tokens must reach such layers");
}

/* A prompt in pieces: of earlier ones there are rows, and nothing that only a running prefill has.
 * Of 1,024 tokens that follow 512 others, the hidden states of the 512 are gone. */
pyr_status pyr_policy_not_in_pieces(const pyr_splits *splits, bool hides) {
  const pyr_answer a = { splits->cache, splits->layer, when_names[splits->when] };
  return hides ? refuse(&a, "prune", "drops hidden states, which the rows of an earlier piece of "
                        "this text have no more")
      : refuse(&a, "score", "reads what the layer read, which the rows of an earlier piece of this "
               "text have no more, unless the trigger tracks it");
}

pyr_status pyr_policy_not_pure(const pyr_splits *splits) {
  const pyr_answer a = { splits->cache, splits->layer, when_names[splits->when] };
  return refuse(&a, "keep", "is another than before the prompt was read: plans must be pure");
}

pyr_status pyr_policy_not_finite(const pyr_cache *cache, int layer, pyr_when when,
                                 const pyr_score *score) {
  char text[PYR_SCORE_TEXT];
  pyr_score_text(score, text);
  return pyr_runtime_set_error(cache->pool->rt, PYR_POLICY,
                               "policy %s, layer %d, %s: score %s is NaN or infinite at some row: "
                               "only numbers rank (bound what it divides by, and use large "
                               "numbers for never and always)",
                               policy_name(cache), layer + 1, when_names[when], text);
}

/* ---- triggers -------------------------------------------------------------------------------- */

static pyr_status check_trigger(pyr_cache *cache, const pyr_shape *shape,
                                const pyr_trigger *trigger) {
  const pyr_answer a = { cache, shape->layer, "trigger" };
  if (trigger->every < 0) return refuse(&a, "every", "is negative");
  if (trigger->over < 0) return refuse(&a, "over", "is negative");
  if (trigger->window < 0) return refuse(&a, "window", "is negative");
  if (trigger->once && (trigger->every == 0 || trigger->over > 0))
    return refuse(&a, "once", "needs `every`, and not `over`");
  if (trigger->recall < 0 || trigger->recall > INT32_MAX)
    return refuse(&a, "recall", "is out of range");
  if (trigger->recall > 0 && (!pyr_trigger_sums(trigger) || trigger->once))
    return refuse(&a, "recall", "needs a history or an attention that is tracked, by which rows come "
                  "up, and that rows are ranked again (`once` left out)");
  if (!pyr_trigger_tracks(trigger)) return PYR_OK;
  int depth;
  pyr_score alone = { 1, { trigger->track } };
  const char *fault = pyr_score_check(&alone, &depth);
  if (!fault)
    fault = pyr_score_refused(&alone, cache, true, false, &trigger->track);
  if (fault) return refuse(&a, "track", fault);
  if (pyr_signal_is_attention(&trigger->track) && trigger->track.a > PYR_MAX)
    return refuse(&a, "track", "keeps sums or maxima over queries, no variance and no entropy");
  /* A row has one accumulator: a sum over queries and heads, or the highest of all of them. The
   * highest head's sum over queries would take an accumulator a head. Of two heads and two queries
   * that gave .1 .5 and .4 .3, the accumulator is 1.3 / 2 or .5; the higher sum, .8, is in neither.
   */
  bool max = pyr_trigger_tracks_max(trigger);
  if (max != (trigger->track.b == PYR_MAX) && shape->heads != shape->kv_heads)
    return refuse(&a, "track", max
                  ? "keeps a maximum over queries of all query heads of a K/V head together: heads "
                  "must be \"max\" too"
                  : "cannot keep a maximum over the query heads of a K/V head of sums over "
                  "queries; track their mean, or reduce = \"max\" too");
  return PYR_OK;
}

/* Earlier prompts' rows are ranked by a learned score that they carry only as long as it is
 * tracked: of this prompt's there would be none to compare.
 *
 *     prompt 1   tracks map 7, ranks by map 7     its own rows
 *     prompt 2   tracks map 7, ranks by map 7     those of both, which all carry it
 *     prompt 2   tracks nothing, ranks by map 7   refused here: split.c has counted on both
 */
static pyr_status check_learned(pyr_cache *cache, const pyr_shape *shape, const pyr_plan *plan,
                                const pyr_trigger *trigger) {
  const pyr_answer a = { cache, shape->layer, when_names[PYR_WHEN_PREFILL] };
  const pyr_score_op *before = &cache->states[shape->layer].trigger.track;
  for (int i = 0; i < plan->score.length && shape->past > 0; i++) {
    const pyr_score_op *op = &plan->score.ops[i];
    if (pyr_signal_is_carried(op, before) && !pyr_signal_is_carried(op, &trigger->track))
      return refuse(&a, "score", "is a learned one that the trigger tracked and tracks no more");
  }
  return PYR_OK;
}

/* A history that earlier prompts have added to holds the mean over heads, decayed in one way. */
static pyr_status check_history(pyr_cache *cache, const pyr_shape *shape, const pyr_plan *plan,
                                const pyr_trigger *trigger) {
  const pyr_answer a = { cache, shape->layer, when_names[PYR_WHEN_PREFILL] };
  if (!pyr_signal_is_history(&trigger->track) || shape->past == 0) return PYR_OK;
  for (int i = 0; i < plan->score.length; i++) {
    const pyr_score_op *op = &plan->score.ops[i];
    if (!pyr_signal_is_history(op)) continue;
    if (op->b == PYR_MAX && shape->heads != shape->kv_heads)
      return refuse(&a, "score", "wants history{heads=max}, of which earlier prompts left the "
                    "mean over a K/V head");
    const char *fault = pyr_score_untracked(op, &trigger->track);
    if (fault) return refuse(&a, "score", fault);
  }
  return PYR_OK;
}

/* A trigger without a decode plan would fire for nothing: it is not asked for. */
pyr_status pyr_policy_ask_trigger(pyr_cache *cache, const pyr_shape *shape, const pyr_plan *plan,
                                  pyr_trigger *trigger) {
  const pyr_policy *policy = &cache->policy;
  memset(trigger, 0, sizeof *trigger);
  trigger->track.code = PYR_SCORE_CODES;
  if (policy->trigger && policy->decode) {
    PYR_TRY(policy->trigger(policy->ud, shape, trigger));
    PYR_TRY(check_trigger(cache, shape, trigger));
  }
  PYR_TRY(check_learned(cache, shape, plan, trigger));
  return check_history(cache, shape, plan, trigger);
}

/* Without a trigger a decode plan never runs: rows that it would evict are a mistake. With one it
 * says what is read when it runs, and is not asked here, as most such plans say nothing of it.
 *
 *     prefill says read        from the first step on, whatever else there is
 *     decode, no trigger       from the first step on
 *     decode, and a trigger    from the first firing on; until then all is read
 *
 * A prompt whose plans say nothing reads all again. */
pyr_status pyr_policy_ask_read(pyr_cache *cache, const pyr_shape *shape, const pyr_plan *plan,
                               const pyr_trigger *trigger, pyr_read *out) {
  const pyr_policy *policy = &cache->policy;
  const pyr_answer before = { cache, shape->layer, when_names[PYR_WHEN_PREFILL] },
      a = { cache, shape->layer, when_names[PYR_WHEN_DECODE] };
  *out = plan->read;
  if (out->rows > 0) return check_read_tracked(&before, out, trigger);
  if (!policy->decode || policy->trigger) return PYR_OK;
  pyr_plan reads = { .keep = shape->rows, .prune = PYR_PRUNE_CACHE };
  PYR_TRY(policy->decode(policy->ud, shape, &reads));
  PYR_TRY(check_read(&a, &reads.read));
  if (reads.keep < shape->rows || reads.keep_count || pyr_plan_is_open(&reads))
    return refuse(&a, "keep", "leaves fewer rows than there are, which needs a trigger that says "
                  "when");
  *out = reads.read;
  return PYR_OK;
}

/* ---- preparing passes ------------------------------------------------------------------------ */

/* Ids, or how many tokens to copy from before the block, as -k. */
static bool are_leads(const pyr_cache *cache, const int32_t *ids, int64_t count) {
  bool fine = count >= 0 && (count == 0 || ids != NULL);
  for (int64_t i = 0; i < count && fine; i++) fine = ids[i] < cache->pool->model->config.vocab;
  return fine;
}

/* The shape is that of the whole cache, as the passes are: the longest lane of any layer says what
 * is past. What is wrong is told with layer 1, for want of another. */
pyr_status pyr_policy_ask_preparation(pyr_cache *cache, int64_t n, pyr_preparation *out) {
  const pyr_preparer *by = &cache->preparer;
  const pyr_model_config *c = &cache->pool->model->whole;
  const pyr_answer a = { cache, 0, "prepare" };
  pyr_shape shape = { .layers = c->layers, .heads = c->heads, .kv_heads = c->kv_heads,
                      .head_dim = c->head_dim, .prompt = n, .tokens = cache->tokens + n };
  *out = (pyr_preparation){ .size = sizeof *out, .track = { .code = PYR_SCORE_CODES } };
  if (!by->prepare || !cache->policy.prefill) return PYR_OK;
  for (int layer = 0; layer < cache->layers; layer++)
    shape.past = pyr_max(shape.past, pyr_cache_layer_rows(cache, layer));
  shape.rows = shape.past + n;
  PYR_TRY(by->prepare(by->ud, &shape, out));
  if (out->track.code >= PYR_SCORE_CODES) return PYR_OK;
  if (!pyr_signal_is_attention(&out->track))
    return refuse(&a, "track", "is no attention, which is what a pass can track");
  int depth;
  pyr_score alone = { 1, { out->track } };
  const char *fault = pyr_score_check(&alone, &depth);
  if (fault) return refuse(&a, "track", fault);
  if (out->track.a > PYR_MAX)
    return refuse(&a, "track", "keeps sums or maxima over queries, no variance and no entropy");
  if (out->block < 0) return refuse(&a, "block", "is negative");
  if (out->sinks < 0) return refuse(&a, "sinks", "is negative");
  if (out->among < PYR_AMONG_ALL || out->among > PYR_AMONG_BLOCK)
    return refuse(&a, "among", "is unknown");
  if (!are_leads(cache, out->first, out->first_count))
    return refuse(&a, "first", "has an id outside the vocabulary");
  if (!are_leads(cache, out->lead, out->lead_count))
    return refuse(&a, "lead", "has an id outside the vocabulary");
  if (out->block == 0 && out->first_count == 0)
    return refuse(&a, "block", "is 0, and there is nothing else that a pass could read");
  return PYR_OK;
}

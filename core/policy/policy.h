/* policy.h — asks a policy for the plans and triggers of a layer, and checks what it answers.
 *
 * A policy answers from the shape of a layer alone, before the work that the plan belongs to. So a
 * policy that fails, or answers nonsense, costs nothing: no row has moved. Errors name policy,
 * layer and field (PYR_POLICY). */
#ifndef PYR_POLICY_H
#define PYR_POLICY_H

#include "policy/score.h"
#include "policy/split.h"

/* What the policy says for this moment. Without a callback for it the plan keeps everything. Checks
 * all that does not depend on the rows which the lanes hold (pyr_policy_check_lanes does the rest).
 * PYR_WHEN_EVICT and PYR_WHEN_PREPARED ask for a prefill plan; the first refuses what only a
 * running prefill can know. */
pyr_status pyr_policy_ask(pyr_cache *cache, pyr_when when, const pyr_shape *shape,
                          pyr_plan *plan);
pyr_status pyr_policy_check_lanes(const pyr_splits *splits);

/* What happens in decode: shape->rows is what the prefill's plan leaves. Without a callback the
 * trigger never fires. `plan` is refused if it ranks by another history than what earlier prompts
 * left under this trigger. */
pyr_status pyr_policy_ask_trigger(pyr_cache *cache, const pyr_shape *shape, const pyr_plan *plan,
                                  pyr_trigger *trigger);

/* What steps read from then on: what the prefill's plan says; else, of a policy without a trigger,
 * what its decode plan does, which is asked for this alone; else all. shape and trigger: as the
 * trigger was asked for and answered. Refused are a trigger that tracks attention, a decode plan
 * that evicts and never runs, and a backend without digests (PYR_UNSUPPORTED). */
pyr_status pyr_policy_ask_read(pyr_cache *cache, const pyr_shape *shape, const pyr_plan *plan,
                               const pyr_trigger *trigger, pyr_read *out);

/* Whether the prefill of n tokens is to be prepared, and how: track.code says PYR_S_ATTENTION, or
 * it is not. Without a plan for prefills there is nothing to prepare. */
pyr_status pyr_policy_ask_preparation(pyr_cache *cache, int64_t n, pyr_preparation *out);

/* Refuses a plan that runs after a preparing pass, when the layer has the trigger, and asks for
 * what is not known then. */
pyr_status pyr_policy_check_prepared(pyr_cache *cache, const pyr_shape *shape,
                                     const pyr_trigger *trigger, const pyr_plan *plan);

/* The error of a plan that judges rows of an earlier piece of a prompt (PYR_PREFILL_WHOLE) by what
 * only its newest piece has: hidden states to drop, or a score of what the layer read. */
pyr_status pyr_policy_not_in_pieces(const pyr_splits *splits, bool hides);

/* The error of plans that evict where, before the prompt was read, they said that none would: no
 * pass has been read for them. */
pyr_status pyr_policy_not_pure(const pyr_splits *splits);

/* The error of layers that share a budget, of which some have weights and others do not. */
pyr_status pyr_policy_weighs_alone(const pyr_splits *splits);
/* The errors of layers that share a budget while a prompt is read: one drops hidden states, which
 * another needs of every token; one is not reached by every token. */
pyr_status pyr_policy_hides(const pyr_splits *splits);
pyr_status pyr_policy_reached_by_few(const pyr_splits *splits);

/* The error of layers that compete under different fields `mass` or `above`. */
pyr_status pyr_policy_unequal(const pyr_splits *splits, const char *field, int other_layer);

/* The error of a plan whose scores were not all numbers. */
pyr_status pyr_policy_not_finite(const pyr_cache *cache, int layer, pyr_when when,
                                 const pyr_score *score);

#endif

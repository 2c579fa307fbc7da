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
 * PYR_WHEN_EVICT asks for a prefill plan, and refuses what only a running prefill can know. */
pyr_status pyr_policy_ask(pyr_cache *cache, pyr_when when, const pyr_shape *shape,
                          pyr_plan *plan);
pyr_status pyr_policy_check_lanes(const pyr_splits *splits);

/* What happens in decode: shape->rows is what the prefill's plan leaves. Without a callback the
 * trigger never fires. `plan` is refused if it ranks by another history than what earlier prompts
 * left under this trigger. */
pyr_status pyr_policy_ask_trigger(pyr_cache *cache, const pyr_shape *shape, const pyr_plan *plan,
                                  pyr_trigger *trigger);

/* The error of a plan whose scores were not all numbers. */
pyr_status pyr_policy_not_finite(const pyr_cache *cache, int layer, pyr_when when,
                                 const pyr_score *score);

#endif

/* sampler.h — a sampler as a device sees it: what it asks for, and what came of it. */
#ifndef PYR_SAMPLER_H
#define PYR_SAMPLER_H

#include "backend.h"

/* What a pick is, but for the logits: the next one, or that after `before` others, which is known beforehand unless the sampler
 * remembers ids. Its changes are the sampler's, until it is asked or told again. Nothing moves yet. */
pyr_status pyr_sampler_ask(pyr_sampler *s, int32_t vocab, int before, pyr_pick *out);
bool pyr_sampler_draws(const pyr_sampler *s);                  /* its temperature is above 0 */
bool pyr_sampler_remembers(const pyr_sampler *s);              /* what was picked before changes picks */
void pyr_sampler_took(pyr_sampler *s, int32_t id);             /* that pick came to this id */
pyr_status pyr_sampler_check(const pyr_sampler *s, int32_t vocab);   /* PYR_ARGUMENT: its biases are of no such vocabulary */
/* Memory for so many picks, on a device (asked for) or here, so that they cannot fail for want of it. The most changes of each. */
pyr_status pyr_sampler_reserve(pyr_sampler *s, int32_t vocab, int picks, bool device, int64_t *changes);
pyr_runtime *pyr_sampler_runtime(const pyr_sampler *s);        /* who holds its messages */

/* ---- pick.c: many at once -------------------------------------------------------------------------------------------------- */

/* ids[i]: what samplers[i] picks of logits [count, vocab], backend memory; -1 where no logit is finite, or there is no sampler. `room`
 * is host memory, pyr_pick_bytes(count). Once they are prepared, only the device can fail; samplers of ids that came out have then
 * picked, others not. */
size_t pyr_pick_bytes(int count);
pyr_status pyr_pick_prepare(pyr_backend *be, pyr_sampler *const *samplers, int count, int32_t vocab);
pyr_status pyr_pick_all(pyr_backend *be, pyr_sampler *const *samplers, const float *logits, int32_t vocab, int count, int32_t *ids,
                        void *room);

#endif

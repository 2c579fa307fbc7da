/* sampler.h — a sampler as a device sees it: what it asks for, and what came of it. */
#ifndef PYR_SAMPLER_H
#define PYR_SAMPLER_H

#include "backend/backend.h"
#include "grammar/guide.h"

/* What a pick is, but for the logits: the next one, or that after `before` others, which is known
 * beforehand unless the sampler remembers ids. Its changes are the sampler's, until it is asked or
 * told again. Nothing moves yet. */
pyr_status pyr_sampler_ask(pyr_sampler *s, int32_t vocab, int before, pyr_pick *out);
bool pyr_sampler_draws(const pyr_sampler *s);                  /* its temperature is above 0 */
bool pyr_sampler_remembers(const pyr_sampler *s);  /* what was picked before changes picks */
/* it picks from some tokens alone, which it looks up here: on the host, whatever the device */
bool pyr_sampler_is_masked(const pyr_sampler *s);
/* [vocab] once reserved; logits to pick from may lie here */
float *pyr_sampler_work(pyr_sampler *s);
void pyr_sampler_took(pyr_sampler *s, int32_t id);             /* that pick came to this id */
/* PYR_ARGUMENT: its biases are of no such vocabulary */
pyr_status pyr_sampler_check(const pyr_sampler *s, int32_t vocab);
/* Memory for so many picks, on a device (asked for) or here, so that they cannot fail for want of
 * it. The most changes of each. */
pyr_status pyr_sampler_reserve(pyr_sampler *s, int32_t vocab, int picks, bool device,
                               int64_t *changes);
pyr_runtime *pyr_sampler_runtime(const pyr_sampler *s);        /* who holds its messages */

#endif

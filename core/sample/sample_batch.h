/* sample_batch.h — what samplers pick, each of its own sequence's logits, where those are: many at
 * once. */
#ifndef PYR_PICKS_H
#define PYR_PICKS_H

#include "sample/sampler.h"

/* ids[i]: what samplers[i] picks of logits [count, vocab], backend memory; -1 where no logit is
 * finite, or there is no sampler. `room` is host memory, pyr_pick_bytes(count). Once they are
 * prepared, only the device can fail; samplers of ids that came out have then picked, others not.
 * */
size_t pyr_pick_bytes(int count);
pyr_status pyr_pick_prepare(pyr_backend *be, pyr_sampler *const *samplers, int count,
                            int32_t vocab);
pyr_status pyr_pick_all(pyr_backend *be, pyr_sampler *const *samplers, const float *logits,
                        int32_t vocab, int count, int32_t *ids, void *room);

#endif

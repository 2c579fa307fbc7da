/* sample_batch.h — what samplers pick of the logits of several sequences, where those logits are:
 * one sampler for each sequence, all of them at once. */
#ifndef PYR_SAMPLE_BATCH_H
#define PYR_SAMPLE_BATCH_H

#include "base/arena.h"
#include "sample/sampler.h"

typedef struct pyr_sample_batch {  /* host memory for `count` sequences, only while it picks */
  pyr_pick *asked;                 /* [count] what a device is asked for … */
  int32_t *of, *ids;               /* [count] … of which sequence, and what came of it */
  int asked_count;
} pyr_sample_batch;

void pyr_sample_batch_layout(pyr_sample_batch *b, int count, pyr_arena *host);
/* Memory for one pick of each, so that afterwards only the device can fail. samplers [count], NULL
 * where nothing is to be picked. */
pyr_status pyr_sample_batch_prepare(pyr_backend *be, pyr_sampler *const *samplers, int count,
                                    int32_t vocab);
/* ids[i]: what samplers[i] picks of logits [count, vocab], backend memory; -1 where no logit is
 * finite, or there is no sampler. Samplers of ids that came out have then picked, others not. */
pyr_status pyr_sample_batch_pick(pyr_sample_batch *b, pyr_backend *be,
                                 pyr_sampler *const *samplers, const float *logits, int32_t vocab,
                                 int count, int32_t *ids);

#endif

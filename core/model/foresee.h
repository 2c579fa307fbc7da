/* foresee.h — what a model would hold and send, asked of one that is only laid out. */
#ifndef PYR_FORESEE_H
#define PYR_FORESEE_H

#include "pyramid.h"

/* What a model would hold, of this rank, before any weight is bound, or if none ever is: of a
 * runtime whose `ranks` are "paper RANK/SIZE" that is one of as many that nobody started.
 *
 * Bytes of one weight, in the dtype that it has or would be converted to; vectors are f32. 0: the
 * rank has none of it. PYR_W_OUTPUT of a model that has none of its own (tied): of the copy that
 * this processor makes of it, if it does. */
uint64_t pyr_model_foresee_weight(const pyr_model *model, pyr_role role, int layer, int expert,
                                  int tied, pyr_dtype dtype);
typedef struct pyr_foresight {
  size_t size;               /* of this struct */
  int64_t prompt, batch;     /* tokens of a prompt that is read alone; sequences of a step */
  int64_t rows;              /* that the longest lane holds in a step */
  const int64_t *computed;   /* [layers] tokens of the prompt that reach each layer; NULL: all */
  int masses;                /* whether plans rank by the attention of recent queries */
} pyr_foresight;
typedef struct pyr_foreseen {
  int64_t prompt_bytes;      /* activations of a prefill, and scratch of this processor's kernels */
  int64_t step_bytes;        /* likewise of a step */
  int64_t prompt_sent, prompt_swaps;   /* bytes that the rank sends, and how often all swap … */
  int64_t step_sent, step_swaps;       /* … but for scores that plans of several ranks gather */
  int32_t heads, kv_heads, ff, vocab;  /* the rank's part */
} pyr_foreseen;
/* Takes the scratch, to see how much it is, and gives it back with the runtime; what that has set
 * aside before is not counted. PYR_MEMORY. */
pyr_status pyr_model_foresee(const pyr_model *model, const pyr_foresight *what, pyr_foreseen *out);

#endif

/* stages.h — what goes from stage to stage of a line: the residual stream of tokens, with their
 * positions; and what its end alone has, to all.
 *
 *     stage 0   embed, layers 0 to 18    x, pos ->
 *     stage 1   -> x, pos                layers 19 to 29, logits ->
 *     both                               -> logits
 *
 * A stage that fails hands that on in the place of tokens, so that nobody waits for it; which one
 * it was all hear at the next agreement. Where there is one stage these do nothing. */
#ifndef PYR_STAGES_H
#define PYR_STAGES_H

#include "model/model.h"

/* Tokens of the stage before: x [n, width], pos [n]; both have room for `most`. The first stage has
 * its own, and n stays as it is. */
pyr_status pyr_stage_receive(const pyr_model *model, float *x, int32_t *pos, int64_t most,
                             int64_t *n);
/* What a stage's own ranks agree upon before it hands on anything: who failed alone would leave
 * them waiting for its scores while it waits for all. */
pyr_status pyr_stage_settle(const pyr_model *model, pyr_status status);
/* To the stage behind; status: what has become of this one, which is returned. */
pyr_status pyr_stage_send(const pyr_model *model, pyr_status status, const float *x,
                          const int32_t *pos, int64_t n);
/* The same of n rows where nothing can have failed: no word before them. */
pyr_status pyr_stage_take(const pyr_model *model, float *x, int64_t n);
pyr_status pyr_stage_hand(const pyr_model *model, const float *x, int64_t n);
/* What the last stage has goes to all: n floats. */
pyr_status pyr_stage_spread(const pyr_model *model, float *out, int64_t n);
/* Likewise of the first. */
pyr_status pyr_stage_spread_first(const pyr_model *model, float *out, int64_t n);

#endif

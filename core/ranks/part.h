/* part.h — which part of a model a rank has: which of a stage's layers, where there are several
 * stages, and what of each layer, where several ranks share one.
 *
 * A layer is cut so that two sums are all that its ranks must swap: q, k, v, gate and up by their
 * rows, o and down by the columns that read those. Of SmolLM2 (9 query heads over 3 K/V heads of
 * 64, an MLP of 1,536, 49,152 ids) two ranks have
 *
 *              rank 0                          rank 1
 *     k, v     K/V head 0                      K/V heads 1 and 2        rows of 64
 *     q, o     query heads 0 to 2              query heads 3 to 8       rows; columns
 *     MLP      columns 0 to 863                columns 864 to 1,535     rows of gate, up; of down
 *     output   ids 0 to 24,575                 ids 24,576 to 49,151     rows
 *
 * A K/V head goes to one rank with all of its query heads, as attention and eviction work by lanes
 * of as many query heads each; who has fewer of them gets more of the MLP, so that all read as many
 * weights at each token. Where there are more ranks than K/V heads, some of these are replicated,
 * each copy beside a part of their query heads: of Gemma 3 270M (4 and 1) each of two ranks has the
 * one K/V head and two query heads.
 *
 * Columns of quantised matrices are cut between whole blocks. Experts go to ranks whole; the MLP
 * that all tokens share is cut as a layer's own. Embeddings, norms and routers are on every rank.
 *
 * Every rank works out everybody's part from the same numbers, and nothing is swapped for it. */
#ifndef PYR_PART_H
#define PYR_PART_H

#include "base/runtime.h"

typedef struct pyr_slice { int32_t first, count; } pyr_slice;

typedef struct pyr_portion {
  pyr_slice heads, lanes;        /* query heads; K/V heads */
  int32_t copies, copy;        /* ranks that have these lanes, and which of them this is */
  pyr_slice ff, shared_ff, vocab, experts;
} pyr_portion;

/* o_block, ff_block: how many columns of o, and of down, lie together in one block; 1: any. `out`
 * [ranks]. PYR_UNSUPPORTED: a rank would go without. */
pyr_status pyr_portions_make(pyr_runtime *rt, const pyr_model_config *whole, int32_t o_block,
                          int32_t ff_block, int ranks, pyr_portion *out);

/* Layers in runs, one a stage, so that the most that one of them has to do is as little as can be:
 * cost [layers] of each, above 0, and `tail`, of what the last stage does behind its layers. out
 * [stages], at most as many as layers.
 *
 *     SmolLM2, 30 layers of 3.5 million weights and an output of 28, two stages: 19 and 11 */
void pyr_layers_deal(const double *cost, int32_t layers, double tail, int stages, pyr_slice *out);
/* The same by the weights that a step reads; or, if not NULL, as `given` says, [stages].
 * PYR_UNSUPPORTED where layers are fewer. */
pyr_status pyr_stages_make(pyr_runtime *rt, const pyr_model_config *whole, const int32_t *given,
                           int stages, pyr_slice *out);

#endif

/* ranked.h — plans of several ranks: what scores read of heads that lie elsewhere, and choices
 * among all of them.
 *
 * A rank has the attention, the keys and the values of its own heads. Where one set of survivors is
 * chosen for heads of several ranks, each rank hands on its vectors, one number a candidate, in the
 * order of heads, and then every rank does what one process does with all of them: the same
 * reduction, the same score, the same choice, of the same bits. So their sets are equal, and nobody
 * has to say what was chosen. Of 9 query heads and 2,000 candidates that is 72 KB a layer.
 *
 *     share = "layer"    vectors of all heads are gathered as each signal is read
 *     share = "head"     nothing; but where a K/V head is on several ranks, theirs
 *     share = "pool"     scores of all lanes are gathered, and the choice is made among them
 *     share = "model"    likewise, of all layers; while a prompt is read, of those that have read
 *     weights            signals of all lanes are gathered, so that each rank weighs the layer
 *
 * Processors must multiply alike for this (ranks/open.c sees to it). */
#ifndef PYR_RANKED_H
#define PYR_RANKED_H

#include "policy/split.h"

/* What each of the vectors is of: a query head; a K/V head, where every copy has the same; a K/V
 * head's history, of which a copy has what its own query heads gave. */
typedef enum pyr_vectors { PYR_OF_QUERIES, PYR_OF_LANES, PYR_OF_HISTORY } pyr_vectors;

/* Whose vectors they are: those of some lanes of a layer; together: of all of its lanes, those of
 * other ranks too. tracked: what their histories hold, NULL where they have none; a tier below the
 * cache has what the cache's layers track. */
typedef struct pyr_set {
  const pyr_cache *cache;
  int32_t layer;
  bool together;
  const pyr_score_op *tracked;
} pyr_set;

/* out [n] = the backend's reduce_rows over in's `count` vectors and those of the other ranks' heads
 * in the set. Takes memory for them while it runs. */
pyr_status pyr_reduce_heads(const pyr_set *set, pyr_vectors kind, float *out, const float *in,
                            int32_t count, int64_t stride, int64_t n, pyr_reduce how, float scale);

/* The backend's choose among the segments of all ranks, of which `c` has this rank's, of one layer
 * after the other; `most` of all. What was chosen of its own comes to c->idx and c->chosen.
 *
 * rows [layers], if not NULL: each layer chooses by itself, so many, or what is promised to its
 * lanes where that is more; becomes how many were chosen. `most` is not looked at. */
pyr_status pyr_choose_ranked(const pyr_cache *cache, const pyr_choice *c, int64_t *rows);

/* What this rank's lanes have, one lane after the other, becomes what all K/V heads have, in their
 * order; a copy hands on nothing. counts [K/V heads]: so many items of each; NULL: one. */
pyr_status pyr_heads_gather(const pyr_model *model, const int64_t *counts, size_t item,
                            const void *mine, void *all);

/* What ranks must know of each other's lanes before a plan of `s` runs: the longest, and, where all
 * lanes compete, how many candidates and what budget there are. */
pyr_status pyr_splits_join(pyr_splits *s);

#endif

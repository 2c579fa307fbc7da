/* evict.h — carries a policy's plan out on the lanes of one layer: ask, score, split, select,
 * gather, hand on. The algorithm is told in evict.c.
 *
 * Three users. A prefill has a plan for each layer (pyr_layer_plan), which lives as long as the
 * layer reads the prompt. A decode step, a cache that evicts at rest, and a prefill whose plans
 * wait for a preparing pass carry out a batch of plans on rows that are there (pyr_evictions): all
 * are ranked before the first row moves, so that one that fails leaves everything as it was. And
 * where layers share a budget while they read (pyr_cascade), the plans of those that have read are
 * carried out anew after each of them. All are made of the same eviction.
 *
 * Losers leave the cache, or go down to a tier of it (`losers`, cache/tiers.h). With `merge` they
 * leave something behind (D2O, arXiv 2406.13035; CaM, ICML 2024): of the rows of its lane that
 * survive, guarded ones included, each loser l is given to the one whose key is most similar,
 *     t(l) = argmax over s of cos(k_l, k_s),   if cos(k_l, k_t(l)) >= threshold, else it is
 *                                              dropped,
 * and every survivor becomes the mean of itself and what it was given, all with equal weight:
 *     k_s <- (k_s + sum of k_l) / (1 + m),   v_s <- (v_s + sum of v_l) / (1 + m), over the m losers
 *                                            l with t(l) = s.
 * Keys are those of the cache, after RoPE. A survivor keeps its position and its history; what it
 * took in before counts no more than any row when it is given others later. (D2O weighs by exp(cos)
 * and moves its threshold; CaM merges only values, by attention.) */
#ifndef PYR_EVICT_H
#define PYR_EVICT_H

#include "policy/observe.h"
#include "policy/trace.h"

typedef struct pyr_contest {         /* scratch of a choice among lanes, of one layer or several */
  float *scores;                     /* their candidates', one lane after the other, … */
  int32_t *chosen, *cuts;            /* … and what `choose` works with; backend memory all three */
  pyr_segment *segments;             /* host, one a lane, as … */
  int32_t *counts;                   /* … are these: how many were chosen of each */
} pyr_contest;

typedef struct pyr_eviction {        /* one plan, on the lanes of one layer; may not move */
  pyr_plan plan;
  pyr_splits splits;                 /* how it falls on the lanes */

  /* who survives, from ranking until they are all that is left */
  int32_t *idx;                      /* backend memory: row indices, ascending, set after set … */
  float weight;                      /* plan.weight, worked out: what the layer's part of a shared
                                        budget is in proportion to */
  int64_t *at, *kept;                /* … host [heads]: by a set's first lane, where it begins in
                                        idx, and how many rows it has */
  int32_t *hidden;                   /* backend memory: where hidden states are pruned, the indices
                                        of the alive tokens that survive, … */
  int64_t hidden_kept;               /* … so many */

  pyr_trace_run trace;               /* for whoever is told what became of the plan */

  /* scratch, while it ranks and while it gathers: evictions may take turns with it */
  float *work;                       /* backend memory: of an evaluation */
  int32_t *links;                    /* likewise: who is merged into whom */
  pyr_lane_view *views;              /* host [2 * heads] */
  pyr_contest contest;               /* of the layer's lanes [heads] */
} pyr_eviction;

/* ---- a batch of plans on rows that are there ------------------------------------------------- */

typedef struct pyr_evictions {
  pyr_eviction *each;                /* host [count], of room for as many as were laid out */
  int64_t count;
  int32_t *faults;                   /* backend memory [count]: 1 where a score was no number … */
  int32_t *found;                    /* … and, once it has been read, host [count] */
  int64_t prompt;                    /* PYR_WHEN_PREPARED: tokens of the prefill */
  pyr_contest contest;               /* of the lanes of all layers with share = "model" … */
  int64_t budget, total;             /* … whose candidates are `total`, of which so many survive */
  const pyr_plan *bounds;            /* … or as few as its mass and its bound let; NULL: none */
} pyr_evictions;

void pyr_evictions_layout_host(pyr_evictions *es, int64_t room, int32_t heads, pyr_arena *host);
/* Adds a plan: PYR_WHEN_DECODE, for the end of the coming step; PYR_WHEN_EVICT; or
 * PYR_WHEN_PREPARED, of a cache whose lanes are marked where the prefill began. */
pyr_status pyr_evictions_ask(pyr_evictions *es, pyr_cache *cache, int layer, pyr_when when);
/* Once all are asked: brings those with share = "model" together. */
pyr_status pyr_evictions_unite(pyr_evictions *es);
/* Before a step: makes writable what its plans will write, so that they cannot run out of memory.
 */
pyr_status pyr_evictions_prepare(pyr_evictions *es);
void pyr_evictions_layout(pyr_evictions *es, pyr_arena *arena);
pyr_status pyr_evictions_rank(pyr_evictions *es);      /* who survives; no row moves */
/* PYR_POLICY: a score was no number. Waits. */
pyr_status pyr_evictions_check(pyr_evictions *es);
/* All others leave. Cannot run out of memory where lanes were prepared; whoever is told of a plan
 * may say no, though, when rows are gone already: then the caller puts them back (undo.h). */
pyr_status pyr_evictions_gather(pyr_evictions *es);

/* evict_now.c: the plans of a prefill of `prompt` tokens, of all layers, now that it has been read
 * and probed. Lanes are marked where the prefill began. On failure rows may have moved: the
 * prefill's way back (undo.h) puts them right. */
pyr_status pyr_evict_prepared(pyr_cache *cache, int64_t prompt);

/* ---- prefill: the plan of one layer ---------------------------------------------------------- */

/* Layers of one prefill that share a budget (share = "model", or a weight), and are cut again as
 * later ones are read. What their rows were scored stays beside the rows that are left. */
typedef struct pyr_cascade {         /* may not move while the prompt is read */
  pyr_evictions es;                  /* of all such layers, in their order; faults are not used */
  bool needed;                       /* whether any of their rows may go */
  bool weighed;                      /* weights divide the budget; else rows compete for it */
  int64_t read;                      /* so many of them have read … */
  int64_t held;                      /* … and hold so many candidates, on all ranks, … */
  int64_t own_held;                  /* … of which the contest has the scores of this rank's, lane
                                        after lane */
  int64_t open;                      /* candidates that those to come keep whatever happens */
  int64_t *rows;                     /* host: what weights leave to each of those that have read,
                                        of whatever rank */
  int32_t *idx;                      /* backend memory: survivors, layer after layer */
  void *host, *block;                /* the memory of all this; NULL: no layer shares yet */
  size_t host_bytes, block_bytes;
} pyr_cascade;

typedef struct pyr_layer_plan {      /* may not move while the layer reads */
  pyr_eviction eviction;
  pyr_cascade cascade;               /* of the prefill's layers that share a budget … */
  bool shares;                       /* … as this one does */
  pyr_observation seen;              /* what its score, and tracking, take of the queries */
  pyr_trigger trigger;               /* that the layer gets, or goes on with, … */
  pyr_read read;                     /* … and what its steps read */
  bool asked;                        /* the policy was; else all rows stay, and so does the
                                        trigger */
  bool ahead, evicts;                /* plans are only checked as layers read, and carried out once
                                        all have (PYR_WHEN_PREPARED); whether any of them evicts */
  bool whole;                        /* rows held are judged as tokens of this prompt */
  int64_t before;                    /* the longest lane's rows before this prefill, as plans are
                                        told of them: 0 where they count as the prompt's */
  int64_t last_position;             /* of the prompt's last token */
  void *block;                       /* backend memory */
  size_t block_bytes;
} pyr_layer_plan;

/* Once a prefill: the host memory that its layers take in turns. */
void pyr_layer_plan_layout_host(pyr_layer_plan *p, const pyr_cache *cache, pyr_arena *host);
/* `alive` of `prompt` tokens are about to reach the layer. flags: the prefill's (PYR_PREFILL_…). */
pyr_status pyr_layer_plan_ask(pyr_layer_plan *p, pyr_cache *cache, int layer, int64_t prompt,
                              int64_t alive, int flags);
/* Takes the memory that scoring and selecting need, before anything is computed. `fault`: backend
 * memory, 0; becomes 1 if a score is NaN or infinite, and who survives means nothing. PYR_MEMORY.
 * pyr_layer_plan_free is due after it, whatever it returns. */
pyr_status pyr_layer_plan_begin(pyr_layer_plan *p, int32_t *fault);
/* Looks at the queries of a chunk (observe.h: where it wants them), before and after their
 * attention. */
void pyr_layer_plan_ask_attention(pyr_layer_plan *p, pyr_attention *a, int64_t at);
pyr_status pyr_layer_plan_observe(pyr_layer_plan *p, const pyr_attention *a,
                                  const int32_t *turned_to, int64_t at);
/* Looks at what alive tokens [at, at + n) were, normed, when q, k and v were made of them:
 * in [n, width]. */
pyr_status pyr_layer_plan_observe_inputs(pyr_layer_plan *p, const float *in, int64_t at,
                                         int64_t n);
/* The layer has read all tokens: ranks, evicts, and sets
 * the layer's decode state. *survivors: the alive tokens to hand on, in backend memory [*kept],
 * valid until pyr_layer_plan_free; NULL: all. */
pyr_status pyr_layer_plan_end(pyr_layer_plan *p, const int32_t **survivors, int64_t *kept);
void pyr_layer_plan_free(pyr_layer_plan *p);
/* All layers have read: tells of the plans that share a budget, which is settled now. */
pyr_status pyr_layer_plans_end(pyr_layer_plan *p);
/* Once a prefill, whatever came of it: the memory that layers shared. */
void pyr_layer_plans_free(pyr_layer_plan *p, pyr_cache *cache);

#endif

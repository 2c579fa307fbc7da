/* evict.h — carries one plan out on the lanes of one layer: who is judged, who survives, what
 * becomes of the losers.
 *
 * A lane's rows are [guarded][judged][guarded]. Lanes may differ in length; each is split by its
 * own rows, guards and windows count from its own ends, and a lane that holds no more than it may
 * keep is left whole. Who survives of the judged is decided by lane, by layer or over all lanes
 * together (pyr_share), by a count or by a share of the sum (mass).
 *
 * Losers leave the cache. With `merge` they leave something behind (D2O, arXiv 2406.13035; CaM,
 * ICML 2024): of the rows of its lane that survive, guarded ones included, each loser l is given to
 * the one whose key is most similar,
 *     t(l) = argmax over s of cos(k_l, k_s),   if cos(k_l, k_t(l)) >= threshold, else it is
 *                                              dropped,
 * and every survivor becomes the mean of itself and what it was given, all with equal weight:
 *     k_s <- (k_s + sum of k_l) / (1 + m),   v_s <- (v_s + sum of v_l) / (1 + m), over the m losers
 *                                            l with t(l) = s.
 * Keys are those of the cache, after RoPE. A survivor keeps its position and its history; what it
 * took in before counts no more than any row when it is given others later. (D2O weighs by exp(cos)
 * and moves its threshold; CaM merges only values, by attention.)
 *
 * Counts that a plan fixes are never read back from the device. Under mass and pool they depend on
 * scores: then one number a lane is, before its rows move. */
#ifndef PYR_JUDGE_H
#define PYR_JUDGE_H

#include "policy/score.h"

typedef struct pyr_judge {
  pyr_cache *cache;
  int32_t layer;
  const pyr_plan *plan;
  bool decode;             /* else prefill */
  int64_t fresh;           /* prefill: tokens of this prefill that reach the layer */
  int64_t more;            /* of all rows, those that are yet to be added to each lane */
} pyr_judge;

typedef struct pyr_split { /* rows = first + judged + last; of the judged, least..most survive
                              (pool: together) */
  int64_t rows, first, judged, last, least, most;
} pyr_split;

pyr_split pyr_judge_split(const pyr_judge *j, int head);
bool pyr_judge_needed(const pyr_judge *j);                  /* whether any row may go */
/* at most so many rows are left in the longest lane */
int64_t pyr_judge_rows_after(const pyr_judge *j);
int64_t pyr_judge_longest(const pyr_judge *j);  /* judged rows, of the lane that has most */
/* The first row of a lane that running the plan writes; pages before it may stay shared. */
int64_t pyr_judge_first_written(const pyr_judge *j, int head);
/* Whether running it will turn keys: lanes need wide pages then. */
bool pyr_judge_turns(const pyr_judge *j);
/* Why the plan cannot be run on these lanes: NULL, or what is wrong with *field. */
const char *pyr_judge_fault(const pyr_judge *j, const char **field);

/* What running takes; pyr_judge_carve and pyr_judge_carve_verdict lay it out. */
typedef struct pyr_judge_work {    /* while it ranks and while it evicts; judges may take turns with
                                      it */
  float *scratch, *scores;
  int32_t *chosen, *cuts, *links;  /* backend memory, as are the floats */
  pyr_lane_view *views;            /* host [2 * heads] */
  pyr_segment *segments;           /* host [heads] */
  int32_t *counts;                 /* host [heads] */
} pyr_judge_work;

typedef struct pyr_verdict {       /* who survives, from ranking until they are all that is left */
  int32_t *idx;                    /* backend memory: the survivors of each group of lanes that is
                                      judged together, ascending … */
  int32_t *hidden;                 /* … and of the alive tokens, where hidden states are pruned */
  int64_t *at, *kept;              /* host [heads], by a group's first lane: where its own begin in
                                      idx, and how many they are */
} pyr_verdict;

/* Lays work out from `base` on (NULL: only counts) and returns how many 4-byte values it takes.
 * `depth` as from pyr_score_check. */
int64_t pyr_judge_carve(const pyr_judge *j, int depth, float *base, pyr_judge_work *work);
int64_t pyr_judge_carve_verdict(const pyr_judge *j, int32_t *base, pyr_verdict *verdict);
size_t pyr_judge_host_bytes(const pyr_cache *cache);
size_t pyr_judge_verdict_bytes(const pyr_cache *cache);  /* a multiple of 8, as is the one before */
void pyr_judge_carve_host(const pyr_cache *cache, void *host, pyr_judge_work *work);
void pyr_judge_carve_verdict_host(const pyr_cache *cache, void *host, pyr_verdict *verdict);

/* Ranks the rows, all of which are there (`more` is 0), and writes who survives; no row moves yet.
 * Where hidden states are pruned, verdict->hidden holds the surviving alive tokens' indices,
 * *hidden of them; elsewhere `hidden` is NULL. Scores that are NaN or infinite set *signals->fault,
 * in backend memory, which is the caller's to look at before he goes on. */
pyr_status pyr_judge_rank(const pyr_judge *j, pyr_signals *signals, const pyr_judge_work *work,
                          const pyr_verdict *verdict, int64_t *hidden);
/* Evicts all others; without PYR_PRUNE_CACHE, none. Cannot run out of memory where pages are
 * unshared from pyr_judge_first_written on, and wide where keys are turned. */
pyr_status pyr_judge_evict(const pyr_judge *j, const pyr_judge_work *work,
                           const pyr_verdict *verdict);

#endif

/* score.h — a score program: checked once, then evaluated over the candidates of a lane, or of
 * several lanes that share one set of survivors.
 *
 * A program is postfix: signals push a vector of one value a candidate, operators pop and push.
 * Attention, smoothed over neighbours, and later rows first among equals, of four candidates:
 *
 *     operation                stack after it
 *     attention n = 32         [.1 .5 .2 .2]
 *     pool max, width 3        [.5 .5 .5 .2]
 *     position                 [.5 .5 .5 .2] [4 5 6 7]
 *     const 0.001              [.5 .5 .5 .2] [4 5 6 7] [.001 .001 .001 .001]
 *     mul                      [.5 .5 .5 .2] [.004 .005 .006 .007]
 *     add                      [.504 .505 .506 .207]         one vector is left: the score
 *
 * Its static check finds the stack depth, so that evaluation needs one block of scratch and never
 * allocates. */
#ifndef PYR_SCORE_H
#define PYR_SCORE_H

#include "policy/query_stats.h"
#include "policy/split.h"

/* Checks codes, parameters and stack discipline. Returns NULL and the depth (>= 1, also for the
 * empty program, which ranks by position), or a description of what is wrong. */
const char *pyr_score_check(const pyr_score *score, int *depth);

static inline bool pyr_signal_is_attention(const pyr_score_op *op) {
  return op->code == PYR_S_ATTENTION;
}
static inline bool pyr_signal_is_history(const pyr_score_op *op) {
  return op->code == PYR_S_HISTORY;
}
static inline bool pyr_signal_is_learned(const pyr_score_op *op) {
  return op->code == PYR_S_LEARNED;
}
/* Where a table by head has the numbers of this rank's `head` (a query head, or a K/V head) of the
 * layer. */
const float *pyr_table_of(const pyr_model *model, const pyr_table *table, int layer, int head,
                          bool queries);
/* The table that a PYR_S_LEARNED refers to; checked when its plan was. */
pyr_status pyr_learned_table(const pyr_cache *cache, const pyr_score_op *op, pyr_table *out);
static inline bool pyr_signal_is_expected(const pyr_score_op *op) {
  return op->code == PYR_S_EXPECTED;
}

/* What about the program a plan of this cache's policy cannot carry out, or NULL: tables and
 * functions that the policy does not have; unless `prefill`, what only a running prefill can know,
 * but for a learned score that the layer's rows carry (`track`); unless `probed`, what a probe
 * tracked. */
const char *pyr_score_refused(const pyr_score *score, const pyr_cache *cache, bool prefill,
                              bool probed, const pyr_score_op *track);
/* Before rows are made under a trigger: the map that it tracks, if any, is on the backend
 * (pyr_cache.learned). PYR_POLICY: it is another than the cache has, or fits another model. */
pyr_status pyr_learned_need(pyr_cache *cache, const pyr_trigger *trigger);

/* Why rows' tracked attention does not answer what `op` asks, or NULL (also if it asks for none).
 */
const char *pyr_score_untracked(const pyr_score_op *op, const pyr_score_op *track);

/* Where signals come from. */
typedef struct pyr_signals {
  pyr_cache *cache;
  int32_t layer;
  bool together;                   /* the set is of all lanes of the layer, on whatever rank */
  int64_t begin, end;              /* the candidates of the lanes that are evaluated next */
  float *attention[PYR_SCORE_MAX]; /* by op: [query heads, stride] what queries gave to each row,
                                      summed (or the highest); NULL: the lanes' history has it */
  float *squares[PYR_SCORE_MAX];   /* likewise, of a variance: the sum of their squares */
  int64_t stride;                  /* at least end-begin, which may be another for each lane */
  int64_t queries[PYR_SCORE_MAX];  /* by op: how many queries each of those saw */
  pyr_query_stats queries_of[PYR_SCORE_MAX];   /* by op: PYR_S_EXPECTED's, ended */
  float *learned[PYR_SCORE_MAX];   /* by op: PYR_S_LEARNED's w . in of the prompt's alive tokens, a
                                      chunk after the other, each [K/V heads][chunk] */
  float *inputs;                   /* [alive, width] or NULL: no custom score looks at them */
  int64_t alive, chunk;            /* tokens of this prompt, each lane's last rows; and of a chunk,
                                      but for the last */
  const pyr_score_op *tracked;     /* … the lanes' history then holds this signal, NULL if nothing
                                      is tracked */
  int64_t tracked_queries;
  int64_t next;                    /* the position of the query that comes next */
  float *asked;                    /* [alive, query heads, head_dim] as rope turned them to … */
  int32_t *asked_at;               /* … [alive]; or NULL: no custom score looks at queries */
  int32_t *fault;                  /* backend memory, becomes 1 where a score is NaN or infinite;
                                      NULL: nobody asks */
} pyr_signals;

/* What a layer weighs (pyr_plan.weight): the mean over the candidates of all its lanes of the value
 * that operations [first, program->length) leave, with sums and normalisation over all of them,
 * and all else within a lane.
 * Signals are found by their place in the program. scratch: pyr_weight_scratch floats. Waits. */
int64_t pyr_weight_scratch(const pyr_splits *splits, int depth);
pyr_status pyr_score_weigh(const pyr_score *program, int first, const pyr_signals *signals,
                           const pyr_splits *splits, float *scratch, float *out);

/* The program as an expression in `out`, cut at its end if it is longer. */
enum { PYR_SCORE_TEXT = 160 };
void pyr_score_text(const pyr_score *score, char out[PYR_SCORE_TEXT]);

/* Floats of scratch that pyr_score_eval needs. */
int64_t pyr_score_scratch(const pyr_cache *cache, int depth, int64_t candidates);

/* Evaluates over lanes [head, head + count) of the layer; *out points into scratch, [end-begin]. */
pyr_status pyr_score_eval(const pyr_score *score, const pyr_signals *signals, int head, int count,
                          float *scratch, float **out);

#endif

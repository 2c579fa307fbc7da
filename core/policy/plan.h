/* plan.h — asks policies for plans, and carries them out in prefill and in decode: what scores look
 * at is gathered here, who survives is judged in evict.h.
 *
 * In prefill a run lives as long as its layer: begun before the layer's tokens are computed, shown
 * every chunk's queries right after their attention (their log-sum-exp is at hand then, so scores
 * need no n x n matrix and no second softmax), and ended by selecting the survivors. In decode a
 * plan is a single call after the step. */
#ifndef PYR_PLAN_H
#define PYR_PLAN_H

#include "policy/trace.h"

/* Asks the policy; checks its answer, also against the rows that the lanes hold. Errors name
 * policy, layer and field (PYR_POLICY). Without a policy, or without the callback, the plan keeps
 * everything and the trigger never fires. */
pyr_status pyr_plan_ask_prefill(pyr_cache *cache, const pyr_shape *shape, pyr_plan *plan);
pyr_status pyr_plan_ask_trigger(pyr_cache *cache, const pyr_shape *shape, pyr_trigger *trigger);
/* A prefill plan for rows that are held, none of which is new: refuses what only a running prefill
 * can know. */
pyr_status pyr_plan_ask_evict(pyr_cache *cache, const pyr_shape *shape, pyr_plan *plan);
/* Refuses a prompt's plan that ranks by another history than what earlier prompts left under this
 * trigger. */
pyr_status pyr_plan_check_history(pyr_cache *cache, const pyr_shape *shape, const pyr_plan *plan,
                                  const pyr_trigger *trigger);
pyr_status pyr_plan_ask_decode(pyr_cache *cache, const pyr_shape *shape, pyr_plan *plan);

bool pyr_trigger_tracks(const pyr_trigger *trigger);
/* Rows that the longest lane will hold at most after a prefill plan, of shape->rows. */
int64_t pyr_plan_rows_after(pyr_cache *cache, const pyr_shape *shape, const pyr_plan *plan);

typedef struct pyr_plan_run {
  pyr_judge judge;  /* of `plan`; fresh: the tokens of this prefill that reach this layer */
  pyr_plan plan;
  pyr_trigger trigger;
  int64_t before;            /* the longest lane's rows before this prefill */
  int64_t last_position;     /* of the prefill's last token */
  bool needed;               /* false: everything stays */
  bool fresh;                /* the layer gets a new trigger; else the old one goes on */
  bool expects;              /* the score expects attention: every query is looked at */
  pyr_signals signals;
  float *track;              /* [heads, track_stride] attention for the lanes' history, or NULL */
  int64_t track_stride;
  int64_t track_last;        /* tracked are a lane's last rows, so many */
  int64_t track_queries;     /* last alive queries that count */
  pyr_weighting track_weighting;
  pyr_range *ranges;         /* host [kv_heads] */
  pyr_judge_work work;
  pyr_verdict verdict;
  pyr_trace_run trace;
  float *scratch;
  float *block;              /* the one allocation behind all backend memory … */
  char *host;                /* … and behind all host memory */
  size_t block_bytes, host_bytes;
} pyr_plan_run;

/* `alive` tokens are about to be stored in each lane. `trigger` NULL: the layer keeps the one it
 * has. The run may not move. `fault`: backend memory, 0; becomes 1 if a score is NaN or infinite,
 * and who survives means nothing. PYR_MEMORY. */
pyr_status pyr_plan_begin(pyr_plan_run *run, pyr_cache *cache, int layer, const pyr_plan *plan,
                          const pyr_trigger *trigger, int64_t alive, int64_t last_position,
                              int32_t *fault);
/* Shows the queries of alive tokens [at, at + a->n), after their attention; a->lse is set.
 * turned_to [a->n]: the positions that rope turned them to, which in a compacted layer are not
 * theirs. */
pyr_status pyr_plan_observe(pyr_plan_run *run, const pyr_attention *a, const int32_t *turned_to,
                            int64_t at);
/* whether observe would look at them */
bool pyr_plan_wants(const pyr_plan_run *run, int64_t at, int64_t n);
/* Updates histories, evicts, sets the layer's decode state. *survivors (if hidden is to be pruned:
 * backend memory [*kept] of alive-token indices, valid until pyr_plan_free) or NULL. */
pyr_status pyr_plan_end(pyr_plan_run *run, const int32_t **survivors, int64_t *kept);
void pyr_plan_free(pyr_plan_run *run);

/* Decode. Steps until the layer's trigger fires (>= 1), INT64_MAX if never; 1: at the end of the
 * coming step. */
int64_t pyr_plan_steps_left(const pyr_cache *cache, int layer);
/* for the coming step; false: none */
bool pyr_plan_track(const pyr_cache *cache, int layer, pyr_track *out);
/* Rows of the longest lane, of `rows` with the coming step's, that its plan may judge. */
int64_t pyr_plan_waiting(const pyr_cache *cache, int layer, int64_t rows);
/* Before the step: makes writable what its plan will write, so that the plan cannot run out of
 * memory. */
pyr_status pyr_plan_decode_prepare(pyr_cache *cache, int layer, const pyr_plan *plan);

/* A plan on the rows of a layer as they are, in two strides: who survives, and the eviction of all
 * others. In between, `fault` (backend memory, 0 before) tells whether all scores were numbers.
 * Plans of several layers may be ranked before the first of them evicts; `work` and `host` they may
 * share, a verdict each has for itself. */
typedef struct pyr_plan_turn {
  pyr_judge judge;
  pyr_judge_work work;
  pyr_verdict verdict;
  pyr_trace_run trace;
  int depth;
} pyr_plan_turn;

/* Before the coming step adds its row (`more` 1), or of the rows held (0; `decode` false: a
 * prefill's plan). The plan outlives it. */
void pyr_plan_turn_begin(pyr_plan_turn *turn, pyr_cache *cache, int layer, const pyr_plan *plan,
                         bool decode, int64_t more);
/* backend memory of work and of the verdict */
size_t pyr_plan_turn_bytes(pyr_plan_turn *turn, size_t *verdict);
/* host: pyr_judge_host_bytes, verdict_host: pyr_judge_verdict_bytes. */
void pyr_plan_turn_carve(pyr_plan_turn *turn, void *work, void *verdict, void *host,
                         void *verdict_host);
pyr_status pyr_plan_turn_rank(pyr_plan_turn *turn, int32_t *fault);        /* the rows are there */
/* … and the layer's decode state, after a step */
pyr_status pyr_plan_turn_evict(pyr_plan_turn *turn);

/* The error of a plan whose scores were no numbers. */
pyr_status pyr_plan_not_finite(const pyr_cache *cache, int layer, const char *when,
                               const pyr_score *score);

#endif

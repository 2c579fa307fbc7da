/* trace.c — see trace.h. */
#include "policy/trace.h"
#include "model/model.h"

#include <time.h>

/* A device works on while the host goes ahead: its clock is read when it has done what it was
 * given, which is when four bytes of the layer have come. */
static double now(const pyr_splits *s) {
  const pyr_lane *lane = pyr_cache_lane(s->cache, s->layer, 0);
  pyr_backend *be = s->cache->pool->be;
  struct timespec t;
  int32_t word;
  if (lane->rows > 0) (void)be->download(be, &word, lane->positions, sizeof word);
  clock_gettime(CLOCK_MONOTONIC, &t);
  return (double)t.tv_sec + (double)t.tv_nsec * 1e-9;
}

/* Where nobody listens nothing is measured: a clock's reading waits for the device. */
void pyr_trace_start(pyr_trace_run *t, const pyr_splits *s) {
  if (pyr_trace_wanted(s->cache)) t->began = now(s);
}

void pyr_trace_stop(pyr_trace_run *t, const pyr_splits *s) {
  if (pyr_trace_wanted(s->cache)) t->seconds += now(s) - t->began;
}

static void spread_add(pyr_spread *to, int64_t value, bool first) {
  to->min = first ? value : pyr_min(to->min, value);
  to->max = first ? value : pyr_max(to->max, value);
  to->sum = first ? value : to->sum + value;
}

static pyr_spread spread_of_rows(const pyr_splits *s) {
  pyr_spread spread = { 0, 0, 0 };
  for (int head = 0; head < s->cache->heads; head++)
    spread_add(&spread, pyr_cache_lane(s->cache, s->layer, head)->rows, head == 0);
  return spread;
}

void pyr_trace_rows(pyr_trace_run *t, const pyr_splits *s) {
  if (!pyr_trace_wanted(s->cache)) return;
  t->policy = s->cache->policy;
  t->rows = spread_of_rows(s);
  for (int head = 0; head < s->cache->heads; head++)
    spread_add(&t->candidates, s->lanes[head].candidates, head == 0);
}

/* Whether a plan asks for nothing but all rows, as that of a policy which returned none does. */
static bool says_nothing(const pyr_plan *plan, int64_t rows) {
  return plan->keep >= rows && plan->keep_count == 0 && !pyr_plan_is_open(plan) && plan->first == 0
      && plan->last == 0 && plan->score.length == 0 && !plan->merge
      && plan->rotate == PYR_ROTATE_KEEP;
}

/* The record and the words in it live on the stack: who is told copies what he keeps. What he
 * returns is the plan's status, so he can stop it. */
pyr_status pyr_trace_tell(const pyr_trace_run *t, const pyr_splits *s, int64_t tokens,
                          int64_t hidden_kept) {
  const pyr_cache *cache = s->cache;
  char ranked_by[PYR_SCORE_TEXT];
  if (!pyr_trace_wanted(cache)) return PYR_OK;
  pyr_trace record = {
    .size = sizeof record, .policy = &t->policy, .plan = s->plan, .when = s->when,
    .layer = s->layer, .layers = cache->layers, .lanes = cache->heads, .tokens = tokens,
    .rows = t->rows, .judged = t->candidates, .kept = spread_of_rows(s),
    .hidden = s->when == PYR_WHEN_PREFILL ? s->coming : 0,
    .hidden_kept = hidden_kept, .seconds = t->seconds,
    .bytes = pyr_cache_layer_bytes(cache, s->layer),
  };
  record.evicted = record.rows.sum - record.kept.sum;
  bool all_stay = record.evicted == 0 && record.hidden_kept == record.hidden;
  pyr_score_text(&s->plan->score, ranked_by);
  record.why = says_nothing(s->plan, record.rows.max) ? "no plan" : all_stay ? "fits" : ranked_by;
  return cache->tracer.trace(cache->tracer.ud, &record);
}

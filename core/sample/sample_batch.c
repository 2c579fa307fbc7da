/* sample_batch.c — see sample_batch.h. The host picks where logits are in its memory; else a device
 * does, and only ids come back. */
#include "sample/sample_batch.h"

/* The message of a sampler's runtime, for a caller who looks into another. */
static pyr_status pass_on(pyr_runtime *rt, const pyr_sampler *s, pyr_status status) {
  pyr_runtime *other = pyr_sampler_runtime(s);
  return other == rt ? status : pyr_runtime_set_error(rt, status, "%s", pyr_runtime_error(other));
}

size_t pyr_pick_bytes(int count) {
  return (size_t)count * (sizeof(pyr_pick) + 2 * sizeof(int32_t));
}

pyr_status pyr_pick_prepare(pyr_backend *be, pyr_sampler *const *samplers, int count,
                            int32_t vocab) {
  pyr_work work = { .tokens = 1, .rows = 1, .sequences = count, .heads = 1, .kv_heads = 1,
                    .head_dim = 1, .cols = 1, .outputs = vocab };
  for (int i = 0; i < count; i++) {
    int64_t changes = 0;
    int times = 0;                                     /* that this sampler picks */
    if (samplers[i] == NULL) continue;
    for (int j = 0; j < count; j++) times += samplers[j] == samplers[i];
    pyr_status status = pyr_sampler_check(samplers[i], vocab);
    if (status == PYR_OK)
      status = pyr_sampler_reserve(samplers[i], vocab, times, be->pick != NULL, &changes);
    if (status != PYR_OK) return pass_on(be->rt, samplers[i], status);
    work.picks += changes > 0 || pyr_sampler_draws(samplers[i]);
    work.changes += changes;
  }
  return be->pick ? be->reserve(be, &work) : PYR_OK;
}

static pyr_status pick_here(pyr_backend *be, pyr_sampler *const *samplers, const float *logits,
                            int32_t vocab, int count, int32_t *ids) {
  for (int i = 0; i < count; i++) {
    pyr_status status = samplers[i] ? pyr_sampler_pick(samplers[i], logits + (int64_t)i * vocab,
                                                       vocab, &ids[i]) : PYR_OK;
    if (status != PYR_OK && status != PYR_ARGUMENT) return pass_on(be->rt, samplers[i], status);
  }
  return PYR_OK;
}

typedef struct picking {
  pyr_pick *picks;               /* [count] */
  int32_t *of, *ids;             /* [count] which sequences they are of, and what they came to */
  int count;
} picking;

/* Asks the samplers from sequence *at on, until one is met that remembers what it was asked for
 * before. */
static pyr_status ask(picking *p, pyr_sampler *const *samplers, const float *logits, int32_t vocab,
                      int count, int *at) {
  p->count = 0;
  for (; *at < count; ++*at) {
    pyr_sampler *s = samplers[*at];
    int before = 0;
    if (s == NULL) continue;
    for (int j = 0; j < p->count; j++) before += samplers[p->of[j]] == s;
    if (before > 0 && pyr_sampler_remembers(s)) break;
    pyr_pick *pick = &p->picks[p->count];
    pyr_status status = pyr_sampler_ask(s, vocab, before, pick);
    if (status != PYR_OK) return status;
    pick->logits = logits + (int64_t)*at * vocab;
    p->of[p->count++] = *at;
  }
  return PYR_OK;
}

pyr_status pyr_pick_all(pyr_backend *be, pyr_sampler *const *samplers, const float *logits,
                        int32_t vocab, int count, int32_t *ids, void *room) {
  picking p = { .picks = room, .of = (int32_t *)(void *)((pyr_pick *)room + count) };
  p.ids = p.of + count;
  pyr_status status = PYR_OK;
  for (int i = 0; i < count; i++) ids[i] = -1;
  if (!be->pick) return pick_here(be, samplers, logits, vocab, count, ids);
  for (int at = 0; at < count && status == PYR_OK;) {
    status = ask(&p, samplers, logits, vocab, count, &at);
    if (status != PYR_OK) status = pass_on(be->rt, samplers[at], status);
    if (status == PYR_OK) status = be->pick(be, p.picks, p.count, vocab, p.ids);
    for (int j = 0; j < p.count && status == PYR_OK; j++) {
      ids[p.of[j]] = p.ids[j];
      if (p.ids[j] >= 0) {
        pyr_sampler_took(samplers[p.of[j]], p.ids[j]);
      } else {  /* its sampler has not moved: what was asked behind it, is asked again */
        at = p.of[j] + 1;
        break;
      }
    }
  }
  return status;
}

/* pick.c — what samplers pick, each of its own sequence's logits, where those are: by the host where they are in its memory, else on
 * the device, many at once, of which only ids come back. */
#include "sampler.h"
#include "pick.h"

#include <string.h>

/* The message of a sampler's runtime, for a caller who looks into another. */
static pyr_status pass_on(pyr_runtime *rt, const pyr_sampler *s, pyr_status status) {
  pyr_runtime *other = pyr_sampler_runtime(s);
  return other == rt ? status : pyr_runtime_set_error(rt, status, "%s", pyr_runtime_error(other));
}

pyr_status pyr_pick_check(pyr_runtime *rt, pyr_sampler *const *samplers, int count, int32_t vocab) {
  for (int i = 0; i < count; i++) {
    pyr_status status = samplers[i] ? pyr_sampler_check(samplers[i], vocab) : PYR_OK;
    if (status != PYR_OK) return pass_on(rt, samplers[i], status);
  }
  return PYR_OK;
}

static pyr_status pick_here(pyr_backend *be, pyr_sampler *const *samplers, const float *logits, int32_t vocab, int count, int32_t *ids) {
  for (int i = 0; i < count; i++) {
    ids[i] = -1;
    pyr_status status = samplers[i] ? pyr_sampler_pick(samplers[i], logits + (int64_t)i * vocab, vocab, &ids[i]) : PYR_OK;
    if (status != PYR_OK && status != PYR_ARGUMENT) return pass_on(be->rt, samplers[i], status);
  }
  return PYR_OK;
}

typedef struct picking {
  pyr_pick *picks;               /* [count] */
  int32_t *of, *ids;             /* [count] which sequences they are of, and what they came to */
  int count;
  int64_t draws, changes;
} picking;

/* Asks the samplers from sequence *at on, until one is met that remembers what it was asked for before. */
static pyr_status ask(picking *p, pyr_sampler *const *samplers, const float *logits, int32_t vocab, int count, int *at) {
  *p = (picking){ p->picks, p->of, p->ids, 0, 0, 0 };
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
    p->draws += pick->temperature > 0 || pick->changed > 0;
    p->changes += pick->changed;
    p->of[p->count++] = *at;
  }
  return PYR_OK;
}

pyr_status pyr_pick_all(pyr_backend *be, pyr_sampler *const *samplers, const float *logits, int32_t vocab, int count, int32_t *ids) {
  if (!be->pick) return pick_here(be, samplers, logits, vocab, count, ids);
  size_t each = sizeof(pyr_pick) + 2 * sizeof(int32_t), bytes = (size_t)count * each;
  char *room = pyr_alloc(be->rt, bytes);
  if (!room) return pyr_nomem(be->rt, bytes, "the picks of a step");
  picking p = { .picks = (pyr_pick *)room, .of = (int32_t *)(room + (size_t)count * sizeof(pyr_pick)) };
  p.ids = p.of + count;
  pyr_status status = PYR_OK;
  for (int i = 0; i < count; i++) ids[i] = -1;
  for (int at = 0; at < count && status == PYR_OK;) {
    int first = at;
    status = ask(&p, samplers, logits, vocab, count, &at);
    if (status != PYR_OK) status = pass_on(be->rt, samplers[at], status);
    pyr_work work = { .tokens = 1, .rows = 1, .sequences = count - first, .heads = 1, .kv_heads = 1, .head_dim = 1, .cols = 1,
                      .outputs = vocab, .picks = p.draws, .changes = p.changes };
    if (status == PYR_OK) status = be->reserve(be, &work);
    if (status == PYR_OK) status = be->pick(be, p.picks, p.count, vocab, p.ids);
    for (int j = 0; j < p.count && status == PYR_OK; j++) {
      ids[p.of[j]] = p.ids[j];
      if (p.ids[j] >= 0) pyr_sampler_took(samplers[p.of[j]], p.ids[j]);
    }
  }
  pyr_release(be->rt, room, bytes);
  return status;
}

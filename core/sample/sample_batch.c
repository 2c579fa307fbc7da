/* sample_batch.c — see sample_batch.h. The host picks where logits are in its memory; else a device
 * does, and only ids come back: 4 bytes a sequence instead of its vocabulary.
 *
 * A device is asked for as many picks at once as are known beforehand. Where one sampler serves
 * several sequences, its second pick is known beforehand if it only draws the next random number;
 * if it remembers ids (penalties), its second pick depends on what the first came to. Then the
 * batch is cut there, and the rest is asked once the first part is back:
 *
 *     sequences      0   1   2   3
 *     samplers       a   b   a   c          a remembers what it picked
 *     asked at once  [ a   b ]              then, knowing a's first id,
 *                            [ a   c ]
 *
 * A sampler with a grammar looks up what may follow on the host: its sequence's logits come back
 * whole, and it picks here. The mask was made before the step, as it depends on earlier ids. */
#include "sample/sample_batch.h"

void pyr_sample_batch_layout(pyr_sample_batch *b, int count, pyr_arena *host) {
  PYR_PART(host, b->asked, count);
  PYR_PART(host, b->of, count);
  PYR_PART(host, b->ids, count);
}

/* The message of a sampler's runtime, for a caller who looks into another. */
static pyr_status pass_on(pyr_runtime *rt, const pyr_sampler *s, pyr_status status) {
  pyr_runtime *other = pyr_sampler_runtime(s);
  return other == rt ? status : pyr_runtime_set_error(rt, status, "%s", pyr_runtime_error(other));
}

pyr_status pyr_sample_batch_prepare(pyr_backend *be, pyr_sampler *const *samplers, int count,
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

/* A sequence without a finite logit (PYR_ARGUMENT) keeps its -1, and the others go on. */
static pyr_status pick_here(pyr_backend *be, pyr_sampler *const *samplers, const float *logits,
                            int32_t vocab, int count, int32_t *ids) {
  for (int i = 0; i < count; i++) {
    if (samplers[i] == NULL) continue;
    pyr_status status = pyr_sampler_pick(samplers[i], logits + (int64_t)i * vocab, vocab, &ids[i]);
    if (status != PYR_OK && status != PYR_ARGUMENT) return pass_on(be->rt, samplers[i], status);
  }
  return PYR_OK;
}

/* Asks the samplers from sequence *at on, until one is met whose pick is not known beforehand.
 * Invariant: asked[0..asked_count) are picks that depend on none of each other, of sequences
 * of[..] in ascending order, all below *at. */
static pyr_status ask(pyr_sample_batch *b, pyr_sampler *const *samplers, const float *logits,
                      int32_t vocab, int count, int *at) {
  b->asked_count = 0;
  for (; *at < count; ++*at) {
    pyr_sampler *s = samplers[*at];
    int before = 0;                                    /* picks of this sampler in this part */
    if (s == NULL) continue;
    if (pyr_sampler_is_masked(s)) break;
    for (int j = 0; j < b->asked_count; j++) before += samplers[b->of[j]] == s;
    if (before > 0 && pyr_sampler_remembers(s)) break;
    pyr_pick *pick = &b->asked[b->asked_count];
    PYR_TRY(pyr_sampler_ask(s, vocab, before, pick));
    pick->logits = logits + (int64_t)*at * vocab;
    b->of[b->asked_count++] = *at;
  }
  return PYR_OK;
}

/* One sequence's pick on the host, of logits that are on a device. */
static pyr_status fetch_and_pick(pyr_backend *be, pyr_sampler *s, const float *logits,
                                 int32_t vocab, int32_t *id) {
  float *here = pyr_sampler_work(s);
  PYR_TRY(be->download(be, here, logits, (size_t)vocab * sizeof *here));
  pyr_status status = pyr_sampler_pick(s, here, vocab, id);
  return status == PYR_OK || status == PYR_ARGUMENT ? PYR_OK : pass_on(be->rt, s, status);
}

/* Each round takes at least one sequence more: what `ask` begins with can always be asked. */
pyr_status pyr_sample_batch_pick(pyr_sample_batch *b, pyr_backend *be,
                                 pyr_sampler *const *samplers, const float *logits, int32_t vocab,
                                 int count, int32_t *ids) {
  for (int i = 0; i < count; i++) ids[i] = -1;
  if (!be->pick) return pick_here(be, samplers, logits, vocab, count, ids);
  for (int at = 0; at < count;) {
    if (samplers[at] && pyr_sampler_is_masked(samplers[at])) {
      PYR_TRY(fetch_and_pick(be, samplers[at], logits + (int64_t)at * vocab, vocab, &ids[at]));
      at++;
      continue;
    }
    pyr_status status = ask(b, samplers, logits, vocab, count, &at);
    if (status != PYR_OK) return pass_on(be->rt, samplers[at], status);
    if (b->asked_count == 0) continue;
    PYR_TRY(be->pick(be, b->asked, b->asked_count, vocab, b->ids));
    for (int j = 0; j < b->asked_count; j++) {
      pyr_sampler *s = samplers[b->of[j]];
      ids[b->of[j]] = b->ids[j];
      if (b->ids[j] < 0) {  /* it has not moved: what was asked of it behind this is asked again */
        at = b->of[j] + 1;
        break;
      }
      pyr_sampler_took(s, b->ids[j]);
    }
  }
  return PYR_OK;
}

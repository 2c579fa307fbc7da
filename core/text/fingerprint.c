/* fingerprint.c — the fingerprint of a tokenizer: of its pieces, merges, added tokens and steps, as
 * encode sees them. */
#include "base/fingerprint.h"
#include "text/tokenizer.h"

uint64_t pyr_tokenizer_fingerprint(const pyr_tokenizer *t) {
  /* not what encoding notes */
  enum {
    SEEN = PYR_BIT_PRESENT | PYR_BIT_MODEL | PYR_BIT_CLOSED | PYR_BIT_LITERAL | PYR_BIT_ADDED
  };
  const pyr_tokenizer_options *o = &t->options;
  const int32_t numbers[] = { o->vocab, o->unknown, !!o->byte_level, !!o->byte_fallback,
                              !!o->by_score, !!o->whole_words, !!o->fuse_unknown, t->before_count,
                                  t->after_count };
  uint64_t hash = pyr_fnv(PYR_FNV_START, numbers, sizeof numbers), pieces = 0, merges = 0;
  if (t->around)
    hash = pyr_fnv(hash, t->around, (size_t)(t->before_count + t->after_count) * sizeof *t->around);
  /* summed up, in no order: pieces may come in any, and the merges' table has its own */
  for (int32_t i = 0; i < t->count; i++) {
    const pyr_vocab_piece *piece = &t->pieces[i];
    const uint32_t head[4] = { (uint32_t)piece->id, piece->length,
                               o->by_score ? piece->score_rank : 0,
                                   (uint32_t)(piece->bits & SEEN) | (uint32_t)(
                                       piece->bits >> PYR_BIT_TOKEN_SHIFT) << 16 };
    pieces += pyr_fnv_mix(pyr_fnv(pyr_fnv(PYR_FNV_START, head, sizeof head),
                                  t->text.data + piece->start, piece->length));
  }
  for (size_t i = 0; i < t->merge_count; i++) {
    const pyr_merge *m = &t->merges[i];
    if (m->id < 0) continue;
    const uint32_t parts[4] = { (uint32_t)t->pieces[m->left].id, (uint32_t)t->pieces[m->right].id,
                                m->rank, (uint32_t)t->pieces[m->id].id };
    merges += pyr_fnv_mix(pyr_fnv(PYR_FNV_START, parts, sizeof parts));
  }
  hash = pyr_fnv(pyr_fnv(hash, &pieces, sizeof pieces), &merges, sizeof merges);
  for (int stage = PYR_NORMALIZE; stage <= PYR_SPLIT; stage++)
    for (int i = 0; i < t->stages[stage].count; i++) {
      const pyr_step_data *step = &t->stages[stage].steps[i];
      const int32_t head[4] = { stage, (int32_t)step->kind, step->a, step->b };
      hash = pyr_fnv(hash, head, sizeof head);
      if (step->pattern) hash = pyr_fnv(hash, step->pattern, step->pattern_length);
      if (step->text) hash = pyr_fnv(hash, step->text, step->text_length);
    }
  return hash ? hash : 1;
}

/* tokenizer.c — the calls that build a tokenizer, and those that use it.
 *
 * Owns added tokens, and the steps that surround merging; checks all that a file can get wrong. The
 * tables of pieces and merges are vocab.c's. Does not run anything: text becomes words in split.c,
 * words become ids in bpe.c, ids become text in decode.c.
 *
 * Pieces are kept as the bytes they stand for: in a byte-level vocabulary the spelling ("Ġthe") is
 * turned into bytes (" the") once, here, so that merging and decoding never see GPT-2's alphabet.
 * Added tokens stand in sorted arrays; finding the longest one at a place narrows a range byte by
 * byte. */
#include "text/tokenizer.h"
#include "base/versioned.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

/* What a file may ask for. Published tokenizers have up to 262,144 ids, pieces of some hundred
 * bytes, two ids around a text and seven steps in a stage; beyond these limits a file is wrong, or
 * made to hurt. */
enum { VOCAB_MAX = 1 << 24, PIECE_MAX = 1 << 16, AROUND_MAX = 64, STEPS_MAX = 32,
       KEEP_BYTES = 1 << 20 };   /* of scratch between texts */

/* A piece as messages show it: cut short, with nothing unprintable. */
typedef struct shown { char text[52]; } shown;

static shown show(const char *s, size_t n) {
  shown out = { "" };
  size_t k = 0;
  for (size_t i = 0; i < n && k < sizeof out.text - 5; i++)
    out.text[k++] = (unsigned char)s[i] < 32 ? '.' : s[i];
  k = pyr_utf8_valid((const uint8_t *)out.text, k);
  if (k < n) { memcpy(out.text + k, "...", 3); k += 3; }
  out.text[k] = '\0';
  return out;
}

/* ---- life ------------------------------------------------------------------------------------ */

pyr_status pyr_tokenizer_new(pyr_runtime *rt, const pyr_tokenizer_options *given,
                             pyr_tokenizer **out) {
  pyr_tokenizer_options taken, *options = &taken;
  const char *wrong = pyr_take_options(&taken, sizeof taken, sizeof taken, given);
  if (wrong) return pyr_runtime_set_error(rt, PYR_ARGUMENT, "tokenizer's options: %s", wrong);
  if (options->vocab < 1 || options->vocab > VOCAB_MAX)
    return pyr_runtime_set_error(rt, PYR_FORMAT,
                                 "tokenizer: a vocabulary of %d ids (1 to %d are possible)",
                                     (int)options->vocab, VOCAB_MAX);
  if (options->unknown < -1 || options->unknown >= options->vocab)
    return pyr_runtime_set_error(rt, PYR_FORMAT,
                                 "tokenizer: unknown id %d is outside the vocabulary of %d",
                                     (int)options->unknown, (int)options->vocab);
  pyr_tokenizer *t = pyr_alloc_zero(rt, sizeof *t);
  if (t == NULL) return pyr_nomem(rt, sizeof *t, "tokenizer");
  t->rt = pyr_runtime_retain(rt);
  t->refs = 1;
  t->options = *options;
  t->unknown = -1;
  memset(t->byte_piece, 0xFF, sizeof t->byte_piece);
  memset(t->ascii_piece, 0xFF, sizeof t->ascii_piece);
  *out = t;
  return PYR_OK;
}

pyr_tokenizer *pyr_tokenizer_retain(pyr_tokenizer *t) {
  t->refs++;
  return t;
}

static void free_set(pyr_tokenizer *t, pyr_added_set *set) {
  pyr_release(t->rt, set->ids, (size_t)set->size * sizeof *set->ids);
}

static void free_step(pyr_tokenizer *t, pyr_step_data *s) {
  pyr_pattern_free(s);
  pyr_release(t->rt, s->pattern, s->pattern_length);
  pyr_release(t->rt, s->text, s->text_length);
  pyr_buffer_free(t->rt, &s->scratch);
}

void pyr_tokenizer_free(pyr_tokenizer *t) {
  if (t == NULL || --t->refs > 0) return;
  pyr_runtime *rt = t->rt;
  pyr_buffer *buffers[] = { &t->text, &t->ids, &t->symbols, &t->heap, &t->unspelled, &t->normal[0],
                            &t->normal[1], &t->work, &t->spelling };
  for (size_t i = 0; i < sizeof buffers / sizeof *buffers; i++) pyr_buffer_free(rt, buffers[i]);
  for (int stage = 0; stage < 3; stage++) {
    pyr_step_list *list = &t->stages[stage];
    for (int i = 0; i < list->count; i++) free_step(t, &list->steps[i]);
    pyr_release(rt, list->steps, (size_t)list->size * sizeof *list->steps);
  }
  pyr_patterns_free(t);
  free_set(t, &t->added);
  free_set(t, &t->raw);
  free_set(t, &t->normalized);
  pyr_release(rt, t->around, (size_t)(t->before_count + t->after_count) * sizeof *t->around);
  pyr_release(rt, t->merges, t->merge_count * sizeof *t->merges);
  pyr_release(rt, t->slots, t->slots ? t->slot_count * sizeof *t->slots : 0);
  pyr_release(rt, t->places, t->place_count * sizeof *t->places);
  pyr_release(rt, t->pieces, (size_t)t->size * sizeof *t->pieces);
  pyr_release(rt, t, sizeof *t);
  pyr_runtime_free(rt);
}

pyr_runtime *pyr_tokenizer_runtime(const pyr_tokenizer *t) { return t->rt; }

/* ---- building -------------------------------------------------------------------------------- */

static pyr_status building(pyr_tokenizer *t) {
  return t->ready ? pyr_runtime_set_error(t->rt, PYR_ARGUMENT,
                                          "tokenizer: it is ready and cannot be changed") : PYR_OK;
}

static pyr_status in_vocab(pyr_tokenizer *t, int32_t id, const char *piece, size_t n) {
  if (id >= 0 && id < t->options.vocab) return PYR_OK;
  return pyr_runtime_set_error(t->rt, PYR_FORMAT, "id %d of '%s' is outside the vocabulary of %d",
                               (int)id, show(piece, n).text, (int)t->options.vocab);
}

/* Appends a piece of these bytes; *place gets where. Nothing is changed on failure but the room
 * there is. */
static pyr_status store(pyr_tokenizer *t, int32_t file_id, const uint8_t *s, size_t n,
                        uint16_t bits, int32_t *place) {
  if (t->text.length + n > UINT32_MAX)
    return pyr_runtime_set_error(t->rt, PYR_FORMAT, "more than 4 GiB of pieces");
  pyr_status status = pyr_vocab_reserve(t);
  if (status != PYR_OK) return status;
  if (!pyr_buffer_append(t->rt, &t->text, s, n)) return pyr_nomem(t->rt, n, "tokenizer pieces");
  *place = t->count;
  pyr_vocab_append(t, (pyr_vocab_piece){ .id = file_id, .start = (uint32_t)(t->text.length - n),
                                     .length = (uint32_t)n, .bits = bits });
  return PYR_OK;
}

/* Lower rank for higher score; equal scores give equal ranks. */
static uint32_t rank_of_score(float score) {
  uint32_t u;
  score += 0.0f;                             /* -0 is 0 */
  memcpy(&u, &score, sizeof u);
  u = u & 0x80000000u ? ~u : u | 0x80000000u; /* ascending order of floats */
  return ~u - 1;                              /* never UINT32_MAX: that float is a NaN */
}

pyr_status pyr_tokenizer_piece(pyr_tokenizer *t, int32_t id, const char *piece, size_t length,
                               float score, int flags) {
  pyr_status status = building(t);
  if (status == PYR_OK) status = in_vocab(t, id, piece, length);
  if (status != PYR_OK) return status;
  if (length == 0 || length > PIECE_MAX)
    return pyr_runtime_set_error(t->rt, PYR_FORMAT,
                                 "piece %d has %zu bytes (1 to %d are possible)", (int)id, length,
                                     PIECE_MAX);
  if (pyr_vocab_place(t, id) >= 0)
    return pyr_runtime_set_error(t->rt, PYR_FORMAT,
                                 "id %d is given twice, the second time to '%s'", (int)id,
                                     show(piece, length).text);
  if (t->options.by_score && isnan(score))
    return pyr_runtime_set_error(t->rt, PYR_FORMAT, "the score of piece %d, '%s', is not a number",
                                 (int)id, show(piece, length).text);
  const uint8_t *bytes = (const uint8_t *)piece;
  size_t n = length;
  uint16_t bits = PYR_BIT_PRESENT | PYR_BIT_MODEL;
  /* never merged, so never bytes */
  if (t->options.byte_level && (flags & PYR_PIECE_CLOSED)) bits |= PYR_BIT_LITERAL;
  else if (t->options.byte_level) {
    bool memory;
    t->work.length = 0;
    if (pyr_alphabet_unspell(t->rt, bytes, n, &t->work, &memory)) {
      bytes = t->work.data;
      n = t->work.length;
    } else if (memory) return pyr_nomem(t->rt, n, "tokenizer pieces");
    else bits |= PYR_BIT_LITERAL | PYR_BIT_CLOSED;
  }
  if (flags & PYR_PIECE_CLOSED) bits |= PYR_BIT_CLOSED;
  int32_t place;
  if ((status = store(t, id, bytes, n, bits, &place)) != PYR_OK) return status;
  if (t->options.by_score) t->pieces[place].score_rank = rank_of_score(score);
  if (!(bits & PYR_BIT_CLOSED)) pyr_vocab_insert(t, place);
  return PYR_OK;
}

/* The open piece with this spelling; the bytes go to out. */
static pyr_status merge_side(pyr_tokenizer *t, const char *s, size_t n, pyr_buffer *out,
                             int32_t *id) {
  size_t from = out->length;
  bool memory = false, good = true;
  if (t->options.byte_level)
    good = pyr_alphabet_unspell(t->rt, (const uint8_t *)s, n, out, &memory);
  else memory = !pyr_buffer_append(t->rt, out, s, n);
  if (memory) return pyr_nomem(t->rt, n, "tokenizer merges");
  *id = good ? pyr_vocab_find(t, out->data + from, out->length - from) : -1;
  if (*id >= 0) return PYR_OK;
  return pyr_runtime_set_error(t->rt, PYR_FORMAT,
                               "merge %u names '%s', which is not in the vocabulary",
                                   (unsigned)t->next_rank + 1, show(s, n).text);
}

pyr_status pyr_tokenizer_merge(pyr_tokenizer *t, const char *left, size_t left_length,
                               const char *right, size_t right_length) {
  pyr_status status = building(t);
  int32_t l = -1, r = -1;
  if (status != PYR_OK) return status;
  if (t->options.by_score)
    return pyr_runtime_set_error(t->rt, PYR_ARGUMENT, "tokenizer: merges go by score here");
  if (t->next_rank >= UINT32_MAX - 1)
    return pyr_runtime_set_error(t->rt, PYR_FORMAT, "too many merges");
  t->work.length = 0;
  if ((status = merge_side(t, left, left_length, &t->work, &l)) != PYR_OK) return status;
  if ((status = merge_side(t, right, right_length, &t->work, &r)) != PYR_OK) return status;
  int32_t both = pyr_vocab_find(t, t->work.data, t->work.length);
  if (both < 0)
    return pyr_runtime_set_error(t->rt, PYR_FORMAT,
                                 "merge %u joins '%s' and '%s', but the result is not in the "
                                 "vocabulary", (unsigned)t->next_rank + 1,
                                     show(left, left_length).text, show(right, right_length).text);
  if ((status = pyr_merge_reserve(t)) != PYR_OK) return status;
  pyr_merge_insert(t, (pyr_merge){ (uint32_t)l, (uint32_t)r, t->next_rank++, both });
  return PYR_OK;
}

static bool set_push(pyr_tokenizer *t, pyr_added_set *set, int32_t id) {
  if (set->count == set->size) {
    int32_t size = set->size ? set->size * 2 : 16;
    int32_t *ids = set->ids ? pyr_realloc(t->rt, set->ids, (size_t)set->size * sizeof *ids,
                                          (size_t)size * sizeof *ids)
                            : pyr_alloc(t->rt, (size_t)size * sizeof *ids);
    if (ids == NULL) return false;
    set->ids = ids;
    set->size = size;
  }
  set->ids[set->count++] = id;
  return true;
}

/* Keeps the form that an added token is looked for in, where that is not what its piece holds. */
static pyr_status store_found(pyr_tokenizer *t, int32_t id, const uint8_t *form, size_t n) {
  if (t->text.length + n > UINT32_MAX || !pyr_buffer_append(t->rt, &t->text, form, n))
    return pyr_nomem(t->rt, n, "added tokens");
  t->pieces[id].found_start = (uint32_t)(t->text.length - n);
  t->pieces[id].found_length = (uint32_t)n;
  return PYR_OK;
}

pyr_status pyr_tokenizer_added(pyr_tokenizer *t, int32_t id, const char *text, size_t length,
                               int flags) {
  pyr_status status = building(t);
  if (status == PYR_OK) status = in_vocab(t, id, text, length);
  if (status != PYR_OK) return status;
  if (length == 0 || length > PIECE_MAX)
    return pyr_runtime_set_error(t->rt, PYR_FORMAT,
                                 "added token %d has %zu bytes (1 to %d are possible)", (int)id,
                                     length, PIECE_MAX);
  int32_t place = pyr_vocab_place(t, id);
  if (place >= 0 && (t->pieces[place].bits & PYR_BIT_ADDED))
    return pyr_runtime_set_error(t->rt, PYR_FORMAT,
                                 "id %d is added twice, the second time as '%s'", (int)id,
                                     show(text, length).text);
  if (place >= 0) {
    size_t n;
    const char *spelled = pyr_tokenizer_spelling(t, id, &n);
    if (spelled == NULL) return pyr_nomem(t->rt, n, "tokenizer pieces");
    if (n != length || memcmp(spelled, text, n) != 0)
      return pyr_runtime_set_error(t->rt, PYR_FORMAT,
                                   "id %d is added as '%s', but the vocabulary has '%s' there",
                                       (int)id, show(text, length).text, show(spelled, n).text);
    /* a piece that stands for bytes, such as that of 0xC5, which is spelled U+00C5: the text has
     * the spelling */
    if (t->options.byte_level && !(t->pieces[place].bits & PYR_BIT_LITERAL) &&
        (status = store_found(t, place, (const uint8_t *)text, length)) != PYR_OK) return status;
  } else {
    const uint16_t bits = PYR_BIT_PRESENT | PYR_BIT_LITERAL | PYR_BIT_CLOSED;
    if ((status = store(t, id, (const uint8_t *)text, length, bits, &place)) != PYR_OK)
      return status;
  }
  if (!set_push(t, &t->added, place)) return pyr_nomem(t->rt, sizeof id, "added tokens");
  t->pieces[place].bits |= (uint16_t)(PYR_BIT_ADDED | flags << PYR_BIT_TOKEN_SHIFT);
  return PYR_OK;
}

static pyr_status copy_bytes(pyr_tokenizer *t, const char *s, size_t n, uint8_t **out,
                             size_t *out_n) {
  if (n == 0) return PYR_OK;
  *out = pyr_alloc(t->rt, n);
  if (*out == NULL) return pyr_nomem(t->rt, n, "tokenizer step");
  memcpy(*out, s, n);
  *out_n = n;
  return PYR_OK;
}

static bool knows(pyr_stage stage, const pyr_text_step *s) {
  switch (s->kind) {
    case PYR_STEP_NFD: case PYR_STEP_NFC: case PYR_STEP_NFKD: case PYR_STEP_NFKC:
    case PYR_STEP_LOWER: case PYR_STEP_STRIP: return stage == PYR_NORMALIZE;
    case PYR_STEP_SUBSTITUTE: return stage == PYR_NORMALIZE && s->pattern_length > 0;
    case PYR_STEP_PREPEND: return stage != PYR_DECODE && s->text_length > 0;
    case PYR_STEP_REPLACE: return s->pattern_length > 0;
    case PYR_STEP_MATCH: return stage == PYR_SPLIT && s->pattern_length > 0 && s->a >= 0
        && s->a <= PYR_CUT_CONTIGUOUS;
    case PYR_STEP_BYTES: return stage != PYR_NORMALIZE;
    case PYR_STEP_FALLBACK: case PYR_STEP_JOIN: return stage == PYR_DECODE;
    case PYR_STEP_TRIM: return stage == PYR_DECODE && s->pattern_length > 0 && s->a >= 0;
    default: return false;
  }
}

pyr_status pyr_tokenizer_step(pyr_tokenizer *t, pyr_stage stage, const pyr_text_step *step) {
  pyr_status status = building(t);
  if (status != PYR_OK) return status;
  pyr_step_list *list = (unsigned)stage < 3 ? &t->stages[stage] : NULL;
  if (list == NULL || !knows(stage, step))
    return pyr_runtime_set_error(t->rt, PYR_ARGUMENT,
                                 "tokenizer: step %d does not belong to stage %d, or lacks its "
                                 "text", (int)step->kind, (int)stage);
  if (list->count == STEPS_MAX)
    return pyr_runtime_set_error(t->rt, PYR_FORMAT, "more than %d steps in one stage", STEPS_MAX);
  if (pyr_utf8_valid((const uint8_t *)step->pattern, step->pattern_length) != step->pattern_length
      || pyr_utf8_valid((const uint8_t *)step->text, step->text_length) != step->text_length)
    return pyr_runtime_set_error(t->rt, PYR_FORMAT, "a step's text or pattern is not UTF-8");
  if (list->count == list->size) {
    int size = list->size ? list->size * 2 : 4;
    pyr_step_data *steps = pyr_alloc_zero(t->rt, (size_t)size * sizeof *steps);
    if (steps == NULL) return pyr_nomem(t->rt, (size_t)size * sizeof *steps, "tokenizer step");
    if (list->count) memcpy(steps, list->steps, (size_t)list->count * sizeof *steps);
    pyr_release(t->rt, list->steps, (size_t)list->size * sizeof *steps);
    list->steps = steps;
    list->size = size;
  }
  pyr_step_data s = { .kind = step->kind, .a = step->a, .b = step->b };
  status = copy_bytes(t, step->pattern, step->pattern_length, &s.pattern, &s.pattern_length);
  if (status == PYR_OK)
    status = copy_bytes(t, step->text, step->text_length, &s.text, &s.text_length);
  if (status == PYR_OK && (s.kind == PYR_STEP_MATCH || s.kind == PYR_STEP_SUBSTITUTE))
    status = pyr_pattern_compile(t, &s);
  if (status != PYR_OK) {
    free_step(t, &s);
    return status;
  }
  list->steps[list->count++] = s;
  return PYR_OK;
}

pyr_status pyr_tokenizer_around(pyr_tokenizer *t, const int32_t *before, int32_t before_count,
                                const int32_t *after, int32_t after_count) {
  pyr_status status = building(t);
  if (status != PYR_OK) return status;
  if (before_count < 0 || after_count < 0 || before_count > AROUND_MAX || after_count > AROUND_MAX
      || t->around)
    return pyr_runtime_set_error(t->rt, PYR_ARGUMENT,
                                 "tokenizer: at most %d ids may be put around, once", AROUND_MAX);
  size_t count = (size_t)(before_count + after_count);
  if (count == 0) return PYR_OK;
  for (size_t i = 0; i < count; i++) {
    int32_t id = i < (size_t)before_count ? before[i] : after[i - (size_t)before_count];
    if (id < 0 || id >= t->options.vocab)
      return pyr_runtime_set_error(t->rt, PYR_FORMAT,
                                   "id %d, to be put around texts, is outside the vocabulary of "
                                   "%d", (int)id, (int)t->options.vocab);
  }
  t->around = pyr_alloc(t->rt, count * sizeof *t->around);
  if (t->around == NULL) return pyr_nomem(t->rt, count * sizeof *t->around, "tokenizer");
  if (before_count) memcpy(t->around, before, (size_t)before_count * sizeof *before);
  if (after_count) memcpy(t->around + before_count, after, (size_t)after_count * sizeof *after);
  t->before_count = before_count;
  t->after_count = after_count;
  return PYR_OK;
}

/* ---- ready ----------------------------------------------------------------------------------- */

static int compare_found(const pyr_tokenizer *t, int32_t a, int32_t b) {
  size_t an, bn;
  const uint8_t *as = pyr_found_by(t, a, &an), *bs = pyr_found_by(t, b, &bn);
  int c = memcmp(as, bs, an < bn ? an : bn);
  if (c) return c;
  if (an != bn) return an < bn ? -1 : 1;
  return a < b ? -1 : a > b;
}

/* Heap sort: no recursion, no allocation, no bad cases. */
static void sort_set(const pyr_tokenizer *t, pyr_added_set *set) {
  int32_t *v = set->ids, n = set->count;
  for (int32_t end = n, start = n / 2; end > 1;) {
    if (start > 0) start--;
    else { int32_t x = v[--end]; v[end] = v[0]; v[0] = x; }
    for (int32_t root = start, child; (child = 2 * root + 1) < end; root = child) {
      if (child + 1 < end && compare_found(t, v[child], v[child + 1]) < 0) child++;
      if (compare_found(t, v[root], v[child]) >= 0) break;
      int32_t x = v[root];
      v[root] = v[child];
      v[child] = x;
    }
  }
  for (int32_t i = 0; i < n; i++) {
    size_t length;
    set->first[*pyr_found_by(t, v[i], &length)] = 1;
  }
}

static pyr_status refuse_twins(pyr_tokenizer *t, const pyr_added_set *set) {
  for (int32_t i = 1; i < set->count; i++) {
    size_t an, bn;
    const uint8_t *a = pyr_found_by(t, set->ids[i - 1], &an),
        *b = pyr_found_by(t, set->ids[i], &bn);
    if (an == bn && memcmp(a, b, an) == 0)
      return pyr_runtime_set_error(t->rt, PYR_FORMAT,
                                   "the added token '%s' is listed twice, as %d and %d",
                                       show((const char *)a, an).text,
                                           (int)t->pieces[set->ids[i - 1]].id,
                                               (int)t->pieces[set->ids[i]].id);
  }
  return PYR_OK;
}

static pyr_status sort_added(pyr_tokenizer *t) {
  for (int32_t i = 0; i < t->added.count; i++) {
    int32_t id = t->added.ids[i];
    bool raw = t->pieces[id].bits >> PYR_BIT_TOKEN_SHIFT & PYR_TOKEN_RAW;
    if (!set_push(t, raw ? &t->raw : &t->normalized, id))
      return pyr_nomem(t->rt, sizeof id, "added tokens");
    if (raw || t->stages[PYR_NORMALIZE].count == 0) continue;
    const uint8_t *form;
    size_t length;
    const uint8_t *text = pyr_found_by(t, id, &length);
    if (pyr_utf8_valid(text, length) != length) continue;
    pyr_limits_begin(t, length);
    pyr_status status = pyr_normalize(t, text, length, true, &form, &length);
    if (status != PYR_OK) return status;
    if (length == 0) continue;                        /* nothing is left of it: found as it was */
    t->spelling.length = 0;                           /* form may lie in t->text, which grows */
    if (!pyr_buffer_append(t->rt, &t->spelling, form, length))
      return pyr_nomem(t->rt, length, "added tokens");
    if ((status = store_found(t, id, t->spelling.data, length)) != PYR_OK) return status;
  }
  sort_set(t, &t->added);
  sort_set(t, &t->raw);
  sort_set(t, &t->normalized);
  return refuse_twins(t, &t->added);
}

pyr_status pyr_tokenizer_ready(pyr_tokenizer *t) {
  pyr_status status = building(t);
  if (status != PYR_OK) return status;
  if ((status = sort_added(t)) != PYR_OK) return status;
  for (int b = 0; b < 256; b++) {
    uint8_t byte = (uint8_t)b;
    if (b < 128) t->ascii_piece[b] = pyr_vocab_find(t, &byte, 1);
    if (t->options.byte_level) t->byte_piece[b] = pyr_vocab_find(t, &byte, 1);
  }
  t->unknown = pyr_vocab_place(t, t->options.unknown);
  static const char mark[] = "\xE2\x96\x81";
  t->cut_at_marks = !t->options.byte_level && pyr_vocab_find(t, (const uint8_t *)mark, 3) >= 0;
  for (int32_t id = 0; id < t->count; id++) {
    if (!(t->pieces[id].bits & PYR_BIT_MODEL)) continue;
    const uint8_t *s = t->text.data + t->pieces[id].start;
    size_t n = t->pieces[id].length;
    if (t->options.byte_fallback && !t->options.byte_level && n == 6 && memcmp(s, "<0x", 3) == 0
        && s[5] == '>') {
      unsigned value;
      char hex[3] = { (char)s[3], (char)s[4], 0 }, again[3];
      if (sscanf(hex, "%2X", &value) == 1 && (snprintf(again, sizeof again, "%02X", value & 0xFF),
                                              strcmp(hex, again) == 0))
        t->byte_piece[value] = id;
    }
    for (size_t i = 1; t->cut_at_marks && i + 3 <= n; i++)
      if (memcmp(s + i, mark, 3) == 0 && (i < 3 || memcmp(s + i - 3, mark, 3) != 0)
          && !(t->pieces[id].bits & PYR_BIT_CLOSED))
        t->cut_at_marks = false;
  }
  const pyr_step_list *split = &t->stages[PYR_SPLIT];
  for (int i = 0; i < split->count; i++) t->bytes_spelled |= split->steps[i].kind == PYR_STEP_BYTES;
  t->bytes_spelled = t->bytes_spelled && t->options.byte_level;
  pyr_buffer_free(t->rt, &t->work);
  t->ready = true;
  if ((status = pyr_decode_check(t)) != PYR_OK) t->ready = false;
  return status;
}

/* ---- using ----------------------------------------------------------------------------------- */

static void slim(pyr_tokenizer *t) { /* a long text's scratch is not kept for ever */
  pyr_buffer *buffers[] = { &t->ids, &t->symbols, &t->heap, &t->unspelled, &t->normal[0],
                            &t->normal[1], &t->work };
  for (size_t i = 0; i < sizeof buffers / sizeof *buffers; i++) {
    if (buffers[i]->size > KEEP_BYTES) pyr_buffer_free(t->rt, buffers[i]);
    buffers[i]->length = 0;
  }
  for (int i = 0; i < t->stages[PYR_SPLIT].count; i++)
    if (t->stages[PYR_SPLIT].steps[i].scratch.size > KEEP_BYTES)
      pyr_buffer_free(t->rt, &t->stages[PYR_SPLIT].steps[i].scratch);
}

pyr_status pyr_tokenizer_encode(pyr_tokenizer *t, const char *text, size_t length, int flags,
                                const int32_t **ids, int64_t *count) {
  if (!t->ready) return pyr_runtime_set_error(t->rt, PYR_ARGUMENT, "tokenizer: it is not ready");
  if (length > INT32_MAX)
    return pyr_runtime_set_error(t->rt, PYR_ARGUMENT,
                                 "a text of %zu bytes is too long to encode at once", length);
  slim(t);
  pyr_limits_begin(t, length);
  size_t before = (size_t)t->before_count * sizeof(int32_t),
      after = (size_t)t->after_count * sizeof(int32_t);
  bool add = flags & PYR_ENCODE_ADD;
  if (add && before && !pyr_buffer_append(t->rt, &t->ids, t->around, before))
    return pyr_nomem(t->rt, before, "ids");
  pyr_status status = pyr_pretokenize(t, (const uint8_t *)text, length, flags & PYR_ENCODE_PARSE);
  if (status != PYR_OK) return status;
  if (add && after && !pyr_buffer_append(t->rt, &t->ids, t->around + t->before_count, after))
    return pyr_nomem(t->rt, after, "ids");
  *ids = (const int32_t *)(const void *)t->ids.data;
  *count = (int64_t)(t->ids.length / sizeof(int32_t));
  return PYR_OK;
}

int pyr_tokenizer_flags(const pyr_tokenizer *t, int32_t file_id) {
  int32_t id = pyr_vocab_place(t, file_id);
  return id < 0 ? -1 : t->pieces[id].bits >> PYR_BIT_TOKEN_SHIFT;
}

const char *pyr_tokenizer_spelling(pyr_tokenizer *t, int32_t file_id, size_t *length) {
  int32_t id = pyr_vocab_place(t, file_id);
  *length = 0;
  if (id < 0) return NULL;
  const uint8_t *s = t->text.data + t->pieces[id].start;
  *length = t->pieces[id].length;
  if (!t->options.byte_level || (t->pieces[id].bits & PYR_BIT_LITERAL)) return (const char *)s;
  t->spelling.length = 0;
  if (!pyr_alphabet_spell(t->rt, s, t->pieces[id].length, &t->spelling)) return NULL;
  *length = t->spelling.length;
  return (const char *)t->spelling.data;
}

int32_t pyr_tokenizer_id(pyr_tokenizer *t, const char *piece, size_t length) {
  const uint8_t *s = (const uint8_t *)piece;
  for (int32_t i = 0; i < t->added.count; i++) {
    size_t n;
    int32_t id = t->pieces[t->added.ids[i]].id;
    const char *text = pyr_tokenizer_spelling(t, id, &n);
    if (text && n == length && memcmp(text, piece, n) == 0) return id;
  }
  bool spelled = true, memory = false;
  t->spelling.length = 0;
  if (t->options.byte_level)
    spelled = pyr_alphabet_unspell(t->rt, s, length, &t->spelling, &memory);
  if (memory) return -1;
  int32_t id = !spelled ? -1 : t->options.byte_level
      ? pyr_vocab_find(t, t->spelling.data, t->spelling.length)
                                                     : pyr_vocab_find(t, s, length);
  if (id >= 0) return t->pieces[id].id;
  for (id = 0; id < t->count; id++)  /* a closed one: rare, and nobody asks often */
    if (t->pieces[id].length == length && (t->pieces[id].bits & PYR_BIT_CLOSED)
        && (t->pieces[id].bits & PYR_BIT_LITERAL || !t->options.byte_level)
            && memcmp(t->text.data + t->pieces[id].start, s, length) == 0) return t->pieces[id].id;
  return -1;
}

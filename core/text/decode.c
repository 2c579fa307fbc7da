/* decode.c — from ids to text: a decoder that never cuts a UTF-8 character.
 *
 * Owns the decoder and its waiting bytes. Each id gives bytes of its own (decode_piece.c); only
 * trimming at the beginning and joining need to know what came before. The
 * bytes then pass a gate: whole characters go out, the beginning of one waits for the next id, and
 * what can be no character becomes U+FFFD, one for each maximal subpart (what Python's and Rust's
 * lossy decoding do). */
#include "text/tokenizer.h"

#include <string.h>

struct pyr_decoder {
  pyr_tokenizer *t;
  int flags;
  bool begun;                  /* some piece has been pushed */
  int trimmed;                 /* patterns taken from the beginning so far; -1: no more */
  uint8_t waiting[4];
  size_t waits;
  pyr_buffer piece, other, out;
};

pyr_status pyr_decoder_new(pyr_tokenizer *t, int flags, pyr_decoder **out) {
  if (!t->ready) return pyr_runtime_set_error(t->rt, PYR_ARGUMENT, "tokenizer: it is not ready");
  pyr_decoder *d = pyr_alloc_zero(t->rt, sizeof *d);
  if (d == NULL) return pyr_nomem(t->rt, sizeof *d, "decoder");
  d->t = pyr_tokenizer_retain(t);
  d->flags = flags;
  d->trimmed = flags & PYR_DECODE_CONTINUE ? -1 : 0;
  *out = d;
  return PYR_OK;
}

void pyr_decoder_free(pyr_decoder *d) {
  if (d == NULL) return;
  pyr_tokenizer *t = d->t;
  pyr_buffer_free(t->rt, &d->piece);
  pyr_buffer_free(t->rt, &d->other);
  pyr_buffer_free(t->rt, &d->out);
  pyr_release(t->rt, d, sizeof *d);
  pyr_tokenizer_free(t);
}

/* Bytes through the gate to d->out. */
static bool let_through(pyr_decoder *d, const uint8_t *s, size_t n) {
  pyr_runtime *rt = d->t->rt;
  if (d->flags & PYR_DECODE_BYTES) return pyr_buffer_append(rt, &d->out, s, n);
  /* each byte may become U+FFFD */
  if (n > SIZE_MAX / 3 - 8 || !pyr_buffer_reserve(rt, &d->out, 3 * n + 12)) return false;
  uint8_t *out = d->out.data + d->out.length;
  while (d->waits > 0 && n > 0) {          /* byte by byte until nothing waits */
    d->waiting[d->waits++] = *s++;
    n--;
    while (d->waits > 0) {
      size_t broken;
      if (pyr_utf8_valid(d->waiting, d->waits) == d->waits) {
        memcpy(out, d->waiting, d->waits);
        out += d->waits;
        d->waits = 0;
      } else if ((broken = pyr_utf8_broken(d->waiting, d->waits)) > 0) {
        memcpy(out, "\xEF\xBF\xBD", 3);
        out += 3;
        d->waits -= broken;
        memmove(d->waiting, d->waiting + broken, d->waits);
      } else break;
    }
  }
  while (n > 0) {
    size_t good = pyr_utf8_valid(s, n), broken;
    memcpy(out, s, good);
    out += good;
    s += good;
    n -= good;
    if (n == 0) break;
    if ((broken = pyr_utf8_broken(s, n)) == 0) {
      memcpy(d->waiting, s, n);
      d->waits = n;
      break;
    }
    memcpy(out, "\xEF\xBF\xBD", 3);
    out += 3;
    s += broken;
    n -= broken;
  }
  d->out.length = (size_t)(out - d->out.data);
  return true;
}

static bool push_one(pyr_decoder *d, int32_t id) {
  pyr_tokenizer *t = d->t;
  if ((d->flags & PYR_DECODE_PLAIN)
      && (t->pieces[id].bits >> PYR_BIT_TOKEN_SHIFT & PYR_TOKEN_SPECIAL)) return true;
  if (!pyr_decode_piece(t, id, &d->piece, &d->other)) return false;
  const pyr_step_list *list = &t->stages[PYR_DECODE];
  const uint8_t *s = d->piece.data;
  size_t n = d->piece.length;
  for (int i = 0; i < list->count; i++) {
    const pyr_step_data *step = &list->steps[i];
    if (step->kind == PYR_STEP_JOIN && (d->begun || d->flags & PYR_DECODE_CONTINUE)
        && !let_through(d, step->text, step->text_length)) return false;
    if (step->kind != PYR_STEP_TRIM || d->trimmed < 0) continue;
    while (n >= step->pattern_length && d->trimmed < step->a
           && memcmp(s, step->pattern, step->pattern_length) == 0) {
      s += step->pattern_length;
      n -= step->pattern_length;
      d->trimmed++;
    }
    if (n > 0 || d->trimmed >= step->a) d->trimmed = -1;
  }
  d->begun = true;
  return let_through(d, s, n);
}

pyr_status pyr_decoder_push(pyr_decoder *d, const int32_t *ids, int64_t count, const char **text,
                            size_t *length) {
  pyr_tokenizer *t = d->t;
  int32_t vocab = t->options.vocab, most = t->options.ids > vocab ? t->options.ids : vocab;
  for (int64_t i = 0; i < count; i++)
    if (ids[i] < 0 || ids[i] >= most)
      return pyr_runtime_set_error(t->rt, PYR_ARGUMENT, "id %d is not in the vocabulary of %d",
                                   (int)ids[i], (int)most);
  d->out.length = 0;
  for (int64_t i = 0; i < count; i++) {
    int32_t place = pyr_vocab_place(t, ids[i]);  /* what has none is the empty text */
    if (place >= 0 && !push_one(d, place)) return pyr_nomem(t->rt, d->out.length, "decoding");
  }
  *text = (const char *)d->out.data;
  *length = d->out.length;
  return PYR_OK;
}

pyr_status pyr_decoder_finish(pyr_decoder *d, const char **text, size_t *length) {
  d->out.length = 0;
  if (d->waits > 0 && !pyr_buffer_append(d->t->rt, &d->out, "\xEF\xBF\xBD", 3))
    return pyr_nomem(d->t->rt, 3, "decoding");
  d->waits = 0;
  d->begun = false;
  d->trimmed = d->flags & PYR_DECODE_CONTINUE ? -1 : 0;
  *text = (const char *)d->out.data;
  *length = d->out.length;
  return PYR_OK;
}

/* decode.c — from ids to text: a decoder that never cuts a UTF-8 character.
 *
 * Owns the decoder and its waiting bytes. Each id gives bytes of its own (the DECODE steps, applied
 * to one piece); only trimming at the beginning and joining need to know what came before. The
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

/* One id's text may be this many times its piece, and that many bytes more: beyond it REPLACE steps
 * were made to hurt, as all that is generated would grow so. What every piece becomes is found out
 * when the tokenizer is made, so decoding cannot fail. */
enum { DECODE_GROWTH = 16, DECODE_FREE = 256 };

static bool replace(pyr_runtime *rt, const pyr_step_data *step, const pyr_buffer *in, size_t limit,
                    pyr_buffer *out) {
  const uint8_t *s = in->data;
  size_t n = in->length, from = 0, length = step->pattern_length;
  out->length = 0;
  for (size_t i = 0; n >= length && i <= n - length;) {
    const uint8_t *hit = memchr(s + i, step->pattern[0], n - length + 1 - i);
    if (hit == NULL) break;
    i = (size_t)(hit - s);
    if (memcmp(hit, step->pattern, length) != 0) { i++; continue; }
    if (!pyr_buffer_append(rt, out, s + from, i - from)
        || !pyr_buffer_append(rt, out, step->text, step->text_length)) return false;
    from = i += length;
    if (out->length > limit) return true;
  }
  return n == 0 || pyr_buffer_append(rt, out, s + from, n - from);
}

static int hex(uint8_t c) {
  return c >= '0' && c <= '9' ? c - '0' : c >= 'A' && c <= 'F' ? c - 'A' + 10 : c >= 'a'
      && c <= 'f' ? c - 'a' + 10 : -1;
}

/* What one id stands for goes to d->piece. */
static bool spell_out(pyr_decoder *d, int32_t id) {
  pyr_tokenizer *t = d->t;
  const pyr_step_list *list = &t->stages[PYR_DECODE];
  bool raw = t->options.byte_level && !(t->pieces[id].bits & PYR_BIT_LITERAL);
  size_t length = t->pieces[id].length, limit = length * DECODE_GROWTH + DECODE_FREE;
  const uint8_t *bytes = t->text.data + t->pieces[id].start;
  if (!raw) bytes = pyr_found_by(t, id, &length);      /* normalised if it is found so, as in the
                                                          tokenizers library */
  /* the usual case: already bytes */
  if (raw && list->count == 1 && list->steps[0].kind == PYR_STEP_BYTES) raw = false;
  else if (raw) {  /* the steps want the spelling */
    d->piece.length = 0;
    if (!pyr_alphabet_spell(t->rt, bytes, length, &d->piece)) return false;
  }
  if (!raw) {
    d->piece.length = 0;
    if (!pyr_buffer_append(t->rt, &d->piece, bytes, length)) return false;
    if (t->options.byte_level && list->count == 1 && list->steps[0].kind == PYR_STEP_BYTES)
      return true;
  }
  for (int i = 0; i < list->count; i++) {
    const pyr_step_data *step = &list->steps[i];
    bool memory;
    switch (step->kind) {
      case PYR_STEP_REPLACE:
        if (d->piece.length > limit) return true;      /* never in a tokenizer that pyr_decode_check
                                                          let through */
        if (!replace(t->rt, step, &d->piece, limit, &d->other)) return false;
        break;
      case PYR_STEP_BYTES:
        d->other.length = 0;
        if (t->options.byte_level && (t->pieces[id].bits & PYR_BIT_LITERAL)) continue;
        if (!pyr_alphabet_unspell(t->rt, d->piece.data, d->piece.length, &d->other, &memory)) {
          if (memory) return false;
          continue;
        }
        break;
      case PYR_STEP_FALLBACK: {
        const uint8_t *p = d->piece.data;
        if (d->piece.length != 6 || memcmp(p, "<0x", 3) != 0 || p[5] != '>' || hex(p[3]) < 0
            || hex(p[4]) < 0) continue;
        uint8_t byte = (uint8_t)(hex(p[3]) * 16 + hex(p[4]));
        d->other.length = 0;
        if (!pyr_buffer_append(t->rt, &d->other, &byte, 1)) return false;
        break;
      }
      default: continue;       /* TRIM and JOIN look at more than one piece */
    }
    pyr_buffer swap = d->piece;
    d->piece = d->other;
    d->other = swap;
  }
  return true;
}

pyr_status pyr_decode_check(pyr_tokenizer *t) {
  const pyr_step_list *list = &t->stages[PYR_DECODE];
  bool grows = false;
  for (int i = 0; i < list->count; i++)
    grows |= list->steps[i].kind == PYR_STEP_REPLACE
        && list->steps[i].text_length > list->steps[i].pattern_length;
  if (!grows) return PYR_OK;
  pyr_decoder *d;
  pyr_status status = pyr_decoder_new(t, 0, &d);
  for (int32_t id = 0; status == PYR_OK && id < t->count; id++) {
    size_t n = t->pieces[id].length;
    if (!spell_out(d, id)) status = pyr_nomem(t->rt, n, "decoder");
    else if (d->piece.length > n * DECODE_GROWTH + DECODE_FREE)
      status = pyr_runtime_set_error(t->rt, PYR_FORMAT,
                                     "decoder: its steps make more than %d times and %d bytes of "
                                     "the %zu bytes of piece %d", DECODE_GROWTH, DECODE_FREE, n,
                                         (int)t->pieces[id].id);
  }
  pyr_decoder_free(d);
  return status;
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
  if (!spell_out(d, id)) return false;
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

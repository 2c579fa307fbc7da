/* decode_piece.c — what one id stands for: the DECODE steps, applied to its piece alone.
 *
 * Knows no decoder and no text before it: trimming and joining, which look at more than one piece,
 * are decode.c's. So a tokenizer can have all its pieces tried before anything decodes with it. */
#include "text/tokenizer.h"

#include <string.h>

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

bool pyr_decode_piece(const pyr_tokenizer *t, int32_t id, pyr_buffer *piece, pyr_buffer *other) {
  const pyr_step_list *list = &t->stages[PYR_DECODE];
  bool raw = t->options.byte_level && !(t->pieces[id].bits & PYR_BIT_LITERAL);
  size_t length = t->pieces[id].length, limit = length * DECODE_GROWTH + DECODE_FREE;
  const uint8_t *bytes = t->text.data + t->pieces[id].start;
  if (!raw) bytes = pyr_found_by(t, id, &length);      /* normalised if it is found so, as in the
                                                          tokenizers library */
  /* the usual case: already bytes */
  if (raw && list->count == 1 && list->steps[0].kind == PYR_STEP_BYTES) raw = false;
  else if (raw) {  /* the steps want the spelling */
    piece->length = 0;
    if (!pyr_alphabet_spell(t->rt, bytes, length, piece)) return false;
  }
  if (!raw) {
    piece->length = 0;
    if (!pyr_buffer_append(t->rt, piece, bytes, length)) return false;
    if (t->options.byte_level && list->count == 1 && list->steps[0].kind == PYR_STEP_BYTES)
      return true;
  }
  for (int i = 0; i < list->count; i++) {
    const pyr_step_data *step = &list->steps[i];
    bool memory;
    switch (step->kind) {
      case PYR_STEP_REPLACE:
        if (piece->length > limit) return true;      /* never in a tokenizer that pyr_decode_check
                                                          let through */
        if (!replace(t->rt, step, piece, limit, other)) return false;
        break;
      case PYR_STEP_BYTES:
        other->length = 0;
        if (t->options.byte_level && (t->pieces[id].bits & PYR_BIT_LITERAL)) continue;
        if (!pyr_alphabet_unspell(t->rt, piece->data, piece->length, other, &memory)) {
          if (memory) return false;
          continue;
        }
        break;
      case PYR_STEP_FALLBACK: {
        const uint8_t *p = piece->data;
        if (piece->length != 6 || memcmp(p, "<0x", 3) != 0 || p[5] != '>' || hex(p[3]) < 0
            || hex(p[4]) < 0) continue;
        uint8_t byte = (uint8_t)(hex(p[3]) * 16 + hex(p[4]));
        other->length = 0;
        if (!pyr_buffer_append(t->rt, other, &byte, 1)) return false;
        break;
      }
      default: continue;       /* TRIM and JOIN look at more than one piece */
    }
    pyr_buffer swap = *piece;
    *piece = *other;
    *other = swap;
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
  pyr_buffer piece = { 0 }, other = { 0 };
  pyr_status status = PYR_OK;
  for (int32_t id = 0; status == PYR_OK && id < t->count; id++) {
    size_t n = t->pieces[id].length;
    if (!pyr_decode_piece(t, id, &piece, &other)) status = pyr_nomem(t->rt, n, "decoder");
    else if (piece.length > n * DECODE_GROWTH + DECODE_FREE)
      status = pyr_runtime_set_error(t->rt, PYR_FORMAT,
                                     "decoder: its steps make more than %d times and %d bytes of "
                                     "the %zu bytes of piece %d", DECODE_GROWTH, DECODE_FREE, n,
                                     (int)t->pieces[id].id);
  }
  pyr_buffer_free(t->rt, &piece);
  pyr_buffer_free(t->rt, &other);
  return status;
}

/* token_alphabet.c — GPT-2's byte alphabet: the spelling of byte-level vocabularies, in which each
 * byte is one printable character. " the" is spelled "Ġthe", as the space, 32, is the 33rd of the
 * 68 bytes that stand for themselves in no print: U+0100 + 32 = U+0120, "Ġ". */
#include "text/tokenizer.h"

static bool plain_byte(uint32_t b) {
  return (b >= 33 && b <= 126) || (b >= 161 && b <= 172) || (b >= 174 && b <= 255);
}

static uint32_t alphabet_of_byte(uint8_t b) {
  if (plain_byte(b)) return b;
  if (b <= 32) return 256u + b;               /* 0..32 are the first 33 of the others */
  if (b <= 160) return 256u + 33 + (b - 127u);
  return 256u + 67;                           /* 173 */
}

static int alphabet_to_byte(uint32_t cp) {
  if (cp < 256) return plain_byte(cp) ? (int)cp : -1;
  if (cp < 256 + 33) return (int)(cp - 256);
  if (cp < 256 + 67) return (int)(cp - 256 - 33 + 127);
  return cp == 256 + 67 ? 173 : -1;
}

bool pyr_alphabet_spell(pyr_runtime *rt, const uint8_t *s, size_t n, pyr_buffer *out) {
  if (n > SIZE_MAX / 2 || !pyr_buffer_reserve(rt, out, 2 * n)) return false;
  for (size_t i = 0; i < n; i++)
    out->length += pyr_utf8_encode(alphabet_of_byte(s[i]), out->data + out->length);
  return true;
}

bool pyr_alphabet_unspell(pyr_runtime *rt, const uint8_t *s, size_t n, pyr_buffer *out,
                          bool *memory) {
  size_t before = out->length, length;
  *memory = !pyr_buffer_reserve(rt, out, n);
  if (*memory) return false;
  if (pyr_utf8_valid(s, n) != n) return false;
  for (size_t i = 0; i < n; i += length) {
    int byte = alphabet_to_byte(pyr_utf8_decode(s + i, &length));
    if (byte < 0) { out->length = before; return false; }
    out->data[out->length++] = (uint8_t)byte;
  }
  return true;
}

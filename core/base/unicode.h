/* unicode.h — UTF-8 and the little of Unicode that tokenizers need: validity, the four
 * normalisation forms, lower case, white space and word characters. Pure functions over bytes;
 * growth goes through the runtime's allocator. */
#ifndef PYR_UNICODE_H
#define PYR_UNICODE_H

#include "base/runtime.h"

/* Bytes that grow; `data` belongs to whoever owns the struct. Zeroed is empty. */
typedef struct pyr_buffer {
  uint8_t *data;
  size_t length, size;
} pyr_buffer;

/* room for `more` bytes; false: no memory */
bool pyr_buffer_reserve(pyr_runtime *rt, pyr_buffer *b, size_t more);
bool pyr_buffer_append(pyr_runtime *rt, pyr_buffer *b, const void *bytes, size_t n);
void pyr_buffer_free(pyr_runtime *rt, pyr_buffer *b);

/* Bytes of the longest prefix of s[0..n) that is well-formed UTF-8 (no surrogates, no overlongs, <=
 * U+10FFFF). */
size_t pyr_utf8_valid(const uint8_t *s, size_t n);
/* Length of the ill-formed sequence at s[0..n), n > 0: a maximal subpart in Unicode's words (what
 * one U+FFFD stands for), 1..3. 0 if it is merely cut short: all n bytes could begin a character.
 */
size_t pyr_utf8_broken(const uint8_t *s, size_t n);
/* Decodes the character at s, which must be well-formed; *length gets its bytes. */
uint32_t pyr_utf8_decode(const uint8_t *s, size_t *length);
size_t pyr_utf8_encode(uint32_t cp, uint8_t out[4]);                   /* its length */
size_t pyr_utf8_length(uint8_t first);  /* of a well-formed character by its first byte */

bool pyr_unicode_is_space(uint32_t cp);                                /* White_Space */
bool pyr_unicode_is_word(uint32_t cp);  /* letter, mark, digit, connector, joiner */

typedef enum pyr_form { PYR_FORM_NFD, PYR_FORM_NFC, PYR_FORM_NFKD, PYR_FORM_NFKC } pyr_form;

/* Append the normalised or lower-cased form of well-formed s[0..n) to out; false: no memory. `work`
 * is scratch that the caller keeps between calls. */
bool pyr_unicode_normalize(pyr_runtime *rt, pyr_form form, const uint8_t *s, size_t n,
                           pyr_buffer *out, pyr_buffer *work);
bool pyr_unicode_lower(pyr_runtime *rt, const uint8_t *s, size_t n, pyr_buffer *out);

#endif

/* unicode.c — UTF-8 checking and coding, normalisation, lower case.
 *
 * Owns the character tables (unicode_tables.h, generated). Knows nothing of tokens.
 *
 * Normalisation (Unicode Standard Annex 15). The text is cut into segments that cannot influence
 * each other: a new one begins at every character that neither combines with nor reorders before
 * what precedes it (`joins` is false). A segment of one character without a decomposition is
 * copied; runs of ASCII are copied whole. Any other segment is decomposed fully, its marks are
 * sorted by combining class (stable insertion sort: segments are short), and for the C forms
 * composed: each character that is not blocked from the last starter (combining class 0) is tried
 * as a pair with it. Hangul is computed, not tabled. */
#include "base/unicode.h"

#include <string.h>

typedef struct range_value { uint32_t first, last; uint8_t value; } range_value;
typedef struct range_pair { uint32_t first, last; } range_pair;
typedef struct pair_entry { uint32_t cp, a, b; } pair_entry;
typedef struct compat_entry { uint32_t cp; uint16_t start; uint8_t length; } compat_entry;
typedef struct lower_entry { uint32_t first, last; uint8_t stride; int32_t delta; } lower_entry;

#include "base/unicode_tables.h"

#define COUNT(table) (sizeof(table) / sizeof *(table))

enum { L_FIRST = 0x1100, V_FIRST = 0x1161, T_BEFORE = 0x11A7, L_COUNT = 19, V_COUNT = 21,
       T_COUNT = 28, S_FIRST = 0xAC00, S_COUNT = L_COUNT * V_COUNT * T_COUNT };

/* ---- buffers --------------------------------------------------------------------------------- */

bool pyr_buffer_reserve(pyr_runtime *rt, pyr_buffer *b, size_t more) {
  if (more <= b->size - b->length) return true;
  if (more > SIZE_MAX / 2 - b->length) return false;
  size_t size = b->size < 64 ? 64 : b->size;
  while (size < b->length + more) size += size / 2 + 1;
  uint8_t *data = b->data ? pyr_realloc(rt, b->data, b->size, size) : pyr_alloc(rt, size);
  if (data == NULL) return false;
  b->data = data;
  b->size = size;
  return true;
}

bool pyr_buffer_append(pyr_runtime *rt, pyr_buffer *b, const void *bytes, size_t n) {
  if (n == 0) return true;
  if (!pyr_buffer_reserve(rt, b, n)) return false;
  memcpy(b->data + b->length, bytes, n);
  b->length += n;
  return true;
}

void pyr_buffer_free(pyr_runtime *rt, pyr_buffer *b) {
  pyr_release(rt, b->data, b->size);
  memset(b, 0, sizeof *b);
}

/* ---- UTF-8 ----------------------------------------------------------------------------------- */

/* What the second byte may be after `first`; false if `first` begins no character. */
static bool lead(uint8_t first, size_t *length, uint8_t *low, uint8_t *high) {
  *low = 0x80;
  *high = 0xBF;
  if (first < 0x80) *length = 1;
  else if (first >= 0xC2 && first <= 0xDF) *length = 2;
  else if (first >= 0xE0 && first <= 0xEF) {
    *length = 3;
    if (first == 0xE0) *low = 0xA0;          /* no overlongs */
    if (first == 0xED) *high = 0x9F;         /* no surrogates */
  } else if (first >= 0xF0 && first <= 0xF4) {
    *length = 4;
    if (first == 0xF0) *low = 0x90;
    if (first == 0xF4) *high = 0x8F;         /* nothing above U+10FFFF */
  } else return false;
  return true;
}

size_t pyr_utf8_valid(const uint8_t *s, size_t n) {
  size_t i = 0;
  while (i < n) {
    if (s[i] < 0x80) {
      uint64_t eight;
      while (n - i >= 8 && (memcpy(&eight, s + i, 8), (eight & 0x8080808080808080u) == 0)) i += 8;
      while (i < n && s[i] < 0x80) i++;
      continue;
    }
    size_t length;
    uint8_t low, high;
    if (!lead(s[i], &length, &low, &high) || n - i < length || s[i + 1] < low || s[i + 1] > high)
      return i;
    for (size_t k = 2; k < length; k++)
      if ((s[i + k] & 0xC0) != 0x80) return i;
    i += length;
  }
  return n;
}

size_t pyr_utf8_broken(const uint8_t *s, size_t n) {
  size_t length;
  uint8_t low, high;
  if (!lead(s[0], &length, &low, &high)) return 1;
  if (n == 1) return 0;
  if (s[1] < low || s[1] > high) return 1;
  for (size_t k = 2; k < length; k++) {
    if (k == n) return 0;
    if ((s[k] & 0xC0) != 0x80) return k;
  }
  return length;
}

size_t pyr_utf8_length(uint8_t first) {
  return first < 0x80 ? 1 : first < 0xE0 ? 2 : first < 0xF0 ? 3 : 4;
}

uint32_t pyr_utf8_decode(const uint8_t *s, size_t *length) {
  uint32_t c = s[0];
  *length = pyr_utf8_length(s[0]);
  switch (*length) {
    case 1: return c;
    case 2: return (c & 0x1F) << 6 | (s[1] & 0x3Fu);
    case 3: return (c & 0x0F) << 12 | (s[1] & 0x3Fu) << 6 | (s[2] & 0x3Fu);
    default: return (c & 0x07) << 18 | (s[1] & 0x3Fu) << 12 | (s[2] & 0x3Fu) << 6 | (s[3] & 0x3Fu);
  }
}

size_t pyr_utf8_encode(uint32_t cp, uint8_t out[4]) {
  if (cp < 0x80) { out[0] = (uint8_t)cp; return 1; }
  if (cp < 0x800) { out[0] = (uint8_t)(0xC0 | cp >> 6); out[1] =
      (uint8_t)(0x80 | (cp & 0x3F)); return 2; }
  if (cp < 0x10000) {
    out[0] = (uint8_t)(0xE0 | cp >> 12);
    out[1] = (uint8_t)(0x80 | (cp >> 6 & 0x3F));
    out[2] = (uint8_t)(0x80 | (cp & 0x3F));
    return 3;
  }
  out[0] = (uint8_t)(0xF0 | cp >> 18);
  out[1] = (uint8_t)(0x80 | (cp >> 12 & 0x3F));
  out[2] = (uint8_t)(0x80 | (cp >> 6 & 0x3F));
  out[3] = (uint8_t)(0x80 | (cp & 0x3F));
  return 4;
}

/* ---- classes --------------------------------------------------------------------------------- */

static bool in_ranges(const range_pair *table, size_t count, uint32_t cp) {
  size_t low = 0, high = count;
  while (low < high) {
    size_t middle = (low + high) / 2;
    if (table[middle].last < cp) low = middle + 1;
    else high = middle;
  }
  return low < count && table[low].first <= cp;
}

bool pyr_unicode_is_space(uint32_t cp) {
  if (cp < 0x80) return cp == ' ' || (cp >= 9 && cp <= 13);
  return cp == 0x85 || cp == 0xA0 || cp == 0x1680 || (cp >= 0x2000 && cp <= 0x200A)
      || cp == 0x2028 ||
         cp == 0x2029 || cp == 0x202F || cp == 0x205F || cp == 0x3000;
}

bool pyr_unicode_is_word(uint32_t cp) { return in_ranges(word_table, COUNT(word_table), cp); }

static bool joins(uint32_t cp) {
  if (cp < 0x300 || (cp >= 0x3400 && cp < 0xA000) || (cp >= S_FIRST && cp < S_FIRST + S_COUNT))
    return false;
  return in_ranges(joins_table, COUNT(joins_table), cp);
}

static uint8_t combining_class(uint32_t cp) {
  if (cp < 0x300) return 0;
  size_t low = 0, high = COUNT(ccc_table);
  while (low < high) {
    size_t middle = (low + high) / 2;
    if (ccc_table[middle].last < cp) low = middle + 1;
    else high = middle;
  }
  return low < COUNT(ccc_table) && ccc_table[low].first <= cp ? ccc_table[low].value : 0;
}

/* ---- decomposition and composition ----------------------------------------------------------- */

static const pair_entry *canonical(uint32_t cp) {
  if (cp < canonical_table[0].cp) return NULL;
  size_t low = 0, high = COUNT(canonical_table);
  while (low < high) {
    size_t middle = (low + high) / 2;
    if (canonical_table[middle].cp < cp) low = middle + 1;
    else high = middle;
  }
  return low < COUNT(canonical_table) && canonical_table[low].cp == cp ? &canonical_table[low]
      : NULL;
}

static const compat_entry *compatible(uint32_t cp) {
  if (cp < compat_table[0].cp) return NULL;
  size_t low = 0, high = COUNT(compat_table);
  while (low < high) {
    size_t middle = (low + high) / 2;
    if (compat_table[middle].cp < cp) low = middle + 1;
    else high = middle;
  }
  return low < COUNT(compat_table) && compat_table[low].cp == cp ? &compat_table[low] : NULL;
}

/* Appends one character's full decomposition to `work`, an array of uint32_t; the first halves of
 * canonical pairs are walked down with a loop, the second halves never decompose further or are
 * single. */
static bool decompose(pyr_runtime *rt, bool compat, uint32_t cp, pyr_buffer *work) {
  uint32_t tail[8];
  size_t tails = 0;
  if (cp >= S_FIRST && cp < S_FIRST + S_COUNT) {
    uint32_t s = cp - S_FIRST, t = s % T_COUNT;
    uint32_t jamo[3] = { L_FIRST + s / (V_COUNT * T_COUNT),
                         V_FIRST + s % (V_COUNT * T_COUNT) / T_COUNT, T_BEFORE + t };
    return pyr_buffer_append(rt, work, jamo, (t ? 3 : 2) * sizeof *jamo);
  }
  if (compat) {
    const compat_entry *e = compatible(cp);
    if (e)
      return pyr_buffer_append(rt, work, compat_pool + e->start, e->length * sizeof *compat_pool);
  }
  const pair_entry *e;
  while ((e = canonical(cp)) != NULL && tails < COUNT(tail)) {
    if (e->b) tail[tails++] = e->b;
    cp = e->a;
  }
  if (!pyr_buffer_append(rt, work, &cp, sizeof cp)) return false;
  while (tails > 0) {
    uint32_t b = tail[--tails];
    const pair_entry *deeper = canonical(b);      /* U+0344 and its like */
    if (deeper ? !decompose(rt, compat, b, work) : !pyr_buffer_append(rt, work, &b, sizeof b))
      return false;
  }
  return true;
}

static uint32_t compose(uint32_t a, uint32_t b) { /* 0: they do not compose */
  if (a >= L_FIRST && a < L_FIRST + L_COUNT && b >= V_FIRST && b < V_FIRST + V_COUNT)
    return S_FIRST + ((a - L_FIRST) * V_COUNT + (b - V_FIRST)) * T_COUNT;
  if (a >= S_FIRST && a < S_FIRST + S_COUNT && (a - S_FIRST) % T_COUNT == 0 && b > T_BEFORE
      && b < T_BEFORE + T_COUNT)
    return a + (b - T_BEFORE);
  size_t low = 0, high = COUNT(compose_table);
  while (low < high) {
    size_t middle = (low + high) / 2;
    const pair_entry *e = &canonical_table[compose_table[middle]];
    if (e->a < a || (e->a == a && e->b < b)) low = middle + 1;
    else high = middle;
  }
  if (low == COUNT(compose_table)) return 0;
  const pair_entry *e = &canonical_table[compose_table[low]];
  return e->a == a && e->b == b ? e->cp : 0;
}

static size_t compose_all(uint32_t *c, size_t n) { /* in place; the new count */
  size_t out = 0, starter = SIZE_MAX;
  uint8_t last = 0;  /* class of what stands between the starter and here */
  for (size_t i = 0; i < n; i++) {
    uint8_t k = combining_class(c[i]);
    bool adjacent = starter != SIZE_MAX && out == starter + 1;
    if (starter != SIZE_MAX && (adjacent || last < k)) {
      uint32_t both = compose(c[starter], c[i]);
      if (both) { c[starter] = both; continue; }
    }
    if (k == 0) starter = out;
    last = k;
    c[out++] = c[i];
  }
  return out;
}

/* Sorts runs of marks by class. Insertion is quadratic in a run, so that a run beyond any real text
 * (a denial of service) goes through counting over the 256 classes instead. */
static bool reorder(pyr_runtime *rt, uint32_t *c, size_t n) {
  size_t i = 0;
  while (i < n) {
    if (combining_class(c[i]) == 0) { i++; continue; }
    size_t end = i;
    while (end < n && combining_class(c[end]) != 0) end++;
    if (end - i <= 64) {
      for (size_t k = i + 1; k < end; k++) {
        uint32_t x = c[k];
        uint8_t class = combining_class(x);
        size_t at = k;
        while (at > i && combining_class(c[at - 1]) > class) { c[at] = c[at - 1]; at--; }
        c[at] = x;
      }
    } else {
      size_t starts[257] = { 0 }, bytes = (end - i) * sizeof *c;
      uint32_t *copy = pyr_alloc(rt, bytes);
      if (copy == NULL) return false;
      memcpy(copy, c + i, bytes);
      for (size_t k = 0; k < end - i; k++) starts[combining_class(copy[k]) + 1]++;
      for (size_t k = 1; k < 257; k++) starts[k] += starts[k - 1];
      for (size_t k = 0; k < end - i; k++) c[i + starts[combining_class(copy[k])]++] = copy[k];
      pyr_release(rt, copy, bytes);
    }
    i = end;
  }
  return true;
}

bool pyr_unicode_normalize(pyr_runtime *rt, pyr_form form, const uint8_t *s, size_t n,
                           pyr_buffer *out, pyr_buffer *work) {
  bool compat = form == PYR_FORM_NFKD || form == PYR_FORM_NFKC,
      composed = form == PYR_FORM_NFC || form == PYR_FORM_NFKC;
  size_t i = 0;
  while (i < n) {
    size_t run = i;
    while (run < n && s[run] < 0x80) run++;
    if (run < n && run > i) run--;                 /* the last one may take a mark */
    if (run > i) {
      if (!pyr_buffer_append(rt, out, s + i, run - i)) return false;
      i = run;
      continue;
    }
    size_t length, end, count = 1;
    uint32_t first = pyr_utf8_decode(s + i, &length), cp = 0;
    end = i + length;
    while (end < n && (s[end] < 0x80 ? false : joins(cp = pyr_utf8_decode(s + end, &length)))) {
      end += length;
      count++;
    }
    bool stable = count == 1 && (first < 0x80 || (composed && !compat && first < 0x300) ||
      (!(first >= S_FIRST && first < S_FIRST + S_COUNT && !composed) && !canonical(first) &&
       !(compat && compatible(first))));
    if (stable) {
      if (!pyr_buffer_append(rt, out, s + i, end - i)) return false;
    } else {
      work->length = 0;
      for (size_t k = i; k < end; k += length) {
        cp = pyr_utf8_decode(s + k, &length);
        if (!decompose(rt, compat, cp, work)) return false;
      }
      uint32_t *c = (uint32_t *)(void *)work->data;  /* the allocator aligns to 16 */
      size_t total = work->length / sizeof *c;
      if (!reorder(rt, c, total)) return false;
      if (composed) total = compose_all(c, total);
      if (!pyr_buffer_reserve(rt, out, total * 4)) return false;
      for (size_t k = 0; k < total; k++)
        out->length += pyr_utf8_encode(c[k], out->data + out->length);
    }
    i = end;
  }
  return true;
}

bool pyr_unicode_lower(pyr_runtime *rt, const uint8_t *s, size_t n, pyr_buffer *out) {
  size_t length;
  for (size_t i = 0; i < n; i += length) {
    uint32_t cp = pyr_utf8_decode(s + i, &length);
    if (!pyr_buffer_reserve(rt, out, 4)) return false;
    if (cp < 0x80) {
      out->data[out->length++] = (uint8_t)(cp >= 'A' && cp <= 'Z' ? cp + 32 : cp);
      continue;
    }
    if (cp == 0x130) {                               /* the only one that becomes two characters */
      if (!pyr_buffer_append(rt, out, "i\xCC\x87", 3)) return false;
      continue;
    }
    size_t low = 0, high = COUNT(lower_table);
    while (low < high) {
      size_t middle = (low + high) / 2;
      if (lower_table[middle].last < cp) low = middle + 1;
      else high = middle;
    }
    if (low < COUNT(lower_table) && lower_table[low].first <= cp
        && (cp - lower_table[low].first) % lower_table[low].stride == 0)
      cp = (uint32_t)((int32_t)cp + lower_table[low].delta);
    out->length += pyr_utf8_encode(cp, out->data + out->length);
  }
  return true;
}

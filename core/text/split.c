/* split.c — from text to words: added tokens, normalisation, splitting.
 *
 * Owns the pipeline and the regular expressions (PCRE2). Does not merge (bpe.c).
 *
 * Steps are run depth first: a splitting step hands each part straight to the next step, and the
 * last one to merging, so no list of parts is ever built, and each step needs one scratch buffer at
 * most. Parts keep one fact about where they come from: whether they begin the input, which is what
 * Metaspace's "first" asks.
 *
 * Regular expressions run in PCRE2 with UTF and UCP, compiled by its JIT where there is one. If the
 * JIT's stack does not suffice, the interpreter is tried, whose memory is bounded; an expression
 * that exceeds it is an error.
 *
 * Limits. A text pays for all its matches together, since a small file can make each of many
 * matches cost as much as the text is long. PCRE2 does not tell what a match cost, so matches are
 * tried cheaply first and dearer only if that does not suffice:
 *
 *   - In a window. The expression sees WINDOW bytes beyond where the search begins. If it reaches
 *     for more (a partial match in PCRE2's words), the window grows fourfold and the text pays for
 *     its bytes. So whoever looks far ahead for every short match ("a*c|a" in a run of a's) pays
 *     the whole run each time, and whoever consumes what he looked at pays about once.
 *   - With few steps back. A search may go back FREE_STEPS times from each place; if that is not
 *     enough, eightfold is paid.
 *
 * A text can pay REGEX_FREE and REGEX_PER_BYTE for each of its bytes. What an expression does
 * without counting (hundreds of alternatives that each look at all of the window) is bounded by the
 * clock, far beyond what any known expression takes. Steps that make text (normalisation, prefixes,
 * spellings) pay by the bytes that they write, each step for itself, and so does what is merged;
 * looking for added tokens pays by the bytes compared. */
#define _POSIX_C_SOURCE 200809L
#include "text/tokenizer.h"

#define PCRE2_CODE_UNIT_WIDTH 8
#include <pcre2.h>
#include <stdio.h>
#include <string.h>
#include <time.h>

enum {
  HEAP_LIMIT_KIB = 64 * 1024, HEADER = 16,
  PATTERN_MAX = 1 << 20,         /* bytes of an expression; the longest published one has 3 KB, 20
                                    KB with its classes written out */
  WINDOW = 256, FREE_STEPS = 256,
  REGEX_FREE = 10 * 1000 * 1000, /* a tenth of a second */
  REGEX_PER_BYTE = 32,           /* GPT-4's expressions, the dearest known, pay 10 for each byte of
                                    one run of capitals */
  LOOKBEHIND_MAX = 255,          /* characters; known expressions look back by one */
  RECURSION_MAX = 1000,
  CLOCK_EVERY = 64,              /* searches between looks at the clock */
  GROWTH = 32,  /* U+FDFA has 3 bytes; by NFKC, U+2581 and the byte alphabet it gets 78: 26 times */
  MERGE_GROWTH = 16,             /* the same in bytes again: 13 times */
  GROWTH_FREE = 1 << 16,         /* prefixes of short texts */
  ADDED_FREE = 1 << 20, ADDED_PER_BYTE = 64   /* runs of blanks, the deepest known, have tokens of
                                                 up to 64 */
};

/* Of this thread's own work: a busy machine makes no difference. */
static double seconds(void) {
  struct timespec t;
  clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t);
  return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

/* Known expressions take some 0.1 microseconds for a byte. */
#define REGEX_SECONDS 2.0
#define REGEX_SECONDS_PER_BYTE 20e-6

void pyr_limits_begin(pyr_tokenizer *t, size_t n) {
  t->growth = n * GROWTH + GROWTH_FREE;          /* n is at most INT32_MAX */
  t->merge_left = n * MERGE_GROWTH + GROWTH_FREE;
  t->regex_left = (uint64_t)n * REGEX_PER_BYTE + REGEX_FREE;
  t->added_left = (uint64_t)n * ADDED_PER_BYTE + ADDED_FREE;
  t->regex_until = seconds() + REGEX_SECONDS + (double)n * REGEX_SECONDS_PER_BYTE;
  for (int stage = 0; stage < 3; stage++)
    for (int i = 0; i < t->stages[stage].count; i++) t->stages[stage].steps[i].wrote = 0;
}

/* Counts n bytes that a step is about to write. */
static pyr_status writes(pyr_tokenizer *t, pyr_step_data *step, size_t n) {
  if (n > t->growth - step->wrote)
    return pyr_runtime_set_error(t->rt, PYR_ARGUMENT,
                                 "a step of the tokenizer makes this text longer than %d times "
                                 "and %d bytes", GROWTH, GROWTH_FREE);
  step->wrote += n;
  return PYR_OK;
}

static pyr_status put(pyr_tokenizer *t, pyr_step_data *step, pyr_buffer *out, const uint8_t *s,
                      size_t n) {
  pyr_status status = writes(t, step, n);
  if (status != PYR_OK) return status;
  return pyr_buffer_append(t->rt, out, s, n) ? PYR_OK
      : pyr_nomem(t->rt, n, "the steps of the tokenizer");
}

/* ---- regular expressions --------------------------------------------------------------------- */

/* PCRE2 frees without a size; it is kept before each block. */
static void *pcre_malloc(size_t size, void *ud) {
  if (size > SIZE_MAX - HEADER) return NULL;
  uint8_t *block = pyr_alloc(ud, size + HEADER);
  if (block == NULL) return NULL;
  size += HEADER;
  memcpy(block, &size, sizeof size);
  return block + HEADER;
}

static void pcre_free(void *pointer, void *ud) {
  if (pointer == NULL) return;
  uint8_t *block = (uint8_t *)pointer - HEADER;
  size_t size;
  memcpy(&size, block, sizeof size);
  pyr_release(ud, block, size);
}

pyr_status pyr_pattern_compile(pyr_tokenizer *t, pyr_step_data *step) {
  int error;
  PCRE2_SIZE offset;
  if (t->pcre == NULL && (t->pcre = pcre2_general_context_create(pcre_malloc, pcre_free,
      t->rt)) == NULL)
    return pyr_nomem(t->rt, 0, "regular expressions");
  if (t->pcre_match == NULL) {
    if ((t->pcre_match = pcre2_match_context_create(t->pcre)) == NULL)
      return pyr_nomem(t->rt, 0, "regular expressions");
    pcre2_set_heap_limit(t->pcre_match, HEAP_LIMIT_KIB);
  }
  pcre2_compile_context *context = pcre2_compile_context_create(t->pcre);
  if (context == NULL) return pyr_nomem(t->rt, 0, "regular expressions");
  (void)pcre2_set_max_pattern_length(context, PATTERN_MAX);
  (void)pcre2_set_newline(context, PCRE2_NEWLINE_LF);    /* what the dot and the anchors mean,
                                                            whatever PCRE2's build says */
  step->code = pcre2_compile(step->pattern, step->pattern_length,
                             PCRE2_UTF | PCRE2_UCP | PCRE2_MULTILINE | PCRE2_NEVER_BACKSLASH_C,
                                 &error, &offset, context);
  pcre2_compile_context_free(context);
  if (step->code == NULL) {
    if (error == PCRE2_ERROR_HEAP_FAILED) return pyr_nomem(t->rt, 0, "regular expressions");
    char why[128];
    pcre2_get_error_message(error, (PCRE2_UCHAR *)why, sizeof why);
    return pyr_runtime_set_error(t->rt, PYR_FORMAT,
                                 "the regular expression '%.*s' is wrong at byte %zu: %s",
                                     (int)(step->pattern_length < 160 ? step->pattern_length
                                           : 160), (const char *)step->pattern, (size_t)offset,
                                               why);
  }
  /* without a JIT the interpreter runs */
  (void)pcre2_jit_compile(step->code, PCRE2_JIT_COMPLETE | PCRE2_JIT_PARTIAL_HARD);
  uint32_t back = 0, behind = 0;
  (void)pcre2_pattern_info(step->code, PCRE2_INFO_BACKREFMAX, &back);
  (void)pcre2_pattern_info(step->code, PCRE2_INFO_MAXLOOKBEHIND, &behind);
  step->refers = back > 0;
  for (size_t i = 0; i + 2 < step->pattern_length; i++) {
    const uint8_t *p = step->pattern + i;
    step->whole |= p[0] == '\\' && p[1] == 'G';
    step->recurses |= (p[0] == '\\' && p[1] == 'g')
        || (p[0] == '(' && p[1] == '?' && p[2] != 0 && strchr("0123456789+-R&P", p[2]));
  }
  if (behind > LOOKBEHIND_MAX)
    return pyr_runtime_set_error(t->rt, PYR_FORMAT,
                                 "a regular expression looks back %u characters; at most %d are "
                                 "possible", (unsigned)behind, LOOKBEHIND_MAX);
  step->match = pcre2_match_data_create(1, t->pcre);
  if (step->match == NULL) return pyr_nomem(t->rt, 0, "regular expressions");
  return PYR_OK;
}

void pyr_pattern_free(pyr_step_data *step) {
  pcre2_match_data_free(step->match);
  pcre2_code_free(step->code);
}

void pyr_patterns_free(pyr_tokenizer *t) {
  pcre2_match_context_free(t->pcre_match);
  pcre2_general_context_free(t->pcre);
}

static pyr_status gave_up(pyr_tokenizer *t, const pyr_step_data *step, const char *why) {
  return pyr_runtime_set_error(t->rt, PYR_ARGUMENT,
                               "the regular expression '%.*s' gave up on this text: %s",
                                   (int)(step->pattern_length < 160 ? step->pattern_length : 160),
                                       (const char *)step->pattern, why);
}

static const char slow[] = "it takes longer than 2 seconds and 20 microseconds for each byte";

/* Takes what a search is going to cost from what the text may pay. */
static pyr_status pay(pyr_tokenizer *t, const pyr_step_data *step, uint64_t window,
                      uint64_t steps) {
  const uint64_t cost = step->refers ? window * steps
      : (window > WINDOW ? window : 0) + (steps > FREE_STEPS ? steps : 0);
  if (cost > t->regex_left) {
    char why[96];
    snprintf(why, sizeof why, "it looks at more than %d bytes for each of the text's, and %d",
             REGEX_PER_BYTE, REGEX_FREE);
    return gave_up(t, step, why);
  }
  t->regex_left -= cost;
  return PYR_OK;
}

/* The next match in s[0..n) from `at` on. PYR_OK with *found false: none. s is well-formed UTF-8.
 *
 *   s ........ at ............ stop ............. n      the window is [at, stop); what lies before
 *                                                        `at` is seen by lookbehinds
 *
 * No match within the window means that none begins there: the search goes on from `stop`. A match
 * that ends at `stop` might end elsewhere if more were seen, so it counts as partial. */
static pyr_status next_match(pyr_tokenizer *t, pyr_step_data *step, const uint8_t *s, size_t n,
                             size_t at, bool *found, size_t *start, size_t *end) {
  uint64_t window = WINDOW, steps = FREE_STEPS;
  const size_t begin = at;
  *found = false;
  if (++t->searches % CLOCK_EVERY == 0 && seconds() > t->regex_until) return gave_up(t, step, slow);
  pcre2_set_depth_limit(t->pcre_match, step->recurses ? RECURSION_MAX : UINT32_MAX);
  for (;;) {
    size_t stop = n;
    if (n - at > window && !step->whole) {
      stop = at + (size_t)window;
      while ((s[stop] & 0xC0) == 0x80) stop--;
    }
    if (window > WINDOW || steps > FREE_STEPS) {
      pyr_status status = pay(t, step, stop - at, steps);
      if (status != PYR_OK) return status;
      if (seconds() > t->regex_until) return gave_up(t, step, slow);
    }
    const uint32_t options = PCRE2_NO_UTF_CHECK | (stop < n ? PCRE2_PARTIAL_HARD : 0);
    pcre2_set_match_limit(t->pcre_match, (uint32_t)steps);
    int rc = pcre2_match(step->code, s, stop, at, options, step->match, t->pcre_match);
    if (rc == PCRE2_ERROR_JIT_STACKLIMIT)
      rc = pcre2_match(step->code, s, stop, at, options | PCRE2_NO_JIT, step->match, t->pcre_match);
    const PCRE2_SIZE *range = pcre2_get_ovector_pointer(step->match);
    if (rc >= 0 && (stop == n || range[1] < stop)) {
      if (range[0] < begin)  /* by \K in a lookbehind: cutting there would never come to an end */
        return pyr_runtime_set_error(t->rt, PYR_FORMAT,
                                     "the regular expression '%.*s' matches what lies before the "
                                     "place where it "
                                     "was asked to look", (int)(step->pattern_length < 160
                                         ? step->pattern_length : 160),
                                     (const char *)step->pattern);
      *found = true;
      *start = range[0];
      *end = range[1] < range[0] ? range[0] : range[1];   /* \K can turn them round */
      return PYR_OK;
    }
    if (rc == PCRE2_ERROR_NOMATCH) {
      if (stop == n) return PYR_OK;
      at = stop;
      window = WINDOW;
    } else if (rc == PCRE2_ERROR_PARTIAL || rc >= 0) {
      window *= 4;
    } else if (rc == PCRE2_ERROR_MATCHLIMIT) {
      steps = steps * 8 < UINT32_MAX ? steps * 8 : UINT32_MAX;
    } else if (rc == PCRE2_ERROR_NOMEMORY) {
      return pyr_nomem(t->rt, 0, "matching a regular expression");
    } else {
      char why[128];
      pcre2_get_error_message(rc, (PCRE2_UCHAR *)why, sizeof why);
      return gave_up(t, step, why);
    }
  }
}

/* ---- normalisation --------------------------------------------------------------------------- */

static pyr_status replace(pyr_tokenizer *t, pyr_step_data *step, const uint8_t *s, size_t n,
                          pyr_buffer *out) {
  size_t from = 0, length = step->pattern_length;
  pyr_status status;
  for (size_t i = 0; i + length <= n;) {
    const uint8_t *hit = memchr(s + i, step->pattern[0], n - length + 1 - i);
    if (hit == NULL) break;
    i = (size_t)(hit - s);
    if (memcmp(hit, step->pattern, length) != 0) { i++; continue; }
    if ((status = put(t, step, out, s + from, i - from)) != PYR_OK) return status;
    if ((status = put(t, step, out, step->text, step->text_length)) != PYR_OK) return status;
    i += length;
    from = i;
  }
  return put(t, step, out, s + from, n - from);
}

static pyr_status substitute(pyr_tokenizer *t, pyr_step_data *step, const uint8_t *s, size_t n,
                             pyr_buffer *out) {
  size_t from = 0, at = 0, start, end;
  while (at <= n) {
    bool found;
    pyr_status status = next_match(t, step, s, n, at, &found, &start, &end);
    if (status != PYR_OK) return status;
    if (!found) break;
    if ((status = put(t, step, out, s + from, start - from)) != PYR_OK) return status;
    if ((status = put(t, step, out, step->text, step->text_length)) != PYR_OK) return status;
    from = end;
    at = end > start || end >= n ? end + (end == start) : end + pyr_utf8_length(s[end]);
  }
  return put(t, step, out, s + from, n - from);
}

static void strip(const pyr_step_data *step, const uint8_t **s, size_t *n) {
  size_t length;
  while (step->a && *n > 0 && pyr_unicode_is_space(pyr_utf8_decode(*s,
      &length))) { *s += length; *n -= length; }
  while (step->b && *n > 0) {
    length = 1;
    while (((*s)[*n - length] & 0xC0) == 0x80) length++;
    size_t whole;
    if (!pyr_unicode_is_space(pyr_utf8_decode(*s + *n - length, &whole))) break;
    *n -= length;
  }
}

static bool begins(const uint8_t *s, size_t n, const pyr_step_data *step) {
  return n >= step->text_length && memcmp(s, step->text, step->text_length) == 0;
}

/* Runs the NORMALIZE steps; *out points to s, or into the tokenizer's scratch until the next call.
 */
pyr_status pyr_normalize(pyr_tokenizer *t, const uint8_t *s, size_t n, bool at_start,
                         const uint8_t **out, size_t *out_n) {
  const pyr_step_list *list = &t->stages[PYR_NORMALIZE];
  int flip = 0;                  /* s may lie in the other one */
  for (int i = 0; i < list->count && n > 0; i++) {
    pyr_step_data *step = &list->steps[i];
    pyr_buffer *b = &t->normal[flip];
    b->length = 0;
    bool good = true;
    const size_t wrote = step->wrote;
    pyr_status status = PYR_OK;
    switch (step->kind) {
      case PYR_STEP_NFD: good = pyr_unicode_normalize(t->rt, PYR_FORM_NFD, s, n, b, &t->work);
      break;
      case PYR_STEP_NFC: good = pyr_unicode_normalize(t->rt, PYR_FORM_NFC, s, n, b, &t->work);
      break;
      case PYR_STEP_NFKD: good = pyr_unicode_normalize(t->rt, PYR_FORM_NFKD, s, n, b, &t->work);
      break;
      case PYR_STEP_NFKC: good = pyr_unicode_normalize(t->rt, PYR_FORM_NFKC, s, n, b, &t->work);
      break;
      case PYR_STEP_LOWER: good = pyr_unicode_lower(t->rt, s, n, b); break;
      case PYR_STEP_STRIP: strip(step, &s, &n); continue;
      case PYR_STEP_PREPEND:
        if ((step->a && begins(s, n, step)) || (step->b && !at_start)) continue;
        status = put(t, step, b, step->text, step->text_length);
        if (status == PYR_OK) status = put(t, step, b, s, n);
        break;
      case PYR_STEP_REPLACE: status = replace(t, step, s, n, b); break;
      default: status = substitute(t, step, s, n, b); break;
    }
    if (!good) return pyr_nomem(t->rt, n, "normalising");
    /* Unicode's forms: bounded by themselves */
    if (status == PYR_OK && step->wrote == wrote) status = writes(t, step, b->length);
    if (status != PYR_OK) return status;
    s = b->data;
    n = b->length;
    flip ^= 1;
  }
  *out = s;
  *out_n = n;
  return PYR_OK;
}

/* ---- splitting ------------------------------------------------------------------------------- */

static pyr_status split(pyr_tokenizer *t, int index, const uint8_t *s, size_t n, bool at_start);

typedef struct pyr_cutter {      /* parts come in one by one, words go out */
  pyr_tokenizer *t;
  int next;                      /* the step that gets the words */
  const uint8_t *s;
  bool at_start;
  pyr_cut how;
  size_t start, end;             /* what is held back; empty if start == end */
  bool last;                     /* whether the last part was a match */
} pyr_cutter;

static pyr_status cut_out(pyr_cutter *c, size_t start, size_t end) {
  return start == end ? PYR_OK : split(c->t, c->next, c->s + start, end - start,
                                       c->at_start && start == 0);
}

static pyr_status cut_part(pyr_cutter *c, size_t start, size_t end, bool match) {
  bool extend = false;
  switch (c->how) {
    case PYR_CUT_REMOVED: return match ? PYR_OK : cut_out(c, start, end);
    case PYR_CUT_ISOLATED: return cut_out(c, start, end);
    case PYR_CUT_CONTIGUOUS: extend = match == c->last; break;
    case PYR_CUT_PREVIOUS: extend = match && !c->last; break;
    case PYR_CUT_NEXT: extend = !match && c->last; break;
  }
  c->last = match;
  if (extend && c->start < c->end) {
    c->end = end;
    return PYR_OK;
  }
  pyr_status status = cut_out(c, c->start, c->end);
  c->start = start;
  c->end = end;
  return status;
}

static pyr_status split_matches(pyr_tokenizer *t, int index, const uint8_t *s, size_t n,
                                bool at_start) {
  pyr_step_data *step = &t->stages[PYR_SPLIT].steps[index];
  pyr_cutter c = { .t = t, .next = index + 1, .s = s, .at_start = at_start,
                   .how = (pyr_cut)step->a };
  size_t from = 0, at = 0, start = 0, end = 0;
  pyr_status status = PYR_OK;
  while (at <= n && status == PYR_OK) {
    bool found;
    if ((status = next_match(t, step, s, n, at, &found, &start, &end)) != PYR_OK || !found) break;
    if (start > from) status = cut_part(&c, from, start, step->b != 0);
    if (status == PYR_OK) status = cut_part(&c, start, end, step->b == 0);
    from = end;
    at = end > start ? end : end < n ? end + pyr_utf8_length(s[end]) : n + 1;
    if (at == n) break;          /* only an empty match could follow */
  }
  if (status == PYR_OK && from < n) status = cut_part(&c, from, n, step->b != 0);
  return status == PYR_OK ? cut_out(&c, c.start, c.end) : status;
}

/* The last step: from GPT-2's alphabet back to bytes where it was used, then merging. */
static pyr_status word(pyr_tokenizer *t, const uint8_t *s, size_t n) {
  if (t->bytes_spelled) {
    bool memory;
    t->unspelled.length = 0;
    if (!pyr_alphabet_unspell(t->rt, s, n, &t->unspelled, &memory))
      return memory ? pyr_nomem(t->rt, n, "splitting text")
                    : pyr_runtime_set_error(t->rt, PYR_ARGUMENT,
                                            "tokenizer: a step after the byte alphabet left it");
    s = t->unspelled.data;
    n = t->unspelled.length;
  }
  if (n > t->merge_left)
    return pyr_runtime_set_error(t->rt, PYR_ARGUMENT,
                                 "the steps of the tokenizer leave more to merge than %d times "
                                 "this text and %d bytes", MERGE_GROWTH, GROWTH_FREE);
  t->merge_left -= n;
  return pyr_bpe_word(t, s, n, false);
}

static pyr_status split(pyr_tokenizer *t, int index, const uint8_t *s, size_t n, bool at_start) {
  if (n == 0) return PYR_OK;
  if (index == t->stages[PYR_SPLIT].count) return word(t, s, n);
  pyr_step_data *step = &t->stages[PYR_SPLIT].steps[index];
  pyr_buffer *b = &step->scratch;
  pyr_status status;
  b->length = 0;
  switch (step->kind) {
    case PYR_STEP_MATCH: return split_matches(t, index, s, n, at_start);
    case PYR_STEP_PREPEND:
      if ((step->a && begins(s, n, step)) || (step->b && !at_start))
        return split(t, index + 1, s, n, at_start);
      status = put(t, step, b, step->text, step->text_length);
      if (status == PYR_OK) status = put(t, step, b, s, n);
      break;
    case PYR_STEP_REPLACE: status = replace(t, step, s, n, b); break;
    default:                     /* PYR_STEP_BYTES: at most twice as long */
      status = writes(t, step, 2 * n);
      if (status == PYR_OK && !pyr_alphabet_spell(t->rt, s, n, b))
        status = pyr_nomem(t->rt, n, "splitting text");
      break;
  }
  return status == PYR_OK ? split(t, index + 1, b->data, b->length, at_start) : status;
}

/* ---- added tokens ---------------------------------------------------------------------------- */

/* The longest of the set that s[0..n) begins with; -1 if none. *compared gets how many bytes were
 * looked at. */
static int32_t longest_added(const pyr_tokenizer *t, const pyr_added_set *set, const uint8_t *s,
                             size_t n, size_t *length, size_t *compared) {
  int32_t low = 0, high = set->count, found = -1;
  size_t depth;
  for (depth = 0; low < high; depth++) {
    size_t k;
    const uint8_t *text = pyr_found_by(t, set->ids[low], &k);
    if (k == depth) {            /* the shortest of the range ends here: it is a prefix of s */
      (void)text;
      found = set->ids[low];
      *length = depth;
      while (low < high && (pyr_found_by(t, set->ids[low], &k), k == depth)) low++;
    }
    if (depth == n) break;
    int32_t a = low, b = high;   /* narrow to those with byte s[depth] */
    while (a < b) {
      int32_t middle = a + (b - a) / 2;
      if (pyr_found_by(t, set->ids[middle], &k)[depth] < s[depth]) a = middle + 1;
      else b = middle;
    }
    low = a;
    b = high;
    while (a < b) {
      int32_t middle = a + (b - a) / 2;
      if (pyr_found_by(t, set->ids[middle], &k)[depth] <= s[depth]) a = middle + 1;
      else b = middle;
    }
    high = a;
  }
  *compared = depth;
  return found;
}

static size_t last_character(const uint8_t *s, size_t n) { /* where it begins */
  size_t i = n - 1;
  while (i > 0 && (s[i] & 0xC0) == 0x80) i--;
  return i;
}

typedef pyr_status (*pyr_gap_fn)(pyr_tokenizer *t, const uint8_t *s, size_t n, bool at_start,
                                 bool parse);

/* Cuts the set's tokens out of s; what lies between goes to `gap`. A text that is found but not
 * wanted (a special one without `parse`, part of a word) is passed over whole, as the tokenizers
 * library does. */
static pyr_status cut_added(pyr_tokenizer *t, const pyr_added_set *set, const uint8_t *s, size_t n,
                            bool at_start, bool parse, pyr_gap_fn gap) {
  size_t from = 0, i = 0, length;
  pyr_status status = PYR_OK;
  while (set->count > 0) {
    while (i < n && !set->first[s[i]]) i++;
    if (i >= n) break;
    size_t compared;
    int32_t id = longest_added(t, set, s + i, n - i, &length, &compared);
    if (compared > t->added_left)
      return pyr_runtime_set_error(t->rt, PYR_ARGUMENT,
                                   "added tokens begin alike, and this text goes through them "
                                   "again and again: more "
                                   "than %d bytes compared for each of its own, and %d",
                                       ADDED_PER_BYTE, ADDED_FREE);
    t->added_left -= compared;
    if (id < 0) { i++; continue; }
    size_t start = i, end = i + length;
    int flags = t->pieces[id].bits >> PYR_BIT_TOKEN_SHIFT;
    i = end;
    if ((flags & PYR_TOKEN_SPECIAL) && !parse) continue;
    if (flags & PYR_TOKEN_WORD) {
      size_t k;
      if (start > 0 && pyr_unicode_is_word(pyr_utf8_decode(s + last_character(s, start), &k)))
        continue;
      if (end < n && pyr_unicode_is_word(pyr_utf8_decode(s + end, &k))) continue;
    }
    while ((flags & PYR_TOKEN_LSTRIP) && start > from) {
      size_t k, before = last_character(s, start);
      if (!pyr_unicode_is_space(pyr_utf8_decode(s + before, &k)) || before < from) break;
      start = before;
    }
    while ((flags & PYR_TOKEN_RSTRIP) && end < n
           && pyr_unicode_is_space(pyr_utf8_decode(s + end, &length))) end += length;
    if (start > from && (status = gap(t, s + from, start - from, at_start && from == 0,
                                      parse)) != PYR_OK) return status;
    if (!pyr_emit(t, id)) return pyr_nomem(t->rt, sizeof id, "ids");
    from = end;
    if (i < end) i = end;
  }
  return from < n ? gap(t, s + from, n - from, at_start && from == 0, parse) : PYR_OK;
}

static pyr_status to_split(pyr_tokenizer *t, const uint8_t *s, size_t n, bool at_start,
                           bool parse) {
  (void)parse;
  return split(t, 0, s, n, at_start);
}

static pyr_status to_normalize(pyr_tokenizer *t, const uint8_t *s, size_t n, bool at_start,
                               bool parse) {
  const uint8_t *form;
  size_t length;
  pyr_status status = pyr_normalize(t, s, n, at_start, &form, &length);
  return status == PYR_OK ? cut_added(t, &t->normalized, form, length, at_start, parse, to_split)
      : status;
}

pyr_status pyr_pretokenize(pyr_tokenizer *t, const uint8_t *s, size_t n, bool parse) {
  for (size_t i = 0; i < n;) {
    size_t good = pyr_utf8_valid(s + i, n - i);
    pyr_status status = good ? cut_added(t, &t->raw, s + i, good, i == 0, parse, to_normalize)
        : PYR_OK;
    if (status != PYR_OK) return status;
    size_t bad = i += good;
    while (bad < n && pyr_utf8_valid(s + bad, n - bad < 4 ? n - bad : 4) == 0) bad++;
    if (bad > i && (status = pyr_bpe_word(t, s + i, bad - i, true)) != PYR_OK) return status;
    i = bad;
  }
  return PYR_OK;
}

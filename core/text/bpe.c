/* bpe.c — byte-pair encoding of one word: neighbouring pieces merge, best rank first, leftmost
 * among equals, until no pair is left that can.
 *
 * Owns the merging. Does not own the vocabulary (tokenizer.c) and does not know how text became
 * words (split.c).
 *
 * A word that is itself a piece usually comes out whole. Whether it does is found out once per
 * piece, by merging it, and remembered in two bits; most words of real text then cost one table
 * lookup. (With `whole_words` it always does.)
 *
 * Short words are merged in an array: scan for the best rank, merge, close the gap. Long ones
 * (SENTENCE-long words are normal for SentencePiece vocabularies, which have no pre-tokenizer, and
 * a run of one letter may be a megabyte) use a doubly linked list and a binary heap of candidates
 * ordered by (rank, place): O(n log n). A candidate is stale if the pair at its place has another
 * rank by now; the pair there can only have grown, so an equal rank means the same pair.
 *
 * Where no piece of a character-level vocabulary holds a U+2581 behind another character, no merge
 * can cross such a place, so the text is cut there first: the same ids, from short words.
 *
 * Merges go by listed pairs, or (`by_score`) by the text that two neighbours form: then symbols
 * that are no piece take part too, as in SentencePiece, and what is no piece at the end falls back
 * to bytes. */
#include "text/tokenizer.h"

#include <string.h>

enum { SHORT = 32 };
#define NO_RANK UINT32_MAX

/* What merging neighbours a and b gives; NO_RANK if they do not merge. */
static uint32_t pair_rank(const pyr_tokenizer *t, const uint8_t *word, const pyr_symbol *a,
                          const pyr_symbol *b, int32_t *merged) {
  if (t->options.by_score) {
    int32_t id = pyr_vocab_find(t, word + a->start, (size_t)a->length + b->length);
    if (id < 0) return NO_RANK;
    *merged = id;
    return t->pieces[id].score_rank;
  }
  const pyr_merge *m = pyr_merge_find(t, a->id, b->id);
  if (m == NULL) return NO_RANK;
  *merged = m->id;
  return m->rank;
}

static size_t merge_short(const pyr_tokenizer *t, const uint8_t *word, pyr_symbol *s, size_t n) {
  for (size_t i = 0; i + 1 < n; i++) s[i].rank = pair_rank(t, word, &s[i], &s[i + 1], &s[i].merged);
  while (n > 1) {
    size_t best = 0;
    for (size_t i = 1; i + 1 < n; i++)
      if (s[i].rank < s[best].rank) best = i;
    if (s[best].rank == NO_RANK) break;
    s[best].id = s[best].merged;
    s[best].length += s[best + 1].length;
    memmove(&s[best + 1], &s[best + 2], (n - best - 2) * sizeof *s);
    n--;
    if (best + 1 < n) s[best].rank = pair_rank(t, word, &s[best], &s[best + 1], &s[best].merged);
    if (best > 0)
      s[best - 1].rank = pair_rank(t, word, &s[best - 1], &s[best], &s[best - 1].merged);
  }
  return n;
}

/* ---- long words ------------------------------------------------------------------------------ */

static bool before(pyr_candidate a, pyr_candidate b) {
  return a.rank != b.rank ? a.rank < b.rank : a.at < b.at;
}

static void sift_down(pyr_candidate *heap, size_t n, size_t i) {
  pyr_candidate x = heap[i];
  for (size_t child; (child = 2 * i + 1) < n; i = child) {
    if (child + 1 < n && before(heap[child + 1], heap[child])) child++;
    if (!before(heap[child], x)) break;
    heap[i] = heap[child];
  }
  heap[i] = x;
}

static void sift_up(pyr_candidate *heap, size_t i) {
  pyr_candidate x = heap[i];
  for (; i > 0 && before(x, heap[(i - 1) / 2]); i = (i - 1) / 2) heap[i] = heap[(i - 1) / 2];
  heap[i] = x;
}

/* The heap never holds more than 3 n candidates: n at first, two more for each of at most n merges.
 */
static pyr_status merge_long(pyr_tokenizer *t, const uint8_t *word, pyr_symbol *s, size_t *count) {
  size_t n = *count, size = 0;
  t->heap.length = 0;
  if (n > SIZE_MAX / (3 * sizeof(pyr_candidate))
      || !pyr_buffer_reserve(t->rt, &t->heap, 3 * n * sizeof(pyr_candidate)))
    return pyr_nomem(t->rt, 3 * n * sizeof(pyr_candidate), "merging a long word");
  pyr_candidate *heap = (pyr_candidate *)(void *)t->heap.data;
  for (size_t i = 0; i < n; i++) {
    s[i].previous = (int32_t)i - 1;
    s[i].next = i + 1 < n ? (int32_t)i + 1 : -1;
    s[i].rank = i + 1 < n ? pair_rank(t, word, &s[i], &s[i + 1], &s[i].merged) : NO_RANK;
    if (s[i].rank != NO_RANK) heap[size++] = (pyr_candidate){ s[i].rank, (uint32_t)i };
  }
  for (size_t i = size / 2; i-- > 0;) sift_down(heap, size, i);
  while (size > 0) {
    pyr_candidate top = heap[0];
    heap[0] = heap[--size];
    if (size > 0) sift_down(heap, size, 0);
    pyr_symbol *a = &s[top.at];
    if (a->length == 0 || a->rank != top.rank) continue;
    pyr_symbol *b = &s[a->next];
    a->id = a->merged;
    a->length += b->length;
    a->next = b->next;
    b->length = 0;
    if (a->next >= 0) s[a->next].previous = (int32_t)top.at;
    a->rank = a->next >= 0 ? pair_rank(t, word, a, &s[a->next], &a->merged) : NO_RANK;
    if (a->rank != NO_RANK) {
      heap[size] = (pyr_candidate){ a->rank, top.at };
      sift_up(heap, size++);
    }
    if (a->previous >= 0) {
      pyr_symbol *p = &s[a->previous];
      p->rank = pair_rank(t, word, p, a, &p->merged);
      if (p->rank != NO_RANK) {
        heap[size] = (pyr_candidate){ p->rank, (uint32_t)a->previous };
        sift_up(heap, size++);
      }
    }
  }
  size_t kept = 0;
  for (size_t i = 0; i < n; i++)
    if (s[i].length > 0) s[kept++] = s[i];
  *count = kept;
  return PYR_OK;
}

/* ---- from a word to symbols and from symbols to ids ------------------------------------------ */

static pyr_status no_room(pyr_tokenizer *t, size_t n) {
  return pyr_nomem(t->rt, n * sizeof(pyr_symbol), "encoding a word");
}

static void add_symbol(pyr_symbol **end, int32_t id, size_t start, size_t length) {
  *(*end)++ = (pyr_symbol){ .id = id, .start = (uint32_t)start, .length = (uint32_t)length };
}

/* Starting symbols of word[0..n): bytes, or characters. Listed merges need an id at once, so a
 * character without a piece falls back here; what the vocabulary cannot say at all becomes
 * `unknown` or is dropped, as the tokenizers library does. Scores can merge it still: it stays
 * without an id. */
static pyr_status start_symbols(pyr_tokenizer *t, const uint8_t *word, size_t n, bool broken,
                                size_t *count) {
  const pyr_tokenizer_options *o = &t->options;
  t->symbols.length = 0;
  if (n > SIZE_MAX / sizeof(pyr_symbol) || !pyr_buffer_reserve(t->rt, &t->symbols,
      n * sizeof(pyr_symbol))) return no_room(t, n);
  pyr_symbol *s = (pyr_symbol *)(void *)t->symbols.data, *end = s;
  bool unknown_before = false;
  for (size_t i = 0, length; i < n; i += length) {
    int32_t id;
    if (o->byte_level || broken) {
      length = 1;
      id = t->byte_piece[word[i]];
    } else if (word[i] < 0x80) {
      length = 1;
      id = t->ascii_piece[word[i]];
    } else {
      length = pyr_utf8_length(word[i]);
      id = pyr_vocab_find(t, word + i, length);
    }
    bool unknown = id < 0;
    if (!unknown || o->by_score) {
      add_symbol(&end, id, i, length);
      unknown = false;
    } else if (o->byte_fallback && !o->byte_level) {
      unknown = false;
      for (size_t k = 0; k < length; k++) unknown |= t->byte_piece[word[i + k]] < 0;
      for (size_t k = 0; k < length && !unknown; k++)
        add_symbol(&end, t->byte_piece[word[i + k]], i + k, 1);
    }
    if (unknown && t->unknown >= 0) {
      if (unknown_before && o->fuse_unknown) end[-1].length += (uint32_t)length;
      else add_symbol(&end, t->unknown, i, length);
    }
    unknown_before = unknown && t->unknown >= 0;
  }
  *count = (size_t)(end - s);
  return PYR_OK;
}

static pyr_status emit_symbols(pyr_tokenizer *t, const uint8_t *word, const pyr_symbol *s,
                               size_t n) {
  bool unknown_before = false;
  for (size_t i = 0; i < n; i++) {
    if (s[i].id >= 0) {
      if (!pyr_emit(t, s[i].id)) return no_room(t, n);
      unknown_before = false;
      continue;
    }
    bool unknown = !t->options.byte_fallback;
    for (uint32_t k = 0; k < s[i].length && !unknown; k++)
      unknown = t->byte_piece[word[s[i].start + k]] < 0;
    for (uint32_t k = 0; k < s[i].length && !unknown; k++)
      if (!pyr_emit(t, t->byte_piece[word[s[i].start + k]])) return no_room(t, n);
    if (unknown && t->unknown >= 0 && !(unknown_before && t->options.fuse_unknown))
      if (!pyr_emit(t, t->unknown)) return no_room(t, n);
    unknown_before = unknown;
  }
  return PYR_OK;
}

static pyr_status merge_word(pyr_tokenizer *t, const uint8_t *word, size_t n, bool broken,
                             size_t *count) {
  pyr_status status = start_symbols(t, word, n, broken, count);
  if (status != PYR_OK || (broken && !t->options.byte_level)) return status;
  pyr_symbol *s = (pyr_symbol *)(void *)t->symbols.data;
  if (*count > SHORT) return merge_long(t, word, s, count);
  *count = merge_short(t, word, s, *count);
  return PYR_OK;
}

static pyr_status chunk(pyr_tokenizer *t, const uint8_t *word, size_t n, bool broken) {
  int32_t id = broken ? -1 : pyr_vocab_find(t, word, n);
  if (id >= 0 && (t->options.whole_words || (t->pieces[id].bits & PYR_BIT_WHOLE)))
    return pyr_emit(t, id) ? PYR_OK : no_room(t, 1);
  size_t count = 0;
  pyr_status status = merge_word(t, word, n, broken, &count);
  if (status != PYR_OK) return status;
  const pyr_symbol *s = (const pyr_symbol *)(const void *)t->symbols.data;
  if (id >= 0 && !(t->pieces[id].bits & PYR_BIT_TORN))
    t->pieces[id].bits |= count == 1 && s[0].id == id ? PYR_BIT_WHOLE : PYR_BIT_TORN;
  return emit_symbols(t, word, s, count);
}

pyr_status pyr_bpe_word(pyr_tokenizer *t, const uint8_t *word, size_t n, bool broken) {
  if (!t->cut_at_marks || broken) return chunk(t, word, n, broken);
  size_t from = 0;
  for (size_t i = 1; i + 3 <= n; i++) {
    if (word[i] != 0xE2 || word[i + 1] != 0x96 || word[i + 2] != 0x81) continue;
    bool after_mark = i >= 3 && memcmp(word + i - 3, word + i, 3) == 0;
    if (!after_mark) {
      pyr_status status = chunk(t, word + from, i - from, false);
      if (status != PYR_OK) return status;
      from = i;
    }
    i += 2;
  }
  return chunk(t, word + from, n - from, false);
}

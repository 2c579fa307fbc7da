/* lexicon.c — a vocabulary as bytes: what each token adds to a text, in a trie.
 *
 * What a token adds is what a decoder shows for it in the middle of a text, bytes as they are: a
 * byte piece (<0xE2>) is its byte, and a character may begin in one token and end in the next.
 * Control tokens, the unknown token and pieces that show nothing are text for no grammar.
 *
 * The trie comes out of the sorted texts in one pass, as neighbours share their beginnings:
 *
 *     sorted   an  and  b            nodes   0 a   depth 0, skip 3
 *                                            1  n  depth 1, skip 3, token "an"
 *                                            2   d depth 2, skip 3, token "and"
 *                                            3 b   depth 0, skip 4, token "b" */
#include "grammar/guide.h"

#include <stdlib.h>
#include <string.h>

/* Longer tokens are never allowed: a node's depth has 16 bits, and no model's token is as long. */
enum { LONGEST = 4096 };

typedef struct entry { const uint8_t *text; uint32_t length; int32_t id; } entry;

pyr_lexicon *pyr_lexicon_retain(pyr_lexicon *x) {
  x->refs++;
  return x;
}

void pyr_lexicon_free(pyr_lexicon *x) {
  if (x == NULL || --x->refs > 0) return;
  pyr_runtime *rt = x->rt;
  size_t count = (size_t)x->count;
  pyr_buffer_free(rt, &x->nodes);
  pyr_buffer_free(rt, &x->text);
  if (x->starts) pyr_release(rt, x->starts, (count + 1) * sizeof *x->starts);
  if (x->same) pyr_release(rt, x->same, count * sizeof *x->same);
  if (x->ends) pyr_release(rt, x->ends, x->words * sizeof *x->ends);
  pyr_release(rt, x, sizeof *x);
  pyr_runtime_free(rt);
}

static int compare(const void *a, const void *b) {
  const entry *x = a, *y = b;
  uint32_t n = x->length < y->length ? x->length : y->length;
  int order = memcmp(x->text, y->text, n);
  if (order != 0) return order;
  if (x->length != y->length) return x->length < y->length ? -1 : 1;
  return x->id < y->id ? -1 : x->id > y->id;
}

/* What each token shows, one after the other in `text`. */
static pyr_status read_texts(pyr_lexicon *x, pyr_tokenizer *t, int32_t unknown) {
  pyr_decoder *d = NULL;
  pyr_status status = pyr_decoder_new(t, PYR_DECODE_BYTES | PYR_DECODE_CONTINUE, &d);
  for (int32_t id = 0; status == PYR_OK && id < x->count; id++) {
    const char *text;
    size_t length = 0;
    int flags = pyr_tokenizer_flags(t, id);
    x->starts[id] = (uint32_t)x->text.length;
    if (flags < 0 || flags & PYR_TOKEN_SPECIAL || id == unknown
        || x->ends[id / 32] >> (id % 32) & 1) continue;
    status = pyr_decoder_push(d, &id, 1, &text, &length);
    if (status != PYR_OK || length == 0 || length > LONGEST) continue;
    if (x->text.length + length > UINT32_MAX || !pyr_buffer_append(x->rt, &x->text, text, length))
      status = pyr_nomem(x->rt, length, "a lexicon");
    if (length > x->longest) x->longest = (uint32_t)length;
  }
  x->starts[x->count] = (uint32_t)x->text.length;
  if (status != PYR_OK && x->rt != pyr_tokenizer_runtime(t))
    (void)pyr_runtime_set_error(x->rt, status, "%s", pyr_runtime_error(pyr_tokenizer_runtime(t)));
  pyr_decoder_free(d);
  return status;
}

/* Entries are sorted. Of the text before, path[k] is the node of its byte k; when the texts part
 * at byte k, the nodes from path[k] on have all that is below them. */
static pyr_status make_trie(pyr_lexicon *x, const entry *entries, size_t count, uint32_t *path) {
  uint32_t depth = 0, made = 0;
  for (size_t i = 0; i <= count; i++) {
    const entry *e = &entries[i], *last = i > 0 ? e - 1 : NULL;
    uint32_t common = 0;
    while (i < count && last && common < last->length && common < e->length
           && last->text[common] == e->text[common]) common++;
    while (depth > common) ((pyr_trie_node *)x->nodes.data)[path[--depth]].skip = made;
    if (i == count) break;
    if (last && common == e->length) {         /* the same bytes: `compare` puts the lower first */
      x->same[last->id] = e->id;
      continue;
    }
    for (; depth < e->length; depth++) {
      pyr_trie_node node = { 0, depth + 1 == e->length ? e->id : -1, (uint16_t)depth,
                             e->text[depth] };
      if (!pyr_buffer_append(x->rt, &x->nodes, &node, sizeof node))
        return pyr_nomem(x->rt, sizeof node, "a lexicon");
      path[depth] = made++;
    }
  }
  return PYR_OK;
}

static pyr_status sort_texts(pyr_lexicon *x) {
  size_t count = 0, bytes = (size_t)x->count * sizeof(entry);
  entry *entries = pyr_alloc(x->rt, bytes);
  uint32_t *path = pyr_alloc(x->rt, (x->longest + 1) * sizeof *path);
  pyr_status status = entries && path ? PYR_OK : pyr_nomem(x->rt, bytes, "a lexicon");
  for (int32_t id = 0; status == PYR_OK && id < x->count; id++) {
    uint32_t from = x->starts[id], length = x->starts[id + 1] - from;
    if (length > 0) entries[count++] = (entry){ x->text.data + from, length, id };
  }
  if (status == PYR_OK && count > 0) {
    qsort(entries, count, sizeof *entries, compare);
    status = make_trie(x, entries, count, path);
  }
  if (entries) pyr_release(x->rt, entries, bytes);
  if (path) pyr_release(x->rt, path, (x->longest + 1) * sizeof *path);
  return status;
}

pyr_status pyr_lexicon_new(pyr_tokenizer *t, int32_t count, int32_t unknown, const int32_t *ends,
                           int32_t end_count, pyr_lexicon **out) {
  pyr_runtime *rt = pyr_tokenizer_runtime(t);
  if (count < 1 || count > 1 << 24)
    return pyr_runtime_set_error(rt, PYR_ARGUMENT, "lexicon: a vocabulary of %d", (int)count);
  pyr_lexicon *x = pyr_alloc_zero(rt, sizeof *x);
  if (x == NULL) return pyr_nomem(rt, sizeof *x, "a lexicon");
  x->rt = pyr_runtime_retain(rt);
  x->refs = 1;
  x->count = count;
  x->words = ((size_t)count + 31) / 32;
  x->starts = pyr_alloc(rt, ((size_t)count + 1) * sizeof *x->starts);
  x->same = pyr_alloc(rt, (size_t)count * sizeof *x->same);
  x->ends = pyr_alloc_zero(rt, x->words * sizeof *x->ends);
  pyr_status status = x->starts && x->same && x->ends ? PYR_OK
      : pyr_nomem(rt, (size_t)count * sizeof *x->starts, "a lexicon");
  if (status != PYR_OK) goto fail;
  for (int32_t id = 0; id < count; id++) x->same[id] = -1;
  for (int32_t i = 0; i < end_count; i++)
    if (ends[i] >= 0 && ends[i] < count) x->ends[ends[i] / 32] |= 1u << (ends[i] % 32);
  status = read_texts(x, t, unknown);
  if (status == PYR_OK) status = sort_texts(x);
  if (status != PYR_OK) goto fail;
  *out = x;
  return PYR_OK;
fail:
  pyr_lexicon_free(x);
  return status;
}

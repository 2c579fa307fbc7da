/* vocab.c — the vocabulary: which piece has these bytes, which has this id, what two become.
 *
 * Two open-addressing tables with linear probing and a load of at most 3/4 answer the two questions
 * of merging: which piece has these bytes, and what does this pair of pieces become, at which rank.
 * A third one finds the piece of a file's id. All grow with what the file lists: one piece with the
 * id 16,777,215 takes as much room as one with the id 0. Everything that encodes or decodes asks
 * here; what may be put in is checked by tokenizer.c. */
#include "text/tokenizer.h"

#include <string.h>

static uint64_t mix(uint64_t x) {
  x ^= x >> 32;
  x *= 0x9E3779B97F4A7C15u;
  return x ^ x >> 29;
}

static uint32_t bytes_hash(const uint8_t *s, size_t n) {
  uint64_t h = n * 0xD6E8FEB86659FD93u, word;
  for (; n >= 8; s += 8, n -= 8) {
    memcpy(&word, s, 8);
    h = mix(h ^ word);
  }
  if (n > 0) {
    word = 0;
    memcpy(&word, s, n);
    h = mix(h ^ word);
  }
  return (uint32_t)(mix(h) >> 16);
}

int32_t pyr_vocab_find(const pyr_tokenizer *t, const uint8_t *s, size_t n) {
  if (t->slot_count == 0 || n > t->longest) return -1;
  uint32_t hash = bytes_hash(s, n);
  for (size_t i = hash & (t->slot_count - 1); t->slots[i].id >= 0;
       i = (i + 1) & (t->slot_count - 1)) {
    int32_t id = t->slots[i].id;
    if (t->slots[i].hash == hash && t->pieces[id].length == n
        && memcmp(t->text.data + t->pieces[id].start, s, n) == 0) return id;
  }
  return -1;
}

static pyr_status slots_grow(pyr_tokenizer *t) {
  pyr_slot *old = t->slots;
  size_t count = t->slot_count, grown = count ? count * 2 : 64, bytes = grown * sizeof *old;
  pyr_slot *fresh = pyr_alloc(t->rt, bytes);
  if (fresh == NULL) return pyr_nomem(t->rt, bytes, "tokenizer vocabulary");
  for (size_t i = 0; i < grown; i++) fresh[i].id = -1;
  for (size_t k = 0; k < count; k++) {
    if (old[k].id < 0) continue;
    size_t i = old[k].hash & (grown - 1);
    while (fresh[i].id >= 0) i = (i + 1) & (grown - 1);
    fresh[i] = old[k];
  }
  t->slots = fresh;
  t->slot_count = grown;
  pyr_release(t->rt, old, count * sizeof *old);
  return PYR_OK;
}

void pyr_vocab_insert(pyr_tokenizer *t, int32_t id) {
  const uint8_t *s = t->text.data + t->pieces[id].start;
  size_t n = t->pieces[id].length, i;
  uint32_t hash = bytes_hash(s, n);
  for (i = hash & (t->slot_count - 1); t->slots[i].id >= 0; i = (i + 1) & (t->slot_count - 1)) {
    int32_t other = t->slots[i].id;
    if (t->slots[i].hash == hash && t->pieces[other].length == n
        && memcmp(t->text.data + t->pieces[other].start, s, n) == 0) break;
  }
  if (t->slots[i].id < 0) t->slot_used++;
  t->slots[i] = (pyr_slot){ hash, id };
  if (n > t->longest) t->longest = (uint32_t)n;
}

static size_t merge_home(const pyr_tokenizer *t, uint32_t left, uint32_t right) {
  return (size_t)(mix((uint64_t)left << 32 | right) >> 7) & (t->merge_count - 1);
}

const pyr_merge *pyr_merge_find(const pyr_tokenizer *t, int32_t left, int32_t right) {
  if (left < 0 || right < 0 || t->merge_count == 0) return NULL;
  uint32_t l = (uint32_t)left, r = (uint32_t)right;
  for (size_t i = merge_home(t, l, r); t->merges[i].id >= 0; i = (i + 1) & (t->merge_count - 1))
    if (t->merges[i].left == l && t->merges[i].right == r) return &t->merges[i];
  return NULL;
}

void pyr_merge_insert(pyr_tokenizer *t, pyr_merge m) {
  size_t i;
  for (i = merge_home(t, m.left, m.right); t->merges[i].id >= 0; i = (i + 1) & (t->merge_count - 1))
    if (t->merges[i].left == m.left && t->merges[i].right == m.right) break;
  if (t->merges[i].id < 0) t->merge_used++;
  t->merges[i] = m;
}

static pyr_status merge_grow(pyr_tokenizer *t) {
  pyr_merge *old = t->merges;
  size_t count = t->merge_count, grown = count ? count * 2 : 1024, bytes;
  if (!pyr_mul_size(grown, sizeof *old, &bytes))
    return pyr_nomem(t->rt, SIZE_MAX, "tokenizer merges");
  pyr_merge *fresh = pyr_alloc(t->rt, bytes);
  if (fresh == NULL) return pyr_nomem(t->rt, bytes, "tokenizer merges");
  for (size_t i = 0; i < grown; i++) fresh[i].id = -1;
  t->merges = fresh;
  t->merge_count = grown;
  t->merge_used = 0;
  for (size_t i = 0; i < count; i++)
    if (old[i].id >= 0) pyr_merge_insert(t, old[i]);
  pyr_release(t->rt, old, count * sizeof *old);
  return PYR_OK;
}

pyr_status pyr_merge_reserve(pyr_tokenizer *t) {
  return t->merge_used + 1 > t->merge_count / 4 * 3 ? merge_grow(t) : PYR_OK;
}

static size_t place_home(const pyr_tokenizer *t, int32_t file_id) {
  return (size_t)(mix((uint64_t)(uint32_t)file_id + 1) >> 7) & (t->place_count - 1);
}

int32_t pyr_vocab_place(const pyr_tokenizer *t, int32_t file_id) {
  if (file_id < 0) return -1;
  /* pieces that came in order */
  if (file_id < t->count && t->pieces[file_id].id == file_id) return file_id;
  if (t->place_count == 0) return -1;
  for (size_t i = place_home(t, file_id); t->places[i] >= 0; i = (i + 1) & (t->place_count - 1))
    if (t->pieces[t->places[i]].id == file_id) return t->places[i];
  return -1;
}

pyr_status pyr_vocab_reserve(pyr_tokenizer *t) {
  if (t->count == t->size) {
    int32_t size = t->size ? t->size * 2 : 64;  /* ids are below VOCAB_MAX, and so are counts */
    size_t before = (size_t)t->size * sizeof *t->pieces, bytes = (size_t)size * sizeof *t->pieces;
    pyr_vocab_piece *pieces = t->pieces ? pyr_realloc(t->rt, t->pieces, before, bytes)
        : pyr_alloc(t->rt, bytes);
    if (pieces == NULL) return pyr_nomem(t->rt, bytes, "tokenizer vocabulary");
    t->pieces = pieces;
    t->size = size;
  }
  if ((size_t)t->count + 1 > t->place_count / 4 * 3) {
    size_t count = t->place_count, grown = count ? count * 2 : 64;
    int32_t *old = t->places, *fresh = pyr_alloc(t->rt, grown * sizeof *fresh);
    if (fresh == NULL) return pyr_nomem(t->rt, grown * sizeof *fresh, "tokenizer vocabulary");
    memset(fresh, 0xFF, grown * sizeof *fresh);
    t->places = fresh;
    t->place_count = grown;
    for (int32_t k = 0; k < t->count; k++) {
      size_t i = place_home(t, t->pieces[k].id);
      while (fresh[i] >= 0) i = (i + 1) & (grown - 1);
      fresh[i] = k;
    }
    pyr_release(t->rt, old, count * sizeof *old);
  }
  return t->slot_used + 1 > t->slot_count / 4 * 3 ? slots_grow(t) : PYR_OK;
}

void pyr_vocab_append(pyr_tokenizer *t, pyr_vocab_piece piece) {
  size_t i = place_home(t, piece.id);
  while (t->places[i] >= 0) i = (i + 1) & (t->place_count - 1);
  t->places[i] = t->count;
  t->pieces[t->count++] = piece;
}

bool pyr_emit(pyr_tokenizer *t, int32_t id) {
  return pyr_buffer_append(t->rt, &t->ids, &t->pieces[id].id, sizeof t->pieces[id].id);
}

const uint8_t *pyr_found_by(const pyr_tokenizer *t, int32_t id, size_t *length) {
  if (t->pieces[id].found_length) {
    *length = t->pieces[id].found_length;
    return t->text.data + t->pieces[id].found_start;
  }
  *length = t->pieces[id].length;
  return t->text.data + t->pieces[id].start;
}

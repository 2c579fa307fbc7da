/* sampler.c — logits to a token id: seeded, reproducible, without sorting the vocabulary.
 *
 * Owns: the random state, the counts of ids seen, two work arrays that grow to the vocabulary once.
 * Knows nothing of models or caches.
 *
 * A pick goes through these steps, in this order (that of Hugging Face transformers; llama.cpp puts
 * the temperature last, which changes what top_p and min_p see):
 *
 *   0. what may not follow, by a grammar or for this pick alone, counts as not there
 *   1. logit bias:          l += bias                                     (-inf bans an id)
 *   2. repetition penalty: l > 0: l / penalty; else l * penalty for ids seen (CTRL, arXiv
 *      1909.05858)
 *   3. frequency, presence: l -= frequency * count + presence             for ids seen
 *   4. temperature 0: the highest l is the pick. Otherwise l /= temperature
 *   5. top_k: the k highest
 *   6. top_p: of those, renormalised, the fewest highest whose probabilities sum to p or more, at
 *      least one
 *             (arXiv 1904.09751)
 *   7. min_p: of those, the ones at least min_p times as probable as the most probable (arXiv
 *      2407.01082)
 *   8. one of those is drawn, with the probabilities renormalised, in the order of their ids.
 *
 * In numbers: logits 2.0, 1.0, 0.5, -1.0 of ids 0 to 3, id 0 seen once, repetition penalty 2,
 * temperature 0.5, top_p 0.9:
 *
 *     penalty        1.0   1.0   0.5  -1.0        id 0 was seen: 2.0 / 2
 *     temperature    2.0   2.0   1.0  -2.0
 *     probability    .419  .419  .154  .008
 *     top_p 0.9      .419  .419  .154   -         .838 is below 0.9, so id 2 stays, too
 *     drawn          of ids 0, 1, 2 in this order, with these over their sum, .992
 *
 * NaN and infinite logits are never picked. Equal logits count as descending by id, and
 * probabilities are whole numbers (sample_math.h), so that every step has one answer, on every
 * device.
 *
 * Costs. Greedy is one pass. top_k keeps a heap of k: one pass, most of whose values fail the first
 * comparison. top_p is a quickselect by weight, in linear time, and so is the draw.
 *
 * Ids seen are counted in an open-addressing table, whose size depends on how many different ids
 * there were and not on the vocabulary. With `penalty_last`, a ring holds the ids that count, those
 * that leave it are discounted, and both are allocated once. */
#include "sample/sampler.h"
#include "sample/sample_math.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

/* The longest ring takes 4 MiB, and its table 32 MiB. Up to 16 entries are sorted by insertion:
 * to split so few once more costs more than it saves. */
enum { PYR_PENALTY_LAST_MAX = 1 << 20, PYR_SORT_FEW = 16 };

typedef struct entry { float value; int32_t id; uint64_t weight; } entry;
typedef struct seen { int32_t id, count; } seen;                   /* id < 0: an empty slot */

struct pyr_sampler {
  pyr_runtime *rt;
  pyr_sampler_options o;       /* o.bias is owned */
  uint64_t random[4];
  int32_t bias_room;           /* of o.bias, which may hold fewer */
  bool penalised;              /* whether history matters at all */

  seen *table;                 /* [slots], a power of two; at most half full */
  size_t slots, used;
  int32_t *ring;               /* [o.penalty_last], or NULL: all ids count */
  int64_t ring_at, ring_held;

  float *logits;               /* [capacity] after steps 1-3 */
  entry *entries;              /* [capacity] candidates */
  size_t capacity;
  pyr_change *changes;         /* [change_room] what a device is told of ids */
  size_t change_room;

  pyr_place place;             /* where its text stands in a grammar; a zeroed one: there is none */
  uint32_t *mask;              /* [mask_words] the tokens that the grammar allows there */
  size_t mask_words;
  uint32_t *allowed;           /* [allow_room] a bit for each id that the next pick may be … */
  size_t allow_room;
  bool allows;                 /* … if it is asked for */
};

/* ---- random numbers: xoshiro256**, seeded by splitmix64 (Blackman and Vigna) ----------------- */

static uint64_t splitmix64(uint64_t *state) {
  uint64_t z = *state += 0x9e3779b97f4a7c15u;
  z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9u;
  z = (z ^ z >> 27) * 0x94d049bb133111ebu;
  return z ^ z >> 31;
}

static uint64_t rotate_left(uint64_t x, int k) { return x << k | x >> (64 - k); }

static uint64_t random_next(uint64_t s[4]) {
  uint64_t result = rotate_left(s[1] * 5, 7) * 9, t = s[1] << 17;
  s[2] ^= s[0];
  s[3] ^= s[1];
  s[1] ^= s[2];
  s[0] ^= s[3];
  s[2] ^= t;
  s[3] = rotate_left(s[3], 45);
  return result;
}

/* ---- ids seen -------------------------------------------------------------------------------- */

/* 2654435769 is 2^32 over the golden ratio: neighbouring ids come to lie far apart. The low bits
 * of a product depend on the low bits of its factors alone, so the lowest 8 are left out. */
static size_t home_of(size_t slots, int32_t id) {
  return ((uint32_t)id * 2654435769u >> 8) & (slots - 1);
}

/* Where an id is, or would be put. At most half of the slots are taken, so there is an end to it.
 */
static size_t slot_of(const seen *table, size_t slots, int32_t id) {
  size_t i = home_of(slots, id);
  while (table[i].id >= 0 && table[i].id != id) i = (i + 1) & (slots - 1);
  return i;
}

/* The new table is full before the old one goes: where memory is short, nothing has changed.
 * `used` stays, as each id finds one slot again. */
static pyr_status resize_table(pyr_sampler *s, size_t slots) {
  seen *table = pyr_alloc(s->rt, slots * sizeof *table);
  if (table == NULL) return pyr_nomem(s->rt, slots * sizeof *table, "the sampler's history");
  for (size_t i = 0; i < slots; i++) table[i] = (seen){ -1, 0 };
  for (size_t i = 0; i < s->slots; i++)
    if (s->table[i].id >= 0) table[slot_of(table, slots, s->table[i].id)] = s->table[i];
  pyr_release(s->rt, s->table, s->slots * sizeof *s->table);
  s->table = table;
  s->slots = slots;
  return PYR_OK;
}

/* Makes sure that one more id finds a slot. A ring's table never grows: it was made for
 * `penalty_last` different ids and one more. */
static pyr_status reserve_slot(pyr_sampler *s) {
  return 2 * (s->used + 1) > s->slots && s->ring == NULL ? resize_table(s, s->slots * 2) : PYR_OK;
}

/* The slot of an id, new with a count of 0 if it has none, which changes no pick. */
static seen *take_slot(pyr_sampler *s, int32_t id) {
  seen *slot = &s->table[slot_of(s->table, s->slots, id)];
  if (slot->id < 0) {
    *slot = (seen){ id, 0 };
    s->used++;
  }
  return slot;
}

/* Counts down, and closes the gap that an id leaves when it is gone, so that linear probing needs
 * no tombstones. Invariant of the loop: but for `gap`, every id is found by probing from its
 * home. An entry moves into the gap unless its home lies behind it, cyclically: then probing
 * never passed the gap.
 *
 *     slot       2   3   4   5   6
 *     id         a   b   c   d   .          homes: a, b 2;  c 3;  d 5
 *     a leaves   .   b   c   d   .          b has its home at 2, moves to 2: the gap is 3
 *                b   .   c   d   .          c has its home at 3, moves to 3: the gap is 4
 *                b   c   .   d   .          d is at home: it stays. The next slot is empty: done */
static void discount(pyr_sampler *s, int32_t id) {
  size_t mask = s->slots - 1, gap = slot_of(s->table, s->slots, id);
  if (--s->table[gap].count > 0) return;
  s->used--;
  for (size_t i = (gap + 1) & mask; s->table[i].id >= 0; i = (i + 1) & mask) {
    size_t home = home_of(s->slots, s->table[i].id);
    if (((i - home) & mask) < ((i - gap) & mask)) continue;  /* its probing starts after the gap */
    s->table[gap] = s->table[i];
    gap = i;
  }
  s->table[gap].id = -1;
}

/* Remembers one id; its slot is reserved. With a ring of 3 that holds 7, 9, 7, id 4 takes the
 * place of the oldest: 7 is counted once less, 4 once more, and the table has 7, 9 and 4 with a
 * count of 1 each. */
static void remember(pyr_sampler *s, int32_t id) {
  if (s->ring) {
    if (s->ring_held == s->o.penalty_last) discount(s, s->ring[s->ring_at]);
    else s->ring_held++;
    s->ring[s->ring_at] = id;
    s->ring_at = (s->ring_at + 1) % s->o.penalty_last;
  }
  seen *slot = take_slot(s, id);
  if (slot->count < INT32_MAX) slot->count++;
}

pyr_status pyr_sampler_accept(pyr_sampler *s, const int32_t *ids, int64_t n) {
  for (int64_t i = 0; i < n; i++)
    if (ids[i] < 0)
      return pyr_runtime_set_error(s->rt, PYR_ARGUMENT, "sampler: id %d is negative", (int)ids[i]);
  if (!s->penalised) return PYR_OK;
  /* all or nothing: first the slots, which may fail, then the counts */
  for (int64_t i = 0; i < n && s->ring == NULL; i++) {
    pyr_status status = reserve_slot(s);
    if (status != PYR_OK) return status;
    take_slot(s, ids[i]);
  }
  for (int64_t i = 0; i < n; i++) remember(s, ids[i]);
  return PYR_OK;
}

/* ---- biases ---------------------------------------------------------------------------------- */

static int by_id(const void *a, const void *b) {
  int32_t x = ((const pyr_logit_bias *)a)->id, y = ((const pyr_logit_bias *)b)->id;
  return (x > y) - (x < y);
}

/* Ascending by id, those of one id added up; returns how many are left. Invariant: bias[0..kept)
 * ascends strictly by id, and kept <= i. Ids 5, 2, 5 with 1.0, 0.5, 2.0 become 2, 5 with 0.5,
 * 3.0. */
static int32_t merge_biases(pyr_logit_bias *bias, int32_t count) {
  int32_t kept = 0;
  qsort(bias, (size_t)count, sizeof *bias, by_id);
  for (int32_t i = 0; i < count; i++) {
    if (kept > 0 && bias[kept - 1].id == bias[i].id) bias[kept - 1].bias += bias[i].bias;
    else bias[kept++] = bias[i];
  }
  return kept;
}

static const pyr_logit_bias *bias_of(const pyr_sampler *s, int32_t id) {
  pyr_logit_bias key = { .id = id };
  return s->o.bias_count ? bsearch(&key, s->o.bias, (size_t)s->o.bias_count, sizeof key, by_id)
      : NULL;
}

/* ---- life ------------------------------------------------------------------------------------ */

static pyr_status check_options(pyr_runtime *rt, const pyr_sampler_options *o) {
#define REQUIRE(what, ok, rule) \
  if (!(ok)) return pyr_runtime_set_error(rt, PYR_ARGUMENT, "sampler: " what " must be " rule)
  REQUIRE("temperature", o->temperature >= 0 && isfinite(o->temperature), "0 (greedy) or more");
  REQUIRE("top_k", o->top_k >= 0, "0 (off) or more");
  REQUIRE("top_p", o->top_p >= 0 && isfinite(o->top_p), "above 0; 0, and 1 or more, turn it off");
  REQUIRE("min_p", o->min_p >= 0 && o->min_p <= 1, "between 0 (off) and 1");
  REQUIRE("repeat_penalty", o->repeat_penalty >= 0 && isfinite(o->repeat_penalty),
          "above 0; 0 and 1 turn it off");
  REQUIRE("frequency_penalty", isfinite(o->frequency_penalty), "finite");
  REQUIRE("presence_penalty", isfinite(o->presence_penalty), "finite");
  REQUIRE("penalty_last", o->penalty_last >= 0 && o->penalty_last <= PYR_PENALTY_LAST_MAX,
          "0 (all) to 2^20");
  REQUIRE("bias_count", o->bias_count >= 0 && (o->bias || o->bias_count == 0),
          "the length of bias");
#undef REQUIRE
  for (size_t i = 0; i < sizeof o->reserved / sizeof *o->reserved; i++)
    if (o->reserved[i])
      return pyr_runtime_set_error(rt, PYR_ARGUMENT,
                                   "sampler: its reserved members must be zero in this version");
  for (int32_t i = 0; i < o->bias_count; i++) {
    if (o->bias[i].id < 0)
      return pyr_runtime_set_error(rt, PYR_ARGUMENT, "sampler: bias of id %d, which is negative",
                                   (int)o->bias[i].id);
    if (isnan(o->bias[i].bias) || o->bias[i].bias == INFINITY)
      return pyr_runtime_set_error(rt, PYR_ARGUMENT,
                                   "sampler: the bias of id %d must be finite, or -inf to ban it",
                                       (int)o->bias[i].id);
  }
  return PYR_OK;
}

/* Owns from here on: a reference to the runtime, its biases, the table and the ring; the work
 * arrays come with the first pick that wants them. On failure all of it goes back, and *out is
 * as it was. */
pyr_status pyr_sampler_new(pyr_runtime *rt, const pyr_sampler_options *options, pyr_sampler **out) {
  static const pyr_sampler_options greedy;
  if (options == NULL) options = &greedy;
  pyr_status status = check_options(rt, options);
  if (status != PYR_OK) return status;
  pyr_sampler *s = pyr_alloc_zero(rt, sizeof *s);
  if (s == NULL) return pyr_nomem(rt, sizeof *s, "a sampler");
  s->rt = pyr_runtime_retain(rt);
  s->o = *options;
  s->o.bias = NULL;
  if (s->o.repeat_penalty == 0) s->o.repeat_penalty = 1;
  s->penalised = s->o.repeat_penalty != 1 || s->o.frequency_penalty != 0
      || s->o.presence_penalty != 0;

  size_t bytes = (size_t)options->bias_count * sizeof *options->bias;
  if (bytes) {
    pyr_logit_bias *bias = pyr_alloc(rt, bytes);
    if (bias == NULL) {
      status = pyr_nomem(rt, bytes, "the sampler's biases");
      goto fail;
    }
    s->o.bias = memcpy(bias, options->bias, bytes);
    s->bias_room = options->bias_count;
    s->o.bias_count = merge_biases(bias, options->bias_count);
  }
  if (s->penalised) {
    size_t last = (size_t)s->o.penalty_last, slots = 256;
    while (slots < 2 * (last + 1)) slots *= 2;
    status = resize_table(s, slots);
    if (status != PYR_OK) goto fail;
    if (last && !(s->ring = pyr_alloc(rt, last * sizeof *s->ring))) {
      status = pyr_nomem(rt, last * sizeof *s->ring, "the sampler's history");
      goto fail;
    }
  }
  pyr_sampler_reset(s);
  *out = s;
  return PYR_OK;
fail:
  pyr_sampler_free(s);
  return status;
}

void pyr_sampler_free(pyr_sampler *s) {
  if (s == NULL) return;
  pyr_runtime *rt = s->rt;
  pyr_release(rt, (void *)s->o.bias, (size_t)s->bias_room * sizeof *s->o.bias);
  pyr_release(rt, s->table, s->slots * sizeof *s->table);
  pyr_release(rt, s->ring, (size_t)s->o.penalty_last * sizeof *s->ring);
  pyr_release(rt, s->logits, s->capacity * sizeof *s->logits);
  pyr_release(rt, s->entries, s->capacity * sizeof *s->entries);
  pyr_release(rt, s->changes, s->change_room * sizeof *s->changes);
  pyr_release(rt, s->mask, s->mask_words * sizeof *s->mask);
  pyr_release(rt, s->allowed, s->allow_room * sizeof *s->allowed);
  pyr_place_close(&s->place);
  pyr_release(rt, s, sizeof *s);
  pyr_runtime_free(rt);
}

/* As new: the same seed gives the same picks again. Memory stays. */
void pyr_sampler_reset(pyr_sampler *s) {
  uint64_t state = s->o.seed;
  for (int i = 0; i < 4; i++) s->random[i] = splitmix64(&state);
  for (size_t i = 0; i < s->slots; i++) s->table[i] = (seen){ -1, 0 };
  s->used = 0;
  s->ring_at = s->ring_held = 0;
  pyr_sampler_begin(s);
}

/* ---- what may follow ------------------------------------------------------------------------- */

bool pyr_sampler_is_masked(const pyr_sampler *s) { return s->place.guide != NULL || s->allows; }

pyr_status pyr_sampler_guide(pyr_sampler *s, pyr_guide *guide) {
  const pyr_lexicon *x = guide ? pyr_guide_lexicon(guide) : NULL;
  if (guide && x == NULL)
    return pyr_runtime_set_error(s->rt, PYR_ARGUMENT, "sampler: its guide knows no vocabulary");
  if (guide && x->words != s->mask_words) {
    uint32_t *mask = pyr_alloc(s->rt, x->words * sizeof *mask);
    if (mask == NULL) return pyr_nomem(s->rt, x->words * sizeof *mask, "the sampler's mask");
    pyr_release(s->rt, s->mask, s->mask_words * sizeof *mask);
    s->mask = mask;
    s->mask_words = x->words;
  }
  pyr_place before = s->place;       /* the new one is taken first: they may be the same */
  s->place = (pyr_place){ 0 };
  if (guide) pyr_place_open(guide, &s->place);
  pyr_place_close(&before);
  return PYR_OK;
}

void pyr_sampler_begin(pyr_sampler *s) {
  if (s->place.guide) pyr_place_begin(&s->place);
  s->allows = false;
}

int pyr_sampler_is_over(const pyr_sampler *s) {
  return s->place.guide != NULL && pyr_place_is_over(&s->place);
}

/* Contents are not kept: whoever grows it writes all of it. */
static pyr_status grow_allowed(pyr_sampler *s, size_t words) {
  if (words <= s->allow_room) return PYR_OK;
  uint32_t *allowed = pyr_alloc(s->rt, words * sizeof *allowed);
  if (allowed == NULL) return pyr_nomem(s->rt, words * sizeof *allowed, "the sampler's mask");
  pyr_release(s->rt, s->allowed, s->allow_room * sizeof *allowed);
  s->allowed = allowed;
  s->allow_room = words;
  return PYR_OK;
}

/* The old bits stay until there is memory for the new ones. */
pyr_status pyr_sampler_allow(pyr_sampler *s, const int32_t *ids, int64_t n) {
  int32_t most = 0;
  for (int64_t i = 0; i < n; i++) {
    if (ids[i] < 0 || ids[i] >= 1 << 24)
      return pyr_runtime_set_error(s->rt, PYR_ARGUMENT, "sampler: id %d is in no vocabulary",
                                   (int)ids[i]);
    if (ids[i] > most) most = ids[i];
  }
  PYR_TRY(grow_allowed(s, (size_t)most / 32 + 1));
  memset(s->allowed, 0, s->allow_room * sizeof *s->allowed);
  for (int64_t i = 0; i < n; i++) s->allowed[ids[i] / 32] |= 1u << (ids[i] % 32);
  s->allows = n >= 0;
  return PYR_OK;
}

/* All that can fail of a mask: so that taking a token cannot (grammar/guide.c). */
static pyr_status ask_mask(pyr_sampler *s) {
  if (s->place.guide == NULL || s->place.ready) return PYR_OK;
  pyr_status status = pyr_place_mask(&s->place, s->mask);
  pyr_runtime *its = pyr_guide_runtime(s->place.guide);
  if (status != PYR_OK && its != s->rt)
    return pyr_runtime_set_error(s->rt, status, "%s", pyr_runtime_error(its));
  return status;
}

/* Ids beyond a mask are of a vocabulary that is padded: nothing allows them. */
static void drop_masked(const uint32_t *mask, size_t words, float *l, int32_t vocab) {
  for (int32_t i = 0; i < vocab; i += 32) {
    uint32_t bits = (size_t)i / 32 < words ? mask[i / 32] : 0;
    int32_t end = vocab - i < 32 ? vocab : i + 32;
    if (bits != UINT32_MAX)
      for (int32_t k = i; k < end; k++, bits >>= 1)
        if (!(bits & 1)) l[k] = -INFINITY;
  }
}

/* The text is one token longer. Whatever was allowed, was for this pick; the grammar goes on to
 * the state behind the token, which the walk that made the mask has met, so that nothing is
 * allocated here and nothing can fail:
 *
 *     reserve    mask of the state before the pick         may fail: nothing has moved
 *     pick       among the tokens of the mask
 *     take       state + the token's bytes -> next state   cannot fail */
static void take(pyr_sampler *s, int32_t id) {
  if (s->place.guide) pyr_place_take(&s->place, id);
  s->allows = false;
}

/* Into a sampler made with the same options, table and ring included; what memory fails for is
 * freed whole. */
pyr_status pyr_sampler_clone(const pyr_sampler *s, pyr_sampler **out) {
  pyr_sampler *to = NULL;
  PYR_TRY(pyr_sampler_new(s->rt, &s->o, &to));
  pyr_status status = PYR_OK;
  if (to->slots != s->slots) status = resize_table(to, s->slots);
  if (status == PYR_OK && s->place.guide) status = pyr_sampler_guide(to, s->place.guide);
  if (status == PYR_OK && s->allow_room) status = grow_allowed(to, s->allow_room);
  if (status != PYR_OK) {
    pyr_sampler_free(to);
    return status;
  }
  memcpy(to->random, s->random, sizeof s->random);
  if (s->slots) memcpy(to->table, s->table, s->slots * sizeof *s->table);
  if (s->ring) memcpy(to->ring, s->ring, (size_t)s->o.penalty_last * sizeof *s->ring);
  to->used = s->used;
  to->ring_at = s->ring_at;
  to->ring_held = s->ring_held;
  if (s->place.guide) {
    pyr_place_close(&to->place);
    pyr_place_copy(&s->place, &to->place);
  }
  if (s->allow_room) memcpy(to->allowed, s->allowed, s->allow_room * sizeof *s->allowed);
  to->allows = s->allows;
  *out = to;
  return PYR_OK;
}

/* ---- candidates ------------------------------------------------------------------------------ */

/* Whether a comes before b: higher, or equal and of a lower id. */
static inline bool before(entry a, entry b) {
  return a.value > b.value || (a.value == b.value && a.id < b.id);
}

/* Restores the heap h[0..n), whose top is its last entry in this order, below i. Invariant of
 * the loop: h[i] is free, and both of its subtrees are heaps; `moving` fits above all that was
 * passed. */
static void sift_down(entry *h, size_t n, size_t i) {
  entry moving = h[i];
  for (;;) {
    size_t child = 2 * i + 1;
    if (child >= n) break;
    if (child + 1 < n && before(h[child], h[child + 1])) child++;
    if (!before(moving, h[child])) break;
    h[i] = h[child];
    i = child;
  }
  h[i] = moving;
}

/* Step 5: fills h, in no order, with the k first of logits[n], or with all of them if there are no
 * more; those of no weight, and those that cannot be picked, left out. Returns how many there are.
 * The heap's top is the weakest of those held, so that one comparison decides. For k = 3:
 *
 *     logits   1.0  4.0  2.0            three are held, and become a heap: 1.0 on top
 *              3.0                      beats 1.0, takes its place, and sinks: 2.0 on top
 *              0.5                      does not beat 2.0: passed over
 *
 * Bounded by n comparisons and, for random logits, k * log(n / k) sinkings of log k steps each. */
static size_t collect(entry *h, const float *logits, size_t n, size_t k, float highest,
                      float temperature) {
  size_t held = 0;
  for (size_t i = 0; i < n; i++) {
    /* an equal one has a higher id */
    if (!isfinite(logits[i]) || (held == k && logits[i] <= h[0].value)) continue;
    uint64_t weight = pyr_pick_weight(logits[i], highest, temperature);
    if (weight == 0) continue;
    entry e = { logits[i], (int32_t)i, weight };
    if (held < k) {
      h[held++] = e;
      for (size_t j = held == k ? k / 2 : 0; j-- > 0;) sift_down(h, k, j);
    } else {
      h[0] = e;
      sift_down(h, k, 0);
    }
  }
  return held;
}

/* The order that entries are cut in: of their values, or of their ids. */
static inline bool ahead(entry a, entry b, bool ids) { return ids ? a.id < b.id : before(a, b); }

static void sort_few(entry *h, size_t n, bool ids) {
  for (size_t i = 1; i < n; i++) {
    entry moving = h[i];
    size_t j = i;
    for (; j > 0 && ahead(moving, h[j - 1], ids); j--) h[j] = h[j - 1];
    h[j] = moving;
  }
}

static entry middle_of(entry a, entry b, entry c, bool ids) {
  if (ahead(b, a, ids)) {
    entry swap = a;
    a = b;
    b = swap;
  }
  return ahead(c, a, ids) ? a : ahead(c, b, ids) ? c : b;
}

/* Moves the fewest first entries that weigh `enough` together to the front of h, the last of them
 * last; returns how many. Quickselect by weight: what is left of the answer lies in h[low..high),
 * and h[0..low) is kept and weighs `mass`, not yet enough. An example for top_p 0.75: weights 5
 * 3 2 1 1 in the order of values sum to 12, enough is 9. 5 + 3 is less, 5 + 3 + 2 is not: three
 * are kept. And for the draw, in the order of ids 1, 4, 7 with weights 3, 2, 5: the place `at`
 * of 0..9 is id 1's below 3, id 4's below 5, id 7's from there on; enough is at + 1.
 *
 *     h    [ kept: mass, not enough ][ low .. answer is here .. high ][ not wanted ]
 *
 * Each pass makes the middle part shorter: the pivot itself moves before `at`, and as it is the
 * middle one of three different entries, at least one stays behind it. Passes halve it on
 * average. */
static size_t cut_tail(entry *h, size_t n, uint64_t enough, bool ids) {
  size_t low = 0, high = n;
  uint64_t mass = 0;
  while (high - low > PYR_SORT_FEW) {
    entry pivot = middle_of(h[low], h[low + (high - low) / 2], h[high - 1], ids);
    size_t at = low;
    uint64_t part = 0;
    for (size_t i = low; i < high; i++) {  /* the pivot and what comes before it, to the front */
      entry e = h[i];
      if (ahead(pivot, e, ids)) continue;
      part += e.weight;
      h[i] = h[at];
      h[at++] = e;
    }
    if (mass + part < enough) {
      mass += part;
      low = at;
    } else {
      high = at;
    }
  }
  sort_few(h + low, high - low, ids);
  while (low < high && mass < enough) mass += h[low++].weight;
  return low;
}

/* Step 7: drops what weighs less than min_p. A weight says what part of the most probable's an
 * id has, as that one weighs PYR_WEIGHT_ONE. */
static size_t drop_light(entry *h, size_t n, float min_p) {
  uint64_t least = pyr_pick_share(min_p, PYR_WEIGHT_ONE);
  size_t kept = 0;
  for (size_t i = 0; i < n; i++)
    if (h[i].weight >= least) h[kept++] = h[i];
  return kept;
}

static uint64_t sum_weights(const entry *h, size_t n) {
  uint64_t sum = 0;
  for (size_t i = 0; i < n; i++) sum += h[i].weight;
  return sum;
}

/* Steps 4-8 for a temperature above 0. The heaviest weighs 2^44 and stays through all of them,
 * so that there is always one to draw. */
static int32_t draw(pyr_sampler *s, const float *logits, size_t n, float highest) {
  const pyr_sampler_options *o = &s->o;
  entry *h = s->entries;
  size_t k = o->top_k > 0 && (size_t)o->top_k < n ? (size_t)o->top_k : n;
  size_t kept = collect(h, logits, n, k, highest, o->temperature);
  if (o->top_p > 0 && o->top_p < 1)
    kept = cut_tail(h, kept, pyr_pick_share(o->top_p, sum_weights(h, kept)), false);
  if (o->min_p > 0) kept = drop_light(h, kept, o->min_p);
  uint64_t at = pyr_pick_place(random_next(s->random) >> 11, sum_weights(h, kept));
  return h[cut_tail(h, kept, at + 1, true) - 1].id;
}

/* ---- picking --------------------------------------------------------------------------------- */

/* Both or neither; contents are not kept. After the first pick of a vocabulary nothing is
 * allocated. */
static pyr_status grow_work(pyr_sampler *s, size_t n) {
  if (n <= s->capacity) return PYR_OK;
  float *logits = pyr_alloc(s->rt, n * sizeof *logits);
  entry *entries = pyr_alloc(s->rt, n * sizeof *entries);
  if (logits == NULL || entries == NULL) {
    pyr_release(s->rt, logits, n * sizeof *logits);
    pyr_release(s->rt, entries, n * sizeof *entries);
    return pyr_nomem(s->rt, n * (sizeof *logits + sizeof *entries), "the sampler's work space");
  }
  pyr_release(s->rt, s->logits, s->capacity * sizeof *logits);
  pyr_release(s->rt, s->entries, s->capacity * sizeof *entries);
  s->logits = logits;
  s->entries = entries;
  s->capacity = n;
  return PYR_OK;
}

/* Steps 1-3, in place. Biases first, for all ids, then penalties: both loops touch only ids that
 * have any. Those of other vocabularies (ids accepted beyond it) are passed over. */
static void adjust(const pyr_sampler *s, float *l, int32_t vocab) {
  const pyr_sampler_options *o = &s->o;
  for (int32_t i = 0; i < o->bias_count; i++)
    l[o->bias[i].id] = pyr_pick_adjust(l[o->bias[i].id], o->bias[i].bias, 0, 1, 0, 0);
  for (size_t i = 0; s->penalised && i < s->slots; i++) {
    seen at = s->table[i];
    if (at.id >= 0 && at.id < vocab)
      l[at.id] = pyr_pick_adjust(l[at.id], 0, at.count, o->repeat_penalty, o->frequency_penalty,
                                 o->presence_penalty);
  }
}

pyr_status pyr_sampler_check(const pyr_sampler *s, int32_t vocab) {
  if (vocab > PYR_PICK_VOCAB && s->o.temperature > 0)
    return pyr_runtime_set_error(s->rt, PYR_ARGUMENT, "sampler: %d logits, and %d are the most",
                                 (int)vocab, PYR_PICK_VOCAB);
  if (vocab < 1) return pyr_runtime_set_error(s->rt, PYR_ARGUMENT, "sampler: no logits");
  for (int32_t i = 0; i < s->o.bias_count; i++)
    if (s->o.bias[i].id >= vocab)
      return pyr_runtime_set_error(s->rt, PYR_ARGUMENT,
                                   "sampler: bias of id %d, of a vocabulary of %d",
                                       (int)s->o.bias[i].id, (int)vocab);
  return PYR_OK;
}

/* All that can fail comes before the random state and the counts move, but for logits of which
 * none is finite, where neither has moved. */
pyr_status pyr_sampler_pick(pyr_sampler *s, const float *logits, int32_t vocab, int32_t *out) {
  pyr_status status = pyr_sampler_check(s, vocab);
  bool masked = pyr_sampler_is_masked(s),
      adjusted = s->o.bias_count > 0 || (s->penalised && s->used > 0) || masked,
      greedy = s->o.temperature == 0;
  if (status == PYR_OK && (adjusted || !greedy)) status = grow_work(s, (size_t)vocab);
  /* for the pick, before the random state moves */
  if (status == PYR_OK && s->penalised) status = reserve_slot(s);
  if (status == PYR_OK) status = ask_mask(s);
  if (status != PYR_OK) return status;
  if (adjusted) {
    if (logits != s->logits) memcpy(s->logits, logits, (size_t)vocab * sizeof *logits);
    adjust(s, s->logits, vocab);
    if (s->place.guide) drop_masked(s->mask, s->mask_words, s->logits, vocab);
    if (s->allows) drop_masked(s->allowed, s->allow_room, s->logits, vocab);
    logits = s->logits;
  }
  int32_t best = -1;
  for (int32_t i = 0; i < vocab; i++)
    if (isfinite(logits[i]) && (best < 0 || logits[i] > logits[best])) best = i;
  if (best < 0)
    return pyr_runtime_set_error(s->rt, PYR_ARGUMENT, "sampler: no logit is finite%s",
                                 masked ? " of a token that may follow" : "");

  int32_t id = greedy ? best : draw(s, logits, (size_t)vocab, logits[best]);
  if (s->penalised) remember(s, id);
  take(s, id);
  *out = id;
  return PYR_OK;
}

/* ---- picking on a device --------------------------------------------------------------------- */

pyr_runtime *pyr_sampler_runtime(const pyr_sampler *s) { return s->rt; }

/* Twice what is wanted, as each pick may bring a new id. */
static pyr_status grow_changes(pyr_sampler *s, size_t n) {
  if (n <= s->change_room) return PYR_OK;
  n *= 2;
  pyr_change *changes = pyr_alloc(s->rt, n * sizeof *changes);
  if (changes == NULL) return pyr_nomem(s->rt, n * sizeof *changes, "the sampler's work space");
  pyr_release(s->rt, s->changes, s->change_room * sizeof *changes);
  s->changes = changes;
  s->change_room = n;
  return PYR_OK;
}

/* All ids that steps 1-3 change, once each. Biased ids first, with their counts; then the ids
 * seen that have no bias. A device applies them in any order, as no id is there twice. */
static int32_t list_changes(pyr_sampler *s, int32_t vocab) {
  pyr_change *to = s->changes;
  for (int32_t i = 0; i < s->o.bias_count; i++, to++) {
    const seen *at = s->penalised ? &s->table[slot_of(s->table, s->slots, s->o.bias[i].id)] : NULL;
    *to = (pyr_change){ s->o.bias[i].id, s->o.bias[i].bias, at && at->id >= 0 ? at->count : 0 };
  }
  for (size_t i = 0; s->penalised && i < s->slots; i++) {
    seen at = s->table[i];
    if (at.id >= 0 && at.count > 0 && at.id < vocab && !bias_of(s, at.id))
      *to++ = (pyr_change){ at.id, 0, at.count };
  }
  return (int32_t)(to - s->changes);
}

float *pyr_sampler_work(pyr_sampler *s) { return s->logits; }
bool pyr_sampler_draws(const pyr_sampler *s) { return s->o.temperature > 0; }
bool pyr_sampler_remembers(const pyr_sampler *s) { return s->penalised; }

/* `picks` ids may all be new ones: used + picks slots, at most half of the table. With 120 of
 * 256 taken and 8 picks, 2 * 129 is more than 256, so the table grows to 512 at once. */
pyr_status pyr_sampler_reserve(pyr_sampler *s, int32_t vocab, int picks, bool device,
                               int64_t *changes) {
  bool masked = pyr_sampler_is_masked(s);
  if (masked && picks > 1)
    return pyr_runtime_set_error(s->rt, PYR_ARGUMENT, "sampler: one that follows a grammar, or "
                                 "allows some ids alone, picks for one sequence");
  size_t seen_then = s->penalised ? s->used + (size_t)picks : 0, slots = s->slots;
  pyr_status status = PYR_OK;
  while (s->penalised && !s->ring && 2 * (seen_then + 1) > slots) slots *= 2;
  if (slots != s->slots) status = resize_table(s, slots);
  *changes = (int64_t)((size_t)s->o.bias_count + seen_then);
  if (status == PYR_OK && masked) status = ask_mask(s);
  if (status == PYR_OK)
    status = device && !masked ? grow_changes(s, (size_t)*changes) : *changes > 0 || masked
        || s->o.temperature > 0 ? grow_work(s, (size_t)vocab) : PYR_OK;
  return status;
}

/* Random numbers are taken from a copy: the sampler's own state moves as picks come back
 * (pyr_sampler_took), one by one and in the same order. */
pyr_status pyr_sampler_ask(pyr_sampler *s, int32_t vocab, int before, pyr_pick *out) {
  const pyr_sampler_options *o = &s->o;
  uint64_t random[4];
  pyr_status status = pyr_sampler_check(s, vocab);
  if (status == PYR_OK) status = grow_changes(s, (size_t)o->bias_count + s->used);
  if (status == PYR_OK && s->penalised) status = reserve_slot(s);
  if (status != PYR_OK) return status;
  memcpy(random, s->random, sizeof random);
  for (int i = 0; i < before; i++) (void)random_next(random);
  *out = (pyr_pick){ .changed = list_changes(s, vocab), .top_k = o->top_k,
                     .repeat = o->repeat_penalty, .frequency = o->frequency_penalty,
                         .presence = o->presence_penalty, .temperature = o->temperature,
                             .top_p = o->top_p, .min_p = o->min_p,
                                 .random = random_next(random) >> 11 };
  out->changes = s->changes;
  return PYR_OK;
}

void pyr_sampler_took(pyr_sampler *s, int32_t id) {
  if (s->o.temperature > 0) (void)random_next(s->random);
  if (s->penalised) remember(s, id);
  take(s, id);
}

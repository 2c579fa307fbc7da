/* select.c — the rows of highest scores, in linear time and without a sort: so many of one vector
 * (select), or so many, so much of the sum, or all above a bound, of several vectors together
 * (choose).
 *
 * Floats become unsigned integers of the same order: the bits of a positive float get their top bit
 * set, those of a negative one are inverted; -0 becomes +0 first, and NaN becomes 0, below -inf. A
 * radix select then fixes the k-th highest key from the top bits down, 11, 11 and 10 at a time:
 * count the keys that agree with what is fixed by their next digit, walk down from the highest
 * digit until k of them are passed, and fix that digit. A last pass takes all keys above the k-th,
 * and of those equal to it the first ones, as many as are still wanted; rows come out ascending,
 * and ties go to the lower row.
 *
 * For a share of the sum the walk also adds up what the keys of each digit hold, and stops in the
 * digit in which enough is held: the same walk, with one more sum a digit. Scores are added as
 * integers (see pyr_choice), so the sums do not depend on any order.
 *
 * Four passes over the scores, one histogram on the stack. */
#include "cpu/cpu.h"

#include <float.h>
#include <math.h>
#include <string.h>

enum { DIGITS = 2048, MOST = 1 << 27 };
static const struct { int shift, bits; } steps[] = { { 21, 11 }, { 10, 11 }, { 0, 10 } };

/*     x       bits         key
 *      1.0    3f800000     bf800000
 *      0.0    00000000     80000000       -0 + 0 is +0
 *     -1.0    bf800000     407fffff
 *     -inf    ff800000     007fffff
 *      NaN                 00000000       below everything: it is never chosen before a number */
static inline uint32_t key_of(float x) {
  uint32_t bits = pyr_bits_of_f32(x + 0.0f);
  uint32_t ordered = bits ^ ((uint32_t)-(int32_t)(bits >> 31) | 0x80000000u);
  return x != x ? 0 : ordered;
}

/* Where the chosen end: every key above `key` is among them, and of those equal to it the first
 * `equal`. */
typedef struct cut { uint32_t key; int32_t equal; } cut;
static const cut none = { UINT32_MAX, 0 };  /* no key is so high: it would be a NaN's, which is 0 */

/* Whether the next row in order is among them; counts those that equal the last key. */
static inline bool takes(cut *c, uint32_t key) {
  return key > c->key || (key == c->key && c->equal-- > 0);
}

/* Invariant at each step: the k-th highest key begins with `fixed` (under `mask`), and it is the
 * k-th among the keys that do. With decimal digits: of keys 53 51 48 51 20 20 the 3 highest,
 *
 *     tens      5: 3   4: 1   2: 2        three have a 5: fixed 5_, still the 3rd
 *     units     3: 1   1: 2               one is passed, the 2nd of the others is a 1: fixed 51
 *     cut       key 51, equal 2           53, and the first two that equal 51 */
static cut cut_of(const float *score, int64_t n, int64_t k) {
  uint32_t fixed = 0, mask = 0;
  if (k == 0) return none;
  for (int s = 0; s < 3; s++) {
    int64_t count[DIGITS] = { 0 };
    int shift = steps[s].shift, digits = 1 << steps[s].bits, digit = digits - 1;
    for (int64_t i = 0; i < n; i++) {
      uint32_t key = key_of(score[i]);
      if ((key & mask) == fixed) count[key >> shift & (uint32_t)(digits - 1)]++;
    }
    while (count[digit] < k) k -= count[digit--];
    fixed |= (uint32_t)digit << shift;
    mask |= (uint32_t)(digits - 1) << shift;
  }
  return (cut){ fixed, (int32_t)k };
}

/* The last pass ends with the k-th row taken. n * 4 looks, 16 KiB of stack for the counts. */
pyr_status pyr_cpu_select(pyr_backend *be, int32_t *idx, const float *score, int64_t n, int64_t k,
                          int32_t offset) {
  if (k < 0 || k > n)
    return pyr_runtime_set_error(be->rt, PYR_ARGUMENT, "select: %lld of %lld rows", (long long)k,
                                 (long long)n);
  if (k == 0) return PYR_OK;
  cut last = cut_of(score, n, k);
  int64_t taken = 0;
  for (int64_t i = 0; taken < k; i++)
    if (takes(&last, key_of(score[i]))) idx[taken++] = (int32_t)i + offset;
  return PYR_OK;
}

/* ---- several vectors ------------------------------------------------------------------------- */

/* What a score counts in a sum; `unit` is 2^(36 - e), or 0 where nothing is summed. Less than 2^36,
 * so that sums of 2^27 rows, MOST, fit. */
static inline uint64_t weight_of(float x, double unit) {
  return x > 0 ? (uint64_t)((double)(x < FLT_MAX ? x : FLT_MAX) * unit) : 0;
}

static cut own_cut(const pyr_choice *c, int32_t segment) {
  return (cut){ (uint32_t)c->work[2 * segment], c->work[2 * segment + 1] };
}

/* The highest score of 0.75 has e = 0: it counts 0.75 * 2^36, and one of 2^-36 counts 1. What is
 * 2^37 times smaller than the highest counts nothing. */
static double unit_of(const pyr_choice *c, int64_t n) {
  float top = 0;
  int e;
  for (int64_t i = 0; i < n; i++)
    if (c->score[i] > top) top = c->score[i] < FLT_MAX ? c->score[i] : FLT_MAX;
  if (top == 0) return 0;
  (void)frexp(top, &e);
  return ldexp(1.0, 36 - e);
}

/* The sum of all scores; *held: that of the segments' own. Segments' own are found as select
 * finds them, with the cuts that `work` holds. */
static uint64_t sum_of(const pyr_choice *c, double unit, uint64_t *held) {
  const float *score = c->score;
  uint64_t sum = 0;
  *held = 0;
  for (int32_t s = 0; s < c->count; s++) {
    cut own = own_cut(c, s);
    for (int64_t i = 0; i < c->segments[s].n; i++, score++) {
      uint64_t weight = weight_of(*score, unit);
      sum += weight;
      if (takes(&own, key_of(*score))) *held += weight;
    }
  }
  return sum;
}

/* Where the chosen end among rows that no segment has chosen for itself: after `wanted` of them, or
 * with the first that fills `target`. Both are at least 1, and there are at least `wanted` such
 * rows. Invariant at each step: rows whose key is above `fixed` (under `mask`) are chosen;
 * `wanted` and `target` are what is left of both bounds, and the keys that begin with `fixed`
 * come to one of them. If each of the last key's rows counts 5 and 12 are left to fill, 12 / 5
 * and one for the rest: 3 rows. */
static cut shared_cut(const pyr_choice *c, int64_t wanted, uint64_t target, double unit) {
  uint32_t fixed = 0, mask = 0;
  uint64_t each = 0;                                   /* what a row with the key found counts */
  for (int step = 0; step < 3; step++) {
    int64_t count[DIGITS] = { 0 };
    uint64_t sum[DIGITS] = { 0 };
    int shift = steps[step].shift, digits = 1 << steps[step].bits, digit = digits - 1;
    const float *score = c->score;
    for (int32_t s = 0; s < c->count; s++) {
      cut own = own_cut(c, s);
      for (int64_t i = 0; i < c->segments[s].n; i++, score++) {
        uint32_t key = key_of(*score);
        if (takes(&own, key) || (key & mask) != fixed) continue;
        count[key >> shift & (uint32_t)(digits - 1)]++;
        sum[key >> shift & (uint32_t)(digits - 1)] += weight_of(*score, unit);
      }
    }
    while (count[digit] < wanted && sum[digit] < target) {
      wanted -= count[digit];
      target -= sum[digit--];
    }
    fixed |= (uint32_t)digit << shift;
    mask |= (uint32_t)(digits - 1) << shift;
    each = sum[digit] / (uint64_t)count[digit];        /* exact in the last step, where all keys are
                                                          equal */
  }
  uint64_t enough = each > 0 ? target / each + (target % each > 0) : UINT64_MAX;
  return (cut){ fixed, (int32_t)(enough < (uint64_t)wanted ? (int64_t)enough : wanted) };
}

/* How many rows pass a bound that no segment has chosen for itself: of own 0.5 and 0.4 and the rest
 * 0.3, 0.1, 0.05, one is at 0.2 or above. */
static int64_t passing(const pyr_choice *c) {
  const float *score = c->score;
  uint32_t least = key_of(c->above);
  int64_t n = 0;
  for (int32_t s = 0; s < c->count; s++) {
    cut own = own_cut(c, s);
    for (int64_t i = 0; i < c->segments[s].n; i++, score++) {
      uint32_t key = key_of(*score);
      if (!takes(&own, key)) n += key >= least;
    }
  }
  return n;
}

/* Two segments, at least one of each, three in all:
 *
 *     scores       0.5  0.3  0.1     0.4  0.05
 *     own          0.5               0.4                  cut_of, of each alone
 *     shared            0.3                               one more of 0.3, 0.1, 0.05
 *     chosen       rows 0, 1         row 0
 *
 * Under mass 0.7 the sum is 1.35, its share 0.945, of which 0.9 is held: 0.3 fills the rest, and
 * the result is the same; under mass 0.6, 0.81, nothing more is wanted, and no more above 0.35. A
 * bound is one more count: the highest that are left, but no more than pass it. Segments' rows come
 * out ascending, each in its own part of idx. */
pyr_status pyr_cpu_choose(pyr_backend *be, const pyr_choice *c) {
  int64_t n = 0, least = 0;
  double unit = 0;
  uint64_t target = UINT64_MAX, held;
  bool fits = c->mass >= 0 && c->mass <= 1 && (!c->bounded || c->above == c->above);
  for (int32_t s = 0; s < c->count; s++) {
    fits = fits && c->segments[s].least >= 0 && c->segments[s].least <= c->segments[s].n;
    n += c->segments[s].n, least += c->segments[s].least;
  }
  if (!fits || c->most < least || c->most > n || n > MOST)
    return pyr_runtime_set_error(be->rt, PYR_ARGUMENT,
                                 "choose: %lld of %lld rows, at least %lld, mass %g",
                                     (long long)c->most, (long long)n, (long long)least, c->mass);
  const float *score = c->score;
  for (int32_t s = 0; s < c->count; score += c->segments[s++].n) {
    cut own = cut_of(score, c->segments[s].n, c->segments[s].least);
    c->work[2 * s] = (int32_t)own.key, c->work[2 * s + 1] = own.equal;
  }
  if (c->mass > 0) {
    unit = unit_of(c, n);
    uint64_t sum = sum_of(c, unit, &held);
    target = c->mass < 1 ? (uint64_t)ceil(c->mass * (double)sum) : sum;
    if (target > sum) target = sum;
    target = target > held ? target - held : 0;
  }
  int64_t wanted = c->most - least;
  if (c->bounded && wanted > 0) wanted = pyr_min(wanted, passing(c));
  cut shared = wanted > 0 && target > 0 ? shared_cut(c, wanted, target, unit) : none;
  score = c->score;
  for (int32_t s = 0; s < c->count; s++) {
    const pyr_segment *segment = &c->segments[s];
    cut own = own_cut(c, s);
    int32_t *idx = c->idx + segment->at;
    c->chosen[s] = 0;
    for (int64_t i = 0; i < segment->n; i++, score++) {
      uint32_t key = key_of(*score);
      if (takes(&own, key) || takes(&shared, key))
        idx[c->chosen[s]++] = (int32_t)i + segment->offset;
    }
  }
  return PYR_OK;
}

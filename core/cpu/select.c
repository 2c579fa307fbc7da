/* select.c — the rows of the k highest scores, in linear time and without a sort.
 *
 * Floats become unsigned integers of the same order: the bits of a positive float get their top bit set, those of a
 * negative one are inverted; -0 becomes +0 first, and NaN becomes 0, below -inf. A radix select then fixes the k-th
 * highest key from the top bits down, 11, 11 and 10 at a time: count the keys that agree with what is fixed by their next
 * digit, walk down from the highest digit until k of them are passed, and fix that digit. A last pass takes all keys
 * above the k-th, and of those equal to it the first ones, as many as are still wanted; rows come out ascending, and ties
 * go to the lower row.
 *
 * Four passes over the scores, one histogram on the stack, no scratch. */
#include "cpu.h"

enum { DIGITS = 2048 };

static inline uint32_t key_of(float x) {
  uint32_t bits = pyr_bits_of_f32(x + 0.0f);
  uint32_t ordered = bits ^ ((uint32_t)-(int32_t)(bits >> 31) | 0x80000000u);
  return x != x ? 0 : ordered;
}

/* The k-th highest key, 1 <= k <= n; *equal is how many keys equal to it are among the k. */
static uint32_t kth_key(const float *score, int64_t n, int64_t k, int64_t *equal) {
  static const struct { int shift, bits; } steps[] = { { 21, 11 }, { 10, 11 }, { 0, 10 } };
  uint32_t fixed = 0, mask = 0;
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
  *equal = k;
  return fixed;
}

pyr_status pyr_cpu_select(pyr_backend *be, int32_t *idx, const float *score, int64_t n, int64_t k, int32_t offset) {
  if (k < 0 || k > n) return pyr_runtime_set_error(be->rt, PYR_ARGUMENT, "select: %lld of %lld rows", (long long)k, (long long)n);
  if (k == 0) return PYR_OK;
  int64_t equal, taken = 0;
  uint32_t kth = kth_key(score, n, k, &equal);
  for (int64_t i = 0; taken < k; i++) {
    uint32_t key = key_of(score[i]);
    if (key > kth || (key == kth && equal-- > 0)) idx[taken++] = (int32_t)i + offset;
  }
  return PYR_OK;
}

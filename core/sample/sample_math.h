/* sample_math.h — the arithmetic of picking a token, the same to the bit wherever it runs
 * (sampler.c, kernels/sample.cu).
 *
 * Probabilities are whole numbers, so that no order of adding them up can change a pick: the weight
 * of a logit is
 *     exp((logit - highest) / temperature) * 2^44
 * cut to an integer, of 24 significant bits; sums of 2^19 of them fit. Below 2^-44 of the highest
 * it is 0. The exponential is a polynomial in f32 (after Cody and Waite; its error is below 2^-22),
 * each step rounded as written: who includes this header for a compiler that would fuse
 * multiplications with additions defines what they are. */
#ifndef PYR_PICK_H
#define PYR_PICK_H

#include <math.h>
#include <stdint.h>

#ifndef PYR_PICK_INLINE
#define PYR_PICK_INLINE static inline
#define PYR_ADD(a, b) ((a) + (b))
#define PYR_SUB(a, b) ((a) - (b))
#define PYR_MUL(a, b) ((a) * (b))
#define PYR_DIV(a, b) ((a) / (b))
#define PYR_HIGH(a, b) pyr_pick_high(a, b)

/* The upper half of a product. */
static inline uint64_t pyr_pick_high(uint64_t a, uint64_t b) {
  uint64_t low = (a & UINT32_MAX) * (b & UINT32_MAX), left = (a >> 32) * (b & UINT32_MAX),
      right = (a & UINT32_MAX) * (b >> 32);
  uint64_t middle = (low >> 32) + (left & UINT32_MAX) + right;
  return (a >> 32) * (b >> 32) + (left >> 32) + (middle >> 32);
}
#endif

#define PYR_WEIGHT_ONE ((uint64_t)1 << 44)
#define PYR_PICK_VOCAB (1 << 19)   /* the largest vocabulary whose sums fit */

/* exp(x) = 2^whole * exp(r), with r = x - whole * ln 2 between -0.35 and 0.35. ln 2 is taken off
 * in two parts: the first, 355 / 512, times a whole number is exact in f32; the second is what
 * is missing. The polynomial ends at r^7 / 7!, and what it leaves out is below 2^-27. In
 * numbers, for logit 1.0 where the highest is 2.0, at temperature 0.5:
 *
 *     x       -2                            (1 - 2) / 0.5
 *     whole   -3                            -2 / ln 2 = -2.885
 *     r       0.0794                        -2 + 3 * 0.6931
 *     p       1.0827                        exp(r)
 *     weight  p * 2^24 << (20 - 3)          0.1353 * 2^44
 *
 * -30.5 is where 2^44 * exp(x) falls below 1: there, the weight is 0 whatever the rounding. */
PYR_PICK_INLINE uint64_t pyr_pick_weight(float logit, float highest, float temperature) {
  float x = PYR_DIV(PYR_SUB(logit, highest), temperature), p = 1.0f / 5040;
  if (!(x > -30.5f)) return 0;
  float whole = rintf(PYR_MUL(x, 1.44269504f)),
      r = PYR_SUB(PYR_SUB(x, PYR_MUL(whole, 0.693359375f)), PYR_MUL(whole, -2.12194440e-4f));
  p = PYR_ADD(PYR_MUL(p, r), 1.0f / 720);
  p = PYR_ADD(PYR_MUL(p, r), 1.0f / 120);
  p = PYR_ADD(PYR_MUL(p, r), 1.0f / 24);
  p = PYR_ADD(PYR_MUL(p, r), 1.0f / 6);
  p = PYR_ADD(PYR_MUL(p, r), 0.5f);
  p = PYR_ADD(PYR_MUL(p, r), 1.0f);
  p = PYR_ADD(PYR_MUL(p, r), 1.0f);                      /* 0.7 to 1.42: times 2^24 it is whole */
  uint64_t bits = (uint64_t)PYR_MUL(p, 16777216.0f);
  int shift = 20 + (int)whole;
  return shift >= 0 ? bits << shift : bits >> -shift;
}

/* A logit with what is known of its id: a bias, and how often it was seen. A penalty makes a
 * logit smaller whatever its sign: 2.0 under repetition 2 becomes 1.0, -1.0 becomes -2.0. */
PYR_PICK_INLINE float pyr_pick_adjust(float logit, float bias, int32_t count, float repeat,
                                      float frequency, float presence) {
  logit = PYR_ADD(logit, bias);
  if (count == 0) return logit;
  logit = logit > 0 ? PYR_DIV(logit, repeat) : PYR_MUL(logit, repeat);
  return PYR_SUB(logit, PYR_ADD(PYR_MUL(frequency, (float)count), presence));
}

/* The least sum that holds the share p of `sum`, which is above 0. The product is a double on
 * host and device, of 53 bits, and rounded in the same way; so both come to the same whole
 * number. */
PYR_PICK_INLINE uint64_t pyr_pick_share(float p, uint64_t sum) {
  uint64_t share = (uint64_t)ceil((double)p * (double)sum);
  return share < 1 ? 1 : share > sum ? sum : share;
}

/* A place below `sum`, which is above 0, by 53 random bits: random * sum / 2^53. Of the
 * product's 117 bits, those from bit 53 on: 64 - 53 = 11 places between its halves. */
PYR_PICK_INLINE uint64_t pyr_pick_place(uint64_t random, uint64_t sum) {
  return (PYR_HIGH(random, sum) << 11) | ((random * sum) >> 53);
}

#endif

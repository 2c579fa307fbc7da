/* signs.c — see signs.h. */
#include "base/signs.h"
#include "base/hadamard.h"

#include <math.h>

enum { ROWS = PYR_SIGNS_ROWS, FOUR = 4, CHOICES = 16 };

/* y over its own signs: |y|^2 / sum |y|; 0 where y is. */
static float scale_of(const float *y, int32_t d) {
  float square = 0, sum = 0;
  for (int32_t i = 0; i < d; i++) {
    square += y[i] * y[i];
    sum += fabsf(y[i]);
  }
  return sum == 0 ? 0 : square / sum;
}

/* Scales are summed up only to see whether one of them is no number, or none that f32 holds: what
 * is squared may be infinite where a key is not. */
void pyr_signs_of(float *digest, float *keys, int32_t d) {
  float *mean = digest, *scales = mean + pyr_signs_mean(d), sum = 0;
  uint8_t *signs = (uint8_t *)(scales + ROWS);
  for (int row = 0; row < ROWS; row++) {
    float *y = keys + row * d;
    for (int32_t i = 0; i < d; i++) y[i] -= mean[i];
    pyr_hadamard(y, d, pyr_hadamard_size(d));
    scales[row] = scale_of(y, d);
    sum += scales[row];
    for (int32_t i = 0; i < d; i++)
      signs[i / FOUR * CHOICES + row % CHOICES] |=
          (uint8_t)((y[i] > 0) << (i % FOUR + row / CHOICES * FOUR));
  }
  if (!(fabsf(sum) < INFINITY)) mean[0] = NAN;
}

/* The sum of four channels under the signs of `bits`; channels from d on are 0. */
static float choice_of(const float *q, int32_t first, int32_t d, int bits) {
  float sum = 0;
  for (int32_t i = first; i < first + FOUR && i < d; i++)
    sum += bits >> (i - first) & 1 ? q[i] : -q[i];
  return sum;
}

/* All signs as the channels' own give a group's highest sum. */
float pyr_signs_table(uint8_t *table, float *q, int32_t d) {
  float most = 0;
  pyr_hadamard(q, d, pyr_hadamard_size(d));
  for (int32_t first = 0; first < d; first += FOUR) {
    float sum = 0;
    for (int32_t i = first; i < first + FOUR && i < d; i++) sum += fabsf(q[i]);
    most = sum > most ? sum : most;
  }
  float by = most > 0 && most < INFINITY ? PYR_SIGNS_MIDDLE / most : 0;
  for (int32_t first = 0; first < 4 * pyr_signs_groups(d); first += FOUR)
    for (int bits = 0; bits < CHOICES; bits++) {
      float x = by * choice_of(q, first, d, bits);
      if (x != x) x = 0;
      *table++ = (uint8_t)(PYR_SIGNS_MIDDLE + (int)(x < 0 ? x - 0.5f : x + 0.5f));
    }
  return by > 0 ? most / PYR_SIGNS_MIDDLE : 0;
}

float pyr_signs_most(const float *scales, const uint8_t *signs, const uint8_t *table, float step,
                     int64_t groups) {
  float most = -INFINITY;
  for (int row = 0; row < ROWS; row++) {
    int32_t sum = 0;
    for (int64_t j = 0; j < groups; j++)
      sum += table[j * CHOICES + (signs[j * CHOICES + row % CHOICES] >> row / CHOICES * FOUR & 15)];
    float x = scales[row] * step * (float)(sum - PYR_SIGNS_MIDDLE * (int32_t)groups);
    most = x > most ? x : most;
  }
  return most;
}

/* hadamard.c — see hadamard.h. A pass makes sums and differences of values that lie `half` apart,
 * for half 1, 2, 4 and so on; two passes go at once where there are two, and four values beside
 * each other, which compilers make one vector of. Of size 64: halves 1 and 2, 4 and 8, 16 and 32.
 */
#include "base/hadamard.h"

#include <math.h>

/* x[0], x[half], x[2 half] and x[3 half], each of four values: both passes. */
static inline void turn_fours(float *x, int32_t half) {
  float *y = x + half, *z = y + half, *w = z + half;
  for (int i = 0; i < 4; i++) {
    float a = x[i] + y[i], b = x[i] - y[i], c = z[i] + w[i], d = z[i] - w[i];
    x[i] = a + c, y[i] = b + d, z[i] = a - c, w[i] = b - d;
  }
}

void pyr_hadamard(float *x, int32_t n, int32_t size) {
  int32_t half = 1;
  for (; half < 4 && 4 * half <= size; half *= 4)          /* two passes at once, of four values */
    for (int32_t at = 0; at < n; at += 4) {
      float a = x[at] + x[at + 1], b = x[at] - x[at + 1], c = x[at + 2] + x[at + 3],
          d = x[at + 2] - x[at + 3];
      x[at] = a + c, x[at + 1] = b + d, x[at + 2] = a - c, x[at + 3] = b - d;
    }
  for (; 4 * half <= size && half >= 4; half *= 4)
    for (int32_t at = 0; at < n; at += 4 * half)
      for (int32_t i = at; i < at + half; i += 4) turn_fours(x + i, half);
  for (; half < size; half *= 2)
    for (int32_t at = 0; at < n; at += 2 * half)
      for (int32_t i = at; i < at + half; i++) {
        float a = x[i], b = x[i + half];
        x[i] = a + b;
        x[i + half] = a - b;
      }
  float by = 1.0f / sqrtf((float)size);
  for (int32_t i = 0; i < n; i++) x[i] *= by;
}

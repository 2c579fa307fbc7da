/* hadamard.c — see hadamard.h. */
#include "base/hadamard.h"

#include <math.h>

void pyr_hadamard(float *x, int32_t n, int32_t size) {
  int32_t half = 1;
  for (; half < 4 && 4 * half <= size; half *= 4)          /* two passes at once, of four values */
    for (int32_t at = 0; at < n; at += 4) {
      float a = x[at] + x[at + 1], b = x[at] - x[at + 1], c = x[at + 2] + x[at + 3],
          d = x[at + 2] - x[at + 3];
      x[at] = a + c, x[at + 1] = b + d, x[at + 2] = a - c, x[at + 3] = b - d;
    }
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

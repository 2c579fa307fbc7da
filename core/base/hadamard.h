/* hadamard.h — Hadamard's rotation, which spreads what a few channels hold over all of them.
 *
 * After it the channels of a key or a value are nearly Gaussian and of like size, for which a few
 * levels, or a sign, do (QuaRot, arXiv 2404.00456; RaBitQ, arXiv 2405.12497). Products of two
 * rotated vectors are those of the vectors. */
#ifndef PYR_HADAMARD_H
#define PYR_HADAMARD_H

#include <stdint.h>

/* The largest power of two that divides n: 24 channels are rotated by eights, 64 as a whole. */
static inline int32_t pyr_hadamard_size(int32_t n) { return n & -n; }

/* x [n] times the matrix, by blocks of `size`, a power of two, which divides n; its own inverse, as
 * it is divided by the root of size. */
void pyr_hadamard(float *x, int32_t n, int32_t size);

#endif

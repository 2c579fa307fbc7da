/* kernels_avx512_stacks.c — dot products of stacks of rows in bytes for x86 with AVX-512: see stacks.inc and kernels_avx512.c. */
#include "kernels.h"
#if defined(__AVX512F__) && defined(__AVX512BW__) && defined(__AVX512VL__) && defined(__AVX512DQ__) && defined(__AVX512VNNI__)
#define ISA avx512
#include "stacks.inc"
#endif

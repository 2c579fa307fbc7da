/* kernels_avx512_int8.c — dot products of rows in bytes for x86 with AVX-512: see int8.inc and kernels_avx512.c. */
#include "kernels.h"
#if defined(__AVX512F__) && defined(__AVX512BW__) && defined(__AVX512VL__) && defined(__AVX512DQ__) && defined(__AVX512VNNI__)
#define ISA avx512
#include "int8.inc"
#endif

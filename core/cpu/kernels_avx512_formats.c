/* kernels_avx512_formats.c — number formats and dot products with f32 for x86 with AVX-512: see formats.inc and kernels_avx512.c. */
#include "kernels.h"
#if defined(__AVX512F__) && defined(__AVX512BW__) && defined(__AVX512VL__) && defined(__AVX512DQ__)
#define ISA avx512
#include "formats.inc"
#endif

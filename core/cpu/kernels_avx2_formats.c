/* kernels_avx2_formats.c — number formats and dot products with f32 for x86 with AVX2, FMA and F16C: see formats.inc and kernels_avx2.c. */
#include "kernels.h"
#if defined(__AVX2__) && defined(__FMA__) && defined(__F16C__)
#define ISA avx2
#include "formats.inc"
#endif

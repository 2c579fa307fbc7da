/* kernels_avx2.c — the inner loops for x86 with AVX2, FMA and F16C; empty where the compiler does
 * not make such code. */
#include "cpu/isa/kernels.h"
#if defined(__AVX2__) && defined(__FMA__) && defined(__F16C__)
#define KERNELS pyr_kernels_avx2
#define KERNELS_NAME "avx2"
#include "kernels.inc"
#else
const pyr_kernels pyr_kernels_avx2 = { .name = NULL };
#endif

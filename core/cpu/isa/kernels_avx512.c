/* kernels_avx512.c — the inner loops for x86 with AVX-512 (F, BW, VL, DQ, VNNI); empty where the
 * compiler does not make such code. */
#include "cpu/isa/kernels.h"
#if defined(__AVX512F__) && defined(__AVX512BW__) && defined(__AVX512VL__) && defined(__AVX512DQ__)
#define KERNELS pyr_kernels_avx512
#define KERNELS_NAME "avx512"
#include "kernels.inc"
#else
const pyr_kernels pyr_kernels_avx512 = { .name = NULL };
#endif

/* kernels_base.c — the inner loops for any machine. */
#include "cpu/isa/kernels.h"
#define KERNELS pyr_kernels_base
#define KERNELS_NAME "base"
#include "kernels.inc"

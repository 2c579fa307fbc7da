/* kernels_base.c — the inner loops for any machine. */
#include "kernels.h"
#define KERNELS pyr_kernels_base
#define KERNELS_NAME "base"
#include "kernels.inc"

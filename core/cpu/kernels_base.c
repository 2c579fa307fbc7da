/* kernels_base.c — the inner loops for any machine. */
#include "kernels.h"
#define ISA base
#define KERNELS_NAME "base"
#include "kernels.inc"

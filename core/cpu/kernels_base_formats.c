/* kernels_base_formats.c — number formats and dot products with f32 for any machine: see formats.inc and kernels_base.c. */
#define ISA base
#include "formats.inc"

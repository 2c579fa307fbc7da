/* device.cuh — CUDA itself, or its emulated twin: what kernels are written against.
 *
 *   PYR_SHARED(type, name)       the block's dynamic shared memory, as `type *name`
 *
 * Rules that the emulator checks: blocks are of one dimension and whole warps; every lane of a warp
 * takes part in a warp operation; every thread of a block reaches a barrier, and the same one; 48
 * KiB of shared memory, static and dynamic, or 99 if the kernel was allowed more dynamic memory
 * (cuda_launch sees to it); the order of blocks and threads makes no difference. Static shared
 * memory is declared in kernels, not in functions that they call, where the emulator would not find
 * it. */
#ifndef PYR_CUDA_DEVICE_CUH
#define PYR_CUDA_DEVICE_CUH

#ifdef PYR_EMULATED
#include "emulate/cuda.h"
#else
#include <cuda_runtime.h>
#define PYR_SHARED(type, name) \
  extern __shared__ __align__(128) unsigned char pyr_dynamic_shared[]; \
  type *name = reinterpret_cast<type *>(pyr_dynamic_shared)
#endif

static constexpr int WARP = 32;
#define ALL_LANES 0xffffffffu

#endif

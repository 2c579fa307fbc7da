/* warp.cuh — sums and maxima over a warp and over a block, and the keys that floats are ranked by.
 * The order is fixed: results do not depend on timing.
 *
 * A sum over lanes is the same in all of them, so that all can go on with it, and no second
 * exchange tells it. Sums of f32 are not associative: (1 + 2^24) - 2^24 is 0, 1 + (2^24 - 2^24) is
 * 1. So trees and orders are part of what a function promises. */
#ifndef PYR_CUDA_WARP_CUH
#define PYR_CUDA_WARP_CUH

#include "device.cuh"

/* Blocks are of one dimension: threads 0 to 31 are warp 0. */
static __device__ __forceinline__ int lane_of_warp() {
  return static_cast<int>(threadIdx.x) % WARP;
}
static __device__ __forceinline__ int warp_of_block() {
  return static_cast<int>(threadIdx.x) / WARP;
}

/* A butterfly: in step 16 lane i adds what lane i ^ 16 holds, then 8, 4, 2, 1. All lanes end with
 * the same sum, added in the same tree: ((x0 + x16) + (x8 + x24)) + … */
template <typename T> static __device__ __forceinline__ T warp_sum(T x) {
  for (int other = WARP / 2; other > 0; other /= 2) x += __shfl_xor_sync(ALL_LANES, x, other);
  return x;
}

/* fmaxf: a NaN beside a number is passed over. */
static __device__ __forceinline__ float warp_max(float x) {
  for (int other = WARP / 2; other > 0; other /= 2)
    x = fmaxf(x, __shfl_xor_sync(ALL_LANES, x, other));
  return x;
}

static __device__ __forceinline__ int warp_max(int x) {
  for (int other = WARP / 2; other > 0; other /= 2) {
    int y = __shfl_xor_sync(ALL_LANES, x, other);
    x = y > x ? y : x;
  }
  return x;
}

/* Sums of a block of at most 1024 threads, given to all. `parts` [32] is shared, and free again
 * when the call returns. Warps first, then their sums in order, by every thread for itself. The
 * first barrier: all parts are there. The second: all have read them. */
template <typename T> static __device__ __forceinline__ T block_sum(T x, T *parts) {
  x = warp_sum(x);
  if (lane_of_warp() == 0) parts[warp_of_block()] = x;
  __syncthreads();
  int warps = static_cast<int>(blockDim.x) / WARP;
  x = parts[0];
  for (int w = 1; w < warps; w++) x += parts[w];
  __syncthreads();
  return x;
}

/* As block_sum. */
static __device__ __forceinline__ float block_max(float x, float *parts) {
  x = warp_max(x);
  if (lane_of_warp() == 0) parts[warp_of_block()] = x;
  __syncthreads();
  int warps = static_cast<int>(blockDim.x) / WARP;
  x = parts[0];
  for (int w = 1; w < warps; w++) x = fmaxf(x, parts[w]);
  __syncthreads();
  return x;
}

/* Floats as whole numbers in the same order: of positive ones the sign is set, of negative ones all
 * bits are turned over. -1 < -0 = 0 < 1 become 0x407fffff < 0x80000000 < 0xbf800000; -0 + 0 is 0;
 * NaN is below everything. */
static __device__ __forceinline__ uint32_t key_of(float x) {
  uint32_t bits = __float_as_uint(x + 0.0f);
  return x != x ? 0u : bits ^ (bits >> 31 ? 0xffffffffu : 0x80000000u);
}

#endif

/* pack.cuh — the order in which the device holds a model's q8_0 weights: as many bytes as before,
 * but aligned, and as a warp's lanes take them for the tensor cores (mma.cuh).
 *
 * PACK rows that follow each other are a pack. Block by block of 32 columns it has their scales,
 * row beside row, and then 16 bytes for each lane: of rows g = lane / 4 and g + 8 the columns 8 t
 * to 8 t + 7, t = lane % 4.
 *
 * A block of a pack, 16 rows by 32 columns, is 544 bytes, as 16 blocks of q8_0 are:
 *
 *     bytes    0          32       48       64            544
 *              | scales   | lane 0 | lane 1 | … | lane 31 |
 *                16 f16     row 0, columns 0-7, then row 8, columns 0-7
 *                                    row 0, columns 8-15, then row 8, columns 8-15
 *
 * Row 9, column 19: lane (9 % 8) * 4 + 19 / 8 = 6, the second half of its bytes, column 3 of that:
 * byte 32 + 6 * 16 + 8 + 3 = 139. q8_0's own blocks of 34 bytes begin at multiples of 2: no lane
 * could load 16 bytes of them at once. */
#ifndef PYR_CUDA_PACK_CUH
#define PYR_CUDA_PACK_CUH

#include "convert.cuh"

/* PACKED: beside dtypes, for weight_at */
static constexpr int PACK = 16, PACK_BLOCK = PACK * 34, PACKED = 64;

/* The block of column i in the pack of a row, and where in it that row has its value of column i.
 */
static __device__ __forceinline__ const uint8_t *pack_block(const uint8_t *w, size_t stride,
                                                            int64_t row, int64_t i) {
  return w + static_cast<size_t>(row / PACK * PACK) * stride + i / 32 * PACK_BLOCK;
}
static __host__ __device__ __forceinline__ int pack_place(int row, int col) {
  return 2 * PACK + (row % 8 * 4 + col / 8) * 16 + row / 8 * 8 + col % 8;
}

/* Value i of a row of weights; dtype: PACKED if they lie so. */
static __device__ __forceinline__ float weight_at(const uint8_t *w, size_t stride, int dtype,
                                                  int64_t row, int64_t i) {
  if (dtype != PACKED) return value_at(w + static_cast<size_t>(row) * stride, dtype, i);
  const uint8_t *block = pack_block(w, stride, row, i);
  int r = static_cast<int>(row % PACK), col = static_cast<int>(i % 32);
  return __fmul_rn(static_cast<float>(static_cast<int8_t>(block[pack_place(r, col)])),
                   f32_of_f16(load16(block + 2 * r)));
}
static inline int weight_dtype(const pyr_tensor *w) {
  return w->interleaved ? PACKED : static_cast<int>(w->dtype);
}

#endif

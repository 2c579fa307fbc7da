/* pack.cuh — the order in which the device holds a model's q8_0 and q4_0 weights: as many bytes as
 * before, but aligned, and as a warp's lanes take them for the tensor cores (mma.cuh).
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
 * could load 16 bytes of them at once.
 *
 * q4_0 likewise, 288 bytes a block: a lane has 8, 4 of each row. Of the eight values v0 … v7 there
 * the even ones are the low half's nibbles, the odd ones the high half's, so that a shift and a
 * mask give a pair for both halves of a register (halves_of_nibbles in mma.cuh):
 *
 *     bits      0    4    8    12   16   20   24   28
 *               v0   v2   v4   v6   v1   v3   v5   v7
 *
 * The same value: byte 32 + 6 * 8 + 4, and there v3: bits 20 to 23. */
#ifndef PYR_CUDA_PACK_CUH
#define PYR_CUDA_PACK_CUH

#include "convert.cuh"

/* PACKED, PACKED_NIBBLES: q8_0 and q4_0 in packs, beside dtypes, for weight_at */
static constexpr int PACK = 16, PACKED = 64, PACKED_NIBBLES = 65;

/* Bytes of 32 columns, of a row and of a pack. */
static __host__ __device__ __forceinline__ constexpr int block_bytes(int dtype) {
  return dtype == PACKED ? 34 : 18;
}
static __host__ __device__ __forceinline__ constexpr int pack_bytes(int dtype) {
  return PACK * block_bytes(dtype);
}

/* The block of column i in the pack of a row, and where in it that row has its value of column i.
 */
template <int DTYPE>
static __device__ __forceinline__ const uint8_t *pack_block(const uint8_t *w, size_t stride,
                                                            int64_t row, int64_t i) {
  return w + static_cast<size_t>(row / PACK * PACK) * stride + i / 32 * pack_bytes(DTYPE);
}
static __host__ __device__ __forceinline__ int pack_place(int row, int col) {
  return 2 * PACK + (row % 8 * 4 + col / 8) * 16 + row / 8 * 8 + col % 8;
}

/* Of nibbles, where the four bytes of the column's eight are, and in which bits of them it is. */
static __host__ __device__ __forceinline__ int nibbles_place(int row, int col) {
  return 2 * PACK + (row % 8 * 4 + col / 8) * 8 + row / 8 * 4;
}
static __host__ __device__ __forceinline__ int nibble_shift(int col) {
  return col % 2 * 16 + col % 8 / 2 * 4;
}

/* Value i of a row of weights; dtype: PACKED or PACKED_NIBBLES if they lie so. */
static __device__ __forceinline__ float weight_at(const uint8_t *w, size_t stride, int dtype,
                                                  int64_t row, int64_t i) {
  int r = static_cast<int>(row % PACK), col = static_cast<int>(i % 32);
  if (dtype == PACKED_NIBBLES) {
    const uint8_t *block = pack_block<PACKED_NIBBLES>(w, stride, row, i);
    int bit = nibble_shift(col), nibble = block[nibbles_place(r, col) + bit / 8] >> bit % 8 & 15;
    return __fmul_rn(static_cast<float>(nibble - 8), f32_of_f16(load16(block + 2 * r)));
  }
  if (dtype != PACKED) return value_at(w + static_cast<size_t>(row) * stride, dtype, i);
  const uint8_t *block = pack_block<PACKED>(w, stride, row, i);
  return __fmul_rn(static_cast<float>(static_cast<int8_t>(block[pack_place(r, col)])),
                   f32_of_f16(load16(block + 2 * r)));
}
static inline int weight_dtype(const pyr_tensor *w) {
  return !w->interleaved ? static_cast<int>(w->dtype)
      : w->dtype == PYR_Q8_0 ? PACKED : PACKED_NIBBLES;
}

#endif

/* pack.cuh — the order in which the device holds a model's weights of q8_0, q4_0, q4_k, q5_k and
 * q6_k: as many bytes as before, but aligned, and as a warp's lanes take them for the tensor cores
 * (mma.cuh).
 *
 * PACK rows that follow each other are a pack. Unit by unit, of 32 columns or, of the k types, 256,
 * it has what scales them, row beside row, and then each lane's own bits. Of each 32 columns lane
 * 4 g + t has eight of row g and the same of row g + 8; v0 to v7 are their numbers:
 *
 *     columns    4t  4t+1  4t+2  4t+3 | 4t+16  4t+17  4t+18  4t+19
 *                v0  v1    v2    v3   | v4     v5     v6     v7
 *
 * so that the first 16 columns are one product of 16 x 8 x 16, and the others the next.
 *
 * q8_0, 544 bytes of 32 columns: 16 scales, of rows g and g + 8 beside each other; then 16 bytes
 * for each lane, v0 … v7 of row g, and of row g + 8. Row 9, column 19: lane 1 * 4 + 3 / 4 = 4, v7
 * of its second row: byte 32 + 4 * 16 + 8 + 7. A file's own blocks, of 34 bytes, begin at multiples
 * of 2: no lane could load 16 bytes of them at once.
 *
 * q4_0, 288 bytes likewise: a lane has 8, a word of each row. The even ones of v0 … v7 are in the
 * low half, the odd ones in the high half, so that a mask gives a pair for both halves of a
 * register (halves_of_nibbles):
 *
 *     bits      0    4    8    12   16   20   24   28
 *               v0   v2   v4   v6   v1   v3   v5   v7
 *
 * The k types, of 256 columns; NIBBLES are such words, 16 bytes for each lane and 64 columns: rows
 * g and g + 8 of the first 32, then of the others.
 *
 *     q4_k   2304    256 of scales | 2048 NIBBLES
 *     q5_k   2816    256 of scales | 2048 NIBBLES | 512 of fifth bits, 16 for each lane
 *     q6_k   3360    32 of f16 scales | 256 of scales | 2048 NIBBLES | 1024 of high pairs of bits,
 *                    16 for each lane, of the first 128 columns, and as much of the others
 *
 * Scales of q4_k and q5_k: four words for each row, g before g + 8, of its 8 scales s and mins m of
 * 6 bits (the four lanes of a row take mins 2t and 2t + 1 as operand `a`):
 *
 *     word 0   bytes 0-3: s0 … s3, and above each s_t the two high bits of m_2t
 *     word 1   bytes 0-3: s4 … s7, and the two high bits of m_2t+1
 *     word 2   the low four bits of the mins, as nibbles v0 … v7 are
 *     word 3   the block's f16 scale, and its f16 min
 *
 * q6_k: f16 scales of rows g and g + 8 beside each other; then 16 bytes for each row, g before
 * g + 8: its 16 scales, each plus 128.
 *
 * Value 200 of row 9, q4_k: chunk 6, column 8 of it: lane 1 * 4 + 8 / 4 = 6, v0; 64 columns from
 * 192 on are the fourth 512 bytes of NIBBLES, and of row 9's two words there the first: byte 256 +
 * 3 * 512 + 6 * 16 + 4, bits 0 to 3. Its scale s6 is in word 1 of row 9's four, which begin at byte
 * (1 * 2 + 1) * 16 = 48: the low six bits of byte 48 + 4 + 2. Its min m6: bits 12 to 15 of word 2,
 * and the highest two of byte 3 of word 0.
 *
 * The bits beyond four (extra_bit) are where a mask takes them to a pair's place after one of a few
 * shifts that serve all pairs of a word, of a lane's both rows (and, of q5_k, 64 columns). */
#ifndef PYR_CUDA_PACK_CUH
#define PYR_CUDA_PACK_CUH

#include "convert.cuh"

/* A dtype in packs, beside dtypes: PACKED + PYR_Q8_0. */
static constexpr int PACK = 16, PACKED = 64;
#define PYR_PACK_CASES(action) \
  case PACKED + PYR_Q8_0: action(PACKED + PYR_Q8_0); break; \
  case PACKED + PYR_Q4_0: action(PACKED + PYR_Q4_0); break; \
  case PACKED + PYR_Q4_K: action(PACKED + PYR_Q4_K); break; \
  case PACKED + PYR_Q5_K: action(PACKED + PYR_Q5_K); break; \
  case PACKED + PYR_Q6_K: action(PACKED + PYR_Q6_K); break;

static inline int weight_dtype(const pyr_tensor *w) {
  return static_cast<int>(w->dtype) + (w->interleaved ? PACKED : 0);
}

/* Columns of a unit, and its bytes, of a row and of a pack. */
static __host__ __device__ __forceinline__ constexpr int unit_cols(int dtype) {
  return dtype == PACKED + PYR_Q8_0 || dtype == PACKED + PYR_Q4_0 ? 32 : 256;
}
static __host__ __device__ __forceinline__ constexpr int unit_bytes(int dtype) {
  return dtype == PACKED + PYR_Q8_0 ? 34 : dtype == PACKED + PYR_Q4_0 ? 18
      : dtype == PACKED + PYR_Q4_K ? 144 : dtype == PACKED + PYR_Q5_K ? 176 : 210;
}
static __host__ __device__ __forceinline__ constexpr int pack_bytes(int dtype) {
  return PACK * unit_bytes(dtype);
}
/* Bits beyond four of a number of a k type; where its nibbles are in a unit of a pack; and what
 * follows them. */
static __host__ __device__ __forceinline__ constexpr int extra_bits(int dtype) {
  return dtype == PACKED + PYR_Q6_K ? 2 : dtype == PACKED + PYR_Q5_K ? 1 : 0;
}
static __host__ __device__ __forceinline__ constexpr int nibbles_at(int dtype) {
  return dtype == PACKED + PYR_Q6_K ? 288 : 256;
}
static constexpr int NIBBLES = 2048;

/* The unit of column i in the pack of a row. */
template <int DTYPE>
static __device__ __forceinline__ const uint8_t *pack_unit(const uint8_t *w, size_t stride,
                                                           int64_t row, int64_t i) {
  return w + static_cast<size_t>(row / PACK * PACK) * stride
      + i / unit_cols(DTYPE) * pack_bytes(DTYPE);
}

/* Whose a value is, and its number there. Row of a pack, column of a unit. Row 11, column 22: lane
 * 3 * 4 + 6 / 4 = 13, v(4 + 2): bits 12 to 15 of lane 13's second word of that chunk, and it is the
 * low half of pair 3, which a lane puts into second[3]. */
static __host__ __device__ __forceinline__ int pack_lane(int row, int col) {
  return row % 8 * 4 + col % 16 / 4;
}
static __host__ __device__ __forceinline__ int pack_value(int col) {
  return col % 32 / 16 * 4 + col % 4;
}

/* Bytes from the beginning of a unit: of q8_0's value; of the word that has its nibble, and the bit
 * in it; of the f16 scale where two rows' lie beside each other. */
static __host__ __device__ __forceinline__ int pack_place(int row, int col) {
  return 2 * PACK + pack_lane(row, col) * 16 + row / 8 * 8 + pack_value(col);
}
static __host__ __device__ __forceinline__ int word_place(int dtype, int row, int col) {
  return dtype == PACKED + PYR_Q4_0 ? 2 * PACK + pack_lane(row, col) * 8 + row / 8 * 4
      : nibbles_at(dtype) + col / 64 * 512 + pack_lane(row, col) * 16 + col / 32 % 2 * 8
          + row / 8 * 4;
}
static __host__ __device__ __forceinline__ int nibble_bit(int value) {
  return value % 2 * 16 + value / 2 * 4;
}
static __host__ __device__ __forceinline__ int scale_place(int row) {
  return row % 8 * 4 + row / 8 * 2;
}

/* Where the extra bits of a value are: the word, and the bit in it. Pair k of a row of a chunk of
 * 32 columns is the e-th that its view serves. A view is the word, or with the bytes of both halves
 * exchanged, shifted by `extra_bits` times 0 to 3 (4 / extra_bits - 1); there even pairs are at bit
 * 4 of each half, odd ones at bit 8. Of q6_k:
 *
 *     bits of a half    0 1   2 3   4 5   6 7   8 9   10 11  12 13  14 15
 *     row, pair         8 1   8 3   0 0   0 2   0 1   0 3    8 0    8 2 */
static __host__ __device__ __forceinline__ int extra_place(int dtype, int row, int col) {
  int at = nibbles_at(dtype) + NIBBLES + pack_lane(row, col) * 16;
  return extra_bits(dtype) == 1 ? at + col / 64 * 4 : at + col / 128 * 512 + col % 128 / 32 * 4;
}
static __host__ __device__ __forceinline__ int extra_bit(int dtype, int row, int col) {
  int value = pack_value(col), k = value / 2, width = extra_bits(dtype);
  int e = (width == 1 ? col / 32 % 2 * 4 : 0) + row / 8 * 2 + k / 2, by = e * width;
  int bit = k % 2 == 0 ? (by < 4 ? 4 + by : 8 + by) : by < 4 ? 8 + by : by - 4;
  return bit + value % 2 * 16;
}

/* Words of packs are aligned. */
static __device__ __forceinline__ uint32_t word_at(const uint8_t *unit, int at) {
  return *reinterpret_cast<const uint32_t *>(unit + at);
}
static __device__ __forceinline__ int packed_nibble(const uint8_t *unit, int dtype, int row,
                                                    int col) {
  return static_cast<int>(word_at(unit, word_place(dtype, row, col))
                          >> nibble_bit(pack_value(col)) & 15);
}

/* The number of a k type in column `col` of a unit, as its file has it. */
static __device__ __forceinline__ int packed_number(const uint8_t *unit, int dtype, int row,
                                                    int col) {
  int number = packed_nibble(unit, dtype, row, col), width = extra_bits(dtype);
  if (width == 0) return number;
  uint32_t extra = word_at(unit, extra_place(dtype, row, col)) >> extra_bit(dtype, row, col);
  return number | static_cast<int>(extra & ((1u << width) - 1)) << 4;
}

/* Scales of q4_k and q5_k: four words, of which row `row` has those at 16 times this. */
static __host__ __device__ __forceinline__ int row_place(int row) {
  return row % 8 * 2 + row / 8;
}

/* Value i of a row of packs, rounded as convert.cuh rounds what lies as in a file. */
template <int DTYPE>
static __device__ __forceinline__ float packed_at(const uint8_t *w, size_t stride, int64_t row,
                                                  int64_t i) {
  const uint8_t *unit = pack_unit<DTYPE>(w, stride, row, i);
  int r = static_cast<int>(row % PACK), col = static_cast<int>(i % unit_cols(DTYPE)), g = col / 32;
  if (DTYPE == PACKED + PYR_Q8_0)
    return __fmul_rn(static_cast<float>(static_cast<int8_t>(unit[pack_place(r, col)])),
                     f32_of_f16(load16(unit + scale_place(r))));
  if (DTYPE == PACKED + PYR_Q4_0)
    return __fmul_rn(static_cast<float>(packed_nibble(unit, DTYPE, r, col) - 8),
                     f32_of_f16(load16(unit + scale_place(r))));
  auto number = static_cast<float>(packed_number(unit, DTYPE, r, col));
  if (DTYPE == PACKED + PYR_Q6_K) {
    int scale = unit[2 * PACK + row_place(r) * 16 + col / 16] - 128;
    return __fmul_rn(__fmul_rn(f32_of_f16(load16(unit + scale_place(r))),
                               static_cast<float>(scale)), number - 32);
  }
  const uint8_t *s = unit + row_place(r) * 16;
  uint32_t mins = word_at(s, 8) >> nibble_bit(g) & 15;
  auto scale = static_cast<float>(s[g] & 63),
      min = static_cast<float>(mins | static_cast<uint32_t>(s[g % 2 * 4 + g / 2] >> 6) << 4);
  return __fsub_rn(__fmul_rn(__fmul_rn(f32_of_f16(load16(s + 12)), scale), number),
                   __fmul_rn(f32_of_f16(load16(s + 14)), min));
}

/* Value i of a row of weights; dtype: PACKED and more if they lie so. */
static __device__ __forceinline__ float weight_at(const uint8_t *w, size_t stride, int dtype,
                                                  int64_t row, int64_t i) {
#define VALUE(dtype) return packed_at<dtype>(w, stride, row, i)
  switch (dtype) {
    PYR_PACK_CASES(VALUE)
  }
#undef VALUE
  return value_at(w + static_cast<size_t>(row) * stride, dtype, i);
}

#endif

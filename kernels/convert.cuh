/* convert.cuh — the number formats on the device: single values of rows to f32, whole rows from
 * f32.
 *
 * The formats are those of core/base/dtype.c, and so is the arithmetic, product by product: a row
 * reads the same here and there. `dtype` is a constant where a kernel is compiled for each dtype,
 * and then the switch goes.
 *
 * What blocks of quantised weights look like, in bytes from the first:
 *
 *     q8_0   34, of 32 values    f16 scale, 32 int8                            scale * q
 *     q4_0   18, of 32           f16 scale, 16 bytes: values 0-15 in their low
 *                                nibbles, 16-31 in their high ones             scale * (q - 8)
 *     q4_1   20, of 32           f16 scale, f16 min, 16 bytes likewise          scale * q + min
 *     iq4_nl 18, of 32           f16 scale, 16 bytes likewise                  scale * level[q]
 *     q5_0   22, of 32           f16 scale, 32 fifth bits, 16 bytes likewise    scale * (q - 16)
 *     q5_1   24, of 32           f16 scale, f16 min, 32 fifth bits, 16 bytes    scale * q + min
 *     q4_k   144, of 256         f16 scale, f16 min, 12 bytes: 8 scales and 8
 *                                mins of 6 bits, 128 bytes of nibbles       scale * s * q - min * m
 *     q5_k   176, of 256         the same, with 32 bytes of fifth bits before the 128
 *     q6_k   210, of 256         128 bytes of low nibbles, 64 of high pairs of bits,
 *                                16 int8 scales, f16 scale
 *     q3_k   110, of 256         32 bytes of third bits, 64 of pairs of bits, 12 bytes: 16
 *                                scales of 6 bits, f16 scale
 *     q2_k   84, of 256          16 bytes: 16 scales and mins of 4 bits, 64 of pairs of
 *                                bits, f16 scale, f16 min
 *
 * A lane that reads every 32nd value of a row reads a block of 32 together with its warp: the
 * block's scale is one load for all. */
#ifndef PYR_CUDA_CONVERT_CUH
#define PYR_CUDA_CONVERT_CUH

#include "cuda.cuh"
#include "warp.cuh"
#ifndef PYR_EMULATED
#include <cuda_fp16.h>
#endif

static __device__ __forceinline__ float f32_of_f16(uint16_t h) {
#ifdef PYR_EMULATED
  return pyr_f32_of_f16(h);
#else
  return __half2float(__ushort_as_half(h));
#endif
}

static __device__ __forceinline__ uint16_t f16_of_f32(float x) {
#ifdef PYR_EMULATED
  return pyr_f16_of_f32(x);
#else
  return __half_as_ushort(__float2half_rn(x));
#endif
}

static __device__ __forceinline__ float f32_of_bf16(uint16_t h) {
  return __uint_as_float(static_cast<uint32_t>(h) << 16);
}

/* To the nearest, ties to even: half a unit of the last place less one bit is added, and that bit
 * where the last place is odd. NaN keeps its sign and stays quiet: it must not round up to
 * infinity. */
static __device__ __forceinline__ uint16_t bf16_of_f32(float x) {
  uint32_t bits = __float_as_uint(x), quiet = (bits >> 16) | 0x40u,
      even = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
  return static_cast<uint16_t>((bits & 0x7fffffffu) > 0x7f800000u ? quiet : even);
}

/* e4m3: sign, 4 bits of exponent (bias 7), 3 of mantissa. 0x3c000000 is the difference of the
 * biases, 120 << 23. 0x38 is 7 and 0: 1. Below 8 (no exponent): units of 2^-9. 0x7f is NaN; no
 * infinities. */
static __device__ __forceinline__ float f32_of_fp8(uint8_t b) {
  uint32_t sign = static_cast<uint32_t>(b & 0x80u) << 24, rest = b & 0x7fu;
  uint32_t normal = (rest << 20) + 0x3c000000u,
      small = __float_as_uint(static_cast<float>(rest) * 0x1p-9f);
  return __uint_as_float((rest == 0x7fu ? 0x7fc00000u : rest < 8u ? small : normal) | sign);
}

/* To the nearest, ties to even, 448 at most. Small ones, below 2^-6: 2^14 has a last place of 2^-9,
 * so that adding it rounds to such units, whose number is then in the low bits. */
static __device__ __forceinline__ uint8_t fp8_of_f32(float x) {
  uint32_t bits = __float_as_uint(x), sign = (bits >> 24) & 0x80u, rest = bits & 0x7fffffffu;
  uint32_t large = rest > 0x7f800000u ? 0x7fu : 0x7eu,
      normal = (rest - 0x3c000000u + 0x7ffffu + ((rest >> 20) & 1u)) >> 20;
  uint32_t small = __float_as_uint(fabsf(x) + 0x1p14f) - 0x46800000u;
  return static_cast<uint8_t>((rest >= 0x43e00000u ? large : rest < 0x3c800000u ? small
                               : normal) | sign);
}

/* Blocks of quantised weights lie anywhere. */
static __device__ __forceinline__ uint16_t load16(const uint8_t *p) {
  return static_cast<uint16_t>(p[0] | p[1] << 8);
}

/* ---- one value of a row ---------------------------------------------------------------------- */

/* The scale and the min of 32 values, the g-th of a q4_k or q5_k block, as in dtype.c. Eight of
 * each, of 6 bits, in 12 bytes; those of groups 4 to 7 are cut in two:
 *
 *     byte i = 0-3      | 2 high bits of scale i + 4 | scale i, 6 bits |
 *     byte 4 + i        | 2 high bits of min i + 4   | min i, 6 bits   |
 *     byte 8 + i        | 4 low bits of min i + 4 | 4 low bits of scale i + 4 | */
static __device__ __forceinline__ int scale_number(const uint8_t *block, int g) {
  const uint8_t *s = block + 4;
  return g < 4 ? s[g] & 63 : (s[4 + g] & 15) | ((s[g - 4] >> 2) & 48);
}
static __device__ __forceinline__ int min_number(const uint8_t *block, int g) {
  const uint8_t *s = block + 4;
  return g < 4 ? s[4 + g] & 63 : (s[4 + g] >> 4) | ((s[g] >> 2) & 48);
}
static __device__ __forceinline__ void scale_of(const uint8_t *block, int g, float *scale,
                                                float *min) {
  *scale = __fmul_rn(f32_of_f16(load16(block)), static_cast<float>(scale_number(block, g)));
  *min = __fmul_rn(f32_of_f16(load16(block + 2)), static_cast<float>(min_number(block, g)));
}

/* Value i of q4_k, or of q5_k (fifth). 64 values share 32 bytes, the first 32 in the low nibbles:
 * value 40 is the 8th of group 1, the high nibble of byte 8; its fifth bit is bit 1 of high byte 8.
 * The product and the difference are rounded by themselves, as dtype.c does it: no multiply-add. */
static __device__ __forceinline__ int number_of_k(const uint8_t *block, bool fifth, int r) {
  const uint8_t *q = block + (fifth ? 48 : 16);
  int g = r / 32, at = r % 32, byte = q[g / 2 * 32 + at], number = g % 2 ? byte >> 4 : byte & 15;
  return fifth ? number | (block[16 + at] >> g & 1) << 4 : number;
}
static __device__ __forceinline__ float value_of_k(const uint8_t *row, bool fifth, int64_t i) {
  const uint8_t *block = row + i / 256 * (fifth ? 176 : 144);
  int r = static_cast<int>(i % 256);
  float scale, min;
  scale_of(block, r / 32, &scale, &min);
  return __fsub_rn(__fmul_rn(scale, static_cast<float>(number_of_k(block, fifth, r))), min);
}

/* Value i of q6_k: two halves of 128 values, each four runs of 32. Value 200 is in half 1, run 2,
 * at 8: low bits in the high nibble of byte 64 + 8, high bits 4 and 5 of byte 128 + 32 + 8, scale
 * 12. */
static __device__ __forceinline__ int number_of_q6_k(const uint8_t *block, int r) {
  int half = r / 128, run = r % 128 / 32, at = r % 32;
  int low = block[half * 64 + 32 * (run & 1) + at] >> 4 * (run >> 1) & 15;
  return low | (block[128 + half * 32 + at] >> 2 * run & 3) << 4;
}
static __device__ __forceinline__ float value_of_q6_k(const uint8_t *row, int64_t i) {
  const uint8_t *block = row + i / 256 * 210;
  int r = static_cast<int>(i % 256);
  float scale = static_cast<float>(static_cast<int8_t>(block[192 + r / 16]));
  return __fmul_rn(__fmul_rn(f32_of_f16(load16(block + 208)), scale),
                   static_cast<float>(number_of_q6_k(block, r) - 32));
}

/* Number r of 256 of q3_k and q2_k: two bits, 128 numbers in 32 bytes. */
static __device__ __forceinline__ int pair_of(const uint8_t *q, int r) {
  return q[r / 128 * 32 + r % 32] >> r % 128 / 32 * 2 & 3;
}

/* Value i of q3_k: scale g of 16 has its low bits in a low (g < 8) or high nibble of s[g % 8], and
 * two more in s[8 + g % 4]. Value 200: g 12, the high nibble of s[4] and the highest bits of s[8];
 * its third bit is bit 6 of byte 8. */
static __device__ __forceinline__ float value_of_q3_k(const uint8_t *row, int64_t i) {
  const uint8_t *block = row + i / 256 * 110, *s = block + 96;
  int r = static_cast<int>(i % 256), g = r / 16;
  int scale = (s[g % 8] >> g / 8 * 4 & 15) | (s[8 + g % 4] >> g / 4 * 2 & 3) << 4;
  int q = pair_of(block + 32, r) - (block[r % 32] >> r / 32 & 1 ? 0 : 4);
  return __fmul_rn(__fmul_rn(f32_of_f16(load16(block + 108)), static_cast<float>(scale - 32)),
                   static_cast<float>(q));
}

static __device__ __forceinline__ float value_of_q2_k(const uint8_t *row, int64_t i) {
  const uint8_t *block = row + i / 256 * 84;
  int r = static_cast<int>(i % 256), s = block[r / 16];
  float scale = __fmul_rn(f32_of_f16(load16(block + 80)), static_cast<float>(s & 15)),
      min = __fmul_rn(f32_of_f16(load16(block + 82)), static_cast<float>(s >> 4));
  return __fsub_rn(__fmul_rn(scale, static_cast<float>(pair_of(block + 16, r))), min);
}

/* Number `at` of 32: 4 bits, low nibbles of the bytes first; and a fifth one. */
static __device__ __forceinline__ int nibble_of(const uint8_t *q, int at) {
  return at < 16 ? q[at] & 15 : q[at - 16] >> 4;
}
static __device__ __forceinline__ int fifth_of(const uint8_t *bits, int at) {
  return (bits[at / 8] >> at % 8 & 1) << 4;
}

/* Value i of formats with blocks of 32. */
static __device__ __forceinline__ float value_of_q4_0(const uint8_t *row, int64_t i) {
  const uint8_t *block = row + i / 32 * 18;
  int q = nibble_of(block + 2, static_cast<int>(i % 32));
  return __fmul_rn(f32_of_f16(load16(block)), static_cast<float>(q - 8));
}
static __device__ __forceinline__ float value_of_q4_1(const uint8_t *row, int64_t i) {
  const uint8_t *block = row + i / 32 * 20;
  int q = nibble_of(block + 4, static_cast<int>(i % 32));
  return __fadd_rn(__fmul_rn(f32_of_f16(load16(block)), static_cast<float>(q)),
                   f32_of_f16(load16(block + 2)));
}

/* Eight levels of iq4_nl in a word, the first in its lowest byte: a table of bytes would lie in
 * memory. */
static constexpr int8_t IQ4_LEVELS[16] = { PYR_IQ4_LEVELS };
static constexpr uint64_t eight_levels(int from) {
  uint64_t word = 0;
  for (int i = 8; i-- > 0;) word = word << 8 | static_cast<uint8_t>(IQ4_LEVELS[from + i]);
  return word;
}
static constexpr uint64_t IQ4_LOW = eight_levels(0), IQ4_HIGH = eight_levels(8);

static __device__ __forceinline__ float value_of_iq4_nl(const uint8_t *row, int64_t i) {
  const uint8_t *block = row + i / 32 * 18;
  int q = nibble_of(block + 2, static_cast<int>(i % 32));
  auto level = static_cast<int8_t>((q < 8 ? IQ4_LOW : IQ4_HIGH) >> q % 8 * 8);
  return __fmul_rn(f32_of_f16(load16(block)), static_cast<float>(level));
}
static __device__ __forceinline__ float value_of_q5_0(const uint8_t *row, int64_t i) {
  const uint8_t *block = row + i / 32 * 22;
  int at = static_cast<int>(i % 32), q = nibble_of(block + 6, at) | fifth_of(block + 2, at);
  return __fmul_rn(f32_of_f16(load16(block)), static_cast<float>(q - 16));
}
static __device__ __forceinline__ float value_of_q5_1(const uint8_t *row, int64_t i) {
  const uint8_t *block = row + i / 32 * 24;
  int at = static_cast<int>(i % 32), q = nibble_of(block + 8, at) | fifth_of(block + 4, at);
  return __fadd_rn(__fmul_rn(f32_of_f16(load16(block)), static_cast<float>(q)),
                   f32_of_f16(load16(block + 2)));
}

/* Value i: a whole number of 8 bits, exact in f32 as the scale is; the product is rounded once. */
static __device__ __forceinline__ float value_of_q8_0(const uint8_t *row, int64_t i) {
  const uint8_t *block = row + i / 32 * 34;
  return __fmul_rn(static_cast<float>(static_cast<int8_t>(block[2 + i % 32])),
                   f32_of_f16(load16(block)));
}

/* Value i of a row. */
static __device__ __forceinline__ float value_at(const uint8_t *row, int dtype, int64_t i) {
  switch (static_cast<pyr_dtype>(dtype)) {
    case PYR_F32: return reinterpret_cast<const float *>(row)[i];
    case PYR_F16: return f32_of_f16(reinterpret_cast<const uint16_t *>(row)[i]);
    case PYR_BF16: return f32_of_bf16(reinterpret_cast<const uint16_t *>(row)[i]);
    case PYR_Q8_0: return value_of_q8_0(row, i);
    case PYR_Q4_0: return value_of_q4_0(row, i);
    case PYR_Q4_1: return value_of_q4_1(row, i);
    case PYR_IQ4_NL: return value_of_iq4_nl(row, i);
    case PYR_Q5_0: return value_of_q5_0(row, i);
    case PYR_Q5_1: return value_of_q5_1(row, i);
    case PYR_Q4_K: return value_of_k(row, false, i);
    case PYR_Q5_K: return value_of_k(row, true, i);
    case PYR_Q6_K: return value_of_q6_k(row, i);
    case PYR_Q3_K: return value_of_q3_k(row, i);
    case PYR_Q2_K: return value_of_q2_k(row, i);
    PYR_CASES_NOT_WEIGHTS: break;
  }
  return 0.0f;
}

/* ---- whole rows from f32 --------------------------------------------------------------------- */

/* x / d rounded half away from zero, |x| at most 127 d; NaN as if it were larger. In whole numbers
 * and products, the same on host and device: 2.5 is 2 + (int)(2 * .5) = 3, 2.4 is 2 + (int) .8 = 2.
 */
static __device__ __forceinline__ int8_t quantum_of(float x, float inverse) {
  const int largest = 0x42fe0000;                      /* 127 as a float's bits */
  uint32_t bits = __float_as_uint(__fmul_rn(x, inverse));
  int size = static_cast<int>(bits & 0x7fffffffu);
  float a = __uint_as_float(static_cast<uint32_t>(size < largest ? size : largest));
  int whole = static_cast<int>(a), rounded = whole
      + static_cast<int>(2.0f * (a - static_cast<float>(whole)));
  return static_cast<int8_t>(bits >> 31 ? -rounded : rounded);
}

/* Writes a row of d values; called by a whole warp. `from` may be shared or global memory, but not
 * the row itself. Of q8_0 a lane has one value of each block of 32; the scale is the highest size
 * over 127, so that the largest becomes 127 or -127: of values up to 2.54 the scale is .02, and 1
 * becomes 50. Sizes are compared as whole numbers, so that a NaN is the highest. */
static __device__ __forceinline__ void write_row(uint8_t *row, int dtype, const float *from,
                                                 int d) {
  int lane = lane_of_warp();
  if (dtype != PYR_Q8_0) {
    for (int i = lane; i < d; i += WARP)
      switch (static_cast<pyr_dtype>(dtype)) {
        case PYR_F32: reinterpret_cast<float *>(row)[i] = from[i]; break;
        case PYR_F16: reinterpret_cast<uint16_t *>(row)[i] = f16_of_f32(from[i]); break;
        case PYR_BF16: reinterpret_cast<uint16_t *>(row)[i] = bf16_of_f32(from[i]); break;
        case PYR_FP8_E4M3: row[i] = fp8_of_f32(from[i]); break;
        case PYR_Q8_0: PYR_CASES_NOT_ROWS: break;
      }
    return;
  }
  for (int block = 0; block < d / WARP; block++) {     /* a lane for each of a block's values */
    float x = from[block * WARP + lane];
    int most = warp_max(static_cast<int>(__float_as_uint(x) & 0x7fffffffu));
    float scale = __uint_as_float(static_cast<uint32_t>(most)) / 127.0f,
        inverse = scale != 0 ? 1.0f / scale : 0.0f;
    if (lane == 0) *reinterpret_cast<uint16_t *>(row + block * 34) = f16_of_f32(scale);
    row[block * 34 + 2 + lane] = static_cast<uint8_t>(quantum_of(x, inverse));
  }
}

/* ---- rows of lanes --------------------------------------------------------------------------- */

/* K (what = 0) or V (1) of a row; `bytes` is the row's. The lane's page table is the device's. Two
 * reads that wait for each other, the page's address and then the row: kernels ask for the first
 * rows as early as they can. */
static __device__ __forceinline__ uint8_t *row_at(const pyr_lane_view &lane, int bytes,
                                                  int64_t row, int what) {
  return static_cast<uint8_t *>(lane.pages[row / PYR_PAGE_ROWS])
      + (row % PYR_PAGE_ROWS + what * PYR_PAGE_ROWS) * bytes;
}

/* What a scaled product becomes before it is masked (pyr_attention): cap and slope of 0 leave it.
 * The distance wraps where a position is none, which is masked afterwards. */
static __device__ __forceinline__ float bent_score(float s, float cap, float slope, int32_t query,
                                                   int32_t row) {
  if (cap > 0) s = cap * tanhf(s / cap);
  int32_t apart = static_cast<int32_t>(static_cast<uint32_t>(row) - static_cast<uint32_t>(query));
  return s + slope * static_cast<float>(apart);
}

/* Rows [low, high) that a query at `position` sees: positions ascend, so they are a run. */
struct row_span { int64_t low, high; };

/* Rows [low, high) that a query at `position` sees: the first row above it, and the first within
 * its window, by bisection. Positions 0 3 4 8 9, a query at 8: rows [0, 4); with a window of 5,
 * which begins at position 4, rows [2, 4). Most often the last row is the query's own: nothing is
 * searched. */
static __device__ __forceinline__ row_span visible_rows(const int32_t *positions, int64_t rows,
                                                        int32_t position, int32_t window) {
  int64_t low = 0, high = rows;  /* first row whose position is above: most often there is none */
  if (rows > 0 && positions[rows - 1] <= position) low = rows;
  while (low < high) {
    int64_t middle = low + (high - low) / 2;
    if (positions[middle] <= position) low = middle + 1; else high = middle;
  }
  row_span span = { 0, low };
  if (window > 0) {
    int64_t oldest = static_cast<int64_t>(position) - window + 1, end = span.high;
    while (span.low < end) {
      int64_t middle = span.low + (end - span.low) / 2;
      if (positions[middle] < oldest) span.low = middle + 1; else end = middle;
    }
  }
  return span;
}

/* due(j) of pyr_weighting. Rows are counted in 32 bits, and so the division is: one of 64 bits is a
 * call. With due = 100, every = 16 and threshold = -20 (counted from the lane's end) rows before
 * -20 are due at 100, -20 to -5 at 116, -4 to -1 at 132. */
static __device__ __forceinline__ int64_t due_of(const pyr_weighting &w, int64_t j) {
  if (w.every <= 0 || j < w.threshold) return w.due;
  if (w.every > INT32_MAX) return w.due + w.every;
  return w.due + (static_cast<int64_t>(static_cast<uint32_t>(
      j - w.threshold) / static_cast<uint32_t>(w.every)) + 1) * w.every;
}

/* Value i of a cache row. */
static __device__ __forceinline__ float cache_value_at(const uint8_t *row, int dtype, int i) {
  switch (static_cast<pyr_dtype>(dtype)) {
    case PYR_F32: return reinterpret_cast<const float *>(row)[i];
    case PYR_F16: return f32_of_f16(reinterpret_cast<const uint16_t *>(row)[i]);
    case PYR_BF16: return f32_of_bf16(reinterpret_cast<const uint16_t *>(row)[i]);
    case PYR_Q8_0: return value_of_q8_0(row, i);
    case PYR_FP8_E4M3: return f32_of_fp8(row[i]);
    PYR_CASES_NOT_ROWS: break;
  }
  return 0.0f;
}

/* How rows of a lane are read: what all kernels on lanes are told. */
struct row_format { int dtype, d, bytes; };
static inline row_format format_of(pyr_layout layout) {
  return row_format{ static_cast<int>(layout.dtype), layout.head_dim,
                     static_cast<int>(pyr_dtype_bytes(layout.dtype, layout.head_dim)) };
}

/* Rows that a tile in shared memory holds: one for each lane of a warp, or of half a warp where
 * heads are wide; and floats from row to row, odd, so that lanes that read one column of all rows
 * do not meet in a bank. */
static __host__ __device__ __forceinline__ int tile_rows(int d) {
  return d <= 256 ? WARP : WARP / 2;
}
static __host__ __device__ __forceinline__ int tile_ld(int d) { return d | 1; }

/* Dimensions [from, from + width) of rows [row, row + count) of K (what = 0) or V (1) into tile
 * [rows][ld], by a whole block; rows beyond `count` become zeros. The caller's barriers stand
 * before (the last tile is used) and after (this one is whole). Neighbouring threads read
 * neighbouring dimensions of a row, so that a warp's reads are whole lines. */
static __device__ __forceinline__ void load_tile(float *tile, int rows, int ld,
                                                 const pyr_lane_view &lane, row_format f, int from,
                                                     int width, int64_t row, int64_t count,
                                                         int what) {
  for (int i = static_cast<int>(threadIdx.x); i < rows * width; i += static_cast<int>(blockDim.x)) {
    int r = i / width, c = i % width;
    tile[r * ld + c] = r < count ? cache_value_at(row_at(lane, f.bytes, row + r, what), f.dtype,
                                                  from + c) : 0.0f;
  }
}

/* sums [d] = the sum of keys [begin, end), each made of length 1, by one block of WARPS warps. A
 * warp has every WARPS-th row, and sums of its own in shared memory, sums [WARPS][d], which are
 * then joined in their order, so that the result is always the same. inverse [end - begin], or
 * NULL: one over each length, 0 of a zero. Thread c has sums[c], sums[c + blockDim.x], … when it
 * returns; others want a barrier first. Keys (3, 4) and (0, 2): (.6, .8) + (0, 1) = (.6, 1.8). */
template <int WARPS>
static __device__ void sum_unit_keys(float *sums, const pyr_lane_view &lane, row_format f,
                                     int64_t begin, int64_t end, float *inverse) {
  float *sum = sums + warp_of_block() * f.d;
  for (int c = lane_of_warp(); c < f.d; c += WARP) sum[c] = 0;
  for (int64_t j = begin + warp_of_block(); j < end; j += WARPS) {
    const uint8_t *row = row_at(lane, f.bytes, j, 0);
    float length = 0;
    for (int c = lane_of_warp(); c < f.d; c += WARP) {
      float x = cache_value_at(row, f.dtype, c);
      length += x * x;
    }
    length = sqrtf(warp_sum(length));
    float by = length > 0 ? 1.0f / length : 0.0f;
    for (int c = lane_of_warp(); c < f.d; c += WARP) sum[c] += cache_value_at(row, f.dtype, c) * by;
    if (inverse && lane_of_warp() == 0) inverse[j - begin] = by;
  }
  __syncthreads();
  for (int c = static_cast<int>(threadIdx.x); c < f.d; c += WARPS * WARP)
    for (int w = 1; w < WARPS; w++) sums[c] += sums[w * f.d + c];
}

#endif

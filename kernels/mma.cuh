/* mma.cuh — the tensor cores' product of small matrices, and how its operands come from shared
 * memory: PTX on the device, the same over the lanes of a warp of fibres in the emulator
 * (emulate/mma.h), with the registers laid out alike.
 *
 * The 32 lanes of a warp hold a matrix together; with g = lane / 4 and t = lane % 4, and two 16-bit
 * values a register, the even column (or, of b, row) in the low half:
 *
 *     a  16 x 16   a[0]: row g, columns 2t, 2t+1        a[1]: row g + 8, those columns
 *                  a[2]: row g, columns 2t+8, 2t+9      a[3]: row g + 8, those columns
 *     b  16 x 8    b0: rows 2t, 2t+1 of column g    b1: rows 2t+8, 2t+9 of column g
 *     c  16 x 8    c[0], c[1]: row g, columns 2t, 2t+1    c[2], c[3]: row g + 8
 *
 *   mma<bf16>(c, a, b0, b1)       c += a b, sums in f32 (m16n8k16)
 *   load_matrices(r, row)         four 8 x 8 matrices of 16 bits from shared memory: lanes 0-7 give
 *                                 the addresses of the rows of the first one, lanes 8-15 of the
 *                                 second, …; r[i]: row g, columns 2t, 2t+1 of the i-th
 *   load_transposed(r, row)       the same of each one's transpose
 *   copy_async(to, from, real)    16 bytes from global to shared memory, zeros if not `real`; both
 *                                 aligned to 16
 *   copy_commit(), copy_wait<n>() closes a group of this thread's copies; waits until at most n
 *                                 groups are under way. What others copied is seen after a barrier
 *                                 that follows their wait
 *   times_256(halves)             two halves, each times 256
 *   fma_halves(a, b, c)           two halves, a b + c, rounded once
 *
 * Which lane (and register) has what, L0 to L31:
 *
 *     a, columns    0 1    2 3    4 5    6 7    8 9    …  14 15
 *     row 0         L0 0   L1 0   L2 0   L3 0   L0 2   …  L3 2
 *     row 1         L4 0   L5 0   L6 0   L7 0   L4 2   …  L7 2
 *     row 8         L0 1   L1 1   L2 1   L3 1   L0 3   …  L3 3
 *
 *     c, columns    0      1      2      3      …  7
 *     row 0         L0 0   L0 1   L1 0   L1 1   …  L3 1
 *     row 8         L0 2   L0 3   L1 2   L1 3   …  L3 3
 *
 * An exact f32 in terms: 3.14159274 is, in bf16, 3.140625 + 0.000968933 - 0.00000119: 8 bits each,
 * 24 together. Of two factors only one is split: the other, rows or weights of 16 bits, is exact.
 */
#ifndef PYR_CUDA_MMA_CUH
#define PYR_CUDA_MMA_CUH

#include "convert.cuh"

/* The two formats. An exact f32 is the sum of so many of them, each the rounded rest of those
 * before; `shift` lifts probabilities, which are at most 1, by 2^shift, so that small ones do not
 * fall below the least number of the format. */
struct bf16 {
  static constexpr int exact = 3, shift = 0;
  static constexpr bool narrow = false;
  static __device__ __forceinline__ uint16_t round(float x) { return bf16_of_f32(x); }
  static __device__ __forceinline__ float widen(uint16_t h) { return f32_of_bf16(h); }
};
struct f16 {
  static constexpr int exact = 2, shift = 15;
  static constexpr bool narrow = true;               /* in range: f32 values are scaled by a power
                                                        of two first */
  static __device__ __forceinline__ uint16_t round(float x) { return f16_of_f32(x); }
  static __device__ __forceinline__ float widen(uint16_t h) { return f32_of_f16(h); }
};

#ifdef PYR_EMULATED
#include "emulate/mma.h"
#else

/* PTX names shared memory by 32 bits of its own. */
static __device__ __forceinline__ uint32_t shared_address(const void *p) {
  return static_cast<uint32_t>(__cvta_generic_to_shared(p));
}

template <typename T>
static __device__ __forceinline__ void mma(float (&c)[4], const uint32_t (&a)[4], uint32_t b0,
                                           uint32_t b1);
template <>
__device__ __forceinline__ void mma<bf16>(float (&c)[4], const uint32_t (&a)[4], uint32_t b0,
                                          uint32_t b1) {
  asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 "
      "{%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}
template <>
__device__ __forceinline__ void mma<f16>(float (&c)[4], const uint32_t (&a)[4], uint32_t b0,
                                         uint32_t b1) {
  asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 "
      "{%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

static __device__ __forceinline__ void load_matrices(uint32_t (&r)[4], const void *row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]),
                   "=r"(r[3]) : "r"(shared_address(row)) : "memory");
}
static __device__ __forceinline__ void load_transposed(uint32_t (&r)[4], const void *row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]),
                   "=r"(r[3]) : "r"(shared_address(row)) : "memory");
}

/* cg: past L1, which rows that are read once would only fill. 0 bytes of 16 read nothing and leave
 * zeros. */
static __device__ __forceinline__ void copy_async(void *to, const void *from, bool real) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;"
               :: "r"(shared_address(to)), "l"(from), "r"(real ? 16 : 0) : "memory");
}
static __device__ __forceinline__ void copy_commit() {
  asm volatile("cp.async.commit_group;" ::: "memory");
}
template <int LEFT> static __device__ __forceinline__ void copy_wait() {
  asm volatile("cp.async.wait_group %0;" :: "n"(LEFT) : "memory");
}

/* 0x5c00 is 256 as a half, here twice. */
static __device__ __forceinline__ uint32_t times_256(uint32_t halves) {
  uint32_t out;
  asm("mul.f16x2 %0, %1, %2;" : "=r"(out) : "r"(halves), "r"(0x5c005c00u));
  return out;
}

/* a b + c of two halves, rounded once. */
static __device__ __forceinline__ uint32_t fma_halves(uint32_t a, uint32_t b, uint32_t c) {
  uint32_t out;
  asm("fma.rn.f16x2 %0, %1, %2, %3;" : "=r"(out) : "r"(a), "r"(b), "r"(c));
  return out;
}

/* 2^x, to 2 units of the last place; results below 2^-126 are 0. */
static __device__ __forceinline__ float power_of_two(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}
#endif

/* Two values as a register, and what their rounding left of them, in place: called again it gives
 * the next term. 3.14159274 in bf16: 3.140625, then 0.00096893, then -0.00000119. */
template <typename T>
static __device__ __forceinline__ uint32_t take_pair(float &low, float &high) {
#ifdef PYR_EMULATED
  uint32_t pair = T::round(low) | static_cast<uint32_t>(T::round(high)) << 16;
#else
  uint32_t pair;
  if (T::narrow) asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(high), "f"(low));
  else asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(high), "f"(low));
#endif
  low -= T::widen(static_cast<uint16_t>(pair));
  high -= T::widen(static_cast<uint16_t>(pair >> 16));
  return pair;
}

/* The power of two that brings values of a highest size `top` to between 2^9 and 2^10, and what
 * takes it back: of 3, 2^1 <= 3 < 2^2, up = 2^(9 - 1) = 256 and back = 2^-8; 3 becomes 768. Then
 * second terms of f16, 2^-11 of the first, are normal numbers, too. Exponents are kept to where
 * both powers are normal: zeros go up by 2^116, to zeros. */
struct range { float up, back; };
static __device__ __forceinline__ range range_of(float top) {
  int exponent = static_cast<int>(__float_as_uint(top) >> 23);  /* biased by 127 */
  exponent = exponent < 20 ? 20 : exponent > 240 ? 240 : exponent;
  return range{ __uint_as_float(static_cast<uint32_t>(254 - exponent + 9) << 23),
                __uint_as_float(static_cast<uint32_t>(exponent - 9) << 23) };
}
/* The same of a token, of which lanes 4 g to 4 g + 3 have a step's columns together. */
static __device__ __forceinline__ range range_of_token(float top) {
  top = fmaxf(top, __shfl_xor_sync(ALL_LANES, top, 1));
  top = fmaxf(top, __shfl_xor_sync(ALL_LANES, top, 2));
  return range_of(top);
}

/* Four whole numbers of 8 bits as two registers of f16, the first pair and the second. As unsigned,
 * a byte under 0x64 is 1024 + it, exactly; 1024 + 128 are taken off. */
static __device__ __forceinline__ void halves_of_bytes(uint32_t bytes, uint32_t &first,
                                                       uint32_t &second) {
  const uint32_t raised = bytes ^ 0x80808080u, one = 0x3c003c00u, offset = 0xe480e480u;
  first = fma_halves(__byte_perm(raised, 0x64646464u, 0x4140), one, offset);
  second = fma_halves(__byte_perm(raised, 0x64646464u, 0x4342), one, offset);
}

/* Whole numbers of 4 bits in words of eight, v0 to v7, of which pair k has v(2k) in bits 4 k and
 * v(2k + 1) in bits 16 + 4 k. A register of f16 is made of a pair by a mask and a multiply-add:
 *
 *     k even   n under 0x6400 is 1024 + n, exactly: times s, less 1024 s, it is n s
 *     k odd    n lies 4 bits higher; under 0x5400 it is 64 + n: less 64 s
 *
 * so that one shift serves two pairs. n s is exact where it is below 2,048: one rounding, of an
 * exact sum. Numbers of 5 and 6 bits have the rest in `high`, in bits 4 (k odd: 8) and more of each
 * half. `by`: s twice; less[k % 2]: what is taken off. */
template <int HIGH>
static __device__ __forceinline__ uint32_t halves_of_nibbles(uint32_t word, int k, uint32_t high,
                                                             uint32_t by, const uint32_t *less) {
  constexpr uint32_t MASK = HIGH == 0 ? 0 : HIGH == 1 ? 0x00100010u : 0x00300030u;
  uint32_t shifted = word >> k / 2 * 8, raised = k % 2 == 0
      ? (shifted & 0x000f000fu) | 0x64006400u : (shifted & 0x00f000f0u) | 0x54005400u;
  if (HIGH != 0) raised |= high & (k % 2 == 0 ? MASK : MASK << 4);
  return fma_halves(raised, by, less[k % 2]);
}

/* Four values of fp8_e4m3 likewise, exactly. */
static __device__ __forceinline__ void halves_of_fp8(uint32_t bytes, uint32_t &first,
                                                     uint32_t &second) {
#if !defined(PYR_EMULATED) && __CUDA_ARCH__ >= 890
  asm("cvt.rn.f16x2.e4m3x2 %0, %1;" : "=r"(first) : "h"(static_cast<uint16_t>(bytes)));
  asm("cvt.rn.f16x2.e4m3x2 %0, %1;" : "=r"(second) : "h"(static_cast<uint16_t>(bytes >> 16)));
#else
  /* Exponent and mantissa go where a half has its own, 2^8 too small; NaN, all ones, is made a
   * half's. */
  uint32_t pairs[2] = { (bytes & 0xffu) | (bytes & 0xff00u) << 8,
                        (bytes >> 16 & 0xffu) | (bytes >> 24) << 16 };
#pragma unroll
  for (uint32_t &pair : pairs) {
    uint32_t nan = ((pair & 0x007f007fu) + 0x00010001u) & 0x00800080u;
    pair = (pair & 0x00800080u) << 8 | (pair & 0x007f007fu) << 7 | nan * 0xf8u;
  }
  first = times_256(pairs[0]);
  second = times_256(pairs[1]);
#endif
}

/* ---- tiles ----------------------------------------------------------------------------------- */

/* Tiles of 16-bit values lie in shared memory by rows of D, in chunks of 8 values (16 bytes), of
 * which row r has chunk c at c with its low bits exchanged by those of r. D is a multiple of 64, so
 * that each row begins at the first bank. Where chunks lie, D = 64:
 *
 *     place    0 1 2 3 4 5 6 7
 *     row 0    0 1 2 3 4 5 6 7
 *     row 1    1 0 3 2 5 4 7 6
 *     row 2    2 3 0 1 6 7 4 5
 *     row 3    3 2 1 0 7 6 5 4     … row 7: 7 6 5 4 3 2 1 0, row 8 as row 0
 *
 * The eight rows of a matrix have one chunk in eight different places, each of four banks: all 32
 * banks serve them at once, whether they are read (load_matrices) or written. */
template <int D>
static __device__ __forceinline__ uint16_t *chunk_at(uint16_t *tile, int row, int chunk) {
  return tile + row * D + ((chunk ^ (row & 7)) << 3);
}

/* a of rows [row, row + 16), columns [col, col + 16) of a tile. Lanes 0-15 give the rows' first
 * chunks, lanes 16-31 their second ones: the four matrices come as a[0] to a[3] are to be. */
template <int D>
static __device__ __forceinline__ void load_a(uint32_t (&a)[4], uint16_t *tile, int row, int col) {
  int lane = lane_of_warp();
  load_matrices(a, chunk_at<D>(tile, row + lane % 16, col / 8 + lane / 16));
}

/* b of two products beside each other, whose columns are rows [row, row + 8) and [row + 8, row +
 * 16) of a tile: b[0], b[1] of the first, b[2], b[3] of the second. Their 16 rows are columns [col,
 * col + 16). b is wanted columns first, and a row of the tile is a column of b: no transposing. */
template <int D>
static __device__ __forceinline__ void load_b(uint32_t (&b)[4], uint16_t *tile, int row, int col) {
  int lane = lane_of_warp();
  load_matrices(b, chunk_at<D>(tile, row + lane / 16 * 8 + lane % 8, col / 8 + lane / 8 % 2));
}

/* Likewise where the columns of the products are those of the tile: [col, col + 8) and [col + 8,
 * col + 16), and rows its rows. */
template <int D>
static __device__ __forceinline__ void load_b_down(uint32_t (&b)[4], uint16_t *tile, int row,
                                                   int col) {
  int lane = lane_of_warp();
  load_transposed(b, chunk_at<D>(tile, row + lane % 16, col / 8 + lane / 16));
}

/* One row of d values (even; zeros beyond), as TERMS rows `plane` values apart that sum up to it,
 * by a whole warp. Returns what their product is to be multiplied with: 1, or a power of two if the
 * format is narrow, as they are scaled to between 2^9 and 2^10 then. NULL: zeros. */
template <typename T, int D, int TERMS>
static __device__ __forceinline__ float put_split(uint16_t *tile, int row, int plane,
                                                  const float *from, int d) {
  /* A lane has values 2 lane and 2 lane + 1 of each 64: it writes a register's worth at once. */
  float x[D / WARP], back = 1;
#pragma unroll
  for (int i = 0; i < D / WARP; i += 2) {
    int at = i * WARP + lane_of_warp() * 2;
    float2 two = from != nullptr && at < d ? *reinterpret_cast<const float2 *>(from + at)
        : make_float2(0.0f, 0.0f);
    x[i] = two.x;
    x[i + 1] = two.y;
  }
  if (T::narrow) {
    float top = 0;
#pragma unroll
    for (int i = 0; i < D / WARP; i++) top = fmaxf(top, fabsf(x[i]));
    range r = range_of(warp_max(top));
    back = r.back;
#pragma unroll
    for (int i = 0; i < D / WARP; i++) x[i] *= r.up;
  }
#pragma unroll
  for (int i = 0; i < D / WARP; i += 2) {
    int at = i * WARP + lane_of_warp() * 2;
#pragma unroll
    for (int t = 0; t < TERMS; t++)
      *reinterpret_cast<uint32_t *>(chunk_at<D>(tile + t * plane, row, at / 8)
                                    + at % 8) = take_pair<T>(x[i], x[i + 1]);
  }
  return back;
}

#endif

/* linear_packs.cu — matrix products of up to 32 tokens with weights in packs (pack.cuh), through
 * tensor cores: what counts is that weights are read once, and fast; and as they are few bytes,
 * that few instructions go to each.
 *
 * A warp has 32 rows of w and walks along their columns, a step at a time; a lane loads its bits 16
 * bytes at once, straight into registers, and makes halves of them, exactly. x is f32 and is not
 * rounded: each token's values of a step are brought into f16's range by a power of two and split
 * into two terms (mma.cuh). The warps of a block have the same x: each splits a part of it into
 * shared memory, a stage of 1,024 columns (of 8 tokens; 512 of 16, 256 of 32), in the order in
 * which lanes take it as operand `b`. There a product's x is two loads.
 *
 *     stage    | step | step | step | step |        of 8 tokens: a step to each warp to split
 *     barrier: it is split; products, without another barrier; barrier: all have read it
 *
 * What is in operand `a`, and what scales sums in f32 afterwards:
 *
 *     q8_0, q4_0    q                          the f16 scale, of 32 columns
 *     q6_k          q, less 32                 the scale of 16 columns; the f16 scale, of a step
 *     q4_k, q5_k    q s, at most 31 * 63       the f16 scale, of a step
 *
 * all of them whole numbers that f16 holds. The mins of q4_k and q5_k are a product of their own:
 * of a step's 8 mins with the sums of x over their 32 columns each, which are split likewise; that
 * is one product of 16 x 8 x 16 for two terms, of which the second half is the second term, and its
 * f16 min scales it. Sums on tensor cores lose what is shifted out of them, so that each 128
 * columns at most begin new ones, which are added up in f32.
 *
 * For many tokens packs become bf16 (unpack_kernel), which cuBLASLt multiplies (linear.cu).
 *
 * How matrices are cut along their columns, and how parts meet: linear_few.cu, linear.cuh. */
#include "linear.cuh"
#include "mma.cuh"

/* What sums in registers are scaled by, before those of a step are added up: nothing but what
 * scales a step; what scales 32 columns; what scales the 16 of a product. The less often, the fewer
 * multiply-adds: of 4 sums, for 8 tokens, 32 rows and 256 columns, 64, 128 or 256. */
enum scaling { BY_STEP, BY_CHUNK, BY_PRODUCT };

/* Twice the same half: what numbers are multiplied with that have no scale in them. */
static constexpr uint32_t ONE = 0x3c003c00u;

/* A lane's 16 bytes in one load; packs are laid out so that a warp's 32 lanes read 512 bytes side
 * by side, whole sectors of memory, of which none is read twice. */
static __device__ __forceinline__ uint4 four_words(const uint8_t *at) {
  return *reinterpret_cast<const uint4 *>(at);
}
static __device__ __forceinline__ uint32_t word_of(const uint4 &words, int i) {
  return i == 0 ? words.x : i == 1 ? words.y : i == 2 ? words.z : words.w;
}
/* The first or second f16 of a word, such as a step's scale and its min beside it. */
static __device__ __forceinline__ float half_at(uint32_t pair, int i) {
  return f32_of_f16(static_cast<uint16_t>(i ? pair >> 16 : pair));
}
/* Operand `a` of both products of a chunk: what one row's word gives to it, row g's (half 0) or g +
 * 8's. even, odd: views of its extra bits, of pairs 0 and 1, and of 2 and 3. By what numbers are
 * multiplied, and what is taken off: halves_of_nibbles.
 *
 *     pair of the word     0           1           2            3
 *     values               v0 v1       v2 v3       v4 v5        v6 v7
 *     columns of 32        4t 4t+1     4t+2 4t+3   4t+16 +17    4t+18 +19
 *     operand              first[half] first[half+2] second[half] second[half+2] */
template <int HIGH>
static __device__ __forceinline__ void nibble_operands(uint32_t (&first)[4], uint32_t (&second)[4],
                                                       int half, uint32_t word, uint32_t even,
                                                       uint32_t odd, uint32_t by,
                                                       const uint32_t *less) {
  first[half] = halves_of_nibbles<HIGH>(word, 0, even, by, less);
  first[half + 2] = halves_of_nibbles<HIGH>(word, 1, even, by, less);
  second[half] = halves_of_nibbles<HIGH>(word, 2, odd, by, less);
  second[half + 2] = halves_of_nibbles<HIGH>(word, 3, odd, by, less);
}

/* Bytes of both halves exchanged: a view of extra bits (extra_place in pack.cuh). */
static __device__ __forceinline__ uint32_t exchanged(uint32_t word) {
  return __byte_perm(word, 0, 0x2301);
}

/* ---- what a lane has of 16 rows and a step, and what becomes of it --------------------------- */

/* A value is its number times `by`, less `off` where there are mins: of q4_k with a scale of 0.5, a
 * block's 7, a min of 0.25 and a block's 3, the number 9 is 9 * 3.5 - 0.75 = 30.75. Rounded as
 * convert.cuh does. */
struct value_scale { float by, off; };

/* Each: CHUNKS of 32 columns to a step, `load`, `operands` of a chunk, and what scales sums:
 * `scale` of a product (BY_CHUNK, BY_PRODUCT), `whole` of a step, of row g (half 0) or g + 8. And
 * `numbers` of a chunk, as operands are, and what makes values of them. */
struct packed_q8_0 {
  static constexpr int CHUNKS = 4;
  static constexpr scaling SCALED = BY_CHUNK;
  static constexpr bool MINS = false;
  struct piece { uint4 bits[CHUNKS]; uint32_t scales[CHUNKS]; };
  static __device__ __forceinline__ piece load(const linear_call &c, int64_t row, int64_t col) {
    piece p = {};
    int lane = lane_of_warp();
#pragma unroll
    for (int i = 0; i < CHUNKS; i++) {
      if (row >= c.rows || col + i * CHUNK >= c.cols) continue;
      const uint8_t *unit = pack_unit<PACKED + PYR_Q8_0>(c.w, c.stride, row, col + i * CHUNK);
      p.bits[i] = four_words(unit + 2 * PACK + lane * 16);
      p.scales[i] = word_at(unit, lane / 4 * 4);
    }
    return p;
  }
  static __device__ __forceinline__ void operands(const piece &p, int chunk, uint32_t (&first)[4],
                                                  uint32_t (&second)[4]) {
    halves_of_bytes(p.bits[chunk].x, first[0], first[2]);
    halves_of_bytes(p.bits[chunk].y, second[0], second[2]);
    halves_of_bytes(p.bits[chunk].z, first[1], first[3]);
    halves_of_bytes(p.bits[chunk].w, second[1], second[3]);
  }
  static __device__ __forceinline__ void numbers(const piece &p, int chunk, uint32_t (&first)[4],
                                                 uint32_t (&second)[4]) {
    operands(p, chunk, first, second);
  }
  static __device__ __forceinline__ float scale(const piece &p, int chunk, int, int half) {
    return half_at(p.scales[chunk], half);
  }
  static __device__ __forceinline__ float whole(const piece &, int) { return 1; }
  static __device__ __forceinline__ value_scale of_values(const piece &p, int chunk, int,
                                                          int half) {
    return value_scale{ half_at(p.scales[chunk], half), 0 };
  }
};

struct packed_q4_0 {
  static constexpr int CHUNKS = 8;
  static constexpr scaling SCALED = BY_CHUNK;
  static constexpr bool MINS = false;
  struct piece { uint2 bits[CHUNKS]; uint32_t scales[CHUNKS]; };
  static __device__ __forceinline__ piece load(const linear_call &c, int64_t row, int64_t col) {
    piece p = {};
    int lane = lane_of_warp();
#pragma unroll
    for (int i = 0; i < CHUNKS; i++) {
      if (row >= c.rows || col + i * CHUNK >= c.cols) continue;
      const uint8_t *unit = pack_unit<PACKED + PYR_Q4_0>(c.w, c.stride, row, col + i * CHUNK);
      p.bits[i] = *reinterpret_cast<const uint2 *>(unit + 2 * PACK + lane * 8);
      p.scales[i] = word_at(unit, lane / 4 * 4);
    }
    return p;
  }
  static __device__ __forceinline__ void operands(const piece &p, int chunk, uint32_t (&first)[4],
                                                  uint32_t (&second)[4]) {
    const uint32_t less[2] = { 0xe408e408u, 0xd480d480u };     /* 1024 + 8, 64 + 8 */
    nibble_operands<0>(first, second, 0, p.bits[chunk].x, 0, 0, ONE, less);
    nibble_operands<0>(first, second, 1, p.bits[chunk].y, 0, 0, ONE, less);
  }
  static __device__ __forceinline__ void numbers(const piece &p, int chunk, uint32_t (&first)[4],
                                                 uint32_t (&second)[4]) {
    operands(p, chunk, first, second);
  }
  static __device__ __forceinline__ float scale(const piece &p, int chunk, int, int half) {
    return half_at(p.scales[chunk], half);
  }
  static __device__ __forceinline__ float whole(const piece &, int) { return 1; }
  static __device__ __forceinline__ value_scale of_values(const piece &p, int chunk, int,
                                                          int half) {
    return value_scale{ half_at(p.scales[chunk], half), 0 };
  }
};

/* The e-th view of a word of extra bits (extra_bit in pack.cuh), which serves an even pair and the
 * odd one after it: q6_k's word has four, of pairs 0 and 1 of row g, of its 2 and 3, and the same
 * of row g + 8; q5_k's, of two chunks, has eight. The compiler knows e, and makes each view once.
 * */
template <int WIDTH>
static __device__ __forceinline__ uint32_t extra_view(uint32_t word, int e) {
  constexpr int OF_WORD = 4 / WIDTH;
  return (e < OF_WORD ? word : exchanged(word)) >> e % OF_WORD * WIDTH;
}

/* q4_k (FIFTH 0) and q5_k (1). A value is d s q - m dmin, with whole s and m of 6 bits and q of 4
 * or 5. Row g of a product's operand `a` is s q: of s = 63 and q = 31 it is 1,953, and f16 has all
 * whole numbers up to 2,048. So a step's sums need d alone, and the mins of its 256 columns, which
 * have nothing to do with q, are one small product: with X_b the sum of a token's x over the b-th
 * 32 of them,
 *
 *     sum of x w  =  d (sum of x s q)  -  dmin (m_0 X_0 + m_1 X_1 + … + m_7 X_7) */
template <int FIFTH> struct packed_k {
  static constexpr int DTYPE = PACKED + (FIFTH ? PYR_Q5_K : PYR_Q4_K), CHUNKS = 8;
  static constexpr scaling SCALED = BY_STEP;
  static constexpr bool MINS = true;
  /* scales: four words of each row; bits[i]: chunks 2 i and 2 i + 1 */
  struct piece { uint4 scales[2], bits[CHUNKS / 2], fifth; };
  static __device__ __forceinline__ piece load(const linear_call &c, int64_t row, int64_t col) {
    piece p = {};
    int lane = lane_of_warp();
    if (row >= c.rows || col >= c.cols) return p;
    const uint8_t *unit = pack_unit<DTYPE>(c.w, c.stride, row, col);
    p.scales[0] = four_words(unit + lane / 4 * 32);
    p.scales[1] = four_words(unit + lane / 4 * 32 + 16);
#pragma unroll
    for (int i = 0; i < CHUNKS / 2; i++)
      p.bits[i] = four_words(unit + nibbles_at(DTYPE) + i * 512 + lane * 16);
    if (FIFTH) p.fifth = four_words(unit + nibbles_at(DTYPE) + NIBBLES + lane * 16);
    return p;
  }
  static __device__ __forceinline__ void nibbles(const piece &p, int chunk, int half,
                                                 uint32_t (&first)[4], uint32_t (&second)[4],
                                                 uint32_t by, const uint32_t *less) {
    uint32_t fifth = FIFTH ? word_of(p.fifth, chunk / 2) : 0;
    int e = chunk % 2 * 4 + half * 2;
    nibble_operands<FIFTH>(first, second, half, word_of(p.bits[chunk / 2], chunk % 2 * 2 + half),
                           FIFTH ? extra_view<1>(fifth, e) : 0,
                           FIFTH ? extra_view<1>(fifth, e + 1) : 0, by, less);
  }
  /* A scale s of 6 bits, twice; and what takes the raised part of numbers off: both exact. */
  static __device__ __forceinline__ void operands(const piece &p, int chunk, uint32_t (&first)[4],
                                                  uint32_t (&second)[4]) {
#pragma unroll
    for (int half = 0; half < 2; half++) {
      uint32_t scales = chunk < 4 ? p.scales[half].x : p.scales[half].y;
      uint32_t s = __byte_perm(scales & 0x3f3f3f3fu, 0x64646464u,
                               0x4040u + static_cast<uint32_t>(chunk % 4) * 0x0101u);
      uint32_t by = fma_halves(s, ONE, 0xe400e400u);           /* less 1024 */
      const uint32_t less[2] = { fma_halves(by, 0xe400e400u, 0), fma_halves(by, 0xd400d400u, 0) };
      nibbles(p, chunk, half, first, second, by, less);
    }
  }
  static __device__ __forceinline__ void numbers(const piece &p, int chunk, uint32_t (&first)[4],
                                                 uint32_t (&second)[4]) {
    const uint32_t less[2] = { 0xe400e400u, 0xd400d400u };     /* 1024, 64 */
#pragma unroll
    for (int half = 0; half < 2; half++) nibbles(p, chunk, half, first, second, ONE, less);
  }
  static __device__ __forceinline__ value_scale of_values(const piece &p, int chunk, int,
                                                          int half) {
    const uint4 &s = p.scales[half];
    uint32_t scale = (chunk < 4 ? s.x : s.y) >> chunk % 4 * 8 & 63,
        min = (s.z >> nibble_bit(chunk) & 15)
        | ((chunk % 2 ? s.y : s.x) >> (chunk / 2 * 8 + 6) & 3) << 4;
    return value_scale{ __fmul_rn(whole(p, half), static_cast<float>(scale)),
                        __fmul_rn(whole_min(p, half), static_cast<float>(min)) };
  }
  static __device__ __forceinline__ float scale(const piece &, int, int, int) { return 1; }
  static __device__ __forceinline__ float whole(const piece &p, int half) {
    return half_at(p.scales[half].w, 0);
  }
  static __device__ __forceinline__ float whole_min(const piece &p, int half) {
    return half_at(p.scales[half].w, 1);
  }
  /* Operand `a` of the product of mins, twice the same 8 columns: the first meet the first terms of
   * X, the second the second ones. Lane t takes mins 2t and 2t + 1: low bits of a nibble each, high
   * ones above scales t and t + 4, which a byte's choice brings to where a shift by 2 leaves them.
   * */
  static __device__ __forceinline__ void mins(const piece &p, uint32_t (&a)[4]) {
    uint32_t t = static_cast<uint32_t>(lane_of_warp()) % 4;
#pragma unroll
    for (int half = 0; half < 2; half++) {
      const uint4 &s = p.scales[half];
      uint32_t high = __byte_perm(s.x, s.y, t | (t + 4) << 8) >> 2 & 0x00300030u;
      a[half] = fma_halves((s.z >> 4 * t & 0x000f000fu) | high | 0x64006400u, ONE, 0xe400e400u);
      a[half + 2] = a[half];
    }
  }
};

/* q - 32 times the scale of its 16 columns would be up to 4,096, more than f16 has all whole
 * numbers of: sums of 16 columns, which are one product, are scaled in f32. */
struct packed_q6_k {
  static constexpr int DTYPE = PACKED + PYR_Q6_K, CHUNKS = 8;
  static constexpr scaling SCALED = BY_PRODUCT;
  static constexpr bool MINS = false;
  /* whole: the f16 scales of both rows; bits[i]: chunks 2 i and 2 i + 1; high[i]: from chunk 4 i on
   */
  struct piece { uint32_t whole; uint4 scales[2], bits[CHUNKS / 2], high[2]; };
  static __device__ __forceinline__ piece load(const linear_call &c, int64_t row, int64_t col) {
    piece p = {};
    int lane = lane_of_warp();
    if (row >= c.rows || col >= c.cols) return p;
    const uint8_t *unit = pack_unit<DTYPE>(c.w, c.stride, row, col);
    p.whole = word_at(unit, lane / 4 * 4);
#pragma unroll
    for (int i = 0; i < 2; i++) {
      p.scales[i] = four_words(unit + 2 * PACK + lane / 4 * 32 + i * 16);
      p.high[i] = four_words(unit + nibbles_at(DTYPE) + NIBBLES + i * 512 + lane * 16);
    }
#pragma unroll
    for (int i = 0; i < CHUNKS / 2; i++)
      p.bits[i] = four_words(unit + nibbles_at(DTYPE) + i * 512 + lane * 16);
    return p;
  }
  static __device__ __forceinline__ void operands(const piece &p, int chunk, uint32_t (&first)[4],
                                                  uint32_t (&second)[4]) {
    const uint32_t less[2] = { 0xe420e420u, 0xd600d600u };     /* 1024 + 32, 64 + 32 */
    uint32_t high = word_of(p.high[chunk / 4], chunk % 4);
#pragma unroll
    for (int half = 0; half < 2; half++)
      nibble_operands<2>(first, second, half, word_of(p.bits[chunk / 2], chunk % 2 * 2 + half),
                         extra_view<2>(high, half * 2), extra_view<2>(high, half * 2 + 1), ONE,
                         less);
  }
  static __device__ __forceinline__ void numbers(const piece &p, int chunk, uint32_t (&first)[4],
                                                 uint32_t (&second)[4]) {
    operands(p, chunk, first, second);
  }
  /* A byte b under 0x4b0000 is 2^23 + b, exactly. */
  static __device__ __forceinline__ float scale(const piece &p, int chunk, int product, int half) {
    uint32_t word = word_of(p.scales[half], chunk / 2),
        byte = static_cast<uint32_t>(chunk % 2 * 2 + product);
    return __uint_as_float(__byte_perm(word, 0x4b000000u, 0x7440u + byte)) - (8388608.0f + 128);
  }
  static __device__ __forceinline__ float whole(const piece &p, int half) {
    return half_at(p.whole, half);
  }
  static __device__ __forceinline__ value_scale of_values(const piece &p, int chunk, int product,
                                                          int half) {
    return value_scale{ __fmul_rn(whole(p, half), scale(p, chunk, product, half)), 0 };
  }
};

/* ---- x --------------------------------------------------------------------------------------- */

/* A step of 8 tokens of x, split: as operand `b` of both products of a chunk, term by term and lane
 * by lane; what takes each token's power of two back; and, where there are mins, the sums over
 * chunks, the first term and the second, as b0 and b1 of one product. Lanes read 16 bytes beside
 * each other, which passes through all banks in four turns, as fast as 512 bytes can. 8,240 bytes
 * of 256 columns, 8,480 with sums. */
template <int CHUNKS, bool MINS> struct split_step {
  uint4 terms[CHUNKS][2][WARP];
  float back[8];
  uint2 sums[MINS ? WARP : 1];
};

/* The columns of a chunk that a lane has of w, of a token: zeros beyond the matrix. */
static __device__ __forceinline__ void values_at(const linear_call &c, int64_t token, int64_t col,
                                                 float (&x)[8]) {
  float4 low = make_float4(0, 0, 0, 0), high = low;
  if (token < c.n && col < c.cols) {
    const float4 *from = reinterpret_cast<const float4 *>(c.x + token * c.cols + col)
        + lane_of_warp() % 4;
    low = from[0];
    high = from[4];
  }
  x[0] = low.x, x[1] = low.y, x[2] = low.z, x[3] = low.w;
  x[4] = high.x, x[5] = high.y, x[6] = high.z, x[7] = high.w;
}

/* By one warp: tokens from `token` on, columns from `col` on. Lane 4 g + t has token g. x is read
 * twice, the second time out of L1: registers hold weights that are under way. */
template <int CHUNKS, bool MINS>
static __device__ __forceinline__ void split(split_step<CHUNKS, MINS> &to, const linear_call &c,
                                             int64_t token, int64_t col) {
  int lane = lane_of_warp(), t = lane % 4;
  float x[8], top = 0, sums[2] = { 0, 0 };
  token += lane / 4;
#pragma unroll
  for (int chunk = 0; chunk < CHUNKS; chunk++) {
    values_at(c, token, col + chunk * CHUNK, x);
#pragma unroll
    for (int i = 0; i < 8; i++) top = fmaxf(top, fabsf(x[i]));
  }
  range r = range_of_token(top);
#pragma unroll
  for (int chunk = 0; chunk < CHUNKS; chunk++) {
    uint32_t b[2][4];
    float sum = 0;
    values_at(c, token, col + chunk * CHUNK, x);
#pragma unroll
    for (int i = 0; i < 8; i++) {
      x[i] *= r.up;
      sum += x[i];
    }
    /* take_pair leaves in x what rounding lost; the second term is made of that. */
#pragma unroll
    for (int term = 0; term < 2; term++) {
#pragma unroll
      for (int i = 0; i < 4; i++)
        b[term][i] = take_pair<f16>(x[2 * i], x[2 * i + 1]);
      to.terms[chunk][term][lane] = make_uint4(b[term][0], b[term][1], b[term][2], b[term][3]);
    }
    if (!MINS) continue;
    sum += __shfl_xor_sync(ALL_LANES, sum, 1);
    sum += __shfl_xor_sync(ALL_LANES, sum, 2);
    if (chunk / 2 == t) sums[chunk % 2] = sum;       /* at most 32 * 2^10: in range */
  }
  if (t == 0) to.back[lane / 4] = r.back;
  if (!MINS) return;
  uint32_t most = take_pair<f16>(sums[0], sums[1]);
  to.sums[lane] = uint2{ most, take_pair<f16>(sums[0], sums[1]) };
}

/* ---- products -------------------------------------------------------------------------------- */

static __device__ __forceinline__ void begin_again(float (&sums)[4]) {
#pragma unroll
  for (int i = 0; i < 4; i++) sums[i] = 0;
}

/* Adds the products of a step: x[n * STEPS] is of tokens 8 n and on. As operand c a lane has rows g
 * and g + 8 of tokens 2t and 2t + 1.
 *
 * What sums are made of, and where they are rounded to f32:
 *
 *     BY_STEP      most, less   4 chunks, 8 products (most: of the first terms; less: the others)
 *                  step         += most + less, twice
 *     BY_CHUNK     most         one chunk, both terms: 4 products
 *                  step         += most * the chunk's scale
 *     BY_PRODUCT   most         half a chunk, both terms: 2 products
 *                  step         += most * the scale of its 16 columns
 *     all          sum          += (step * whole - the mins' product * whole_min) * back */
template <typename W, int N, int STEPS>
static __device__ __forceinline__ void multiply(float (&sum)[N][MT][4],
                                                const typename W::piece (&w)[MT],
                                                const split_step<W::CHUNKS, W::MINS> *x) {
  int lane = lane_of_warp();
  float step[N][MT][4] = {}, most[N][MT][4] = {}, less[N][MT][4] = {};
#pragma unroll
  for (int chunk = 0; chunk < W::CHUNKS; chunk++) {
    uint32_t first[MT][4], second[MT][4];
#pragma unroll
    for (int m = 0; m < MT; m++) W::operands(w[m], chunk, first[m], second[m]);
#pragma unroll
    for (int n = 0; n < N; n++) {
      if (N > 1 && n % 2 == 0) __syncwarp();  /* or the compiler asks for all of x at once */
      uint4 b = x[n * STEPS].terms[chunk][0][lane], rest = x[n * STEPS].terms[chunk][1][lane];
#pragma unroll
      for (int m = 0; m < MT; m++) {
        float (&sums)[4] = most[n][m];
        if (W::SCALED == BY_STEP) {
          mma<f16>(sums, first[m], b.x, b.y);
          mma<f16>(sums, second[m], b.z, b.w);
          mma<f16>(less[n][m], first[m], rest.x, rest.y);
          mma<f16>(less[n][m], second[m], rest.z, rest.w);
          if (chunk % 4 < 3) continue;
#pragma unroll
          for (int i = 0; i < 4; i++) step[n][m][i] += sums[i] + less[n][m][i];
          begin_again(sums);
          begin_again(less[n][m]);
          continue;
        }
        mma<f16>(sums, first[m], b.x, b.y);
        mma<f16>(sums, first[m], rest.x, rest.y);
        if (W::SCALED == BY_PRODUCT) {
#pragma unroll
          for (int i = 0; i < 4; i++) step[n][m][i] += sums[i] * W::scale(w[m], chunk, 0, i / 2);
          begin_again(sums);
        }
        mma<f16>(sums, second[m], b.z, b.w);
        mma<f16>(sums, second[m], rest.z, rest.w);
#pragma unroll
        for (int i = 0; i < 4; i++) step[n][m][i] += sums[i] * W::scale(w[m], chunk, 1, i / 2);
        begin_again(sums);
      }
    }
  }
#pragma unroll
  for (int n = 0; n < N; n++) {
    const float *back = x[n * STEPS].back + lane % 4 * 2;
#pragma unroll
    for (int m = 0; m < MT; m++)
#pragma unroll
      for (int i = 0; i < 4; i++) {
        float whole = step[n][m][i] * W::whole(w[m], i / 2);
        sum[n][m][i] += whole * back[i % 2];
      }
  }
  if constexpr (W::MINS) {
#pragma unroll
    for (int m = 0; m < MT; m++) {
      uint32_t a[4];
      W::mins(w[m], a);
#pragma unroll
      for (int n = 0; n < N; n++) {
        float off[4] = {};
        uint2 b = x[n * STEPS].sums[lane];
        const float *back = x[n * STEPS].back + lane % 4 * 2;
        mma<f16>(off, a, b.x, b.y);
#pragma unroll
        for (int i = 0; i < 4; i++)
          sum[n][m][i] -= off[i] * W::whole_min(w[m], i / 2) * back[i % 2];
      }
    }
  }
}

/* Grid: blocks of rows, parts of columns. 8 N tokens. Shared memory: a stage of x, 33 KiB at most,
 * and `last`. The weights of a step are asked for before the products of the one before
 * it end, those of the first one before x is split. A multiprocessor has three blocks, or two where
 * N sums ask for more registers. */
template <typename W, int N>
static __global__ void __launch_bounds__(WARPS * WARP, N == 1 ? 3 : 2) packs_kernel(stream_call s) {
  /* x[n * STEPS + i]: tokens 8 n and on of the stage's step i. Of 16 tokens and steps of 256
   * columns two steps and four units: warp 0 splits step 0 of tokens 0 to 7, warp 1 step 1, warps 2
   * and 3 the same of tokens 8 to 15. */
  constexpr int STEP = W::CHUNKS * CHUNK, STEPS = 1024 / N / STEP, UNITS = N * STEPS;
  __shared__ split_step<W::CHUNKS, W::MINS> x[UNITS];
  __shared__ bool last;
  const linear_call &c = s.c;
  int64_t row = static_cast<int64_t>(blockIdx.x) * STREAM_ROWS + warp_of_block() * MT * 16;
  int64_t begin = blockIdx.y * s.part_cols, end = begin + s.part_cols < c.cols
      ? begin + s.part_cols : c.cols;
  float sum[N][MT][4] = {};
  typename W::piece w[MT];
#pragma unroll
  for (int m = 0; m < MT; m++) w[m] = W::load(c, row + m * 16, begin);
  /* Invariant: sum is of columns [begin, col), of the warp's 32 rows and up to 8 N tokens; w has
   * those from col on. */
  for (int64_t col = begin; col < end;) {
    int64_t left = (end - col + STEP - 1) / STEP;
    int steps = left < STEPS ? static_cast<int>(left) : STEPS;
    for (int u = warp_of_block(); u < UNITS; u += WARPS)
      if (u % STEPS < steps) split(x[u], c, u / STEPS * 8, col + u % STEPS * STEP);
    __syncthreads();  /* x is split */
#pragma unroll 1
    for (int i = 0; i < steps; i++, col += STEP) {
      multiply<W, N, STEPS>(sum, w, x + i);
      if (col + STEP >= end) continue;
#pragma unroll
      for (int m = 0; m < MT; m++) w[m] = W::load(c, row + m * 16, col + STEP);
    }
    __syncthreads();  /* all have read x; the next stage may be written */
  }
  leave_sums<N>(s, sum, row, last);
}

template <typename W> static void launch(pyr_cuda *cuda, const stream_call &s, dim3 grid) {
  if (s.c.n <= 8) PYR_LAUNCH((packs_kernel<W, 1>), grid, WARPS * WARP, 0, cuda, s);
  else if (s.c.n <= 16) PYR_LAUNCH((packs_kernel<W, 2>), grid, WARPS * WARP, 0, cuda, s);
  else PYR_LAUNCH((packs_kernel<W, 4>), grid, WARPS * WARP, 0, cuda, s);
}

/* ---- values ---------------------------------------------------------------------------------- */

/* Grid: groups of WARPS pieces of 16 rows by a step, those of the same rows beside each other. Rows
 * from `first` on become bf16, `ld` values from row to row. A lane writes 8 bytes at once, its four
 * 32 of a row: what is written bounds it. Products and differences are rounded one by one, so that
 * values are those of core/base/dtype.c before they become bf16.
 *
 *     4,096 columns of q4_k: 16 pieces, 4 blocks for each 16 rows; each reads 9 KiB, writes 32 */
template <typename W>
static __global__ void __launch_bounds__(WARPS * WARP) unpack_kernel(uint16_t *out, int64_t ld,
    linear_call c, int64_t first, int64_t rows) {
  constexpr int STEP = W::CHUNKS * CHUNK;
  int64_t steps = (c.cols + STEP - 1) / STEP,
      piece = static_cast<int64_t>(blockIdx.x) * WARPS + warp_of_block(),
      row = piece / steps * PACK, col = piece % steps * STEP;
  int lane = lane_of_warp();
  if (row >= rows) return;
  typename W::piece w = W::load(c, first + row, col);
  out += (row + lane / 4) * ld + col + lane % 4 * 4;
#pragma unroll
  for (int chunk = 0; chunk < W::CHUNKS; chunk++) {
    uint32_t numbers[2][4];
    if (col + chunk * CHUNK >= c.cols) break;
    W::numbers(w, chunk, numbers[0], numbers[1]);
#pragma unroll
    for (int product = 0; product < 2; product++)
#pragma unroll
      for (int half = 0; half < 2; half++) {
        value_scale s = W::of_values(w, chunk, product, half);
        uint32_t pair[2];
#pragma unroll
        for (int i = 0; i < 2; i++) {
          float x[2];
#pragma unroll
          for (int k = 0; k < 2; k++) {
            x[k] = __fmul_rn(half_at(numbers[product][half + 2 * i], k), s.by);
            if (W::MINS) x[k] = __fsub_rn(x[k], s.off);
          }
          pair[i] = take_pair<bf16>(x[0], x[1]);
        }
        *reinterpret_cast<uint2 *>(out + half * 8 * ld + chunk * CHUNK
                                   + product * 16) = uint2{ pair[0], pair[1] };
      }
  }
}

template <typename W> static void unpack(pyr_cuda *cuda, uint16_t *out, int64_t ld,
                                         const linear_call &c, int64_t first, int64_t rows) {
  int64_t pieces = ceil_div(rows, PACK) * ceil_div(c.cols, W::CHUNKS * CHUNK);
  PYR_LAUNCH(unpack_kernel<W>, static_cast<unsigned>(ceil_div(pieces, WARPS)), WARPS * WARP, 0,
             cuda, out, ld, c, first, rows);
}

/* ---- which ----------------------------------------------------------------------------------- */

/* Steps are of 256 columns but for q8_0, whose 256 would be 64 registers of weights under way,
 * beside those of another 64 sums: a warp has from 4 to 7 KiB. Matrices are cut into whole steps,
 * whatever the number of tokens, so that a token's sums are added up in the same order in any
 * company.
 *
 * Calls function<W>(arguments…) for the weights of a dtype. */
#define OF_PACKS(dtype, function, ...) \
  switch (dtype) { \
    case PACKED + PYR_Q8_0: function<packed_q8_0>(__VA_ARGS__); break; \
    case PACKED + PYR_Q4_0: function<packed_q4_0>(__VA_ARGS__); break; \
    case PACKED + PYR_Q4_K: function<packed_k<0>>(__VA_ARGS__); break; \
    case PACKED + PYR_Q5_K: function<packed_k<1>>(__VA_ARGS__); break; \
    case PACKED + PYR_Q6_K: function<packed_q6_k>(__VA_ARGS__); break; \
  }

int64_t cuda_pack_step(int64_t dtype) {
  return (dtype == PACKED + PYR_Q8_0 ? packed_q8_0::CHUNKS : packed_k<0>::CHUNKS) * CHUNK;
}

void cuda_launch_packs(pyr_cuda *cuda, const stream_call &s, dim3 grid) {
  OF_PACKS(s.c.dtype, launch, cuda, s, grid)
}

void cuda_unpack(pyr_cuda *cuda, uint16_t *out, int64_t ld, const linear_call &c, int64_t first,
                 int64_t rows) {
  OF_PACKS(c.dtype, unpack, cuda, out, ld, c, first, rows)
}

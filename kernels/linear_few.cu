/* linear_few.cu — matrix products of few tokens, and of decode steps: what counts is that weights
 * are read once, and fast.
 *
 * Weights of 16 bits go through tensor cores (those in packs, too: linear_packs.cu). A warp has 32
 * rows of w and walks its columns STEP at a time; a lane loads 16 bytes of a row at once, straight
 * into registers, and takes them as operand `a` as they come: which columns of w a product calls
 * its 2t, 2t+1, 2t+8 and 2t+9 does not matter, as long as x is taken in the same order. So a warp
 * has 8 KiB of weights under way; the dozen warps that a multiprocessor's registers hold have 96,
 * where 3.4 TB/s and 0.8 us ask for 20. x is f32 and is not rounded: it is split into terms
 * (mma.cuh) as it is read, out of L1, where the warps of a block find it; f16 has a power of two
 * for each step and token that brings x into its range. Sums on tensor cores lose what is shifted
 * out of them, so that each step begins new ones, which are added up in f32.
 *
 * One matrix must fill the device: blocks of 128 rows are cut along the columns, too, into as many
 * parts as make WANTED warps of the matrix. Each leaves its sums in scratch, and the last block of
 * a row's to come adds them all, in the order of columns. The cut depends on the matrix alone, and
 * each of up to 32 tokens is a column of the products by itself: a token's result does not depend
 * on its company. For 32 tokens a block reads 128 bytes of x for each 256 of weights, out of L2.
 *
 * Other weights (otherwise quantised, f32, or not aligned to 16 bytes): a warp for a row, which it
 * reads once for TOKENS tokens; lanes take every 32nd value, and their sums are added by a
 * butterfly.
 *
 * Which columns of w a lane's 16 bytes are (t = lane % 4, rows g and g + 8 alike), and what the
 * product calls them; x is taken in the same order, so that each value of w meets its own of x:
 *
 *     columns of w     8t  8t+1 | 8t+2  8t+3 | 8t+4  8t+5 | 8t+6  8t+7
 *     first product    2t  2t+1 | 2t+8  2t+9 |
 *     second product                         | 2t    2t+1 | 2t+8  2t+9
 *
 * How matrices are cut, rows x columns: 576 x 576 is 5 blocks of rows and 5 steps, and each step is
 * a part: 25 blocks of four warps. 4,096 x 4,096 is 32 blocks of rows, wants 17 parts, and has 32
 * steps: two to a part make 16 parts, 512 blocks. 49,152 x 576 is 384 blocks of rows, two parts. */
#include "linear.cuh"
#include "mma.cuh"

/* ---- tensor cores ---------------------------------------------------------------------------- */

/* A step has 4 chunks of 32 columns, of which a lane loads 8 values of each of its 4 rows. */
static constexpr int ROWS = STREAM_ROWS, CHUNKS = 4, STEP = CHUNK * CHUNKS;
/* Warps that fill the device: sixteen for each multiprocessor of an H200. The emulated one is full
 * with a few: so specs of small matrices come to parts of several steps, too. */
#ifdef PYR_EMULATED
enum : int64_t { WANTED = 12 };                /* warps */
#else
enum : int64_t { WANTED = 132 * 16 };
#endif

struct cut { int64_t cols, parts; };           /* columns of a part, a multiple of `step` */

static cut cut_of(int64_t rows, int64_t cols, int64_t step) {
  int64_t steps = ceil_div(cols, step), parts = ceil_div(WANTED, ceil_div(rows, ROWS) * WARPS);
  /* Whole steps to a part, as many for all but the last: parts that would be empty are not made. */
  int64_t each = ceil_div(steps, parts < steps ? parts : steps);
  return cut{ each * step, ceil_div(steps, each) };
}

/* The most sums that parts of a matrix leave for a token, whatever its rows: there are parts only
 * while they fill no device. */
static int64_t most_sums(int64_t rows, int64_t cols) {
  int64_t cut_rows = (WANTED / WARPS + 1) * ROWS, parts = ceil_div(cols, STEP);
  int64_t few = (rows < cut_rows ? rows : cut_rows) * parts;
  return few < 2 * cut_rows ? few : 2 * cut_rows;
}

/* What a lane has of 16 rows and CHUNK columns of w, and how it becomes operand `a` of two
 * products. */
template <typename TYPE> struct plain_weights {
  typedef TYPE T;
  struct piece { uint4 low, high; };                 /* of row g, and of row g + 8 */
  /* A lane's 16 bytes of a row: eight neighbouring columns. Four lanes together read 64 bytes of
   * it. */
  static __device__ __forceinline__ uint4 row_at(const linear_call &c, int64_t row, int64_t col) {
    if (row >= c.rows || col >= c.cols) return make_uint4(0, 0, 0, 0);
    return *reinterpret_cast<const uint4 *>(c.w + static_cast<size_t>(row) * c.stride + col * 2);
  }
  static __device__ __forceinline__ piece load(const linear_call &c, int64_t row, int64_t col) {
    row += lane_of_warp() / 4;
    col += lane_of_warp() % 4 * 8;
    return piece{ row_at(c, row, col), row_at(c, row + 8, col) };
  }
  static __device__ __forceinline__ void operands(const piece &p, uint32_t (&first)[4],
                                                  uint32_t (&second)[4]) {
    first[0] = p.low.x, first[1] = p.high.x, first[2] = p.low.y, first[3] = p.high.y;
    second[0] = p.low.z, second[1] = p.high.z, second[2] = p.low.w, second[3] = p.high.w;
  }
};

/* Eight values of x: zeros beyond the matrix. */
static __device__ __forceinline__ void values_at(const linear_call &c, int64_t token, int64_t col,
                                                 float (&x)[8]) {
  float4 low = make_float4(0, 0, 0, 0), high = low;
  if (token < c.n && col < c.cols) {
    const float4 *from = reinterpret_cast<const float4 *>(c.x + token * c.cols + col);
    low = from[0];
    high = from[1];
  }
  x[0] = low.x, x[1] = low.y, x[2] = low.z, x[3] = low.w;
  x[4] = high.x, x[5] = high.y, x[6] = high.z, x[7] = high.w;
}

/* A token's range in a step, of its four lanes together; bf16 has f32's and needs none. */
template <typename T>
static __device__ __forceinline__ range step_range(const linear_call &c, int64_t token,
                                                   int64_t col) {
  if (!T::narrow) return range{ 1, 1 };
  float top = 0, x[8];
#pragma unroll
  for (int chunk = 0; chunk < CHUNKS; chunk++) {
    values_at(c, token, col + chunk * CHUNK, x);
#pragma unroll
    for (int i = 0; i < 8; i++) top = fmaxf(top, fabsf(x[i]));
  }
  return range_of_token(top);
}

/* Adds the products of a step, of 8 tokens from `token` on; w: what the lane has of the warp's
 * rows. As operand b a lane has token lane / 4 and reads its x; as c it has rows g and g + 8 of
 * tokens 2t and 2t + 1: what scales a token is asked of the lane that read it.
 *
 * What sums are made of, and where they are rounded to f32:
 *
 *     most, less    4 chunks, 8 products (most: of the first terms; less: of the others)
 *     sum           += (most + less) * back, once a step */
template <typename W>
static __device__ __forceinline__ void multiply_step(float (&sum)[MT][4], const linear_call &c,
                                                     const typename W::piece (&w)[MT][CHUNKS],
                                                     int64_t token, int64_t col) {
  typedef typename W::T T;
  int lane = lane_of_warp();
  int64_t mine = token + lane / 4;
  float most[MT][4] = {}, less[MT][4] = {};
  col += lane % 4 * 8;
  range r = step_range<T>(c, mine, col);
#pragma unroll
  for (int chunk = 0; chunk < CHUNKS; chunk++) {
    float x[8];
    values_at(c, mine, col + chunk * CHUNK, x);
    if (T::narrow) {
#pragma unroll
      for (int i = 0; i < 8; i++) x[i] *= r.up;
    }
    /* take_pair leaves in x what rounding lost; the next term is made of that. */
    uint32_t b[T::exact][4];
#pragma unroll
    for (int term = 0; term < T::exact; term++)
#pragma unroll
      for (int i = 0; i < 4; i++) b[term][i] = take_pair<T>(x[2 * i], x[2 * i + 1]);
#pragma unroll
    for (int m = 0; m < MT; m++) {
      uint32_t first[4], second[4];
      W::operands(w[m][chunk], first, second);
#pragma unroll
      for (int term = 0; term < T::exact; term++) {
        mma<T>(term == 0 ? most[m] : less[m], first, b[term][0], b[term][1]);
        mma<T>(term == 0 ? most[m] : less[m], second, b[term][2], b[term][3]);
      }
    }
  }
  float back[2] = { 1, 1 };                    /* of the tokens of c[0] and c[1] */
  if (T::narrow) {
    back[0] = __shfl_sync(ALL_LANES, r.back, lane % 4 * 8);
    back[1] = __shfl_sync(ALL_LANES, r.back, lane % 4 * 8 + 4);
  }
#pragma unroll
  for (int m = 0; m < MT; m++)
#pragma unroll
    for (int i = 0; i < 4; i++) sum[m][i] += (most[m][i] + less[m][i]) * back[i % 2];
}

/* Grid: blocks of rows, parts of columns. 8 N tokens. No shared memory but `last`. All
 * loads of a step are issued before the first product waits for one: that is what keeps bytes under
 * way. A multiprocessor has three blocks, or two where N sums ask for more registers. */
template <typename W, int N>
static __global__ void __launch_bounds__(WARPS * WARP,
                                         N == 4 || (N == 2 && W::T::narrow) ? 2
                                         : 3) stream_kernel(stream_call s) {
  __shared__ bool last;
  const linear_call &c = s.c;
  int64_t row = static_cast<int64_t>(blockIdx.x) * ROWS + warp_of_block() * MT * 16;
  int64_t begin = blockIdx.y * s.part_cols, end = begin + s.part_cols < c.cols
      ? begin + s.part_cols : c.cols;
  /* Invariant: sum is of columns [begin, col), of the warp's 32 rows and up to 8 N tokens. */
  float sum[N][MT][4] = {};
  for (int64_t col = begin; col < end; col += STEP) {
    typename W::piece w[MT][CHUNKS];
#pragma unroll
    for (int m = 0; m < MT; m++)
#pragma unroll
      for (int chunk = 0; chunk < CHUNKS; chunk++)
        w[m][chunk] = W::load(c, row + m * 16, col + chunk * CHUNK);
#pragma unroll
    for (int n = 0; n < N; n++) multiply_step<W>(sum[n], c, w, n * 8, col);
  }
  leave_sums<N>(s, sum, row, last);
}

template <typename W> static void launch_stream(const stream_call &s, dim3 grid, pyr_cuda *cuda) {
  if (s.c.n <= 8) PYR_LAUNCH((stream_kernel<W, 1>), grid, WARPS * WARP, 0, cuda, s);
  else if (s.c.n <= 16) PYR_LAUNCH((stream_kernel<W, 2>), grid, WARPS * WARP, 0, cuda, s);
  else PYR_LAUNCH((stream_kernel<W, 4>), grid, WARPS * WARP, 0, cuda, s);
}

/* Only for matrices that are cut: sums of up to 32 tokens, whatever parts there are. */
size_t cuda_linear_few_scratch(const pyr_work *work) {
  cuda_arena arena = { nullptr, 0 };
  int64_t tokens = work->tokens < MOST_TOKENS ? work->tokens : MOST_TOKENS;
  arena.take<float>(tokens * most_sums(work->outputs, work->cols));
  return arena.used;
}

/* Cuts the matrix, and goes over the tokens MOST_TOKENS at a time. */
static pyr_status stream(pyr_backend *be, const linear_call &c) {
  cuda_arena arena = cuda_scratch(be);
  int64_t step = c.dtype >= PACKED ? cuda_pack_step(c.dtype) : STEP;
  cut parts = cut_of(c.rows, c.cols, step);
  int64_t tokens = c.n < MOST_TOKENS ? c.n : MOST_TOKENS;
  dim3 grid(static_cast<unsigned>(ceil_div(c.rows, ROWS)), static_cast<unsigned>(parts.parts));
  stream_call s = { c, parts.cols, nullptr, cuda_of(be)->arrived };
  if (parts.parts > 1) s.sums = arena.take<float>(parts.parts * tokens * c.rows);
  pyr_status status = cuda_check(be, "linear", arena.used);
  for (int64_t first = 0; first < c.n && status == PYR_OK; first += MOST_TOKENS) {
    /* Weights are read again for each 32 tokens. */
    s.c.n = c.n - first < MOST_TOKENS ? c.n - first : MOST_TOKENS;
    s.c.x = c.x + first * c.cols;
    s.c.out = c.out + first * c.rows;
    if (c.dtype >= PACKED) cuda_launch_packs(cuda_of(be), s, grid);
    else if (c.dtype == PYR_F16) launch_stream<plain_weights<f16>>(s, grid, cuda_of(be));
    else launch_stream<plain_weights<bf16>>(s, grid, cuda_of(be));
    status = cuda_launched(be, "linear");
  }
  return status;
}

/* ---- any weights ----------------------------------------------------------------------------- */

static constexpr int ROWS_OF_BLOCK = 8, TOKENS = 8;

/* Grid: blocks of ROWS_OF_BLOCK rows, groups of TOKENS tokens. A lane has columns lane, lane + 32,
 * …; sum[t] is its part of the row's product with token t, f32, and warp_sum joins the lanes in a
 * fixed order. A value of w is made f32 once for eight tokens. Bytes of w bound it, or, of the
 * dtypes that take many instructions to unpack, those. */
template <int DTYPE> static __global__ void few_kernel(linear_call c) {
  int64_t row = static_cast<int64_t>(blockIdx.x) * ROWS_OF_BLOCK + warp_of_block(),
      first = static_cast<int64_t>(blockIdx.y) * TOKENS;
  int lane = lane_of_warp(), some = c.n - first < TOKENS ? static_cast<int>(c.n - first) : TOKENS;
  if (row >= c.rows) return;
  const uint8_t *w = c.w + static_cast<size_t>(row) * c.stride;
  const float *x = c.x + first * c.cols;
  float sum[TOKENS] = {};
  for (int64_t i = lane; i < c.cols; i += WARP) {
    float value = value_at(w, DTYPE, i);
#pragma unroll
    for (int t = 0; t < TOKENS; t++)
      if (t < some) sum[t] += value * x[t * c.cols + i];
  }
#pragma unroll
  for (int t = 0; t < TOKENS; t++) {
    if (t >= some) break;
    float total = warp_sum(sum[t]);
    if (lane == 0) put_out(c, first + t, row, total);
  }
}

template <int DTYPE> static pyr_status multiply_any(pyr_backend *be, const linear_call &c) {
  dim3 grid(static_cast<unsigned>(ceil_div(c.rows, ROWS_OF_BLOCK)),
            static_cast<unsigned>(ceil_div(c.n, TOKENS)));
  PYR_LAUNCH(few_kernel<DTYPE>, grid, ROWS_OF_BLOCK * WARP, 0, cuda_of(be), c);
  return cuda_launched(be, "linear");
}

/* ---- which ----------------------------------------------------------------------------------- */

/* Of 16 bytes, what a lane loads at once. */
static bool aligned(const void *at) { return reinterpret_cast<uintptr_t>(at) % 16 == 0; }

bool cuda_streams(const linear_call &c) {
  /* Loads are of 16 bytes: all rows must begin at a multiple of them, and so must x, whose rows
   * then do, too, as columns are a multiple of 8. Each block of rows needs a counter in `arrived`.
   */
  bool fits = c.dtype >= PACKED || ((c.dtype == PYR_F16 || c.dtype == PYR_BF16) && c.cols % 8 == 0
                                     && c.stride % 16 == 0);
  return fits && aligned(c.w) && aligned(c.x) && c.rows <= static_cast<int64_t>(ROWS * ARRIVALS);
}

pyr_status cuda_linear_few(pyr_backend *be, const linear_call &c) {
  if (cuda_streams(c)) return stream(be, c);
#define MULTIPLY(dtype) return multiply_any<dtype>(be, c)
  if (c.dtype < PACKED)
    switch (static_cast<pyr_dtype>(c.dtype)) {
      PYR_WEIGHT_CASES(MULTIPLY)
      PYR_CASES_NOT_WEIGHTS: break;
    }
#undef MULTIPLY
  return cuda_refuse(be, "linear", "weights that cannot be read where they lie");
}

/* linear.cu — matrix products with weights of any dtype: out[n, rows] = x[n, cols] . w^T (+ bias)
 * (+ out).
 *
 * Few tokens, decode steps of any number (PYR_LINEAR_EXACT), and weights of 16 bits: linear_few.cu.
 * Many tokens: a block for TILE x TILE outputs, whose operands pass through shared memory as f32,
 * STEP columns at a time; each output is one chain of multiply-adds in the order of columns. Either
 * way a token's result does not depend on the others. x is f32 and is not rounded.
 *
 * Where the runtime was opened for rounded products, many tokens go to cuBLASLt (blas.cuh) with x
 * rounded to the 16 bits of the weights (f16, or bf16; quantised weights become bf16, a strip of
 * rows at a time), and sums in f32. How it sums may depend on the number of tokens; that is what
 * was asked for. */
#include "blas.cuh"
#include "linear.cuh"

/* A tile of 64 tokens by 64 rows of w: 256 threads, of which each makes 4 x 4 outputs. For each
 * column it reads 4 + 4 values out of shared memory and makes 16 multiply-adds of them; without the
 * square it would read two for one. */
static constexpr int TILE = 64, STEP = 16, EACH = 4;
enum : int64_t { STRIP_VALUES = 1 << 24 };           /* dequantised weights at a time, for cuBLAS */

/* ---- many tokens ----------------------------------------------------------------------------- */

/* Grid: tiles of rows, tiles of tokens. Thread (i, j) of 16 x 16 makes outputs of tokens 4i.. and
 * rows 4j.. of the tile. Shared memory: two operands [16][65] f32, 8,320 bytes, columns first, so
 * that the four values that a thread reads are neighbours; the 65th keeps threads that write 16
 * columns of one row out of each other's banks. f32 sums on plain cores: products bound it. */
template <int DTYPE> static __global__ void tile_kernel(linear_call c) {
  __shared__ float x[STEP][TILE + 1], w[STEP][TILE + 1];
  int thread = static_cast<int>(threadIdx.x), ty = thread / 16 * EACH, tx = thread % 16 * EACH;
  /*     rows of w      0-3     4-7     …  60-63
   *     tokens 0-3     thr 0   thr 1   …  thr 15
   *     tokens 4-7     thr 16  thr 17  …  thr 31       a warp has 8 tokens by 64 rows */
  int64_t token = static_cast<int64_t>(blockIdx.y) * TILE,
      row = static_cast<int64_t>(blockIdx.x) * TILE;
  /* Invariant of the loop: sum[a][b] is the product over columns below col, added in their order.
   * The first barrier: operands are whole before they are read. The second: all have read them
   * before the next are written. Beyond the matrix they are zeros, which add nothing. */
  float sum[EACH][EACH] = {};
  for (int64_t col = 0; col < c.cols; col += STEP) {
    for (int e = thread; e < TILE * STEP; e += static_cast<int>(blockDim.x)) {
      int r = e / STEP, k = e % STEP;
      bool inside = col + k < c.cols;
      x[k][r] = inside && token + r < c.n ? c.x[(token + r) * c.cols + col + k] : 0.0f;
      w[k][r] = inside && row + r < c.rows ? value_at(c.w
                                                      + static_cast<size_t>(row + r) * c.stride,
                                                          DTYPE, col + k) : 0.0f;
    }
    __syncthreads();
#pragma unroll
    for (int k = 0; k < STEP; k++)
#pragma unroll
      for (int a = 0; a < EACH; a++)
#pragma unroll
        for (int b = 0; b < EACH; b++) sum[a][b] += x[k][ty + a] * w[k][tx + b];
    __syncthreads();
  }
#pragma unroll
  for (int a = 0; a < EACH; a++)
#pragma unroll
    for (int b = 0; b < EACH; b++)
      if (token + ty + a < c.n && row + tx + b < c.rows)
        put_out(c, token + ty + a, row + tx + b, sum[a][b]);
}

template <int DTYPE> static pyr_status multiply_many(pyr_backend *be, const linear_call &c) {
  dim3 grid(static_cast<unsigned>(ceil_div(c.rows, TILE)),
            static_cast<unsigned>(ceil_div(c.n, TILE)));
  PYR_LAUNCH(tile_kernel<DTYPE>, grid, 256, 0, cuda_of(be), c);
  return cuda_launched(be, "linear");
}

/* ---- rounded operands ------------------------------------------------------------------------ */

/* A block for a row, from the first-th on: values of any dtype as f16 or bf16, `ld` from row to
 * row. Of weights in packs: cuda_unpack. */
static __global__ void round_kernel(uint16_t *out, int64_t ld, const uint8_t *rows, size_t stride,
                                    int dtype, int64_t first, int64_t cols, bool half) {
  for (int64_t i = threadIdx.x; i < cols; i += blockDim.x) {
    float x = value_at(rows + static_cast<size_t>(first + blockIdx.x) * stride, dtype, i);
    out[blockIdx.x * ld + i] = half ? f16_of_f32(x) : bf16_of_f32(x);
  }
}

/* Rounded rows begin at multiples of 16 bytes. */
static int64_t ld_of(int64_t cols) { return round_up(cols, 8); }

/* Quantised weights become bf16 a strip at a time: of 4,096 columns 4,096 rows, 32 MiB. A matrix of
 * 14,336 rows takes four strips: the first three of 4,096 and one of 2,048, each a product into its
 * own columns of out. */
/* A multiple of 64 rows, so that outputs and biases of a strip are as aligned as the matrix's. */
static int64_t strip_of(int64_t cols) {
  int64_t rows = STRIP_VALUES / ld_of(cols) / 64 * 64;
  return rows > 64 ? rows : 64;
}

/* Scratch of a rounded product: x rounded, a strip of w rounded, and what the library works in. */
struct rounded_scratch { uint16_t *x, *w; uint8_t *workspace; };
static rounded_scratch rounded_scratch_of(cuda_arena *arena, int64_t tokens, int64_t cols) {
  return rounded_scratch{ arena->take<uint16_t>(tokens * ld_of(cols)),
                          arena->take<uint16_t>(strip_of(cols) * ld_of(cols)),
                              arena->take<uint8_t>(BLAS_WORKSPACE) };
}

/* Of the most tokens and columns that a call will have: 2,048 tokens of 4,096 columns take 16 MiB,
 * the strip 32 MiB, the workspace 32 MiB. */
size_t cuda_linear_scratch(const pyr_work *work) {
  cuda_arena arena = { nullptr, 0 };
  rounded_scratch_of(&arena, work->tokens, work->cols > 0 ? work->cols : 1);
  return arena.used;
}

void cuda_blas_close(pyr_cuda *cuda);
void cuda_blas_close(pyr_cuda *cuda) {
  blas_close(cuda->blas);
  cuda->blas = nullptr;
}

/* *taken: false if the library has no way to multiply such matrices; nothing is done then.
 *
 *     x (f32)    --- round_kernel --->  s.x, 16 bits    |
 *     w          --- round_kernel --->  s.w, a strip    | cuBLASLt ---> out, a strip of columns
 *     (or as it lies; packs by cuda_unpack)             |
 *
 * All of it is issued on one stream: a strip's product has read s.w before the next strip is
 * written. */
static pyr_status rounded(pyr_backend *be, const linear_call &c, bool *taken) {
  pyr_cuda *cuda = cuda_of(be);
  cuda_arena arena = cuda_scratch(be);
  rounded_scratch s = rounded_scratch_of(&arena, c.n, c.cols);
  pyr_status status = cuda_check(be, "linear", arena.used);
  *taken = true;
  bool half = c.dtype == PYR_F16, direct = c.dtype == PYR_F32
      || ((half || c.dtype == PYR_BF16) && c.stride % 2 == 0);
  blas_type type = c.dtype == PYR_F32 ? BLAS_F32 : half ? BLAS_F16 : BLAS_BF16;
  if (status == PYR_OK && cuda->blas == nullptr)
    status = cuda_status(be, "opening libcublasLt.so", blas_open(&cuda->blas, cuda->stream));
  if (status != PYR_OK) return status;
  const void *x = c.x;
  int64_t ld = ld_of(c.cols), ld_x = c.cols;
  if (type != BLAS_F32) {
    PYR_LAUNCH(round_kernel, static_cast<unsigned>(c.n), 256, 0, cuda, s.x, ld,
               reinterpret_cast<const uint8_t *>(c.x), static_cast<size_t>(c.cols) * sizeof(float),
                   static_cast<int>(PYR_F32), 0, c.cols, half);
    x = s.x;
    ld_x = ld;
  }
  /* Weights of 16 bits, or f32, are read where they lie: one strip, which is the matrix. A strip's
   * outputs are columns [row, row + some) of out. If the library refuses the first strip nothing
   * was written yet, and the caller goes another way; a refusal later is an error. */
  int64_t strip = direct ? c.rows : strip_of(c.cols), size = type == BLAS_F32 ? 4 : 2;
  for (int64_t row = 0; row < c.rows && status == PYR_OK; row += strip) {
    int64_t some = c.rows - row < strip ? c.rows - row : strip;
    const uint8_t *w = c.w + static_cast<size_t>(row) * c.stride;
    if (c.dtype >= PACKED) cuda_unpack(cuda, s.w, ld, c, row, some);
    else if (!direct)
      PYR_LAUNCH(round_kernel, static_cast<unsigned>(some), 256, 0, cuda, s.w, ld, c.w, c.stride,
                 static_cast<int>(c.dtype), row, c.cols, half);
    blas_product product = { c.out + row, c.rows, x, ld_x,
                             direct ? static_cast<const void *>(w) : s.w,
                                 direct ? static_cast<int64_t>(c.stride) / size : ld, c.n, some,
                                     c.cols, type, c.add != 0, c.bias ? c.bias + row : nullptr,
                                         s.workspace };
    cudaError_t error = blas_multiply(cuda->blas, product);
    *taken = row > 0 || error != cudaErrorNotSupported;
    if (!*taken) {
      cuda->ways.refused++;
      return cuda_launched(be, "linear");
    }
    status = cuda_status(be, "linear, by cuBLASLt", error);
  }
  cuda->ways.library++;
  return status == PYR_OK ? cuda_launched(be, "linear") : status;
}

/* ---- the operation --------------------------------------------------------------------------- */

static pyr_status cuda_linear(pyr_backend *be, float *out, const float *x, const pyr_tensor *w,
                              const float *bias, int64_t n, int flags) {
  linear_call c = { out, x, static_cast<const uint8_t *>(w->data), w->stride, weight_dtype(w),
                    bias, n, w->shape[0], w->shape[1], (flags & PYR_LINEAR_ADD) != 0 };
  if (n <= 0 || c.rows <= 0) return PYR_OK;
  /* Which way, in the order in which they are asked:
   *
   *     many tokens, runtime rounds        cuBLASLt, unless it refuses the shape
   *     16 bits or packs, aligned          tensor cores, weights streamed (linear_few.cu)
   *     few tokens                         a warp for a row of w (linear_few.cu)
   *     else                               tiles, above */
  bool few = n < PYR_SMALL_N || (flags & PYR_LINEAR_EXACT), taken = !few && cuda_of(be)->rounded;
  if (taken) {
    pyr_status status = rounded(be, c, &taken);
    if (taken || status != PYR_OK) return status;
  }
  cuda_of(be)->ways.stream += cuda_streams(c);
  cuda_of(be)->ways.plain += !cuda_streams(c);
  if (few || cuda_streams(c)) return cuda_linear_few(be, c);
#define MULTIPLY(dtype) return multiply_many<dtype>(be, c)
  switch (static_cast<pyr_dtype>(c.dtype)) {
    PYR_WEIGHT_CASES(MULTIPLY)
    PYR_CASES_NOT_WEIGHTS: break;
  }
#undef MULTIPLY
  return cuda_refuse(be, "linear", "weights of an unknown dtype");
}

void cuda_linear_fill(pyr_backend *be) { be->linear = cuda_linear; }

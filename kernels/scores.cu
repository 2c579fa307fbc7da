/* scores.cu — vectors of scores: reduced over heads, pooled, normalised, softmax, chunks. As in
 * core/cpu/elementwise.c and signals.c, and values by themselves; what needs the whole vector is
 * one block's work, whose sums run in a fixed order.
 *
 * A thread for a value where values are independent; else a block or a warp for what belongs
 * together. Vectors are as long as a lane: launches bound these kernels.
 *
 * Sums over heads and windows are f32; normalize and chunk sum in f64, as their values may be many
 * and alike. Shared memory: 128 or 256 bytes, a number for each warp. */
#include "convert.cuh"

#include <cfloat>

static constexpr int THREADS = 256;

static unsigned blocks_of(int64_t n) { return static_cast<unsigned>(ceil_div(n, THREADS)); }

/* ---- reduce_rows ----------------------------------------------------------------------------- */

/* A thread for a column, row after row: sum, mean (a sum, scaled) or maximum over `count` heads. In
 * a maximum a NaN wins over what came before it: y <= x is false then. */
static __global__ void reduce_rows_kernel(float *out, const float *in, int32_t count,
                                          int64_t stride, int64_t n, int how, float factor) {
  int64_t i = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  if (i >= n) return;
  float x = in[i];
  for (int32_t r = 1; r < count; r++) {
    float y = in[r * stride + i];
    x = how != PYR_MAX ? x + y : y <= x ? x : y;
  }
  out[i] = x * factor;
}

/* A mean is a sum times scale / count, one product for both. */
static pyr_status cuda_reduce_rows(pyr_backend *be, float *out, const float *in, int32_t count,
                                   int64_t stride, int64_t n, pyr_reduce how, float scale) {
  if (n <= 0) return PYR_OK;
  float factor = how == PYR_MEAN ? scale / static_cast<float>(count) : scale;
  PYR_LAUNCH(reduce_rows_kernel, blocks_of(n), THREADS, 0, cuda_of(be), out, in, count, stride, n,
             static_cast<int>(how), factor);
  return cuda_launched(be, "reduce_rows");
}

/* ---- pool ------------------------------------------------------------------------------------ */

/* A thread for an output, its window from left to right: the mean (how = 0) or the maximum of up to
 * 2 half + 1 values; at the ends the window is cut. Of 1 5 2 with half = 1: means 3, 2.67, 3.5;
 * maxima 5 5 5. Not in place: neighbours read what it would write. */
static __global__ void pool_kernel(float *out, const float *in, int64_t n, int64_t half, int how) {
  int64_t i = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  if (i >= n) return;
  int64_t low = i > half ? i - half : 0, high = i + half + 1 < n ? i + half + 1 : n;
  float x = in[low];
  for (int64_t j = low + 1; j < high; j++) x = how == 0 ? x + in[j] : in[j] <= x ? x : in[j];
  out[i] = how == 0 ? x / static_cast<float>(high - low) : x;
}

/* The width is odd, so that a window has a middle: half before it, half behind. */
static pyr_status cuda_pool(pyr_backend *be, float *out, const float *in, int64_t n, int32_t width,
                            pyr_pooling how) {
  if (width < 1 || width % 2 == 0) return cuda_refuse(be, "pool", "the width is not odd");
  if (n <= 0) return PYR_OK;
  PYR_LAUNCH(pool_kernel, blocks_of(n), THREADS, 0, cuda_of(be), out, in, n,
             static_cast<int64_t>(width / 2), how);
  return cuda_launched(be, "pool");
}

/* ---- normalize, softmax ---------------------------------------------------------------------- */

/* Whole vectors are one block's, of as many threads as there are: a few thousand values are a few
 * each. */
static constexpr int WHOLE = 1024;

/* One block: x over its sum, in double precision; a zero sum leaves x. */
static __global__ void normalize_kernel(float *x, int64_t n) {
  __shared__ double parts[WARP];
  double sum = 0;
  for (int64_t i = threadIdx.x; i < n; i += blockDim.x) sum += x[i];
  sum = block_sum(sum, parts);
  if (sum != 0)
    for (int64_t i = threadIdx.x; i < n; i += blockDim.x) x[i] = static_cast<float>(x[i] / sum);
}

/* In place: 1 3 4 become .125 .375 .5. */
static pyr_status cuda_normalize(pyr_backend *be, float *x, int64_t n) {
  if (n <= 0) return PYR_OK;
  PYR_LAUNCH(normalize_kernel, 1, WHOLE, 0, cuda_of(be), x, n);
  return cuda_launched(be, "normalize");
}

/* One block: the sum of all, in double precision, or the highest, in the place of each: 1 2 5
 * become 8 8 8, or 5 5 5. The sum is taken for a maximum, too: where it is NaN while the highest is
 * a number, one of the values was NaN, or infinities of both signs were, and the result is NaN. */
static __global__ void total_kernel(float *x, int64_t n, bool max) {
  __shared__ double parts[WARP];
  __shared__ float tops[WARP];
  double sum = 0;
  float top = -INFINITY;
  for (int64_t i = threadIdx.x; i < n; i += blockDim.x) {
    sum += x[i];
    if (x[i] > top) top = x[i];
  }
  sum = block_sum(sum, parts);
  if (max) {
    top = block_max(top, tops);
    sum = sum != sum ? sum : static_cast<double>(top);
  }
  for (int64_t i = threadIdx.x; i < n; i += blockDim.x) x[i] = static_cast<float>(sum);
}

static pyr_status cuda_total(pyr_backend *be, float *x, int64_t n, pyr_reduce how) {
  if (n <= 0) return PYR_OK;
  PYR_LAUNCH(total_kernel, 1, WHOLE, 0, cuda_of(be), x, n, how == PYR_MAX);
  return cuda_launched(be, "total");
}

/* A thread for a value. Comparisons ask for what is to be changed, so that NaN stays:
 *
 *     x          0       .25     4
 *     logarithm  -87.3   -1.39   1.39
 *     power .5   0       .5      2
 *     above .25  0       0       1
 *
 * Both functions are the accurate ones, not the fast intrinsics: what is equal stays equal, so that
 * ties go where they go on the host. */
static __global__ void map_kernel(float *x, int64_t n, int how, float value) {
  int64_t i = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  if (i >= n) return;
  float y = x[i];
  if (how == PYR_MAP_LOG) y = logf(y < FLT_MIN ? FLT_MIN : y);
  else if (how == PYR_MAP_POWER) y = y <= 0 ? 0.0f : powf(y, value);
  else y = y > value ? 1.0f : 0.0f;
  x[i] = y;
}

static pyr_status cuda_map(pyr_backend *be, float *x, int64_t n, pyr_mapping how, float value) {
  if (n <= 0) return PYR_OK;
  PYR_LAUNCH(map_kernel, blocks_of(n), THREADS, 0, cuda_of(be), x, n, static_cast<int>(how),
             value);
  return cuda_launched(be, "map");
}

/* One block: exp(x - top) over their sum. Each thread has every 1,024th value, and what it writes
 * only it reads: the barriers are those of the block's sums. If all are -inf, top is 0. */
static __global__ void softmax_kernel(float *x, int64_t n) {
  __shared__ float parts[WARP];
  float top = -INFINITY, sum = 0;
  for (int64_t i = threadIdx.x; i < n; i += blockDim.x) top = fmaxf(top, x[i]);
  top = block_max(top, parts);
  if (top == -INFINITY) top = 0;
  for (int64_t i = threadIdx.x; i < n; i += blockDim.x) sum += x[i] = expf(x[i] - top);
  sum = block_sum(sum, parts);
  for (int64_t i = threadIdx.x; i < n; i += blockDim.x) x[i] /= sum;
}

static pyr_status cuda_softmax(pyr_backend *be, float *x, int64_t n) {
  if (n <= 0) return PYR_OK;
  PYR_LAUNCH(softmax_kernel, 1, WHOLE, 0, cuda_of(be), x, n);
  return cuda_launched(be, "softmax");
}

/* ---- chunk ----------------------------------------------------------------------------------- */

/* A warp for a run: each value becomes the run's mean, in double precision. 1 2 6 4 with a width of
 * 3 become 3 3 3 4: the last run may be short. */
static __global__ void chunk_kernel(float *x, int64_t n, int64_t width) {
  int64_t run = static_cast<int64_t>(blockIdx.x) * (blockDim.x / WARP) + warp_of_block(),
      at = run * width;
  int64_t some = at >= n ? 0 : at + width < n ? width : n - at;
  double sum = 0;
  for (int64_t i = lane_of_warp(); i < some; i += WARP) sum += x[at + i];
  sum = warp_sum(sum);
  for (int64_t i = lane_of_warp(); i < some; i += WARP)
    x[at + i] = static_cast<float>(sum / static_cast<double>(some));
}

/* A width beyond n is n: one run. */
static pyr_status cuda_chunk(pyr_backend *be, float *x, int64_t n, int64_t width) {
  if (width < 1) return cuda_refuse(be, "chunk", "runs of less than one value");
  if (n <= 0) return PYR_OK;
  int64_t runs = ceil_div(n, width < n ? width : n);
  PYR_LAUNCH(chunk_kernel, static_cast<unsigned>(ceil_div(runs, THREADS / WARP)), THREADS, 0,
             cuda_of(be), x, n, width < n ? width : n);
  return cuda_launched(be, "chunk");
}

/* ---- standardize ----------------------------------------------------------------------------- */

/* One block: the mean, then the deviation from it, both summed in f64, so that scores that are
 * large beside their differences keep these. 1 2 3: the mean is 2, the variance 2/3, and what comes
 * out -1.22 0 1.22. Equal values have a deviation of 0, which counts as 1e-6: they become 0. The
 * barriers of block_sum stand between the passes. */
static __global__ void standardize_kernel(float *x, int64_t n) {
  __shared__ double parts[WARP];
  double sum = 0, squares = 0;
  for (int64_t i = threadIdx.x; i < n; i += THREADS) sum += x[i];
  double mean = block_sum(sum, parts) / static_cast<double>(n);
  for (int64_t i = threadIdx.x; i < n; i += THREADS) squares += (x[i] - mean) * (x[i] - mean);
  double deviation = sqrt(block_sum(squares, parts) / static_cast<double>(n));
  deviation = deviation < 1e-6 ? 1e-6 : deviation;
  for (int64_t i = threadIdx.x; i < n; i += THREADS)
    x[i] = static_cast<float>((x[i] - mean) / deviation);
}

static pyr_status cuda_standardize(pyr_backend *be, float *x, int64_t n) {
  if (n <= 0) return PYR_OK;
  PYR_LAUNCH(standardize_kernel, 1, THREADS, 0, cuda_of(be), x, n);
  return cuda_launched(be, "standardize");
}

void cuda_scores_fill(pyr_backend *be) {
  be->standardize = cuda_standardize;
  be->reduce_rows = cuda_reduce_rows;
  be->pool = cuda_pool;
  be->normalize = cuda_normalize;
  be->softmax = cuda_softmax;
  be->total = cuda_total;
  be->map = cuda_map;
  be->chunk = cuda_chunk;
}

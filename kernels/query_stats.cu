/* query_stats.cu — mean and covariance of the prompt's queries before RoPE (Expected Attention):
 * moments, moments_end. As in core/cpu/signals.c: queries arrive turned and are turned back; sums
 * are of what remains after `shift`.
 *
 *     sum = S (q - shift),  outer = S (q - shift)(q - shift)^T;   then, of the n queries added,
 *     sum <- scale R (sum/n + shift), outer <- scale^2/2 R (outer/n - sum sum^T/n^2) R^T, R the
 *     mean of rotations to come
 *
 * Every sum runs over queries in their order.
 *
 * Shared memory of moments_kernel: 16 queries as f32, 64 d bytes. A block has 16 rows of `outer`, a
 * thread one column of it (two where d > 256), in registers: 16 or 32 sums. Each query costs a head
 * 2 d^2 operations; a tile of queries is read d / 16 times, which L2 serves. `shift`, the mean of
 * the first queries, keeps sums near 0: of numbers near 100 whose spread is 1, squares would leave
 * f32 three digits. */
#include "convert.cuh"

static constexpr int THREADS = 256, QUERIES = 16, STRIP = 16, MOST_DIMS = 512,
    COLUMNS = MOST_DIMS / THREADS;

struct moment_args {
  pyr_moments m;
  const float *q;                  /* [n, heads, head_dim] */
  const int32_t *q_pos;
  int64_t n;
  int pairs, step, other;  /* values from pair to pair, and from a pair's first to its second */
};

/* How pairs of RoPE lie: values 3 and 35 of 64 (halves), or 6 and 7. */
static moment_args args_of(const pyr_moments *m, const float *q, const int32_t *q_pos, int64_t n) {
  bool half = m->style == PYR_ROPE_HALF;
  return moment_args{ *m, q, q_pos, n, m->dims / 2, half ? 1 : 2, half ? m->dims / 2 : 1 };
}

/* ---- adding ---------------------------------------------------------------------------------- */

/* A thread for a query and a pair: the cosine and sine of its angle, over the gain. They serve all
 * heads. */
static __global__ void turns_kernel(moment_args a) {
  int64_t at = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  if (at >= a.n * a.pairs) return;
  int64_t i = at / a.pairs, p = at % a.pairs;
  float angle = __fmul_rn(static_cast<float>(a.q_pos[i]), a.m.freq[p]);
  a.m.turns[i * a.m.dims + p] = cosf(angle) / a.m.gain;
  a.m.turns[i * a.m.dims + a.pairs + p] = sinf(angle) / a.m.gain;
}

/* Value c of query i of a head as it was before RoPE: (a, b) becomes (a cos + b sin, b cos - a
 * sin). */
static __device__ __forceinline__ float turned_back(const moment_args &a, int64_t i, int64_t head,
                                                    int c) {
  const float *q = a.q + (i * a.m.heads + head) * a.m.head_dim, *turn = a.m.turns + i * a.m.dims;
  if (c >= a.m.dims) return q[c];
  bool half = a.step == 1, second = half ? c >= a.pairs : c % 2 == 1;
  int p = half ? c % a.pairs : c / 2;
  float x = q[p * a.step], y = q[p * a.step + a.other], co = turn[p], si = turn[a.pairs + p];
  return second ? y * co - x * si : x * co + y * si;
}

/* A block for a head: shift becomes the mean of the first queries, the sums 0. A thread for a
 * dimension, so that its sum runs over queries in their order. */
static __global__ void shift_kernel(moment_args a) {
  int64_t head = blockIdx.x, d = a.m.head_dim;
  for (int c = static_cast<int>(threadIdx.x); c < d; c += THREADS) {
    float sum = 0;
    for (int64_t i = 0; i < a.n; i++) sum += turned_back(a, i, head, c);
    a.m.shift[head * d + c] = sum / static_cast<float>(a.n);
    a.m.sum[head * d + c] = 0;
  }
  for (int64_t i = threadIdx.x; a.m.outer && i < d * d; i += THREADS)
    a.m.outer[head * d * d + i] = 0;
}

/* Grid: strips of STRIP rows of `outer`, heads. A thread has columns of it; QUERIES queries at a
 * time lie in shared memory. The first strip's block adds to `sum`. Before each tile: outer and sum
 * are of queries before `at`. The barriers: all have used the last tile; this one is whole. */
static __global__ void __launch_bounds__(THREADS) moments_kernel(moment_args a) {
  PYR_SHARED(float, tile);                           /* [QUERIES][d] */
  int64_t head = blockIdx.y;
  int d = a.m.head_dim, first = static_cast<int>(blockIdx.x) * STRIP;
  float outer[STRIP][COLUMNS] = {}, sum[COLUMNS] = {};
  for (int64_t at = 0; at < a.n; at += QUERIES) {
    int some = a.n - at < QUERIES ? static_cast<int>(a.n - at) : QUERIES;
    __syncthreads();
    for (int i = static_cast<int>(threadIdx.x); i < some * d; i += THREADS)
      tile[i] = turned_back(a, at + i / d, head, i % d) - a.m.shift[head * d + i % d];
    __syncthreads();
    for (int q = 0; q < some; q++)
#pragma unroll
      for (int u = 0; u < COLUMNS; u++) {
        int c = static_cast<int>(threadIdx.x) + u * THREADS;
        if (c >= d) continue;
        float x = tile[q * d + c];
        sum[u] += x;
#pragma unroll
        for (int r = 0; r < STRIP; r++)
          if (a.m.outer && first + r < d) outer[r][u] += tile[q * d + first + r] * x;
      }
  }
#pragma unroll
  for (int u = 0; u < COLUMNS; u++) {
    int c = static_cast<int>(threadIdx.x) + u * THREADS;
    if (c >= d) continue;
    if (first == 0) a.m.sum[head * d + c] += sum[u];
#pragma unroll
    for (int r = 0; r < STRIP; r++)
      if (a.m.outer && first + r < d) a.m.outer[(head * d + first + r) * d + c] += outer[r][u];
  }
}

/* Three launches at the first call, two at later ones: turns, shift, sums, each of which needs all
 * of the one before. */
static pyr_status cuda_moments(pyr_backend *be, const pyr_moments *m, const float *q,
                               const int32_t *q_pos, int64_t n, bool begin) {
  moment_args a = args_of(m, q, q_pos, n);
  pyr_cuda *cuda = cuda_of(be);
  unsigned heads = static_cast<unsigned>(m->heads),
      strips = m->outer ? static_cast<unsigned>(ceil_div(m->head_dim, STRIP)) : 1;
  if (n <= 0) return PYR_OK;
  if (m->head_dim > MOST_DIMS)
    return cuda_refuse(be, "moments", "heads of more than 512 dimensions");
  if (a.pairs > 0)                                   /* none: heads that do not turn */
    PYR_LAUNCH(turns_kernel, static_cast<unsigned>(ceil_div(n * a.pairs, THREADS)), THREADS, 0,
               cuda, a);
  if (begin) PYR_LAUNCH(shift_kernel, heads, THREADS, 0, cuda, a);
  PYR_LAUNCH(moments_kernel, dim3(strips, heads), THREADS,
             static_cast<size_t>(QUERIES * m->head_dim) * sizeof(float), cuda, a);
  return cuda_launched(be, "moments");
}

/* ---- the end --------------------------------------------------------------------------------- */

/* A thread for a pair: the mean of the rotations to come, at positions next to next + future - 1,
 * in double precision. Of a pair that turns fast they cancel, and its part of the mean fades to 0;
 * of a slow one they are nearly alike, and it stays: (cos 0 + cos pi) / 2 = 0, (cos 0 + cos .1) / 2
 * = .998. */
static __global__ void mean_turns_kernel(moment_args a, int64_t next, int64_t future) {
  int p = static_cast<int>(blockIdx.x * blockDim.x + threadIdx.x);
  if (p >= a.pairs) return;
  double co = 0, si = 0;
  for (int64_t t = 0; t < future; t++) {
    float angle = __fmul_rn(static_cast<float>(next + t), a.m.freq[p]);
    co += cosf(angle), si += sinf(angle);
  }
  a.m.turns[p] = static_cast<float>(co / static_cast<double>(future)) * a.m.gain;
  a.m.turns[a.pairs + p] = static_cast<float>(si / static_cast<double>(future)) * a.m.gain;
}

/* Turns a pair of a vector whose values are `each` floats apart: 1 in a row, d in a column. */
static __device__ __forceinline__ void turn_pair(const moment_args &a, float *x, int64_t each,
                                                 int p) {
  float *first = x + p * a.step * each, *second = first + a.other * each, was = *first;
  float co = a.m.turns[p], si = a.m.turns[a.pairs + p];
  *first = co * was - si * *second;
  *second = si * was + co * *second;
}

/* A block for a head, in five steps, a barrier between any two:
 *
 *     sum <- sum / n
 *     outer <- (outer / n - sum sum^T) scale^2 / 2       the covariance; needs sum as it is now
 *     sum <- (sum + shift) scale                         the mean
 *     sum <- R sum, and each row of outer likewise       outer R^T
 *     each column of outer                               R outer R^T
 *
 * A thread turns one pair of one vector at a time, so that nobody else reads what it writes. */
static __global__ void end_kernel(moment_args a, int64_t queries, float scale) {
  int64_t head = blockIdx.x, d = a.m.head_dim, count = d * d;
  float *sum = a.m.sum + head * d, *outer = a.m.outer ? a.m.outer + head * count : nullptr,
      n = static_cast<float>(queries);
  const float *shift = a.m.shift + head * d;
  for (int64_t i = threadIdx.x; i < d; i += THREADS) sum[i] = queries ? sum[i] / n : 0.0f;
  __syncthreads();
  for (int64_t i = threadIdx.x; outer && i < count; i += THREADS)
    outer[i] = queries ? (outer[i] / n - sum[i / d] * sum[i % d]) * 0.5f * scale * scale : 0.0f;
  if (queries == 0) return;
  __syncthreads();
  for (int64_t i = threadIdx.x; i < d; i += THREADS) sum[i] = (sum[i] + shift[i]) * scale;
  __syncthreads();
  for (int p = static_cast<int>(threadIdx.x); p < a.pairs; p += THREADS) turn_pair(a, sum, 1, p);
  for (int64_t i = threadIdx.x; outer && i < d * a.pairs; i += THREADS)
    turn_pair(a, outer + i / a.pairs * d, 1, static_cast<int>(i % a.pairs));
  __syncthreads();
  for (int64_t i = threadIdx.x; outer && i < d * a.pairs; i += THREADS)
    turn_pair(a, outer + i % d, d, static_cast<int>(i / d));
}

static pyr_status cuda_moments_end(pyr_backend *be, const pyr_moments *m, int64_t count,
                                   int64_t next, int64_t future, float scale) {
  moment_args a = args_of(m, nullptr, nullptr, 0);
  pyr_cuda *cuda = cuda_of(be);
  if (a.pairs > 0)
    PYR_LAUNCH(mean_turns_kernel, static_cast<unsigned>(ceil_div(a.pairs, THREADS)), THREADS, 0,
               cuda, a, next, future);
  PYR_LAUNCH(end_kernel, static_cast<unsigned>(m->heads), THREADS, 0, cuda, a, count, scale);
  return cuda_launched(be, "moments_end");
}

void cuda_moments_fill(pyr_backend *be) {
  be->moments = cuda_moments;
  be->moments_end = cuda_moments_end;
}

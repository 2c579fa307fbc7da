/* linear.cuh — what the kernels of matrix products share: the description of a call, and how an
 * output is written.
 *
 * Who does what: linear.cu is the operation, and holds the kernels for many tokens; linear_few.cu
 * has those for few, and says which is taken; linear_packs.cu has that for weights in packs. */
#ifndef PYR_CUDA_LINEAR_CUH
#define PYR_CUDA_LINEAR_CUH

#include "pack.cuh"

/* One product, or a part of one. out [n][rows], x [n][cols], bias [rows] or NULL: f32. w: rows of
 * `stride` bytes of `dtype`; of packs (pack.cuh), PACK rows to PACK * stride bytes. */
struct linear_call {
  float *out;
  const float *x;
  const uint8_t *w;
  size_t stride;
  int64_t dtype;                     /* or PACKED; as wide as the rest because calls are compared
                                        byte by byte (step.cu) */
  const float *bias;
  int64_t n, rows, cols;
  int64_t add;                       /* to what is there, if not 0 */
};

/* The one place where a sum leaves a kernel: bias first, then what was there, whatever the kernel.
 */
static __device__ __forceinline__ void put_out(const linear_call &c, int64_t token, int64_t row,
                                               float sum) {
  float *out = c.out + token * c.rows + row;
  if (c.bias) sum += c.bias[row];
  *out = c.add ? *out + sum : sum;
}

/* ---- weights that are streamed through tensor cores ------------------------------------------ */

/* A block has 128 rows of w, a warp 32 of them, MT times 16, and walks along the columns, CHUNK by
 * CHUNK; at most so many tokens are columns of the products at once. */
static constexpr int WARPS = 4, MT = 2, STREAM_ROWS = 128, CHUNK = 32, MOST_TOKENS = 32;
static_assert(STREAM_ROWS == WARPS * MT * 16, "a warp has MT times 16 of them");
static_assert(STREAM_ROWS == WARPS * WARP, "a thread for each row of a block adds its parts up");

/* A product of at most 32 tokens. sums: [parts][tokens][rows] f32, of which each part writes its
 * own. */
struct stream_call {
  linear_call c;
  int64_t part_cols;                           /* whole steps of the kernel's */
  float *sums;                                 /* [parts][tokens][rows], if there are several */
  int *arrived;  /* [blocks of rows] parts that are done; 0 again at the end */
};

/* Who has what of 128 rows and 8 tokens at the end: a warp 32 rows, in two times 16 (m), and of
 * those lane 4 g + t
 *
 *               tokens 2t, 2t + 1
 *     row g     sum[n][m][0], [1]
 *     row g+8   sum[n][m][2], [3]
 *
 * The end of a block: its sums of 8 N tokens, as operand c of 16 x 8 x 16 has them, go to out or,
 * if the columns are cut, to scratch. row: the first of the warp's; last: the
 * kernel's shared flag. */
template <int N>
static __device__ __forceinline__ void leave_sums(const stream_call &s,
                                                  const float (&sum)[N][MT][4], int64_t row,
                                                  bool &last) {
  const linear_call &c = s.c;
  int lane = lane_of_warp();
  row += lane / 4;
  bool whole = gridDim.y == 1;
#pragma unroll
  for (int n = 0; n < N; n++)
#pragma unroll
    for (int m = 0; m < MT; m++)
#pragma unroll
      for (int i = 0; i < 4; i++) {
        int64_t token = n * 8 + lane % 4 * 2 + i % 2, to = row + m * 16 + i / 2 * 8;
        if (token >= c.n || to >= c.rows) continue;
        if (whole) put_out(c, token, to, sum[n][m][i]);
        else s.sums[(blockIdx.y * c.n + token) * c.rows + to] = sum[n][m][i];
      }
  if (whole) return;

  /* Parts meet: each has written its sums and counts itself in; who counts last finds all others
   * written, and adds them. Which block that is depends on timing, what it adds does not. For three
   * parts and one block of rows, in some order of arrival:
   *
   *     part 1   writes, arrived 0 -> 1, ends
   *     part 0   writes, arrived 1 -> 2, ends
   *     part 2   writes, arrived 2 -> 3: last; sets arrived to 0; out = part 0 + part 1 + part 2
   *
   * The fences order writes before the count, and the count before the reads; __ldcg reads out of
   * L2, as this multiprocessor's L1 may know those places from before. */
  __threadfence();  /* the sums are seen by whoever sees that this block has arrived */
  __syncthreads();
  if (threadIdx.x == 0) {
    last = atomicAdd(s.arrived + blockIdx.x, 1) == static_cast<int>(gridDim.y) - 1;
    if (last) s.arrived[blockIdx.x] = 0;
  }
  __syncthreads();
  if (!last) return;
  __threadfence();
  int64_t to = static_cast<int64_t>(blockIdx.x) * STREAM_ROWS + threadIdx.x;
  for (int64_t token = 0; token < c.n && to < c.rows; token++) {
    float total = 0;
    for (unsigned part = 0; part < gridDim.y; part++)
      total += __ldcg(s.sums + (part * c.n + token) * c.rows + to);
    put_out(c, token, to, total);
  }
}

/* Any number of tokens; a token's result is the same whatever others there are. Fast for few, and
 * where weights can be streamed through tensor cores. */
pyr_status cuda_linear_few(pyr_backend *be, const linear_call &c);
bool cuda_streams(const linear_call &c);
/* Columns of a step of weights in packs, and launches their kernel (linear_packs.cu). */
int64_t cuda_pack_step(int64_t dtype);
void cuda_launch_packs(pyr_cuda *cuda, const stream_call &s, dim3 grid);
/* Rows [first, first + rows) of c.w, whole packs, as bf16, `ld` values from row to row, a multiple
 * of 4. */
void cuda_unpack(pyr_cuda *cuda, uint16_t *out, int64_t ld, const linear_call &c, int64_t first,
                 int64_t rows);

#endif
